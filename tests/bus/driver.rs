//! Tasks that the program's own loop wakes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use shmbus::{Bus, CallError, Config, Driver, ShmMessage, Wait};

use crate::support::{name, together};

#[derive(ShmMessage)]
#[shm(service = "negate", reply = Negated)]
struct Negate {
    number: i64,
}

#[derive(ShmMessage)]
struct Negated {
    number: i64,
}

/// A bus whose tasks sleep at once.
fn parked(name: &str) -> Bus {
    let config = Config {
        wait: Wait::Park,
        ..Config::default()
    };
    config.open(name).expect("the bus opens")
}

/// The loop of a program that has no executor: it waits for descriptors.
struct Loop {
    driver: Driver,
    woken: Arc<Woken>,
    waker: Waker,
}

/// Readable where something was woken from another thread.
struct Woken(OwnedFd);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        rustix::io::write(&self.0, &1u64.to_ne_bytes()).expect("an event is set");
    }
}

impl Loop {
    fn new(bus: &Bus) -> Loop {
        let event = eventfd(0, EventfdFlags::NONBLOCK).expect("there are descriptors");
        let woken = Arc::new(Woken(event));
        Loop {
            driver: bus.driver(),
            waker: Waker::from(woken.clone()),
            woken,
        }
    }

    fn run<F: Future + Unpin>(&self, mut future: F) -> F::Output {
        loop {
            let looked = Pin::new(&mut future).poll(&mut Context::from_waker(&self.waker));
            if let Poll::Ready(output) = looked {
                return output;
            }
            self.turn();
        }
    }

    fn turn(&self) {
        let mut set = [&self.driver as &dyn std::os::fd::AsFd, &self.woken.0]
            .map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN));
        poll(&mut set, None).expect("descriptors can be waited for");
        let _ = rustix::io::read(&self.woken.0, &mut [0; 8]);
        assert!(self.driver.dispatch(), "the bus is open");
    }
}

/// Answers until the bus is closed, in a loop of its own.
fn serve(bus: &Bus) -> thread::JoinHandle<i64> {
    let (bus, server) = (bus.clone(), bus.async_server::<Negate>());
    let server = server.expect("nobody else serves");
    thread::spawn(move || {
        let here = Loop::new(&bus);
        let mut answered = 0;
        while let Some(call) = here.run(server.next()).expect("not forked") {
            let number = -call.number.to_native();
            call.reply(&Negated { number }).expect("it fits");
            answered += 1;
        }
        answered
    })
}

#[test]
fn loops_without_an_executor_talk() {
    const CALLS: i64 = 1_000;
    let _together = together();
    let name = name("loops");
    let (serving, calling) = (parked(&name), parked(&name));
    let server = serve(&serving);
    let client = calling.async_client::<Negate>();
    let client = client.expect("a server is there");
    let here = Loop::new(&calling);
    for number in 0..CALLS {
        let request = Negate { number };
        let reply = here.run(client.call(&request)).expect("it answers");
        assert_eq!(reply.number, -number);
    }
    serving.close();
    assert_eq!(server.join().expect("it does not panic"), CALLS);
    // Nobody rings for what the bus itself has to say.
    let late = client.call_timeout(&Negate { number: 1 }, Duration::from_millis(1));
    assert!(here.run(late).is_err());
}

/// A driver that nobody dispatches keeps no thread from waking, and holds up no deadline.
#[test]
fn a_thread_waits_whoever_drives() {
    let _together = together();
    let name = name("idle-driver");
    let (serving, calling) = (parked(&name), parked(&name));
    let server = serving.async_server::<Negate>();
    let server = server.expect("nobody else serves");
    let _idle = [serving.driver(), calling.driver()];
    let serving_thread = thread::spawn(move || {
        while let Some(call) = server.next().wait().expect("not forked") {
            match call.number.to_native() {
                0 => drop(call),
                // Held until its caller gives up.
                i64::MAX => pollster::block_on(call.cancelled()),
                number => call.reply(&Negated { number: -number }).expect("it fits"),
            }
        }
    });
    let client = calling.async_client::<Negate>();
    let client = client.expect("a server is there");
    for number in 1..200 {
        let request = Negate { number };
        let reply = client.call(&request).wait().expect("it answers");
        assert_eq!(reply.number, -number);
    }
    let held = Negate { number: i64::MAX };
    let late = client.call_timeout(&held, Duration::from_millis(20));
    let late = late.wait().err();
    assert!(matches!(late, Some(CallError::TimedOut)), "{late:?}");
    serving.close();
    serving_thread.join().expect("it does not panic");
}

/// What waits when a driver goes is woken by the bus again.
#[test]
fn a_driver_may_go_at_any_time() {
    let _together = together();
    let name = name("going-driver");
    let (serving, calling) = (parked(&name), parked(&name));
    let serving = serving.serve::<Negate, _>(1, |call| {
        let number = -call.number.to_native();
        Ok(Negated { number })
    });
    let _serving = serving.expect("nobody else serves");
    let client = calling.async_client::<Negate>();
    let client = client.expect("a server is there");
    for number in 0..200 {
        let driver = calling.driver();
        let (client, request) = (client.clone(), Negate { number });
        let waiting = thread::spawn(move || {
            let reply = pollster::block_on(client.call(&request)).expect("it answers");
            assert_eq!(reply.number, -number);
        });
        if number % 2 == 0 {
            thread::yield_now();
        }
        drop(driver);
        waiting.join().expect("it does not panic");
    }
}

#[test]
fn a_driver_learns_that_its_bus_is_gone() {
    let _together = together();
    let bus = parked(&name("gone-driver"));
    let here = Loop::new(&bus);
    assert!(here.driver.dispatch());
    drop(bus);
    let mut set = [PollFd::new(&here.driver, PollFlags::IN)];
    poll(&mut set, None).expect("descriptors can be waited for");
    assert!(!here.driver.dispatch());
}
