//! Topics on which nothing is missed, and topics on which what is missed is told.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use anyhow::Result;
use shmbus::{
    Delivery, Kept, Publisher, Publishing, ReceiveError, SendError, ShmTopic, Subscriber,
};

use super::{chain, insist, is_refusal, rest};
use crate::ledger::{Row, kind, now};
use crate::messages::{Lossy, Reliable, body, is_body, size};
use crate::worker::Context;

/// Who takes longer to be joined than this was promised nothing, in nanoseconds.
const PROMISED: u64 = 900_000_000;
/// How many messages a subscriber keeps for a while.
const KEPT: usize = 12;

/// A message of either topic.
trait Post: ShmTopic {
    const KIND: u64;
    fn new(key: (u64, u64), previous: u64, body: Vec<u8>) -> Self;
    /// Row, number, when the one before was begun, and the contents.
    fn parts(archived: &Self::Archived) -> (u64, u64, u64, &[u8]);
}

macro_rules! post {
    ($of:ident, $kind:expr) => {
        impl Post for $of {
            const KIND: u64 = $kind;

            fn new((row, number): (u64, u64), previous: u64, body: Vec<u8>) -> Self {
                $of {
                    row,
                    number,
                    previous,
                    body,
                }
            }

            fn parts(it: &Self::Archived) -> (u64, u64, u64, &[u8]) {
                let (row, number) = (it.row.to_native(), it.number.to_native());
                (row, number, it.previous.to_native(), &it.body)
            }
        }
    };
}

post!(Reliable, kind::RELIABLE);
post!(Lossy, kind::LOSSY);

pub fn publish_reliably(context: &mut Context) -> Result<()> {
    publish::<Reliable>(context, Delivery::Reliable)
}

pub fn publish_lossily(context: &mut Context) -> Result<()> {
    publish::<Lossy>(context, Delivery::Lossy)
}

pub fn subscribe_reliably(context: &mut Context) -> Result<()> {
    subscribe::<Reliable>(context)
}

pub fn subscribe_lossily(context: &mut Context) -> Result<()> {
    subscribe::<Lossy>(context)
}

/// Publishes as fast as it is let.
fn publish<T: Post>(context: &mut Context, delivery: Delivery) -> Result<()> {
    let how = Publishing {
        delivery,
        history: 8,
    };
    let begun = now();
    let made = insist(context, || context.bus.publisher_as::<T>(how));
    let Some(mut publisher) = made else {
        return Ok(());
    };
    let (row, words) = context.ledger.begin(T::KIND, context.instance, 0);
    words.is_late.set(u64::from(now() - begun > PROMISED));
    words.began.set(begun);
    while context.goes_on() {
        post(context, &mut publisher, row, words);
        context.take_incidents();
    }
    rest(context);
    Ok(())
}

/// Publishes one message.
fn post<T: Post>(context: &mut Context, publisher: &mut Publisher<T>, row: u64, words: &Row) {
    let number = words.promised.get() + 1;
    let (begun, previous) = (now(), words.last_begun.get());
    let contents = body(row, number, size(&mut context.rng));
    let message = T::new((row, number), previous, contents);
    words.trying.set(number);
    let sent = match context.rng.u32(..8) {
        0 => publisher.try_publish(&message),
        1 => publisher.publish_timeout(&message, Duration::from_micros(200)),
        _ => publisher.publish(&message),
    };
    match sent {
        Ok(()) => {
            words.last_begun.set(begun);
            words.promised.set(number);
            context.slot.promised.add(1);
        }
        Err(error) => {
            words.trying.set(number - 1);
            context.slot.refused.add(1);
            if !is_refusal(context, &error) {
                context.complain(format_args!("message {number}: {}", chain(&error)));
            }
        }
    }
    context.fork_if_ordered(|| matches!(publisher.try_publish(&message), Err(SendError::Forked)));
}

/// What a subscriber has of one publisher.
struct Reading {
    /// The number up to which all came, or was told to be missed.
    upto: u64,
    words: &'static Row,
}

/// What a subscriber has of all publishers.
struct Readings<'a> {
    context: &'a Context,
    joined: u64,
    by_row: HashMap<u64, Reading>,
    /// Which row a process publishes in, once that is known, and what was missed of those of which it is not.
    by_pid: HashMap<u64, u64>,
    missed: HashMap<u64, u64>,
}

