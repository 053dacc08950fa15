//! Peers that are gone, or about to be.

use super::*;
use crate::link::place::Claim;
use crate::link::topics::tests::{Party, Silent, parties};
use crate::link::wire;
use crate::link::{Estate, HANDSHAKE, Line, Until};

/// A process that is killed takes some time to end: others may reach its socket a last time.
#[test]
fn who_is_gone_before_it_is_greeted_is_found_dead() {
    let [Party(node)] = &parties();
    let (ours, theirs) = Socket::pair().unwrap();
    drop(theirs);
    let link = node.adopt(ours).unwrap();
    assert!(link.is_dead() && !link.wait_hello(Instant::now() + HANDSHAKE, Until::Overdue));
    assert!(link.fault().is_none());
    assert_eq!(node.all_links().len(), 0);
    assert_eq!(node.take_incidents(), []);
}

/// Another thread offers ports all the time: that it does so at the right moment once in some thousand is as good as
/// certain.
#[test]
fn nothing_is_said_before_the_greeting() {
    let [party] = &parties();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Relaxed: only how long it goes on.
            while !is_over.load(Ordering::Relaxed) {
                drop(party.0.offer("news", Arc::new(Silent)).unwrap());
            }
        });
        let mut buffer = vec![0; 1 << 17];
        let first = (0..5_000).map(|_| {
            let (ours, theirs) = Socket::pair().unwrap();
            let link = party.0.adopt(ours).unwrap();
            let (n, _) = theirs.receive(&mut buffer).unwrap().unwrap();
            link.die(None);
            wire::decode(&buffer[..n]).unwrap()
        });
        let wrong = first.filter(|first| !matches!(first, Control::Hello { .. }));
        let wrong = wrong.count();
        is_over.store(true, Ordering::Relaxed);
        assert_eq!(wrong, 0);
    });
}

/// Whoever found the fault goes on only when the quiet thread has found the end of the stream.
#[test]
fn a_link_that_is_freed_while_another_thread_ends_it_closes_its_lanes() {
    let [Party(node)] = &parties();
    let (ours, theirs) = Socket::pair().unwrap();
    let link = node.adopt(ours).unwrap();
    let line = Line::new(node.new_sleeper(Waiter::Thread).unwrap());
    let id = link.new_lane(line.clone(), Estate::new());
    link.dead.store(true, Ordering::Release);
    link.free();
    assert!(line.is_closed());
    link.close_lane(id);
    drop(theirs);
}

/// Of one that is killed, the socket may be closed before the kernel frees its locks.
#[test]
fn whose_name_stands_and_who_listens_no_more_is_lost() {
    let [Party(here), Party(there)] = &parties();
    let Reach::Name { place, socket, .. } = there.reach() else {
        unreachable!("it has a name");
    };
    drop(place.listen(socket).unwrap());
    let claim = place.claim("gone", socket, there.origin()).unwrap();
    assert!(matches!(claim, Claim::Ours(_)));
    let owner = here_finds(here, "gone");
    let error = here.link_to(&owner).err();
    assert!(
        matches!(error, Some(ConnectError::Lost { pid, fault: None, .. }) if pid == owner.pid),
        "{error:?}"
    );
}

fn here_finds(node: &Node, port: &str) -> Owner {
    let Reach::Name { place, .. } = node.reach() else {
        unreachable!("it has a name");
    };
    place.find(port).unwrap().unwrap()
}
