//! Whatever a peer says, with whatever descriptors, in any order.
#![no_main]

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use shmbus::__fuzz::{Ask, Carried, MOVES, Moved, News, Peer, Said, State};
use shmbus::Publishing;

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let mut peer = if u.ratio(1, 8)? {
        Peer::new()
    } else {
        Peer::greeting()
    };
    peer.settle();
    let bus = peer.bus().clone();
    let mut server = bus.server::<Ask>().expect("nobody else does");
    let mut receiver = bus.receiver::<Moved>(MOVES).expect("nobody else does");
    let mut subscriber = bus.subscriber::<News>().expect("there is memory");
    let mut latest = bus.latest::<State>().expect("there is memory");
    let mut publisher = None;
    let mut values = None;
    while !u.is_empty() && !peer.is_dead() {
        match u.int_in_range(0..=15)? {
            0..=8 => peer.say(&Said::choose(u)?),
            9 => {
                let mut bytes = Said::choose(u)?.to_bytes();
                for _ in 0..u.int_in_range(0..=3)? {
                    let at = u.choose_index(bytes.len())?;
                    bytes[at] = u.arbitrary()?;
                }
                peer.send(&bytes, Carried::Nothing);
            }
            10 => peer.send(u.arbitrary()?, Carried::Nothing),
            11 => {
                let len = u.int_in_range(1..=3)? * 4096;
                if peer.segments() < 6 {
                    peer.add_segment(&vec![0; len]);
                }
            }
            12 => drop(peer.answer(Some(u))),
            13 if publisher.is_none() => {
                // Who is there when it begins is waited for, a second perhaps.
                let how = Publishing {
                    history: u.int_in_range(0..=2)?,
                    ..Publishing::default()
                };
                publisher = peer
                    .while_answering(|bus| bus.publisher_as::<News>(how))
                    .ok();
            }
            14 if values.is_none() => {
                values = peer
                    .while_answering(|bus| bus.latest_publisher::<State>())
                    .ok();
            }
            _ => {
                peer.settle();
                if let Some(publisher) = &mut publisher {
                    let text = "x".repeat(u.int_in_range(0..=200)?);
                    let _ = publisher.try_publish(&News {
                        number: 1,
                        text,
                        flag: true,
                    });
                }
                if let Some(values) = &mut values {
                    let _ = values.publish(&State {
                        key: "key".to_owned(),
                        flags: vec![true; 3],
                    });
                }
                drop(server.try_next());
                drop(receiver.try_next());
                drop(subscriber.try_next());
                drop(latest.try_next());
            }
        }
    }
    peer.settle();
    drop((server, receiver, subscriber, latest, publisher, values));
    if u.ratio(1, 2)? {
        peer.hang_up();
    }
    peer.settle();
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let _ = run(&mut Unstructured::new(data));
});
