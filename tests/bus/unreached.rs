//! Topics where memory is short, or a subscriber cannot be reached at once.
//!
//! Unsafe code is needed for a waker that does something when it is kept.
#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, RawWaker, RawWakerVTable, Waker};
use std::thread;
use std::time::Duration;

use shmbus::{Bulk, Config, Delivery, Publishing, ReceiveError, SendError, ShmMessage};

use crate::support::{name, open, poll, together};
use crate::topics::LOSSY;

#[derive(ShmMessage)]
#[shm(topic = "pages")]
struct Page {
    number: u64,
    values: Bulk<u8>,
}

fn page(number: u64, len: usize) -> Page {
    let values = Bulk::from(vec![number as u8; len]);
    Page { number, values }
}

fn small(memory_limit: usize) -> Config {
    Config {
        memory_limit,
        max_message: 256 << 10,
        ..Config::default()
    }
}

#[test]
fn a_history_of_large_messages_takes_no_more_than_its_part() {
    let _together = together();
    let bus = small(16 << 20)
        .open(&name("long-history"))
        .expect("it opens");
    for delivery in [Delivery::Reliable, Delivery::Lossy] {
        let how = Publishing {
            delivery,
            history: 256,
        };
        let mut publisher = bus.publisher_as::<Page>(how).expect("it joins");
        for number in 0..300 {
            publisher.publish(&page(number, 200_000)).expect("memory");
        }
        let mut subscriber = bus.subscriber::<Page>().expect("it joins");
        let first = subscriber.next().expect("nothing is missed");
        let first = first.expect("the bus is open").number.to_native();
        assert!((201..300).contains(&first), "the newest that fit: {first}");
        for number in first + 1..600 {
            if number >= 300 {
                publisher.publish(&page(number, 200_000)).expect("memory");
            }
            let page = subscriber.next().expect("nothing is missed");
            let page = page.expect("the bus is open");
            assert_eq!(page.number, number);
            assert!(page.values.iter().all(|&value| value == number as u8));
        }
    }
}

