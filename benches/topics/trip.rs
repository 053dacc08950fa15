//! One message there on a topic, and one back on another.

use anyhow::{Context, Result, ensure};
use shmbus::{Bus, Publisher, ShmMessage, ShmTopic, Subscriber};

use crate::common::report::Figures;
use crate::common::{Peer, Run, histogram, quantiles};
use crate::fan::{content, parts};

macro_rules! messages {
    ($($name:ident $archived:ident $topic:literal),*) => {$(
        #[derive(ShmMessage)]
        #[shm(topic = $topic)]
        struct $name {
            id: u64,
            content: Vec<u8>,
        }

        impl $archived {
            fn check(&self, id: u64, bytes: usize) -> Result<()> {
                let content = self.content.as_slice();
                let right = self.id == id && content.len() == bytes - 16;
                ensure!(right && content[content.len() - 1] == 7, "message {id} came changed");
                Ok(())
            }
        }
    )*};
}

messages!(There ArchivedThere "there", Back ArchivedBack "back");

fn ports<S: ShmTopic, R: ShmTopic>(bus: &Bus, run: &Run) -> Result<(Publisher<S>, Subscriber<R>)> {
    let mut publisher = bus.publisher::<S>()?;
    publisher.set_wait(run.mode.wait());
    let mut subscriber = bus.subscriber::<R>()?;
    subscriber.set_wait(run.mode.wait());
    Ok((publisher, subscriber))
}

/// Times trips, each as half of one.
pub fn ask(run: &Run) -> Result<Figures> {
    let (bytes, _) = parts(run.name())?;
    let (bus, child) = Bus::spawn(run.command(None)?)?;
    let mut child = Peer(child);
    let (mut publisher, mut subscriber) = ports::<There, Back>(&bus, run)?;
    while publisher.subscribers() == 0 {
        child.check()?;
        std::thread::yield_now();
    }
    let content = content(bytes);
    let mut message = There { id: 0, content };
    let mut times = histogram()?;
    for id in 1..=run.total() {
        message.id = id;
        let start = run.clock.now();
        publisher.publish(&message)?;
        let back = subscriber.next()?.context("the other side has ended")?;
        let time = run.clock.since(start) / 2;
        back.check(id, bytes)?;
        run.record(&mut times, id, time)?;
    }
    drop((publisher, subscriber, bus));
    child.finish()?;
    Ok(quantiles(&times))
}

pub fn answer(run: &Run) -> Result<()> {
    let (bytes, _) = parts(run.name())?;
    let bus = Bus::from_parent()?;
    let (mut publisher, mut subscriber) = ports::<Back, There>(&bus, run)?;
    let content = content(bytes);
    let mut message = Back { id: 0, content };
    for id in 1..=run.total() {
        subscriber
            .next()?
            .context("the parent has ended")?
            .check(id, bytes)?;
        message.id = id;
        publisher.publish(&message)?;
    }
    Ok(())
}
