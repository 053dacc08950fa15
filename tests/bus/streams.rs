//! One-way messages that their receiver does not take as fast as they come.

use shmbus::{Bytes, Config, SendError, ShmMessage};

use crate::support::{name, together};

#[derive(ShmMessage)]
struct Chunk {
    id: u64,
    content: Bytes,
}

/// A lane that is full of payloads is full, and not out of memory: others need some, too.
#[test]
fn a_stream_of_loans_waits_for_its_receiver() {
    const LEN: usize = 512 << 10;
    let _together = together();
    let config = Config {
        max_message: 1 << 20,
        memory_limit: 64 << 20,
        ..Config::default()
    };
    let bus = config.open(&name("loans")).expect("the bus opens");
    let mut receiver = bus.receiver::<Chunk>("chunks").expect("nobody else does");
    let mut sender = bus.sender::<Chunk>("chunks").expect("a receiver is there");

    let (mut sent, mut taken) = (0, 0);
    for _ in 0..3 {
        loop {
            let mut content = sender.loan_bytes(LEN).expect("there is memory");
            content.fill(sent as u8);
            match sender.try_send(&Chunk { id: sent, content }) {
                Ok(()) => sent += 1,
                Err(SendError::Full) => break,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(sent - taken >= 4, "{sent} are out");
        assert!((sent - taken) as usize * LEN <= config.memory_limit / 8);
        while let Some(chunk) = receiver.try_next().expect("not forked") {
            assert_eq!(chunk.id.to_native(), taken);
            assert!(chunk.content.iter().all(|&byte| byte == taken as u8));
            taken += 1;
        }
        assert_eq!(taken, sent);
    }
}