/// Views of large messages hold memory up to a bound, which is none of a publisher that does not wait.
#[test]
fn memory_of_messages_returns() {
    #[derive(ShmMessage)]
    #[shm(topic = "images")]
    struct Image {
        number: u64,
        pixels: Bulk<u32>,
    }
    const PIXELS: usize = 100_000;
    let _together = together();
    let config = Config {
        memory_limit: 64 << 20,
        ..Config::default()
    };
    let name = name("images");
    let (here, there) = (config.open(&name).expect("it opens"), open(&name));
    let mut subscriber = there.subscriber::<Image>().expect("it joins");
    let mut other = there.subscriber::<Image>().expect("it joins");
    let mut publisher = here.publisher_as::<Image>(LOSSY).expect("it joins");
    for number in 0..2_000u64 {
        let mut pixels = publisher.loan_slice(PIXELS).expect("there is memory");
        pixels.fill(number as u32);
        publisher
            .publish(&Image { number, pixels })
            .expect("it never waits");
        // One takes each, the other none.
        let image = subscriber.next().expect("nothing is missed");
        let image = image.expect("the bus is open");
        assert_eq!(image.number, number);
        assert_eq!(image.pixels.as_ptr().addr() % 64, 0);
        assert!(image.pixels.iter().all(|pixel| *pixel == number as u32));
    }
    let (taken, _) = here.memory();
    assert!(taken < 40 << 20, "{taken} bytes");
    let mut came = 0;
    let mut missed = 0;
    while came + missed < 2_000 {
        match other.next() {
            Ok(image) => came += u64::from(image.is_some()),
            Err(ReceiveError::Lagged { missed: n, .. }) => missed += n,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(came + missed, 2_000);
    drop((publisher, subscriber, other));
    // The ends of both lanes are on their way.
    while here.memory().1 > 1 << 20 {
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn who_comes_while_there_is_no_memory_joins_when_there_is() {
    let _together = together();
    let name = name("no-memory");
    let bus = small(4 << 20).open(&name).expect("it opens");
    let mut publisher = bus.publisher::<Page>().expect("it joins");
    let mut loans = Vec::new();
    for len in [250_000, 60_000, 1_000] {
        loop {
            match publisher.loan_bytes(len) {
                Ok(loan) => loans.push(loan),
                Err(SendError::Memory(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    let other = open(&name);
    let mut subscriber = other.subscriber::<Page>().expect("it joins");
    assert_eq!(publisher.subscribers(), 0);
    let incidents = bus.take_incidents();
    assert_eq!(incidents.len(), 1, "told once: {incidents:?}");
    drop(loans);
    // Reliable delivery is to whom it reaches: that is tried again every few milliseconds.
    while publisher.subscribers() == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    publisher.publish(&page(1, 1_000)).expect("there is room");
    let page = subscriber.next().expect("nothing is missed");
    assert_eq!(page.expect("the bus is open").number, 1);
}

#[test]
fn what_one_took_with_it_is_told_while_others_publish() {
    let _together = together();
    let bus = open(&name("takes-with-it"));
    let mut subscriber = bus.subscriber::<Page>().expect("it joins");
    let lossy = Publishing {
        delivery: Delivery::Lossy,
        history: 0,
    };
    let mut gone = bus.publisher_as::<Page>(lossy).expect("it joins");
    let mut stays = bus.publisher::<Page>().expect("it joins");
    const SENT: u64 = 100_000;
    for number in 0..SENT {
        gone.publish(&page(number, 0)).expect("it never waits");
    }
    drop(gone);
    let (mut received, mut missed) = (0, 0);
    // There is always one more message of the other.
    for number in SENT..3 * SENT {
        // Where its lane is full there is one more, too.
        match stays.try_publish(&page(number, 0)) {
            Ok(()) | Err(SendError::Full) => {}
            Err(error) => panic!("{error}"),
        }
        match subscriber.next() {
            Ok(page) => received += u64::from(page.expect("the bus is open").number < SENT),
            Err(ReceiveError::Lagged { missed: more, .. }) => missed += more,
            Err(error) => panic!("{error}"),
        }
        if received + missed == SENT {
            return;
        }
    }
    panic!("{received} received and {missed} missed of {SENT}");
}

/// A message that nobody got is filled anew where it lies.
#[test]
fn a_loan_stays_in_place_where_there_is_no_room() {
    let _together = together();
    let name = name("loan-without-room");
    let (here, there) = (open(&name), open(&name));
    for subscribers in [1, 3] {
        let subscribe = |_| there.subscriber::<Page>().expect("it joins");
        let mut subscribers: Vec<_> = (0..subscribers).map(subscribe).collect();
        let mut publisher = here.publisher::<Page>().expect("it joins");
        let mut last = 0;
        while publisher.try_publish(&page(last, 0)).is_ok() {
            last += 1;
        }
        let values = publisher.loan_bytes(10_000).expect("there is memory");
        let mut page = Page {
            number: last,
            values,
        };
        let soon = Duration::from_millis(2);
        for turn in 1..10u8 {
            assert!(page.values.is_in_place(), "{turn}");
            page.values.fill(turn);
            let full = match turn % 3 {
                0 => publisher.try_publish(&page),
                1 => publisher.publish_timeout(&page, soon),
                _ => {
                    let mut publishing = publisher.publish_async(&page);
                    assert!(poll(&mut publishing, Waker::noop()).is_pending());
                    continue;
                }
            };
            assert!(matches!(full, Err(SendError::Full)), "{full:?}");
        }
        let mut publishing = publisher.publish_async(&page);
        assert!(poll(&mut publishing, Waker::noop()).is_pending());
        for subscriber in &mut subscribers {
            for number in 0..last {
                let page = subscriber.next().expect("nothing is missed");
                assert_eq!(page.expect("the bus is open").number, number);
            }
            assert!(subscriber.try_next().expect("nothing is missed").is_none());
        }
        let published = poll(&mut publishing, Waker::noop());
        assert!(matches!(published, Poll::Ready(Ok(()))), "there is room");
        drop(publishing);
        assert!(!page.values.is_in_place(), "it is read from now on");
        for subscriber in &mut subscribers {
            let page = subscriber.next().expect("nothing is missed");
            let page = page.expect("the bus is open");
            assert!(page.values.iter().all(|byte| *byte == 9));
        }
    }
}

/// Does something when its waker is kept for the first time, and counts how often it is woken.
struct Hooked {
    on_keep: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    woken: AtomicUsize,
}

impl Hooked {
    const TABLE: RawWakerVTable = RawWakerVTable::new(
        Hooked::keep,
        Hooked::wake,
        Hooked::wake_by_ref,
        Hooked::drop,
    );

    fn new(on_keep: impl FnOnce() + Send + 'static) -> Arc<Hooked> {
        Arc::new(Hooked {
            on_keep: Mutex::new(Some(Box::new(on_keep))),
            woken: AtomicUsize::new(0),
        })
    }

    fn raw(self: Arc<Self>) -> RawWaker {
        RawWaker::new(Arc::into_raw(self).cast(), &Hooked::TABLE)
    }

    fn waker(self: Arc<Self>) -> Waker {
        // SAFETY: the functions of the table take what `raw` made of an `Arc`, count as it does, and what it
        // holds may be used by any thread.
        unsafe { Waker::from_raw(self.raw()) }
    }

    fn keep(this: *const ()) -> RawWaker {
        // SAFETY: `raw` made it of an `Arc`, of which one is still counted for the waker that is cloned.
        let this = ManuallyDrop::new(unsafe { Arc::from_raw(this.cast::<Hooked>()) });
        let on_keep = this.on_keep.lock().expect("nobody panics").take();
        if let Some(on_keep) = on_keep {
            on_keep();
        }
        Arc::clone(&this).raw()
    }

    fn wake(this: *const ()) {
        Hooked::wake_by_ref(this);
        Hooked::drop(this);
    }

    fn wake_by_ref(this: *const ()) {
        // SAFETY: as in `keep`.
        let this = ManuallyDrop::new(unsafe { Arc::from_raw(this.cast::<Hooked>()) });
        this.woken.fetch_add(1, Ordering::Relaxed);
    }

    fn drop(this: *const ()) {
        // SAFETY: as in `keep`; the waker for which it was counted is gone.
        drop(unsafe { Arc::from_raw(this.cast::<Hooked>()) });
    }
}

/// A message waits for memory, which comes back; and then a lane is full that nobody has asked for room.
#[test]
fn who_waits_for_memory_and_then_for_room_is_woken() {
    let _together = together();
    let name = name("memory-then-room");
    let (here, there) = (small(4 << 20).open(&name).expect("it opens"), open(&name));
    let mut holds = there.subscriber::<Page>().expect("it joins");
    let mut lags = there.subscriber::<Page>().expect("it joins");
    let mut publisher = here.publisher::<Page>().expect("it joins");
    publisher.publish(&page(0, 200_000)).expect("memory");
    let first = holds.next().expect("nothing is missed");
    let first = first.expect("the bus is open").keep();
    assert!(lags.next().expect("nothing is missed").is_some());
    let mut sent = 0;
    while publisher.try_publish(&page(sent, 0)).is_ok() {
        assert!(holds.next().expect("nothing is missed").is_some());
        sent += 1;
    }
    let mut loans = Vec::new();
    for len in [250_000, 60_000, 1_000] {
        while let Ok(loan) = publisher.loan_bytes(len) {
            loans.push(loan);
        }
    }
    // What it holds comes back when it has looked for that, and has not asked to be told of it yet.
    let hooked = Hooked::new(move || drop(first));
    let waker = hooked.clone().waker();
    let last = page(sent, 200_000);
    let mut publishing = publisher.publish_async(&last);
    assert!(poll(&mut publishing, &waker).is_pending());
    let on_keep = hooked.on_keep.lock().expect("nobody panics").take();
    assert!(on_keep.is_none(), "it waited for memory");
    for _ in 0..sent {
        assert!(lags.next().expect("nothing is missed").is_some());
    }
    assert!(lags.try_next().expect("nothing is missed").is_none());
    while hooked.woken.load(Ordering::Relaxed) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(matches!(poll(&mut publishing, &waker), Poll::Ready(Ok(()))));
    for subscriber in [&mut holds, &mut lags] {
        let page = subscriber.next().expect("nothing is missed");
        assert_eq!(page.expect("the bus is open").number, sent);
    }
}
