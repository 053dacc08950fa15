//! Bytes that lie where their receiver will borrow them.

use shmbus::{Bus, Bytes, ShmMessage};

use crate::support::{name, together};

#[derive(ShmMessage, Debug, Clone, PartialEq)]
struct Chunk {
    number: u32,
    content: Bytes,
}

/// The receiver still looks at what was sent.
#[test]
fn what_was_sent_is_copied_before_it_is_changed() {
    let _together = together();
    let bus = Bus::open(&name("bulk")).expect("the bus opens");
    let mut receiver = bus.receiver::<Chunk>("chunks").expect("nobody else does");
    let mut sender = bus.sender::<Chunk>("chunks").expect("it is received");
    const LEN: usize = 600 << 10;
    let mut content = sender.loan_bytes(LEN).expect("there is memory");
    content.fill(7);
    let mut chunk = Chunk { number: 1, content };
    let before = chunk.clone();
    assert_eq!(before, chunk);
    sender.send(&chunk).expect("there is room");
    let got = receiver.next().expect("not forked").expect("it was sent");
    chunk.content[LEN - 1] = 8;
    assert!(got.content.iter().all(|byte| *byte == 7));
    assert_ne!(before, chunk);
    // A value of the receiver's own.
    let value = got.to_value().expect("its fields refuse nothing");
    assert_eq!(value, before);
    drop(got);
    sender.send(&chunk).expect("there is room");
    let got = receiver.next().expect("not forked").expect("it was sent");
    assert_eq!(got.content[LEN - 1], 8);
    assert_eq!(format!("{:?}", Bytes::from(vec![1, 2])), "[1, 2]");
}
