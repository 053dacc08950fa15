//! One thread that waits for topics, services, descriptors and wakers at once.

mod company;
pub(crate) mod processes;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use shmbus::{
    AsyncServer, AsyncSubscriber, Bus, CallError, Config, Delivery, Event, OpenError, Publishing,
    ReceiveError, ShmMessage, Wait, WaitSet,
};

use crate::support::{name, open, together};

#[derive(ShmMessage)]
#[shm(topic = "set-one")]
struct One {
    from: u32,
    number: u64,
    text: String,
}

#[derive(ShmMessage)]
#[shm(topic = "set-two")]
struct Two {
    from: u32,
    number: u64,
}

#[derive(ShmMessage)]
#[shm(service = "set-negate", reply = Negated)]
struct Negate {
    number: i64,
}

#[derive(ShmMessage)]
#[shm(service = "set-echo", reply = Negated)]
struct Echo {
    number: i64,
}

#[derive(ShmMessage)]
struct Negated {
    number: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    One,
    Two,
    Negate,
    Echo,
    Pipe,
    Waker,
}
use Who::Pipe;

const SHORT: Duration = Duration::from_millis(1);

fn waiting(name: &str, wait: Wait) -> Bus {
    let config = Config {
        wait,
        ..Config::default()
    };
    config.open(name).expect("the bus opens")
}

fn one(number: u64) -> One {
    // In a cell, in some, in the slab.
    let len = [0, 0, 200, 9_000][number as usize % 4];
    let text = "x".repeat(len);
    One {
        from: 0,
        number,
        text,
    }
}

/// What takes part in the tests: each kind of port twice, and a pipe.
struct Everything {
    set: WaitSet<Who>,
    one: AsyncSubscriber<One>,
    two: AsyncSubscriber<Two>,
    negate: AsyncServer<Negate>,
    echo: AsyncServer<Echo>,
    pipe: UnixStream,
    /// What was taken, of each.
    taken: [u64; 5],
    /// By publisher, the number that comes next on each topic.
    next: [Vec<u64>; 2],
}

impl Everything {
    fn new(bus: &Bus, pipe: UnixStream) -> Everything {
        pipe.set_nonblocking(true).expect("it is a socket");
        let mut all = Everything {
            set: bus.wait_set().expect("there are descriptors"),
            one: bus.async_subscriber().expect("it joins"),
            two: bus.async_subscriber().expect("it joins"),
            negate: bus.async_server().expect("nobody else serves"),
            echo: bus.async_server().expect("nobody else serves"),
            pipe,
            taken: [0; 5],
            next: [vec![0; 8], vec![0; 8]],
        };
        let set = &mut all.set;
        set.add(Who::One, &all.one).expect("not forked");
        set.add(Who::Two, &all.two).expect("not forked");
        set.add(Who::Negate, &all.negate).expect("not forked");
        set.add(Who::Echo, &all.echo).expect("not forked");
        set.add_readable(Pipe, &all.pipe).expect("it is a socket");
        all
    }

    fn in_order(&mut self, topic: usize, from: u32, number: u64) {
        let next = &mut self.next[topic][from as usize];
        assert_eq!(number, *next, "of publisher {from}");
        *next += 1;
        self.taken[topic] += 1;
    }

    /// Takes something of one source, if there is something. True where there was.
    fn take(&mut self, from: Who) -> bool {
        match from {
            Who::One => {
                let taken = self.one.try_next().expect("nothing is missed");
                let Some(one) = taken else { return false };
                let number = one.number.to_native();
                assert_eq!(one.text.len(), self::one(number).text.len());
                self.in_order(0, one.from.to_native(), number);
            }
            Who::Two => {
                let taken = self.two.try_next().expect("nothing is missed");
                let Some(two) = taken else { return false };
                self.in_order(1, two.from.to_native(), two.number.to_native());
            }
            Who::Negate => {
                let Some(call) = self.negate.try_next().expect("not forked") else {
                    return false;
                };
                let number = -call.number.to_native();
                call.reply(&Negated { number }).expect("it fits");
                self.taken[2] += 1;
            }
            Who::Echo => {
                let Some(call) = self.echo.try_next().expect("not forked") else {
                    return false;
                };
                let number = call.number.to_native();
                call.reply(&Negated { number }).expect("it fits");
                self.taken[3] += 1;
            }
            Pipe => {
                let mut bytes = [0; 7];
                let Ok(read) = self.pipe.read(&mut bytes) else {
                    return false;
                };
                self.taken[4] += read as u64;
                return read > 0;
            }
            Who::Waker => return false,
        }
        true
    }

