//! Which process does what.

use shmbus::Config;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
    Receiver,
    Sender,
    ReliablePublisher,
    ReliableSubscriber,
    LossyPublisher,
    LossySubscriber,
    NewestPublisher,
    NewestReader,
    TaskServer,
    TaskClient,
}

use Role::*;

/// One of each. Who has another process of its kind is never killed, so that somebody has seen everything.
const FIRST: [Role; 12] = [
    Server,
    TaskServer,
    Client,
    TaskClient,
    Receiver,
    Sender,
    ReliablePublisher,
    ReliableSubscriber,
    LossyPublisher,
    LossySubscriber,
    NewestPublisher,
    NewestReader,
];
/// Those who come beside them.
const MORE: [Role; 10] = [
    Client,
    Receiver,
    Sender,
    ReliableSubscriber,
    ReliablePublisher,
    LossyPublisher,
    LossySubscriber,
    NewestReader,
    NewestPublisher,
    TaskClient,
];
/// The fewest processes with which every role is played by one that is killed.
pub const FEWEST: usize = FIRST.len() + MORE.len();
/// So many keys has each publisher of newest values.
pub const KEYS: u64 = 4;
/// Little enough that a large message is refused now and then.
const LITTLE: usize = 6 << 20;

impl Role {
    pub fn of(slot: usize) -> Role {
        match slot.checked_sub(FIRST.len()) {
            None => FIRST[slot],
            Some(more) => MORE[more % MORE.len()],
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Server => "server",
            Client => "client",
            Receiver => "receiver",
            Sender => "sender",
            ReliablePublisher => "publisher, reliable",
            ReliableSubscriber => "subscriber, reliable",
            LossyPublisher => "publisher, lossy",
            LossySubscriber => "subscriber, lossy",
            NewestPublisher => "publisher, newest",
            NewestReader => "reader, newest",
            TaskServer => "server of tasks",
            TaskClient => "client of tasks",
        }
    }
}

/// Whether a process is never killed.
pub fn is_spared(slot: usize) -> bool {
    (2..FIRST.len()).contains(&slot)
}

/// Whether a process lives with little memory.
pub fn is_limited(slot: usize) -> bool {
    !is_spared(slot) && slot % 3 == 1
}

/// Whether a process is to run out of descriptors.
pub fn is_starved(slot: usize) -> bool {
    !is_spared(slot)
}

pub fn config(slot: usize) -> Config {
    match is_limited(slot) {
        true => Config {
            memory_limit: LITTLE,
            ..Config::default()
        },
        false => Config::default(),
    }
}

/// The name under which the receiver of this slot receives.
pub fn letters(slot: usize) -> String {
    format!("letters-{slot}")
}
