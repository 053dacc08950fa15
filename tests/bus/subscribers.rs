//! Subscribers that tasks wait for, and how they end.

use std::sync::Arc;
use std::task::{Poll, Waker};

use shmbus::{AsyncSubscriber, Config, ShmMessage, Wait};

use crate::faults::Unchecked;
use crate::support::{Counting, name, open, poll, together};
use crate::topics::{News, check, news};

#[test]
fn tasks_subscribe() {
    const EACH: u64 = 3_000;
    let _together = together();
    for wait in [Wait::Adaptive, Wait::Park, Wait::Spin] {
        let name = name(&format!("tasks-subscribe-{wait:?}"));
        let config = Config {
            wait,
            ..Config::default()
        };
        let bus = config.open(&name).expect("it opens");
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        runtime.block_on(async {
            let subscribing: Vec<_> = (0..4)
                .map(|_| {
                    let subscriber = bus.async_subscriber::<News>().expect("it joins");
                    tokio::spawn(async move {
                        for expected in 0..EACH {
                            let news = subscriber.next().await.expect("nothing is missed");
                            let news = news.expect("the bus is open");
                            assert_eq!(check(&news), (1, expected));
                        }
                        assert!(subscriber.try_next().expect("not forked").is_none());
                    })
                })
                .collect();
            let mut publisher = bus.publisher::<News>().expect("it joins");
            let publishing = tokio::spawn(async move {
                for number in 0..EACH {
                    let next = news(1, number);
                    publisher.publish_async(&next).await.expect("there is room");
                }
                publisher
            });
            for subscribing in subscribing {
                subscribing.await.expect("it takes all");
            }
            drop(publishing.await.expect("it publishes all"));
        });
    }
}

#[test]
fn subscribers_end_with_their_bus() {
    let _together = together();
    let bus = open(&name("closing"));
    let mut subscriber = bus.subscriber::<News>().expect("it joins");
    let shared = bus.async_subscriber::<News>().expect("it joins");
    let mut publisher = bus.publisher::<News>().expect("it joins");
    publisher.publish(&news(1, 1)).expect("there is room");
    bus.close();
    assert!(subscriber.next().expect("nothing is missed").is_some());
    assert!(subscriber.next().expect("nothing is missed").is_none());
    assert!(shared.next().wait().expect("nothing is missed").is_some());
    assert!(shared.next().wait().expect("nothing is missed").is_none());
}

/// Archives any number as a `bool`.
#[derive(ShmMessage)]
#[shm(topic = "switches")]
struct Switch {
    from: u32,
    #[rkyv(with = Unchecked)]
    is_on: u8,
}

/// Looks once: which publisher there is a message of.
fn look(subscriber: &AsyncSubscriber<Switch>, waker: &Waker) -> Option<u32> {
    match poll(&mut subscriber.next(), waker) {
        Poll::Ready(Ok(switch)) => Some(switch.expect("the bus is open").from.to_native()),
        Poll::Ready(Err(error)) => panic!("{error}"),
        Poll::Pending => None,
    }
}

/// More publishers than are looked at directly, and one of another link whose message is none.
#[test]
fn an_invalid_message_has_nobody_else_unheard() {
    const HONEST: u32 = 6;
    let _together = together();
    let name = name("invalid-on-topic");
    let parks = Config {
        wait: Wait::Park,
        ..Config::default()
    };
    let bus = parks.open(&name).expect("it opens");
    let subscriber = bus.async_subscriber::<Switch>().expect("it joins");
    let (here, there) = (open(&name), open(&name));
    let publisher = |_| here.publisher::<Switch>().expect("it joins");
    let mut honest: Vec<_> = (0..HONEST).map(publisher).collect();
    let mut other = there.publisher::<Switch>().expect("it joins");
    let waker = Waker::from(Arc::new(Counting::default()));
    assert_eq!(look(&subscriber, &waker), None);
    for (from, publisher) in (0..).zip(&mut honest) {
        let switch = Switch { from, is_on: 1 };
        publisher.publish(&switch).expect("there is room");
    }
    let invalid = Switch { from: 99, is_on: 2 };
    other.publish(&invalid).expect("there is room");
    for _ in 0..HONEST {
        assert!(look(&subscriber, &waker).is_some_and(|from| from < HONEST));
    }
    assert_eq!(look(&subscriber, &waker), None);
    let incidents = bus.take_incidents();
    assert_eq!(incidents.len(), 1, "{incidents:?}");
    for (from, publisher) in (0..).zip(&mut honest) {
        let switch = Switch { from, is_on: 0 };
        publisher.publish(&switch).expect("there is room");
        // Found where it rings for what was asked last: nobody looks at all lanes.
        assert_eq!(look(&subscriber, &waker), Some(from));
        while look(&subscriber, &waker).is_some() {}
    }
}

/// However often it is waited for, and given up, one waker is kept for each that waits.
#[test]
fn who_waits_no_more_keeps_no_waker() {
    let _together = together();
    let bus = open(&name("next-wakers"));
    let subscriber = bus.async_subscriber::<Switch>().expect("it joins");
    let counting = Arc::new(Counting::default());
    let waker = Waker::from(counting.clone());
    let before = Arc::strong_count(&counting);
    let mut waits = subscriber.next();
    for _ in 0..1_000 {
        assert!(poll(&mut waits, &waker).is_pending());
        let other = Waker::from(counting.clone());
        let mut gives_up = subscriber.next();
        assert!(poll(&mut gives_up, &other).is_pending());
    }
    let kept = Arc::strong_count(&counting) - before;
    assert!(kept <= 1, "{kept} wakers are kept");
    let mut publisher = bus.publisher::<Switch>().expect("it joins");
    let switch = Switch { from: 1, is_on: 1 };
    publisher.publish(&switch).expect("there is room");
    assert!(poll(&mut waits, &waker).is_ready());
    drop(waits);
    // Perhaps the quiet thread is about to wake it.
    while Arc::strong_count(&counting) > before {
        std::thread::yield_now();
    }
}
