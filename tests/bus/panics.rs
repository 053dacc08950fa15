//! Handlers, values and wakers that panic.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use shmbus::rkyv::rancor::Fallible;
use shmbus::rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use shmbus::rkyv::{Archive, Place};
use shmbus::{CallError, Pinned, ShmMessage};

use crate::ends::{Walk, walk};
use crate::pinned::{Document, SIZE, document};
use crate::support::{Answer, Ask, name, open, poll, together};

/// Panics with a text that takes several cells, many at once.
#[test]
fn panics_of_many_words_find_room_while_nobody_takes_them() {
    let _together = together();
    let bus = open(&name("words"));
    let taken = Arc::new(AtomicUsize::new(0));
    let serving = bus.serve::<Walk, _>(1, {
        let taken = taken.clone();
        move |call| {
            taken.fetch_add(1, Ordering::Relaxed);
            panic!("{}{}", "x".repeat(250), call.id)
        }
    });
    let serving = serving.expect("nobody else serves");
    let client = bus.async_client::<Walk>().expect("a server is there");
    let requests: Vec<_> = (0..448).map(|id| walk(id, 0, 0)).collect();
    let mut pending = Vec::new();
    for request in &requests {
        pending.push(client.call(request));
        while taken.load(Ordering::Relaxed) < pending.len() {
            thread::yield_now();
        }
    }
    drop(serving);
    for pending in pending {
        let error = pending.wait().err();
        assert!(
            matches!(error, Some(CallError::Panicked { .. })),
            "{error:?}"
        );
    }
    assert_eq!(bus.take_incidents(), []);
}

/// Panics always.
const UNLUCKY: u32 = 1;

/// Archives a number, or panics: where it is one.
struct Bursting;

impl ArchiveWith<u32> for Bursting {
    type Archived = <u32 as Archive>::Archived;
    type Resolver = ();

    fn resolve_with(number: &u32, (): (), out: Place<Self::Archived>) {
        number.resolve((), out);
    }
}

