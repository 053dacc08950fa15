//! Requests that supersede older ones of their key.

use std::thread;

use shmbus::{CallError, SendError, ShmMessage};

use crate::support::{Watchdog, name, open, together};

#[derive(ShmMessage)]
#[shm(service = "type", stream = Word, reply = Typed, supersedes = "document")]
struct Type {
    document: String,
    keystroke: u32,
}

#[derive(ShmMessage)]
struct Word {
    number: u32,
}

#[derive(ShmMessage, Debug)]
struct Typed {
    keystroke: u32,
}

fn keystroke(document: &str, keystroke: u32) -> Type {
    let document = document.to_owned();
    Type {
        document,
        keystroke,
    }
}

#[test]
fn the_newest_keystroke_of_each_document_is_answered() {
    // As many as the lane has room for before the server takes one.
    const KEYSTROKES: u32 = 30;
    let _together = together();
    let _watch = Watchdog::start("keystrokes");
    let name = name("keystrokes");
    let (here, there) = (open(&name), open(&name));
    let mut server = here.server::<Type>().expect("nobody else serves");
    let client = there.async_client::<Type>().expect("a server is there");
    let requests: Vec<_> = (0..KEYSTROKES)
        .flat_map(|n| ["a.rs", "b.rs"].map(|document| keystroke(document, n)))
        .collect();
    let pending: Vec<_> = requests.iter().map(|r| client.call(r)).collect();
    // Nothing that was superseded is delivered: only the last one of each document is found.
    for document in ["a.rs", "b.rs"] {
        let call = server.next().expect("no fork").expect("it goes on");
        assert_eq!(call.document, document);
        assert_eq!(call.keystroke, KEYSTROKES - 1);
        let typed = Typed {
            keystroke: KEYSTROKES - 1,
        };
        call.reply(&typed).expect("there is room");
    }
    assert!(server.try_next().expect("no fork").is_none());
    let (mut answered, mut superseded) = (0, 0);
    for pending in pending {
        match pending.wait() {
            Ok(typed) => {
                assert_eq!(typed.keystroke, KEYSTROKES - 1);
                answered += 1;
            }
            Err(CallError::Superseded) => superseded += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((answered, superseded), (2, 2 * KEYSTROKES - 2));
}

#[test]
fn what_is_answered_already_is_superseded_too_and_all_goes_back() {
    let _together = together();
    let _watch = Watchdog::start("superseded");
    let name = name("superseded");
    let (here, there) = (open(&name), open(&name));
    let mut server = here.server::<Type>().expect("nobody else serves");
    let client = there.async_client::<Type>().expect("a server is there");
    // More often than there are tags and cells.
    for n in 0..3_000 {
        let (first, second) = (keystroke("a", n), keystroke("a", n + 1));
        let older = client.call(&first);
        if n % 2 == 0 {
            let call = server.next().expect("no fork").expect("it goes on");
            call.reply(&Typed { keystroke: n }).expect("there is room");
        }
        let newer = client.call(&second);
        let call = server.next().expect("no fork").expect("it goes on");
        assert_eq!(call.keystroke, n + 1);
        let typed = Typed { keystroke: n + 1 };
        call.reply(&typed).expect("there is room");
        assert!(matches!(older.wait(), Err(CallError::Superseded)));
        assert_eq!(newer.wait().expect("it is answered").keystroke, n + 1);
    }
}

#[test]
fn a_newer_stream_ends_the_older_one_of_its_key_alone() {
    let _together = together();
    let _watch = Watchdog::start("streams of a key");
    let name = name("streams-of-a-key");
    let (here, there) = (open(&name), open(&name));
    let mut server = here.server::<Type>().expect("nobody else serves");
    let serving = thread::spawn(move || {
        let mut cancelled = 0;
        while let Some(call) = server.next().expect("no fork") {
            let keystroke = call.keystroke.to_native();
            let sent = (0..2).try_for_each(|number| call.send(&Word { number }));
            let wanted = call.document == "other" || keystroke % 3 == 2;
            // Waits for its cancel where one will come.
            let ended = sent.and_then(|()| match wanted {
                true => Ok(()),
                false => (2..).try_for_each(|number| call.send(&Word { number })),
            });
            match ended {
                Ok(()) => call.reply(&Typed { keystroke }).expect("there is room"),
                Err(SendError::Cancelled) => cancelled += 1,
                Err(error) => panic!("{error}"),
            }
        }
        cancelled
    });
    let client = there.client::<Type>().expect("a server is there");
    for n in 0..200 {
        let mut first = client.stream(&keystroke("a", 3 * n)).expect("room");
        assert_eq!(first.next().expect("an item").expect("an item").number, 0);
        let mut second = client.stream(&keystroke("a", 3 * n + 1)).expect("room");
        assert!(matches!(first.next(), Some(Err(CallError::Superseded))));
        assert!(first.next().is_none());
        assert_eq!(second.next().expect("an item").expect("an item").number, 0);
        // A call supersedes streams, too.
        let items = client.stream(&keystroke("a", 3 * n + 2)).expect("room");
        let other = client.stream(&keystroke("other", n)).expect("room");
        assert!(matches!(second.finish(), Err(CallError::Superseded)));
        assert_eq!(other.finish().expect("it is another").keystroke, n);
        assert_eq!(items.finish().expect("the newest").keystroke, 3 * n + 2);
    }
    drop(client);
    here.close();
    assert_eq!(serving.join().expect("the server does not panic"), 400);
}