impl Readings<'_> {
    fn take<T: Post>(&mut self, archived: &T::Archived) {
        let context = self.context;
        let (row, number, previous, contents) = T::parts(archived);
        let Some(published) = context.ledger.row(row) else {
            context.complain(format_args!("a message of nobody: {row}"));
            return;
        };
        if !is_body(row, number, contents) {
            context.complain(format_args!(
                "message {number} of row {row} has other contents"
            ));
        }
        context.slot.seen.add(1);
        if !self.by_row.contains_key(&row) {
            self.begin(row, published, number, previous);
        }
        let reading = self.by_row.get_mut(&row).expect("it was begun");
        if number != reading.upto + 1 && !lacks_promise(context, published) {
            context.complain(format_args!(
                "message {number} of row {row} came where all up to {} had come or were told",
                reading.upto
            ));
        }
        reading.upto = number;
        reading.words.count.add(1);
        reading.words.seen.set(number);
    }

    /// The first that comes of a publisher: none that was meant for this subscriber may lie before it.
    fn begin(&mut self, row: u64, published: &Row, number: u64, previous: u64) {
        let context = self.context;
        let pid = context.ledger.instance(published.from.get()).pid.get();
        let missed = self.missed.remove(&pid).unwrap_or(0);
        let upto = (number - 1).saturating_sub(missed);
        let is_newcomer = self.joined < published.began.get();
        let is_hole = match missed {
            0 => upto > 0 && previous > self.joined,
            _ => is_newcomer && upto > 0,
        };
        let is_promised = self.joined > 0 && published.is_late.get() == 0;
        if is_promised && is_hole && !lacks_promise(context, published) {
            context.complain(format_args!(
                "message {number} of row {row} is the first to come, with {missed} missed"
            ));
        }
        let (_, words) = context.reading(row);
        words.missed.set(missed);
        self.by_pid.insert(pid, row);
        let upto = upto + missed;
        self.by_row.insert(row, Reading { upto, words });
    }

    /// Is told that some were missed.
    fn lag(&mut self, pid: u32, missed: u64) {
        let pid = u64::from(pid);
        self.context.slot.missed.add(missed);
        match self
            .by_pid
            .get(&pid)
            .and_then(|row| self.by_row.get_mut(row))
        {
            Some(reading) => {
                reading.upto += missed;
                reading.words.missed.add(missed);
                reading.words.seen.set(reading.upto);
            }
            None => *self.missed.entry(pid).or_default() += missed,
        }
    }

    /// Who was killed before any message of its came, and after some were missed, has its row all the same.
    fn find_missed(&mut self, kind: u64) {
        for (pid, missed) in std::mem::take(&mut self.missed) {
            let ledger = self.context.ledger;
            let from = ledger.by_pid(pid as u32);
            let of = ledger
                .all_rows()
                .find(|(_, row)| row.kind.get() == kind && Some(row.from.get()) == from);
            match of {
                Some((row, published)) if self.joined < published.began.get() => {
                    self.by_pid.insert(pid, row);
                    let (_, words) = self.context.reading(row);
                    words.missed.set(missed);
                    words.seen.set(missed);
                    self.by_row.insert(
                        row,
                        Reading {
                            upto: missed,
                            words,
                        },
                    );
                }
                _ => drop(self.missed.insert(pid, missed)),
            }
        }
    }
}

/// Whether the link of the two may have ended while both were alive.
fn lacks_promise(context: &Context, published: &Row) -> bool {
    let publisher = context.ledger.instance(published.from.get());
    context.has_parted() || publisher.has_parted.get() != 0
}

fn is_killed(context: &Context, pid: u32) -> bool {
    let publisher = context.ledger.by_pid(pid);
    publisher.is_some_and(|publisher| !context.ledger.is_alive(publisher))
}

/// As [`lacks_promise`], of the process that publishes.
fn may_have_parted(context: &Context, pid: u32) -> bool {
    let publisher = context.ledger.by_pid(pid);
    let has_parted = |publisher| context.ledger.instance(publisher).has_parted.get() != 0;
    context.has_parted() || publisher.is_some_and(has_parted)
}

/// Takes what is published, by whomever.
fn subscribe<T: Post>(context: &mut Context) -> Result<()> {
    let mut begun = now();
    let made = insist(context, || {
        begun = now();
        context.bus.subscriber::<T>()
    });
    let Some(mut subscriber) = made else {
        return Ok(());
    };
    let joined = now();
    let is_promised = joined - begun < PROMISED;
    let me = context.ledger.instance(context.instance);
    let joined = if is_promised { joined } else { 0 };
    me.joined.set(joined);
    let mut rng = context.rng.clone();
    let mut readings = Readings {
        context,
        joined,
        by_row: HashMap::new(),
        by_pid: HashMap::new(),
        missed: HashMap::new(),
    };
    take_all(&mut subscriber, &mut readings, &mut rng);
    Ok(())
}

fn take_all<T: Post>(
    subscriber: &mut Subscriber<T>,
    readings: &mut Readings<'_>,
    rng: &mut fastrand::Rng,
) {
    let context = readings.context;
    let mut kept: VecDeque<Kept<T>> = VecDeque::new();
    loop {
        match subscriber.next() {
            Ok(Some(message)) => {
                readings.take::<T>(&message);
                if rng.u32(..64) == 0 {
                    kept.push_back(message.keep());
                }
            }
            Ok(None) => break,
            Err(ReceiveError::Lagged { pid, missed }) => {
                if T::KIND == kind::LOSSY {
                    readings.lag(pid, missed);
                    readings.find_missed(T::KIND);
                } else if !(may_have_parted(context, pid) || missed == 1 && is_killed(context, pid))
                {
                    // One may be: which was being published as its publisher was killed. What comes of it is not
                    // accounted for by this, so that no other is.
                    context.complain(format_args!("{missed} messages of {pid} were missed"));
                }
            }
            Err(error) => {
                context.complain(error);
                break;
            }
        }
        context.goes_on();
        if kept.len() > KEPT {
            let message = kept.pop_front().expect("there are some");
            let (row, number, _, contents) = T::parts(&message);
            if !is_body(row, number, contents) {
                context.complain(format_args!(
                    "message {number} of row {row} changed while kept"
                ));
            }
        }
        context.fork_if_ordered(|| matches!(subscriber.try_next(), Err(ReceiveError::Forked)));
        context.take_incidents();
    }
}
