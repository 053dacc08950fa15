//! Streams that gather their items.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use shmbus::{AsyncItems, Config, ShmMessage, Wait};

use crate::support::{Watchdog, name, open, together};

#[derive(ShmMessage)]
#[shm(service = "gather", stream = Item, reply = End)]
struct Ask {
    items: u32,
}

#[derive(ShmMessage)]
struct Item {
    number: u32,
}

#[derive(ShmMessage)]
struct End {
    items: u32,
}

const HOUR: Duration = Duration::from_secs(3600);

/// Counts how often its task is woken, and wakes the thread that polls it.
struct Counting {
    wakes: AtomicUsize,
    thread: thread::Thread,
}

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
        self.thread.unpark();
    }
}

impl Counting {
    fn new() -> Arc<Counting> {
        Arc::new(Counting {
            wakes: AtomicUsize::new(0),
            thread: thread::current(),
        })
    }

    fn wakes(&self) -> usize {
        self.wakes.load(Ordering::Relaxed)
    }
}

/// The next item as it is now, or `None` where it is to be waited for.
fn poll(items: &mut AsyncItems<Ask>, counting: &Arc<Counting>) -> Option<Option<u32>> {
    let waker = Waker::from(counting.clone());
    match items.poll_next(&mut Context::from_waker(&waker)) {
        Poll::Pending => None,
        Poll::Ready(item) => Some(item.map(|item| item.expect("it goes on").number.to_native())),
    }
}

fn wait(items: &mut AsyncItems<Ask>, counting: &Arc<Counting>) -> Option<u32> {
    loop {
        match poll(items, counting) {
            Some(item) => return item,
            None => thread::park(),
        }
    }
}

#[test]
fn a_reader_is_woken_for_the_first_item_and_for_the_end() {
    const ITEMS: u32 = 20;
    let _together = together();
    let _watch = Watchdog::start("gathering");
    let name = name("gathering");
    let config = Config {
        wait: Wait::Park,
        ..Config::default()
    };
    let here = open(&name);
    let there = config.open(&name).expect("it opens");
    let (go_on, gone_on) = channel();
    let (sent, all_sent) = channel();
    let gone_on = std::sync::Mutex::new(gone_on);
    let serving = here.serve::<Ask, _>(1, move |call| {
        let gone_on = gone_on.lock().expect("nobody panics");
        call.gather(HOUR);
        for number in 0..ITEMS {
            call.try_send(&Item { number }).expect("there is room");
            if number == 0 || number == ITEMS - 1 {
                sent.send(()).expect("the test goes on");
                gone_on.recv().expect("the test goes on");
            }
        }
        Ok(End { items: ITEMS })
    });
    let serving = serving.expect("nobody else serves");
    let client = there.async_client::<Ask>().expect("a server is there");
    let request = Ask { items: ITEMS };
    let items = pollster::block_on(client.stream(&request));
    let mut items = items.expect("there is room");
    let counting = Counting::new();
    assert_eq!(wait(&mut items, &counting), Some(0));
    all_sent.recv().expect("the server goes on");
    assert_eq!(poll(&mut items, &counting), None, "there is nothing yet");
    let woken = counting.wakes();
    go_on.send(()).expect("the server goes on");
    all_sent.recv().expect("the server goes on");
    // All are there, and nobody was told. A wake-up that is wrong would come within this time.
    thread::sleep(Duration::from_millis(30));
    assert_eq!(counting.wakes(), woken);
    go_on.send(()).expect("the server goes on");
    while counting.wakes() == woken {
        thread::park();
    }
    for number in 1..ITEMS {
        assert_eq!(poll(&mut items, &counting), Some(Some(number)));
    }
    assert_eq!(wait(&mut items, &counting), None);
    let end = pollster::block_on(items.finish()).expect("it has ended");
    assert_eq!(end.items, ITEMS);
    drop(serving);
}

#[test]
fn what_was_gathered_comes_at_the_end_of_its_window_or_when_the_lane_is_full() {
    let _together = together();
    let _watch = Watchdog::start("windows");
    let name = name("windows");
    let (here, there) = (open(&name), open(&name));
    let (taken, go_on) = channel();
    let go_on = std::sync::Mutex::new(go_on);
    let serving = here.serve::<Ask, _>(1, move |call| {
        let items = call.items.to_native();
        let go_on = go_on.lock().expect("nobody panics");
        // A few: nothing is sent that could ring for the last of them. Many: nothing else would.
        let is_few = items < 10;
        call.gather(if is_few {
            Duration::from_millis(2)
        } else {
            HOUR
        });
        for number in 0..items {
            call.send(&Item { number }).wait().expect("it is wanted");
        }
        if is_few {
            go_on.recv().expect("the test goes on");
        }
        Ok(End { items })
    });
    let serving = serving.expect("nobody else serves");
    let client = there.async_client::<Ask>().expect("a server is there");
    for items in [3, 100_000, 2, 5_000] {
        pollster::block_on(async {
            let request = Ask { items };
            let mut stream = client.stream(&request).await.expect("there is room");
            for number in 0..items {
                let item = poll_fn(|cx| stream.poll_next(cx)).await;
                let item = item.expect("it goes on").expect("it goes on");
                assert_eq!(item.number, number);
            }
            if items < 10 {
                taken.send(()).expect("the server goes on");
            }
            assert_eq!(stream.finish().await.expect("it ends").items, items);
        });
    }
    drop(serving);
}

/// A ring that was put off is given when the stream gathers no more, or in another way.
#[test]
fn what_was_gathered_comes_also_when_gathering_ends() {
    let _together = together();
    let _watch = Watchdog::start("an end of gathering");
    let name = name("end-of-gathering");
    let config = Config {
        wait: Wait::Park,
        ..Config::default()
    };
    let here = open(&name);
    let there = config.open(&name).expect("it opens");
    let (go_on, gone_on) = channel();
    let gone_on = std::sync::Mutex::new(gone_on);
    let serving = here.serve::<Ask, _>(1, move |call| {
        let gone_on = gone_on.lock().expect("nobody panics");
        let send = |number| call.try_send(&Item { number }).expect("there is room");
        for (first, then) in [(0, Duration::ZERO), (2, HOUR)] {
            call.gather(HOUR);
            send(first);
            gone_on.recv().expect("the test goes on");
            send(first + 1);
            call.gather(then);
            gone_on.recv().expect("the test goes on");
        }
        Ok(End { items: 4 })
    });
    let serving = serving.expect("nobody else serves");
    let client = there.async_client::<Ask>().expect("a server is there");
    let request = Ask { items: 4 };
    let items = pollster::block_on(client.stream(&request));
    let mut items = items.expect("there is room");
    let counting = Counting::new();
    for number in 0..4 {
        // Nothing is there yet, and this asks for a ring.
        if number % 2 == 1 {
            assert_eq!(poll(&mut items, &counting), None);
            go_on.send(()).expect("the server goes on");
        }
        assert_eq!(wait(&mut items, &counting), Some(number));
        if number % 2 == 1 {
            go_on.send(()).expect("the server goes on");
        }
    }
    assert_eq!(wait(&mut items, &counting), None);
    drop(serving);
}