    /// Takes until so much was taken of each; one at a time, or all that there is.
    fn take_until(&mut self, taken: [u64; 5], greedy: bool) {
        while self.taken != taken {
            match self.set.wait().expect("not forked") {
                Some(Event::Ready(from)) => while self.take(from) && greedy {},
                other => panic!("{other:?}, {:?} was taken", self.taken),
            }
        }
    }
}

/// Sends so much of everything, from as many threads as there are kinds and one publisher more.
fn send_everything(name: &str, mut pipe: UnixStream, each: u64) -> Vec<thread::JoinHandle<()>> {
    let there = [(); 2].map(|()| open(name));
    let mut all = Vec::new();
    for (from, bus) in (0..).zip(&there) {
        let mut publisher = bus.publisher::<One>().expect("it joins");
        all.push(thread::spawn(move || {
            for number in 0..each {
                let one = One {
                    from,
                    ..one(number)
                };
                publisher.publish(&one).expect("there is room");
            }
        }));
    }
    let mut publisher = there[0].publisher::<Two>().expect("it joins");
    let negating = there[0].client::<Negate>().expect("a server is there");
    let echoing = there[1].client::<Echo>().expect("a server is there");
    all.push(thread::spawn(move || {
        for number in 0..each {
            publisher
                .publish(&Two { from: 0, number })
                .expect("there is room");
        }
    }));
    all.push(thread::spawn(move || {
        for number in 0..each as i64 {
            let reply = negating.call(&Negate { number }).expect("it answers");
            assert_eq!(reply.number, -number);
        }
    }));
    all.push(thread::spawn(move || {
        for number in 0..each as i64 {
            let reply = echoing.call(&Echo { number }).expect("it answers");
            assert_eq!(reply.number, number);
        }
    }));
    all.push(thread::spawn(move || {
        for _ in 0..each {
            pipe.write_all(b"x").expect("it is read");
        }
    }));
    all
}

#[test]
fn everything_is_taken_in_order() {
    let _together = together();
    // One that spins leaves little to others where there are few processors.
    for (wait, each) in [
        (Wait::Adaptive, 2_000),
        (Wait::Park, 2_000),
        (Wait::Spin, 200),
    ] {
        for greedy in [false, true] {
            let name = name(&format!("set-{wait:?}-{greedy}"));
            let here = waiting(&name, wait);
            let (pipe, end) = UnixStream::pair().expect("there are descriptors");
            let mut all = Everything::new(&here, pipe);
            let sending = send_everything(&name, end, each);
            all.take_until([2 * each, each, each, each, each], greedy);
            for thread in sending {
                thread.join().expect("it goes well");
            }
            assert_eq!(here.take_incidents(), []);
        }
    }
}

#[test]
fn what_came_before_a_port_was_added_is_told_of() {
    let _together = together();
    let bus = open(&name("set-before"));
    let subscriber = bus.async_subscriber::<Two>().expect("it joins");
    let mut publisher = bus.publisher::<Two>().expect("it joins");
    for number in 0..3 {
        let two = Two { from: 0, number };
        publisher.publish(&two).expect("there is room");
    }
    let mut set = bus.wait_set().expect("there are descriptors");
    set.add(7, &subscriber).expect("not forked");
    // As long as something is left, and no longer.
    for number in 0..3 {
        for _ in 0..3 {
            let event = set.wait().expect("not forked");
            assert_eq!(event, Some(Event::Ready(7)));
        }
        let two = subscriber.try_next().expect("nothing is missed");
        assert_eq!(two.expect("it is left").number, number);
    }
    assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
    // Also what comes while nobody waits, and is looked for at once.
    let two = Two { from: 0, number: 3 };
    publisher.publish(&two).expect("there is room");
    loop {
        match set.try_wait().expect("not forked") {
            None => thread::yield_now(),
            Some(event) => break assert_eq!(event, Event::Ready(7)),
        }
    }
}

/// More publishers than a port looks at directly, and one message taken for each time that it is told of.
#[test]
fn many_lanes_lead_to_one_port() {
    const PUBLISHERS: u32 = 9;
    let _together = together();
    let name = name("set-lanes");
    let here = waiting(&name, Wait::Park);
    let subscriber = here.async_subscriber::<Two>().expect("it joins");
    let there = open(&name);
    let mut publishers: Vec<_> = (0..PUBLISHERS)
        .map(|_| there.publisher::<Two>().expect("it joins"))
        .collect();
    let mut set = here.wait_set().expect("there are descriptors");
    set.add((), &subscriber).expect("not forked");
    for number in 0..50 {
        if number % 2 == 0 {
            assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
        }
        for (from, publisher) in (0..).zip(&mut publishers) {
            publisher
                .publish(&Two { from, number })
                .expect("there is room");
        }
        let mut left = PUBLISHERS;
        while left > 0 {
            let event = set.wait().expect("not forked");
            assert_eq!(event, Some(Event::Ready(())));
            if let Some(two) = subscriber.try_next().expect("nothing is missed") {
                assert_eq!(two.number, number);
                left -= 1;
            }
        }
    }
}

