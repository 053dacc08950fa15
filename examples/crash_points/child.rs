//! What a child does: sets itself up, warms up, and does one operation between two marks.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use shmbus::{Bus, Config, Delivery, Publishing, SendError, Sender, Wait};

use crate::messages::{
    Ask, Document, Edit, INBOX, LARGE, LARGER, Note, OUTBOX, SMALL, State, WIDE, content, note,
    state,
};
use crate::operation::{BUS, Operation};
use crate::page::{Page, Phase, Word};
use crate::worker::LOOK;

/// How long a survivor may take to answer.
const START: Duration = Duration::from_secs(10);
/// Messages before the operation.
const WARM: u64 = 2;
/// More than a lane of a topic has cells.
const MANY: u64 = 520;

/// A child at its gate, and behind it.
struct Child<'a> {
    page: &'a Page,
}

impl Child<'_> {
    /// Waits until the harness steps this process.
    fn gate(&self) {
        self.page.enter(Phase::Ready);
        while self.page.get(Word::Go) == 0 {
            thread::sleep(LOOK);
        }
        self.page.enter(Phase::Running);
    }

    /// The operation is over: waits to be killed.
    fn end<T>(&self, _keeps: T) -> Result<()> {
        self.page.enter(Phase::Ended);
        loop {
            thread::park();
        }
    }

    /// Makes call `number`, and says before and after it how far it is.
    #[inline(always)]
    fn count<T, E>(&self, number: u64, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        self.page.set(Word::Begun, number);
        let done = call()?;
        self.page.set(Word::Done, number);
        Ok(done)
    }

    /// Has the survivor send so many messages in all.
    fn want(&self, number: u64) -> Result<()> {
        self.page.set(Word::Wanted, number);
        self.until("the survivor sends nothing", || {
            Ok(self.page.get(Word::Sent) >= number)
        })
    }

    fn until(&self, what: &'static str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !is_so()? {
            ensure!(start.elapsed() < START, what);
            thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// Does an operation as the child with this page; returns only with an error.
pub fn run(operation: Operation, page: &Page) -> Result<()> {
    let child = Child { page };
    let bus = Config::default().open(BUS)?;
    match operation {
        Operation::Slot | Operation::Wake => child.send(&bus, SMALL),
        Operation::Slab => child.send(&bus, LARGE),
        Operation::Grow => child.grow(&bus),
        Operation::Extend => child.extend(&bus),
        Operation::Room => child.room(&bus),
        Operation::Receive => child.receive(&bus, SMALL),
        Operation::ReceiveSlab => child.receive(&bus, LARGE),
        Operation::HandBack => child.hand_back(&bus),
        Operation::Sleep => child.sleep(&bus),
        Operation::Connect => child.connect(&bus),
        Operation::Accept => child.accept(&bus),
        Operation::Offer => child.offer(&bus),
        Operation::Leave => child.leave(bus),
        Operation::Publish => child.publish(&bus, SMALL),
        Operation::PublishSlab => child.publish(&bus, LARGE),
        Operation::Lossy => child.lossy(&bus),
        Operation::Subscribe => child.subscribe(&bus),
        Operation::Cancel => child.cancel(&bus),
        Operation::Reply => child.reply(&bus),
        Operation::Put => child.put(&bus),
        Operation::Look => child.look(&bus),
        Operation::Pin => child.pin(&bus),
    }
}

impl Child<'_> {
    fn warm_sender(&self, bus: &Bus, len: usize) -> Result<Sender<Note>> {
        let mut sender = bus.sender_timeout::<Note>(OUTBOX, START)?;
        for number in 1..=WARM {
            let note = note(self.page.id(number), len);
            self.count(number, || sender.send(&note))?;
        }
        Ok(sender)
    }

    fn send(&self, bus: &Bus, len: usize) -> Result<()> {
        let mut sender = self.warm_sender(bus, len)?;
        let note = note(self.page.id(WARM + 1), len);
        self.gate();
        self.count(WARM + 1, || sender.send(&note))?;
        self.end(sender)
    }

    fn grow(&self, bus: &Bus) -> Result<()> {
        let mut sender = self.warm_sender(bus, LARGE)?;
        let mut loans = Vec::new();
        let taken = loop {
            let (taken, used) = bus.memory();
            if taken - used < LARGER as u64 {
                break taken;
            }
            loans.push(sender.loan_bytes(4 << 10)?);
        };
        let note = note(self.page.id(WARM + 1), LARGER);
        self.gate();
        self.count(WARM + 1, || sender.send(&note))?;
        ensure!(bus.memory().0 > taken, "no segment was made");
        self.end((sender, loans))
    }

    fn extend(&self, bus: &Bus) -> Result<()> {
        /// Four times the cells that the message takes.
        const CELLS: u64 = 4 * WIDE as u64;
        let mut sender = self.warm_sender(bus, SMALL)?;
        let note = note(self.page.id(WARM + 1), WIDE);
        let used = bus.memory().1;
        self.gate();
        self.count(WARM + 1, || sender.send(&note))?;
        ensure!(bus.memory().1 >= used + CELLS, "no cells were added");
        self.end(sender)
    }

    fn room(&self, bus: &Bus) -> Result<()> {
        let mut sender = self.warm_sender(bus, SMALL)?;
        sender.set_wait(Wait::Park);
        let mut number = WARM;
        let last = loop {
            number += 1;
            let note = note(self.page.id(number), SMALL);
            match self.count(number, || sender.try_send(&note)) {
                Ok(()) => {}
                Err(SendError::Full) => break note,
                Err(error) => return Err(error.into()),
            }
        };
        self.gate();
        self.count(number, || sender.send(&last))?;
        self.end(sender)
    }

    fn receive(&self, bus: &Bus, len: usize) -> Result<()> {
        let mut receiver = bus.receiver::<Note>(INBOX)?;
        receiver.set_wait(Wait::Spin);
        self.page.enter(Phase::Offered);
        for number in 1..=WARM {
            self.want(number)?;
            receiver.try_next()?.context("nothing came")?;
        }
        self.want(WARM + 1)?;
        self.gate();
        let view = self.count(1, || receiver.try_next())?;
        let view = view.context("nothing came")?;
        ensure!(view.content.len() == len, "another message came");
        self.end(view)
    }

    fn hand_back(&self, bus: &Bus) -> Result<()> {
        let mut receiver = bus.receiver::<Note>(INBOX)?;
        self.page.enter(Phase::Offered);
        for number in 1..=WARM {
            self.want(number)?;
            receiver.try_next()?.context("nothing came")?;
        }
        self.want(WARM + 1)?;
        let view = receiver.try_next()?.context("nothing came")?;
        self.gate();
        self.count(1, || {
            drop(view);
            anyhow::Ok(())
        })?;
        self.end(receiver)
    }

    fn sleep(&self, bus: &Bus) -> Result<()> {
        let mut receiver = bus.receiver::<Note>(INBOX)?;
        receiver.set_wait(Wait::Park);
        self.page.enter(Phase::Offered);
        self.want(WARM)?;
        for _ in 1..=WARM {
            receiver.next()?.context("the bus ended")?;
        }
        self.gate();
        let view = self.count(1, || receiver.next())?;
        self.end(view.context("the bus ended")?)
    }

    fn connect(&self, bus: &Bus) -> Result<()> {
        self.gate();
        let sender = self.count(1, || bus.sender::<Note>(OUTBOX))?;
        self.end(sender)
    }

    fn accept(&self, bus: &Bus) -> Result<()> {
        let mut receiver = bus.receiver::<Note>(INBOX)?;
        receiver.set_wait(Wait::Park);
        self.page.enter(Phase::Offered);
        // So that the quiet thread has nothing left to do.
        thread::sleep(Duration::from_millis(1));
        self.gate();
        while receiver.next()?.is_some() {
            self.page.set(Word::Done, 1);
        }
        Ok(())
    }

    fn offer(&self, bus: &Bus) -> Result<()> {
        self.gate();
        let receiver = self.count(1, || bus.receiver::<Note>(INBOX))?;
        self.end(receiver)
    }

    fn leave(&self, bus: Bus) -> Result<()> {
        let sender = self.warm_sender(&bus, LARGE)?;
        self.gate();
        drop((sender, bus));
        self.end(())
    }

    fn publish(&self, bus: &Bus, len: usize) -> Result<()> {
        let mut publisher = bus.publisher::<Note>()?;
        self.until("nobody subscribes", || Ok(publisher.subscribers() == 2))?;
        for number in 1..=WARM {
            let note = note(self.page.id(number), len);
            self.count(number, || publisher.publish(&note))?;
        }
        let note = note(self.page.id(WARM + 1), len);
        self.gate();
        self.count(WARM + 1, || publisher.publish(&note))?;
        self.end(publisher)
    }

    fn lossy(&self, bus: &Bus) -> Result<()> {
        let delivery = Delivery::Lossy;
        let mut publisher = bus.publisher_as::<Note>(Publishing {
            delivery,
            history: 0,
        })?;
        self.until("nobody subscribes", || Ok(publisher.subscribers() == 1))?;
        for number in 1..=MANY {
            let note = note(self.page.id(number), SMALL);
            self.count(number, || publisher.publish(&note))?;
        }
        let note = note(self.page.id(MANY + 1), SMALL);
        self.gate();
        self.count(MANY + 1, || publisher.publish(&note))?;
        self.end(publisher)
    }

    fn subscribe(&self, bus: &Bus) -> Result<()> {
        self.gate();
        let subscriber = self.count(1, || bus.subscriber::<Note>())?;
        self.end(subscriber)
    }

    fn cancel(&self, bus: &Bus) -> Result<()> {
        let client = bus.client_timeout::<Ask>(START)?;
        let ask = Ask {
            id: self.page.id(1),
        };
        let items = client.stream(&ask)?;
        self.want(1)?;
        self.gate();
        self.count(1, || {
            drop(items);
            anyhow::Ok(())
        })?;
        self.end(())
    }

    fn reply(&self, bus: &Bus) -> Result<()> {
        let mut server = bus.server::<Ask>()?;
        self.page.enter(Phase::Offered);
        for number in 1..=WARM {
            let call = server.next_timeout(START)?.context("nobody calls")?;
            let note = note(call.id.to_native(), LARGE);
            self.count(number, || call.reply(&note))?;
        }
        let call = server.next_timeout(START)?.context("nobody calls")?;
        let note = note(call.id.to_native(), LARGE);
        self.gate();
        self.count(WARM + 1, || call.reply(&note))?;
        self.end(())
    }

    fn put(&self, bus: &Bus) -> Result<()> {
        let mut publisher = bus.latest_publisher::<State>()?;
        self.until("nobody reads", || Ok(publisher.readers() == 1))?;
        for number in 1..=WARM {
            publisher.publish(&state("other", self.page.id(number), SMALL))?;
            let state = state("key", self.page.id(number), SMALL);
            self.count(number, || publisher.publish(&state))?;
        }
        let state = state("key", self.page.id(WARM + 1), SMALL);
        self.gate();
        self.count(WARM + 1, || publisher.publish(&state))?;
        self.end(publisher)
    }

    fn look(&self, bus: &Bus) -> Result<()> {
        let mut latest = bus.latest::<State>()?;
        self.page.enter(Phase::Offered);
        self.want(1)?;
        self.until("no value is there", || Ok(latest.get("key")?.is_some()))?;
        self.want(2)?;
        self.gate();
        let value = self.count(1, || latest.get("key"))?;
        self.end(value.context("the value is gone")?)
    }

    fn pin(&self, bus: &Bus) -> Result<()> {
        let mut sender = bus.sender_timeout::<Edit>(OUTBOX, START)?;
        let document = |number| {
            let id = self.page.id(number);
            let content = content(id, LARGE);
            Document { id, content }
        };
        let mut edit = |number, document: &Document| {
            self.count(number, || {
                let (id, document) = (document.id, bus.pin(document)?);
                sender.send(&Edit { id, document })
            })
        };
        for number in 1..=WARM {
            edit(number, &document(number))?;
        }
        let last = document(WARM + 1);
        self.gate();
        edit(WARM + 1, &last)?;
        self.end(sender)
    }
}
