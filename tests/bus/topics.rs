//! One message, many readers.

use std::thread;
use std::time::Duration;

use shmbus::{
    Bus, Bytes, Delivery, Publisher, Publishing, ReceiveError, SendError, ShmMessage, Subscriber,
};

use crate::support::{Child, name, open, tell, together, told};

/// With a text as long as its number asks for: in a cell, in a small block, in a large one.
#[derive(ShmMessage, Debug)]
#[shm(topic = "news")]
pub(crate) struct News {
    from: u32,
    number: u64,
    text: String,
}

pub(crate) fn news(from: u32, number: u64) -> News {
    let len = [0, 3, 30, 31, 32, 100, 1_000, 9_000][(number % 8) as usize];
    let text = "x".repeat(len);
    News { from, number, text }
}

pub(crate) fn check(news: &ArchivedNews) -> (u32, u64) {
    let (from, number) = (news.from.to_native(), news.number.to_native());
    let expected = self::news(from, number);
    assert_eq!(news.text.as_str(), expected.text);
    (from, number)
}

/// Takes so many messages of each of some publishers, each in its order.
fn take_all(mut subscriber: Subscriber<News>, publishers: u32, each: u64) {
    let mut next = vec![0; publishers as usize];
    for _ in 0..u64::from(publishers) * each {
        let news = subscriber.next().expect("nothing is missed");
        let (from, number) = check(&news.expect("the bus is open"));
        assert_eq!(number, next[from as usize]);
        next[from as usize] += 1;
    }
    assert!(subscriber.try_next().expect("nothing is missed").is_none());
}

#[test]
fn one_message_reaches_two() {
    let _together = together();
    let bus = open(&name("topic"));
    let mut one = bus.subscriber::<News>().expect("it joins");
    let mut publisher = bus.publisher::<News>().expect("it joins");
    let mut other = bus.subscriber::<News>().expect("it joins");
    assert_eq!(publisher.subscribers(), 2);
    for number in 0..3_000 {
        publisher.publish(&news(7, number)).expect("there is room");
        for subscriber in [&mut one, &mut other] {
            let news = subscriber.next().expect("nothing is missed");
            assert_eq!(check(&news.expect("the bus is open")), (7, number));
        }
    }
}

/// Reliable publishers and subscribers as threads: every message everywhere, in the order of each publisher.
fn everywhere(publishers: u32, subscribers: usize, each: u64) {
    let name = name(&format!("everywhere-{publishers}-{subscribers}"));
    let there = open(&name);
    let subscribing: Vec<_> = (0..subscribers)
        .map(|_| {
            let subscriber = there.subscriber::<News>().expect("it joins");
            thread::spawn(move || take_all(subscriber, publishers, each))
        })
        .collect();
    let here = open(&name);
    let publishing: Vec<_> = (0..publishers)
        .map(|from| {
            let mut publisher = here.publisher::<News>().expect("it joins");
            assert_eq!(publisher.subscribers(), subscribers);
            thread::spawn(move || {
                for number in 0..each {
                    publisher
                        .publish(&news(from, number))
                        .expect("there is room");
                }
            })
        })
        .collect();
    for thread in publishing.into_iter().chain(subscribing) {
        thread.join().expect("it goes well");
    }
    assert_eq!(here.take_incidents(), []);
    assert_eq!(there.take_incidents(), []);
}

#[test]
fn every_message_reaches_everybody() {
    let _together = together();
    for (publishers, subscribers, each) in [(1, 1, 20_000), (1, 8, 5_000), (8, 8, 2_000)] {
        everywhere(publishers, subscribers, each);
    }
}

#[test]
fn every_message_reaches_many() {
    let _together = together();
    everywhere(1, 64, 2_000);
}

pub(crate) const LOSSY: Publishing = Publishing {
    delivery: Delivery::Lossy,
    history: 0,
};