/// The last word of a publisher that is gone, for which nobody rings any more.
#[test]
fn what_is_lost_with_a_publisher_is_told() {
    const SENT: u64 = 5_000;
    let _together = together();
    let name = name("set-lost");
    let here = waiting(&name, Wait::Park);
    let subscriber = here.async_subscriber::<Two>().expect("it joins");
    let lossy = Publishing {
        delivery: Delivery::Lossy,
        history: 0,
    };
    let publisher = open(&name).publisher_as::<Two>(lossy);
    let mut publisher = publisher.expect("it joins");
    for number in 0..SENT {
        let two = Two { from: 0, number };
        publisher.publish(&two).expect("it never waits");
    }
    drop(publisher);
    let mut set = here.wait_set().expect("there are descriptors");
    set.add((), &subscriber).expect("not forked");
    let (mut came, mut missed) = (0, 0);
    while came + missed < SENT {
        let event = set.wait().expect("not forked");
        assert_eq!(event, Some(Event::Ready(())));
        match subscriber.try_next() {
            Ok(two) => came += u64::from(two.is_some()),
            Err(ReceiveError::Lagged { missed: more, .. }) => missed += more,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(came + missed, SENT);
    assert!(missed > 0);
}

#[test]
fn a_time_is_up() {
    let _together = together();
    let bus = open(&name("set-time"));
    let mut set = bus.wait_set().expect("there are descriptors");
    let nothing = set.wait().expect("not forked");
    assert_eq!(nothing, None, "there is no source");
    let server = bus.async_server::<Negate>().expect("nobody else serves");
    let (pipe, _end) = UnixStream::pair().expect("there are descriptors");
    set.add(Who::Negate, &server).expect("not forked");
    set.add_readable(Pipe, &pipe).expect("it is a socket");
    for wait in [Wait::Adaptive, Wait::Park, Wait::Spin] {
        set.set_wait(wait);
        assert_eq!(set.try_wait().expect("not forked"), None);
        let before = std::time::Instant::now();
        let late = set.wait_timeout(20 * SHORT).expect("not forked");
        assert_eq!(late, None);
        assert!(before.elapsed() >= 20 * SHORT);
    }
    assert!(server.try_next().expect("not forked").is_none());
}

#[test]
fn a_source_that_was_removed_is_told_of_no_more() {
    let _together = together();
    let bus = open(&name("set-removal"));
    let subscriber = bus.async_subscriber::<Two>().expect("it joins");
    let mut publisher = bus.publisher::<Two>().expect("it joins");
    let (pipe, mut end) = UnixStream::pair().expect("there are descriptors");
    let mut set = bus.wait_set().expect("there are descriptors");
    set.add(Who::Two, &subscriber).expect("not forked");
    set.add_readable(Pipe, &pipe).expect("it is a socket");
    let waker = set.add_waker(Who::Waker).expect("not forked");
    // It sleeps for all of them.
    assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
    publisher
        .publish(&Two { from: 0, number: 0 })
        .expect("there is room");
    end.write_all(b"x").expect("there is room");
    waker.wake_by_ref();
    for from in [Who::Two, Pipe, Who::Waker] {
        assert!(set.remove(from));
        assert!(!set.remove(from));
    }
    waker.wake_by_ref();
    assert_eq!(set.wait().expect("not forked"), None);
    // Its copy of the descriptor is gone, too: the other end learns that all are.
    drop(pipe);
    let written = end.write(b"x").map_err(|error| error.kind());
    assert_eq!(written, Err(std::io::ErrorKind::BrokenPipe));
    // What is added in the same place is not taken for what was there.
    let other = set.add_waker(Who::Waker).expect("not forked");
    waker.wake_by_ref();
    assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
    other.wake();
    let event = set.wait().expect("not forked");
    assert_eq!(event, Some(Event::Ready(Who::Waker)));
    assert!(set.remove(Who::Waker));
    set.add(Who::One, &subscriber).expect("not forked");
    let event = set.wait().expect("not forked");
    assert_eq!(event, Some(Event::Ready(Who::One)));
    waker.wake_by_ref();
    assert!(subscriber.try_next().expect("nothing is missed").is_some());
    assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
}

#[test]
fn a_token_is_of_the_last_that_was_added() {
    let _together = together();
    let bus = open(&name("set-token"));
    let mut set = bus.wait_set().expect("there are descriptors");
    let (mut here, mut there) = UnixStream::pair().expect("there are descriptors");
    // Readable and writable under two tokens, and then under one.
    set.add_writable('w', &here).expect("it is a socket");
    set.add_readable('r', &here).expect("it is a socket");
    let event = set.wait().expect("not forked");
    assert_eq!(event, Some(Event::Ready('w')));
    set.add_readable('w', &here).expect("it is a socket");
    assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
    there.write_all(b"x").expect("there is room");
    let mut told = [0, 1].map(|_| set.wait().expect("not forked"));
    told.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(told, ['r', 'w'].map(|token| Some(Event::Ready(token))));
    here.read_exact(&mut [0]).expect("it was written");
    // What cannot be waited for leaves the set as it was.
    let program = std::env::current_exe().expect("this program has a path");
    let file = std::fs::File::open(program).expect("it can be read");
    let refused = set.add_readable('r', &file);
    assert!(matches!(refused, Err(OpenError::System { .. })));
    assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
    drop(there);
    let mut told = [0, 1].map(|_| set.wait().expect("not forked"));
    told.sort_by_key(|event| format!("{event:?}"));
    assert_eq!(told, ['r', 'w'].map(|token| Some(Event::Ready(token))));
}

#[test]
fn a_bus_that_is_closed_ends_a_wait() {
    let _together = together();
    for wait in [Wait::Adaptive, Wait::Park, Wait::Spin] {
        let bus = waiting(&name(&format!("set-close-{wait:?}")), wait);
        let subscriber = bus.async_subscriber::<Two>().expect("it joins");
        let server = bus.async_server::<Negate>().expect("nobody else serves");
        let mut publisher = bus.publisher::<Two>().expect("it joins");
        let client = bus.async_client::<Negate>().expect("a server is there");
        let mut set = bus.wait_set().expect("there are descriptors");
        set.add(Who::Two, &subscriber).expect("not forked");
        set.add(Who::Negate, &server).expect("not forked");
        let closing = thread::spawn(move || {
            thread::sleep(20 * SHORT);
            for number in 0..3 {
                let two = Two { from: 0, number };
                publisher.publish(&two).expect("there is room");
            }
            bus.close();
            publisher
        });
        let (mut taken, mut ended) = (0, Vec::new());
        while let Some(event) = set.wait().expect("not forked") {
            match event {
                Event::Ready(Who::Two) => {
                    let two = subscriber.try_next().expect("nothing is missed");
                    taken += u64::from(two.is_some());
                }
                Event::Ready(_) => assert!(server.try_next().expect("not forked").is_none()),
                Event::Ended(from) => {
                    assert!(from != Who::Two || taken == 3, "{taken} were taken");
                    ended.push(from);
                }
            }
        }
        ended.sort_by_key(|from| *from == Who::Two);
        assert_eq!(ended, [Who::Negate, Who::Two]);
        let next = pollster::block_on(subscriber.next());
        assert!(next.expect("nothing is missed").is_none());
        // Who comes after the end is refused, though nobody asks for the next one.
        let late = client.call(&Negate { number: 1 }).wait().err();
        assert!(matches!(late, Some(CallError::Stopping { .. })), "{late:?}");
        closing.join().expect("it goes well");
    }
}

#[test]
fn a_port_that_is_dropped_ends() {
    let _together = together();
    let bus = waiting(&name("set-drop"), Wait::Park);
    let subscriber = bus.async_subscriber::<Two>().expect("it joins");
    let server = Arc::new(bus.async_server::<Negate>().expect("nobody else serves"));
    let client = bus.async_client::<Negate>().expect("a server is there");
    let mut set = bus.wait_set().expect("there are descriptors");
    set.add(Who::Two, &subscriber).expect("not forked");
    set.add(Who::Negate, &*server).expect("not forked");
    let calling = thread::spawn(move || client.call(&Negate { number: 1 }).wait());
    let call = loop {
        let event = set.wait().expect("not forked");
        assert_eq!(event, Some(Event::Ready(Who::Negate)));
        if let Some(call) = server.try_next().expect("not forked") {
            break call;
        }
    };
    let dropping = thread::spawn(move || {
        thread::sleep(20 * SHORT);
        drop(subscriber);
        thread::sleep(20 * SHORT);
        drop(server);
    });
    // Also where a call of it is open.
    for from in [Who::Two, Who::Negate] {
        let event = set.wait().expect("not forked");
        assert_eq!(event, Some(Event::Ended(from)));
    }
    assert_eq!(set.wait().expect("not forked"), None);
    call.reply(&Negated { number: -1 }).expect("it fits");
    let reply = calling.join().expect("it does not panic");
    assert_eq!(reply.expect("it answers").number, -1);
    dropping.join().expect("it goes well");
}
