//! Peers that are gone, or about to be.

use super::*;
use crate::link::place::Claim;
use crate::link::topics::tests::{Party, parties};
use crate::link::{Estate, Line};

/// A process that is killed takes some time to end: others may reach its socket a last time.
#[test]
fn who_is_gone_before_it_is_greeted_is_found_dead() {
    let [Party(node)] = &parties();
    let (ours, theirs) = Socket::pair().unwrap();
    drop(theirs);
    let link = node.adopt(ours).unwrap();
    assert!(link.is_dead() && !link.wait_hello());
    assert!(link.fault().is_none());
    assert_eq!(node.all_links().len(), 0);
    assert_eq!(node.take_incidents(), []);
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