impl<S: Fallible + ?Sized> SerializeWith<u32, S> for Bursting {
    fn serialize_with(number: &u32, _: &mut S) -> Result<(), S::Error> {
        assert!(*number != UNLUCKY, "it bursts");
        Ok(())
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<<u32 as Archive>::Archived, u32, D> for Bursting {
    fn deserialize_with(number: &<u32 as Archive>::Archived, _: &mut D) -> Result<u32, D::Error> {
        Ok(number.to_native())
    }
}

#[derive(ShmMessage)]
#[shm(service = "burst", reply = Burst)]
struct Blow {
    id: u32,
}

#[derive(ShmMessage)]
struct Burst {
    #[rkyv(with = Bursting)]
    id: u32,
}

/// A pool of one thread goes on.
#[test]
fn an_answer_that_panics_while_it_is_archived_is_told() {
    let _together = together();
    let bus = open(&name("bursts"));
    let serving = bus.serve::<Blow, _>(1, |call| {
        let id = call.id.to_native();
        Ok(Burst { id })
    });
    let serving = serving.expect("nobody else serves");
    let client = bus.client::<Blow>().expect("a server is there");
    for id in [0, 1, 2, 1, 0] {
        match client.call(&Blow { id }).map(|burst| burst.id.to_native()) {
            Ok(answer) => assert!(answer == id && id != 1),
            Err(CallError::Panicked { what, .. }) => assert!(id == 1 && what == "it bursts"),
            Err(error) => panic!("{error}"),
        }
    }
    drop(serving);
}

#[derive(ShmMessage)]
#[shm(service = "burst-with-pin", reply = Laden, error = Empty)]
struct Load {
    id: u32,
}

#[derive(ShmMessage)]
struct Laden {
    document: Option<Pinned<Document>>,
    #[rkyv(with = Bursting)]
    id: u32,
}

#[derive(ShmMessage, Debug)]
struct Empty {
    id: u32,
}

/// Neither kept, nor lent by what is sent next.
#[test]
fn what_panics_while_it_is_archived_leaves_no_pin_behind() {
    let _together = together();
    let bus = open(&name("bursts-with-pin"));
    let serving = bus.serve::<Load, _>(1, {
        let bus = bus.clone();
        move |call| match call.id.to_native() {
            1 => {
                let document = Some(bus.pin(&document(1)).expect("there is memory"));
                Ok(Laden { document, id: 1 })
            }
            2 => Err(Empty { id: 2 }),
            id => Ok(Laden { document: None, id }),
        }
    });
    let serving = serving.expect("nobody else serves");
    let client = bus.client::<Load>().expect("a server is there");
    let other = client.try_clone().expect("a server is there");
    let error = client.call(&Load { id: 1 }).err();
    assert!(
        matches!(error, Some(CallError::Panicked { .. })),
        "{error:?}"
    );
    // The pool's thread is done with the first call when it answers another, on a lane of its own.
    assert_eq!(other.call(&Load { id: 3 }).expect("an answer").id, 3);
    assert!(bus.memory().1 < SIZE, "{:?}", bus.memory());
    let error = client.call(&Load { id: 2 }).err();
    assert!(
        matches!(error, Some(CallError::Service(Empty { id: 2 }))),
        "{error:?}"
    );
    drop((client, other, serving));

    let _receiver = bus.receiver::<Laden>("laden").expect("nobody else does");
    let mut sender = bus.sender::<Laden>("laden").expect("a receiver is there");
    let laden = Laden {
        document: Some(bus.pin(&document(2)).expect("there is memory")),
        id: 1,
    };
    assert!(catch_unwind(AssertUnwindSafe(|| sender.send(&laden))).is_err());
    assert!(catch_unwind(AssertUnwindSafe(|| sender.try_send(&laden))).is_err());
    drop(laden);
    assert!(bus.memory().1 < SIZE, "{:?}", bus.memory());
}

struct Panicking;

impl Wake for Panicking {
    fn wake(self: Arc<Self>) {
        panic!("a waker that panics");
    }
}

/// The quiet thread goes on, and wakes all others.
#[test]
fn a_waker_that_panics_harms_nobody_else() {
    let _together = together();
    let name = name("panicking-waker");
    let (here, there) = (open(&name), open(&name));
    let mut server = here.server::<Ask>().expect("nobody else serves");
    let client = there.async_client::<Ask>().expect("a server is there");
    let waker = Waker::from(Arc::new(Panicking));
    let asks = [Ask::new(1, 0), Ask::new(2, 0)];
    let mut pending = client.call_timeout(&asks[0], Duration::from_millis(5));
    assert!(poll(&mut pending, &waker).is_pending());
    // Its own deadline comes behind that of the waker that panics.
    let late = client
        .call_timeout(&asks[1], Duration::from_millis(20))
        .wait();
    assert!(matches!(late.err(), Some(CallError::TimedOut)));
    let mut pending = client.call(&asks[0]);
    assert!(poll(&mut pending, &waker).is_pending());
    let answering = thread::spawn(move || {
        while let Some(call) = server.next().expect("not forked") {
            let answer = Answer {
                id: call.id.to_native(),
                ..Answer::default()
            };
            call.reply(&answer).expect("it fits");
        }
    });
    assert_eq!(client.call(&asks[1]).wait().expect("it is answered").id, 2);
    assert_eq!(pending.wait().expect("it is answered").id, 1);
    here.close();
    answering.join().expect("no panic");
}

#[test]
fn the_helpers_of_this_file_do_what_they_say() {
    let waker = Waker::from(Arc::new(Panicking));
    assert!(catch_unwind(AssertUnwindSafe(|| waker.wake_by_ref())).is_err());
    let ready = poll(&mut poll_fn(|_| Poll::Ready(3)), &waker);
    assert_eq!(ready, Poll::Ready(3));
}

#[derive(ShmMessage)]
#[shm(service = "drops-badly", reply = DropsBadly)]
struct Drops {
    id: u64,
}

#[derive(ShmMessage)]
struct DropsBadly {
    id: u64,
}

impl Drop for DropsBadly {
    fn drop(&mut self) {
        assert_ne!(self.id, 1, "dropped badly");
    }
}

/// The panic comes behind the answer.
#[test]
fn a_reply_that_panics_when_it_is_dropped_is_one() {
    let _together = together();
    let bus = open(&name("drops-badly"));
    let serving = bus.serve::<Drops, _>(1, |call| {
        let id = call.id.to_native();
        Ok(DropsBadly { id })
    });
    let serving = serving.expect("nobody else serves");
    let client = bus.client::<Drops>().expect("a server is there");
    for id in [0, 1, 2, 1, 3] {
        assert_eq!(client.call(&Drops { id }).expect("an answer").id, id);
    }
    drop(client);
    drop(serving);
    assert_eq!(bus.take_incidents(), []);
}

#[derive(ShmMessage)]
#[shm(topic = "luck")]
struct Luck {
    #[rkyv(with = Bursting)]
    number: u32,
}

/// What panics while it is archived was meant for nobody: none is told that it was lost.
#[test]
fn a_message_that_panics_while_it_is_archived_is_none() {
    let _together = together();
    let bus = open(&name("luck"));
    let mut subscriber = bus.subscriber::<Luck>().expect("it joins");
    let mut publisher = bus.publisher::<Luck>().expect("it joins");
    for number in [3, UNLUCKY, 2] {
        let luck = Luck { number };
        let published = catch_unwind(AssertUnwindSafe(|| publisher.publish(&luck)));
        assert_eq!(published.is_err(), number == UNLUCKY);
    }
    drop(publisher);
    bus.close();
    for number in [3, 2] {
        let luck = subscriber.next().expect("nothing is lost");
        assert_eq!(luck.expect("it was published").number, number);
    }
    assert!(subscriber.next().expect("nothing is lost").is_none());
}
