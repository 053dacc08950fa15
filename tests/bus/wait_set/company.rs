//! Sets beside drivers, futures, and other sets.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

use shmbus::{Event, Wait};

use super::{Echo, Negate, Negated, One, SHORT, Two, Who, waiting};
use crate::support::{name, open, together};

/// A set that nobody waits in holds up nobody: the bus looks by itself then.
#[test]
fn a_set_at_rest_holds_up_no_task() {
    let _together = together();
    let name = name("set-rest");
    let (serving, calling) = (waiting(&name, Wait::Park), waiting(&name, Wait::Park));
    let server = serving.async_server::<Negate>();
    let server = Arc::new(server.expect("nobody else serves"));
    let mut sets = [&serving, &calling].map(|bus| bus.wait_set().expect("there are descriptors"));
    sets[0].add(0, &*server).expect("not forked");
    for set in &mut sets {
        assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
    }
    let answering = thread::spawn(move || {
        while let Some(call) = pollster::block_on(server.next()).expect("not forked") {
            let number = -call.number.to_native();
            call.reply(&Negated { number }).expect("it fits");
        }
    });
    let client = calling.async_client::<Negate>();
    let client = client.expect("a server is there");
    for number in 0..100 {
        let reply = pollster::block_on(client.call(&Negate { number }));
        assert_eq!(reply.expect("it answers").number, -number);
    }
    serving.close();
    answering.join().expect("it does not panic");
}

/// Not even where somebody else is to take the rings, and does not; nor by a port that always has something.
#[test]
fn a_driver_at_rest_holds_up_no_set() {
    let _together = together();
    let name = name("set-driver");
    let here = waiting(&name, Wait::Park);
    let one = here.async_subscriber::<One>().expect("it joins");
    let two = here.async_subscriber::<Two>().expect("it joins");
    let there = open(&name);
    let mut ones = there.publisher::<One>().expect("it joins");
    let mut twos = there.publisher::<Two>().expect("it joins");
    let _idle = here.driver();
    let mut set = here.wait_set().expect("there are descriptors");
    set.add(Who::One, &one).expect("not forked");
    set.add(Who::Two, &two).expect("not forked");
    for number in 0..20 {
        assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
        ones.publish(&super::one(number)).expect("there is room");
        let event = set.wait().expect("not forked");
        assert_eq!(event, Some(Event::Ready(Who::One)));
        let two_is_new = Two { from: 0, number };
        twos.publish(&two_is_new).expect("there is room");
        while set.wait().expect("not forked") != Some(Event::Ready(Who::Two)) {}
        assert!(one.try_next().expect("nothing is missed").is_some());
        assert!(two.try_next().expect("nothing is missed").is_some());
    }
}

/// Holds whoever wakes it, until the test is over.
struct Holds {
    held: mpsc::Sender<()>,
    over: Mutex<mpsc::Receiver<()>>,
}

impl Wake for Holds {
    fn wake(self: Arc<Self>) {
        let _ = self.held.send(());
        let _ = self.over.lock().expect("nobody panics").recv();
    }
}

/// The rings of peers come to the thread itself: here the quiet thread does nothing at all.
#[test]
fn a_message_needs_no_quiet_thread() {
    const CALLS: i64 = 500;
    let _together = together();
    let name = name("set-direct");
    let (there, here) = (open(&name), waiting(&name, Wait::Park));
    let server = here.async_server::<Negate>().expect("nobody else serves");
    let subscriber = here.async_subscriber::<Two>().expect("it joins");
    let client = there.client::<Negate>().expect("a server is there");
    let mut publisher = there.publisher::<Two>().expect("it joins");
    let mut set = here.wait_set().expect("there are descriptors");
    set.add(Who::Negate, &server).expect("not forked");
    set.add(Who::Two, &subscriber).expect("not forked");
    assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
    // A call that nobody answers, and whose time is up: who says so is held.
    let _echo = there.async_server::<Echo>().expect("nobody else serves");
    let echoing = here.async_client::<Echo>().expect("a server is there");
    let request = Echo { number: 1 };
    let ((held, is_held), (_over, over)) = (mpsc::channel(), mpsc::channel());
    let over = Mutex::new(over);
    let holds = Waker::from(Arc::new(Holds { held, over }));
    let _late = loop {
        let mut late = echoing.call_timeout(&request, 20 * SHORT);
        if Pin::new(&mut late)
            .poll(&mut Context::from_waker(&holds))
            .is_pending()
        {
            break late;
        }
    };
    is_held.recv().expect("the time will be up");
    let sending = thread::spawn(move || {
        for number in 0..CALLS {
            let reply = client.call(&Negate { number }).expect("it answers");
            assert_eq!(reply.number, -number);
            let number = number as u64;
            let two = Two { from: 0, number };
            publisher.publish(&two).expect("there is room");
        }
    });
    let mut taken = [0, 0];
    while taken != [CALLS, CALLS] {
        match set.wait().expect("not forked") {
            Some(Event::Ready(Who::Negate)) => {
                let call = server.try_next().expect("not forked");
                let Some(call) = call else { continue };
                let number = -call.number.to_native();
                call.reply(&Negated { number }).expect("it fits");
                taken[0] += 1;
            }
            Some(Event::Ready(Who::Two)) => {
                let two = subscriber.try_next().expect("nothing is missed");
                taken[1] += i64::from(two.is_some());
            }
            other => panic!("{other:?}"),
        }
    }
    sending.join().expect("it goes well");
}

