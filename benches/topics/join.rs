//! Joining a topic of a bus that has many.

use anyhow::Result;
use shmbus::{Bus, Publisher, ShmMessage};

use crate::common::report::Figures;
use crate::common::{Peer, Run, START, histogram, quantiles};

/// Publishers of each of the other topics.
const EACH: usize = 100;

/// The topic that is joined.
#[derive(ShmMessage)]
#[shm(topic = "joined")]
struct Joined {
    id: u64,
}

/// Said once everybody is there.
#[derive(ShmMessage)]
#[shm(service = "ready", reply = Ready)]
struct Ready {
    id: u64,
}

macro_rules! topics {
    ($($topic:ident $name:literal),*) => {
        $(
            #[derive(ShmMessage)]
            #[shm(topic = $name)]
            struct $topic {
                id: u64,
            }
        )*

        /// Publishers of all of them.
        fn others(bus: &Bus) -> Result<Vec<Box<dyn std::any::Any>>> {
            let mut others: Vec<Box<dyn std::any::Any>> = Vec::new();
            for _ in 0..EACH {
                $( others.push(Box::new(bus.publisher::<$topic>()?)); )*
            }
            Ok(others)
        }
    };
}

topics!(
    T0 "other-0", T1 "other-1", T2 "other-2", T3 "other-3", T4 "other-4",
    T5 "other-5", T6 "other-6", T7 "other-7", T8 "other-8", T9 "other-9"
);

fn name(parent: u32) -> String {
    format!("bench-join-{parent}")
}

pub fn parent(run: &Run) -> Result<Figures> {
    let bus = Bus::open(&name(std::process::id()))?;
    let child = Peer(run.command(None)?.spawn()?);
    let client = bus.client_timeout::<Ready>(START)?;
    let mut times = histogram()?;
    for id in 1..=run.total() {
        let start = run.clock.now();
        let mut subscriber = bus.subscriber::<Joined>()?;
        let time = run.clock.since(start);
        run.record(&mut times, id, time)?;
        // It has joined: what is published now comes.
        client.call(&Ready { id })?;
        let joined = subscriber.next()?;
        anyhow::ensure!(
            joined.is_some_and(|joined| joined.id == id),
            "another message"
        );
    }
    drop((client, bus));
    child.finish()?;
    Ok(quantiles(&times))
}

pub fn child(run: &Run) -> Result<()> {
    let bus = Bus::open(&name(
        rustix::process::getppid().map_or(0, |pid| pid.as_raw_pid() as u32),
    ))?;
    let _others = others(&bus)?;
    let mut publisher: Publisher<Joined> = bus.publisher()?;
    let mut server = bus.server::<Ready>()?;
    for _ in 0..run.total() {
        let Some(call) = server.next()? else {
            break;
        };
        let id = call.id.to_native();
        publisher.publish(&Joined { id })?;
        call.reply(&Ready { id })?;
    }
    Ok(())
}