/// Takes until the bus is closed, or nothing comes any more: how many came, and how many were missed.
fn count(subscriber: &mut Subscriber<News>, wait: Duration) -> (u64, u64) {
    let (mut came, mut missed, mut next) = (0, 0, 0);
    loop {
        match subscriber.next_timeout(wait) {
            Ok(Some(news)) => {
                let (_, number) = check(&news);
                // What was missed was told before what came behind it.
                assert_eq!(
                    number, next,
                    "after {came} that came and {missed} that were missed"
                );
                (came, next) = (came + 1, number + 1);
            }
            Ok(None) => return (came, missed),
            Err(ReceiveError::Lagged { missed: n, .. }) => (missed, next) = (missed + n, next + n),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn who_falls_behind_learns_how_far() {
    const SENT: u64 = 30_000;
    const LONG: Duration = Duration::from_secs(10);
    let _together = together();
    let name = name("lossy");
    let (here, there) = (open(&name), open(&name));
    // One that takes all the time, one that sleeps now and then, and one that looks when all is over.
    let quick = there.subscriber::<News>().expect("it joins");
    let slow = there.subscriber::<News>().expect("it joins");
    let late = there.subscriber::<News>().expect("it joins");
    let taking = |mut subscriber: Subscriber<News>, sleeps: u64| {
        thread::spawn(move || {
            let mut sum = (0, 0);
            while sum.0 + sum.1 < SENT {
                // A look at most, so that it sleeps in between.
                match subscriber.next_timeout(LONG) {
                    Ok(Some(news)) => {
                        let (_, number) = check(&news);
                        assert_eq!(number, sum.0 + sum.1);
                        sum.0 += 1;
                        if sleeps > 0 && number % 100 == 0 {
                            thread::sleep(Duration::from_micros(sleeps));
                        }
                    }
                    Ok(None) => break,
                    Err(ReceiveError::Lagged { missed, .. }) => sum.1 += missed,
                    Err(error) => panic!("{error}"),
                }
            }
            sum
        })
    };
    let (quick, slow) = (taking(quick, 0), taking(slow, 300));
    let mut publisher = here.publisher_as::<News>(LOSSY).expect("it joins");
    assert_eq!(publisher.subscribers(), 3);
    for number in 0..SENT {
        publisher.publish(&news(1, number)).expect("it never waits");
    }
    // The newest comes to everybody, also where nothing is published behind it.
    for taking in [quick, slow] {
        let (came, missed) = taking.join().expect("it counts");
        assert_eq!(came + missed, SENT, "{came} came");
    }
    let mut late = late;
    let (came, missed) = count(&mut late, Duration::from_millis(300));
    assert_eq!(came + missed, SENT, "{came} came");
    assert!(missed > SENT / 2, "{missed} were missed");
    drop(publisher);
    assert_eq!(
        late.next_timeout(Duration::from_millis(50))
            .expect("all is told")
            .map(|_| ()),
        None
    );
}

/// What was kept for a subscriber is lost with its publisher, and told.
#[test]
fn what_ends_with_its_publisher_is_told() {
    const SENT: u64 = 5_000;
    let _together = together();
    let name = name("ends");
    let (here, there) = (open(&name), open(&name));
    let mut subscriber = there.subscriber::<News>().expect("it joins");
    let mut publisher = here.publisher_as::<News>(LOSSY).expect("it joins");
    for number in 0..SENT {
        publisher.publish(&news(1, number)).expect("it never waits");
    }
    drop(publisher);
    let (came, missed) = count(&mut subscriber, Duration::from_millis(500));
    assert_eq!(came + missed, SENT);
    assert!(missed > 0);
}

#[test]
fn who_comes_later_gets_the_last_ones() {
    let _together = together();
    let name = name("history");
    let (here, there) = (open(&name), open(&name));
    for delivery in [Delivery::Reliable, Delivery::Lossy] {
        for history in [0, 1, 10, 256, 1_000] {
            let how = Publishing { delivery, history };
            let mut publisher = here.publisher_as::<News>(how).expect("it joins");
            for number in 0..700 {
                publisher
                    .publish(&news(1, number))
                    .expect("nobody is behind");
            }
            let mut subscriber = there.subscriber::<News>().expect("it joins");
            for number in 700..900 {
                publisher.publish(&news(1, number)).expect("there is room");
            }
            for number in 700 - history.min(256) as u64..900 {
                let news = subscriber.next().expect("nothing is missed");
                assert_eq!(check(&news.expect("the bus is open")), (1, number));
            }
            assert!(subscriber.try_next().expect("nothing is missed").is_none());
        }
    }
}

/// Nothing is published into the void that somebody waits for: each finds the other, whoever is first, again and
/// again, under the same names.
#[test]
fn they_find_each_other_in_any_order() {
    let _together = together();
    let name = name("orders");
    let (here, there) = (open(&name), open(&name));
    let mut standing = there.subscriber::<News>().expect("it joins");
    let mut all = 0;
    for turn in 0..60 {
        let first = (turn % 2 == 0).then(|| there.subscriber::<News>().expect("it joins"));
        let mut publisher = here.publisher::<News>().expect("it joins");
        let mut subscriber = first.unwrap_or_else(|| there.subscriber().expect("it joins"));
        let mut other = here.subscriber::<News>().expect("it joins");
        for number in 0..5 {
            publisher
                .publish(&news(turn, number))
                .expect("there is room");
            for (who, subscriber) in [&mut subscriber, &mut other, &mut standing]
                .into_iter()
                .enumerate()
            {
                let news = subscriber
                    .next_timeout(Duration::from_secs(3))
                    .expect("nothing is missed");
                assert_eq!(
                    check(&news.unwrap_or_else(|| panic!(
                        "turn {turn} number {number} who {who} {}",
                        publisher.subscribers()
                    ))),
                    (turn, number)
                );
            }
            all += 1;
        }
    }
    assert_eq!(all, 300);
    assert_eq!(here.take_incidents(), []);
    assert_eq!(there.take_incidents(), []);
}

#[test]
fn a_full_subscriber_holds_a_reliable_publisher_back() {
    let _together = together();
    let name = name("full");
    let (here, there) = (open(&name), open(&name));
    let mut subscriber = there.subscriber::<News>().expect("it joins");
    let mut other = there.subscriber::<News>().expect("it joins");
    let mut publisher = here.publisher::<News>().expect("it joins");
    let mut sent = 0;
    while publisher.try_publish(&news(1, sent)).is_ok() {
        sent += 1;
        // The other one takes all.
        let news = other.next().expect("nothing is missed");
        assert_eq!(check(&news.expect("the bus is open")), (1, sent - 1));
    }
    assert!(sent > 100, "{sent}");
    let soon = Duration::from_millis(5);
    let full = publisher.publish_timeout(&news(1, sent), soon);
    assert!(matches!(full, Err(SendError::Full)));
    // What was not published has reached nobody.
    assert!(other.try_next().expect("nothing is missed").is_none());
    let publishing = thread::spawn(move || {
        publisher
            .publish(&news(1, sent))
            .expect("there will be room");
        pollster::block_on(publisher.publish_async(&news(1, sent + 1))).expect("as above");
        publisher
    });
    for number in 0..sent + 2 {
        let news = subscriber.next().expect("nothing is missed");
        assert_eq!(check(&news.expect("the bus is open")), (1, number));
    }
    drop(publishing.join().expect("it goes on"));
    for number in [sent, sent + 1] {
        let news = other.next().expect("nothing is missed");
        assert_eq!(check(&news.expect("the bus is open")), (1, number));
    }
}

/// A part: takes all, and says so; or only says that it has subscribed.
pub(crate) fn subscribes(name: &str, how: &str) {
    let bus = open(name);
    let mut subscriber = bus.subscriber::<News>().expect("it joins");
    tell("joined");
    match how {
        "all" => {
            let mut next = 0;
            while let Some(news) = subscriber.next().expect("nothing is missed") {
                let (_, number) = check(&news);
                assert_eq!(number, next);
                next += 1;
                if number == LAST {
                    break;
                }
            }
            tell(&next.to_string());
        }
        "holds" => {
            let news = subscriber.next().expect("nothing is missed");
            let news = news.expect("the bus is open");
            tell(&check(&news).1.to_string());
            while told().is_some() {}
            drop(news);
        }
        other => panic!("{other}"),
    }
}

const LAST: u64 = 4_999;

#[test]
fn processes_subscribe() {
    let _together = together();
    let name = name("processes");
    let mut children: Vec<_> = (0..4)
        .map(|_| Child::start("subscribes", &[&name, "all"]))
        .collect();
    for child in &mut children {
        assert_eq!(child.hear(), "joined");
    }
    let bus = open(&name);
    let mut publisher = bus.publisher::<News>().expect("it joins");
    assert_eq!(publisher.subscribers(), children.len());
    for number in 0..=LAST {
        publisher.publish(&news(3, number)).expect("there is room");
    }
    for child in &mut children {
        assert_eq!(child.hear(), (LAST + 1).to_string());
        assert!(child.end().success());
    }
}

/// One is killed and one is stopped while they hold views and take nothing.
#[test]
fn a_dead_subscriber_holds_nobody_back_and_a_stopped_one_as_was_chosen() {
    let _together = together();
    for delivery in [Delivery::Reliable, Delivery::Lossy] {
        let name = name(&format!("killed-{delivery:?}"));
        let bus = open(&name);
        let how = Publishing {
            delivery,
            history: 0,
        };
        let mut publisher = bus.publisher_as::<News>(how).expect("it joins");
        let mut quick = bus.subscriber::<News>().expect("it joins");
        let before = bus.memory().1;
        let mut dies = Child::start("subscribes", &[&name, "holds"]);
        assert_eq!(dies.hear(), "joined");
        assert_eq!(publisher.subscribers(), 2);
        let mut number = 0;
        let mut both = |publisher: &mut Publisher<News>, quick: &mut Subscriber<News>| {
            let published = publisher.try_publish(&news(1, number));
            if published.is_ok() {
                let news = quick.next().expect("nothing is missed");
                assert_eq!(check(&news.expect("the bus is open")), (1, number));
                number += 1;
            }
            published.is_ok()
        };
        let held = both(&mut publisher, &mut quick);
        assert!(held);
        assert_eq!(dies.hear(), "0");
        // It is stopped: who waits for it waits, and who does not goes on.
        dies.stop();
        let many = (0..2_000)
            .filter(|_| both(&mut publisher, &mut quick))
            .count();
        match delivery {
            Delivery::Reliable => assert!(many < 1_000, "{many}"),
            Delivery::Lossy => assert_eq!(many, 2_000),
        }
        let waiting = thread::spawn(move || {
            let next = news(1, number);
            publisher
                .publish(&next)
                .expect("it goes on when the other one is dead");
            publisher
        });
        dies.kill();
        let publisher = waiting.join().expect("it goes on");
        while publisher.subscribers() > 1 {
            thread::sleep(Duration::from_millis(1));
        }
        // All that the dead one held is back.
        drop((publisher, quick));
        while bus.memory().1 > before + (64 << 10) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A killed publisher has left its count behind.
#[test]
fn what_a_killed_publisher_did_not_tell_is_told() {
    let _together = together();
    let name = name("killed-publisher");
    let bus = open(&name);
    let mut subscriber = bus.subscriber::<News>().expect("it joins");
    let mut child = Child::start("publishes", &[&name]);
    let sent: u64 = child.hear().parse().expect("a number");
    child.kill();
    let (came, missed) = count(&mut subscriber, Duration::from_secs(1));
    assert_eq!(came + missed, sent);
    assert!(missed > 0);
}

/// A part: publishes more than a lane has room for.
pub(crate) fn publishes(name: &str) {
    let bus = open(name);
    let mut publisher = bus.publisher_as::<News>(LOSSY).expect("it joins");
    assert_eq!(publisher.subscribers(), 1);
    for number in 0..3_000 {
        publisher.publish(&news(1, number)).expect("it never waits");
    }
    tell("3000");
    while told().is_some() {}
}

/// A part: publishes to its parent, and subscribes to it.
pub(crate) fn converses() {
    let bus = Bus::from_parent().expect("a bus started this");
    let mut subscriber = bus.subscriber::<Echo>().expect("it joins");
    let mut publisher = bus.publisher::<News>().expect("it joins");
    tell("ready");
    while let Some(echo) = subscriber.next().expect("nothing is missed") {
        let number = echo.number.to_native();
        publisher.publish(&news(2, number)).expect("there is room");
    }
}

#[derive(ShmMessage)]
#[shm(topic = "echo")]
struct Echo {
    number: u64,
}

#[test]
fn a_child_and_its_parent_subscribe_to_each_other() {
    let _together = together();
    let (bus, child) = Bus::spawn(Child::command("converses", &[])).expect("it starts");
    let mut child = Child::adopt(child);
    let mut publisher = bus.publisher::<Echo>().expect("it joins");
    let mut subscriber = bus.subscriber::<News>().expect("it joins");
    assert_eq!(child.hear(), "ready");
    // Both are there, so each is reached by what the other publishes from now on.
    for number in 0..1_000 {
        publisher.publish(&Echo { number }).expect("there is room");
        let news = subscriber.next().expect("nothing is missed");
        assert_eq!(check(&news.expect("it answers")), (2, number));
    }
    drop((publisher, subscriber, bus));
    assert!(child.end().success());
}

mod other {
    /// As the other one, but for its layout.
    #[derive(shmbus::ShmMessage)]
    #[shm(topic = "news")]
    pub(super) struct News {
        pub(super) from: u64,
    }
}

#[test]
fn another_layout_reaches_nobody_and_is_told() {
    let _together = together();
    let name = name("topic-layout");
    let (here, there) = (open(&name), open(&name));
    let mut subscriber = there.subscriber::<News>().expect("it joins");
    let mut publisher = here.publisher::<other::News>().expect("it joins");
    assert_eq!(publisher.subscribers(), 0);
    publisher
        .publish(&other::News { from: 1 })
        .expect("nobody is there");
    let told = here.take_incidents();
    assert!(told[0].what.contains("layout"), "{told:?}");
    while there.take_incidents().is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    let mut right = here.publisher::<News>().expect("it joins");
    right.publish(&news(1, 5)).expect("there is room");
    let news = subscriber.next().expect("nothing is missed");
    assert_eq!(check(&news.expect("the bus is open")), (1, 5));
}

/// An in-between of messages that a loan was filled for, some of whose subscribers are slow.
#[test]
fn loans_are_not_written_while_they_are_read() {
    #[derive(ShmMessage)]
    #[shm(topic = "chunks")]
    struct Chunk {
        number: u64,
        content: Bytes,
    }
    let _together = together();
    let name = name("chunks");
    let (here, there) = (open(&name), open(&name));
    let subscribing: Vec<_> = (0..3)
        .map(|nth| {
            let mut subscriber = there.subscriber::<Chunk>().expect("it joins");
            thread::spawn(move || {
                let mut kept = Vec::new();
                for number in 0..1_500 {
                    let chunk = subscriber.next().expect("nothing is missed");
                    let chunk = chunk.expect("the bus is open");
                    assert_eq!(chunk.number, number);
                    let is_whole = |content: &[u8]| content.iter().all(|b| *b == number as u8);
                    assert!(is_whole(&chunk.content));
                    if number % 10 == nth {
                        kept.push(chunk.keep());
                    }
                    if kept.len() > 20 {
                        for chunk in kept.drain(..) {
                            let number = chunk.number.to_native() as u8;
                            assert!(chunk.content.iter().all(|b| *b == number));
                        }
                    }
                }
            })
        })
        .collect();
    let mut publisher = here.publisher::<Chunk>().expect("it joins");
    for number in 0..1_500 {
        let mut content = publisher.loan_bytes(20_000).expect("there is memory");
        content.fill(number as u8);
        publisher
            .publish(&Chunk { number, content })
            .expect("there is room");
    }
    for subscribing in subscribing {
        subscribing.join().expect("each is whole");
    }
}