/// Whatever is a future can be waited for beside the rest.
#[test]
fn replies_are_waited_for_by_wakers() {
    const CALLS: i64 = 500;
    let _together = together();
    let name = name("set-replies");
    let (serving, calling) = (waiting(&name, Wait::Park), waiting(&name, Wait::Park));
    let serving = serving.serve::<Negate, _>(1, |call| {
        let number = -call.number.to_native();
        Ok(Negated { number })
    });
    let _serving = serving.expect("nobody else serves");
    let client = calling.async_client::<Negate>();
    let client = client.expect("a server is there");
    let mut set = calling.wait_set().expect("there are descriptors");
    let waker = set.add_waker(()).expect("not forked");
    for number in 0..CALLS {
        let request = Negate { number };
        let mut pending = client.call(&request);
        let reply = loop {
            let polled = Pin::new(&mut pending).poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(reply) = polled {
                break reply;
            }
            let event = set.wait().expect("not forked");
            assert_eq!(event, Some(Event::Ready(())));
        };
        assert_eq!(reply.expect("it answers").number, -number);
    }
}

/// Each set has its own ports of one bus, and whichever thread a ring wakes, it comes to the one it is for.
#[test]
fn several_sets_wait_on_one_bus() {
    const SETS: usize = 4;
    const EACH: u64 = 2_000;
    let _together = together();
    let name = name("set-sets");
    let here = waiting(&name, Wait::Park);
    let subscribers: Vec<_> = (0..SETS)
        .map(|_| here.async_subscriber::<Two>().expect("it joins"))
        .collect();
    let taking: Vec<_> = subscribers
        .into_iter()
        .map(|subscriber| {
            let mut set = here.wait_set().expect("there are descriptors");
            set.add((), &subscriber).expect("not forked");
            thread::spawn(move || {
                let mut next = 0;
                while next < EACH {
                    let event = set.wait().expect("not forked");
                    assert_eq!(event, Some(Event::Ready(())));
                    let two = subscriber.try_next().expect("nothing is missed");
                    if let Some(two) = two {
                        assert_eq!(two.number, next);
                        next += 1;
                    }
                }
            })
        })
        .collect();
    let mut publisher = open(&name).publisher::<Two>().expect("it joins");
    assert_eq!(publisher.subscribers(), SETS);
    for number in 0..EACH {
        let two = Two { from: 0, number };
        publisher.publish(&two).expect("there is room");
        if number % 16 == 0 {
            // So that they sleep now and then.
            thread::yield_now();
        }
    }
    for thread in taking {
        thread.join().expect("it goes well");
    }
}

/// A ring for that comes by the quiet thread of the other bus.
#[test]
fn a_port_may_be_of_another_bus() {
    let _together = together();
    let [here, there] = ["set-near", "set-far"].map(|of| waiting(&name(of), Wait::Park));
    let near = here.async_subscriber::<Two>().expect("it joins");
    let far = there.async_subscriber::<Two>().expect("it joins");
    let mut publishers = [&here, &there].map(|bus| bus.publisher::<Two>().expect("it joins"));
    let mut set = here.wait_set().expect("there are descriptors");
    set.add(0, &near).expect("not forked");
    set.add(1, &far).expect("not forked");
    for number in 0..50 {
        // Both sleep.
        assert_eq!(set.wait_timeout(SHORT).expect("not forked"), None);
        for (which, publisher) in publishers.iter_mut().enumerate() {
            let two = Two { from: 0, number };
            publisher.publish(&two).expect("there is room");
            // One that is told of may have nothing.
            loop {
                let event = set.wait().expect("not forked");
                let Some(Event::Ready(told)) = event else {
                    panic!("{event:?}");
                };
                let two = [&near, &far][told].try_next();
                if let Some(two) = two.expect("nothing is missed") {
                    assert_eq!(told, which);
                    break assert_eq!(two.number, number);
                }
            }
        }
    }
    drop(there);
    drop((far, publishers));
    let event = set.wait().expect("not forked");
    assert_eq!(event, Some(Event::Ended(1)));
}

/// Two sets wait for one port: nothing is taken twice, and nothing is left.
#[test]
fn two_sets_may_share_a_port() {
    const SENT: i64 = 4_000;
    let _together = together();
    let name = name("set-shared");
    let here = waiting(&name, Wait::Park);
    let server = Arc::new(here.async_server::<Negate>().expect("nobody else serves"));
    let answering: Vec<_> = (0..2)
        .map(|_| {
            let server = server.clone();
            let mut set = here.wait_set().expect("there are descriptors");
            thread::spawn(move || {
                set.add((), &*server).expect("not forked");
                let mut answered = 0;
                while let Some(Event::Ready(())) = set.wait().expect("not forked") {
                    while let Some(call) = server.try_next().expect("not forked") {
                        let number = -call.number.to_native();
                        call.reply(&Negated { number }).expect("it fits");
                        answered += 1;
                    }
                }
                answered
            })
        })
        .collect();
    let calling: Vec<_> = (0..2)
        .map(|_| {
            let client = open(&name).client::<Negate>().expect("a server is there");
            thread::spawn(move || {
                for number in 0..SENT / 2 {
                    let reply = client.call(&Negate { number }).expect("it answers");
                    assert_eq!(reply.number, -number);
                }
            })
        })
        .collect();
    for thread in calling {
        thread.join().expect("it goes well");
    }
    server.stop();
    let answered = answering.into_iter().map(|t| t.join().expect("no panic"));
    assert_eq!(answered.sum::<i64>(), SENT);
}
