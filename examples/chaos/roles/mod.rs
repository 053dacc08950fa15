//! What each process does, until it is told that all is over.

mod calls;
mod newest;
mod one_way;
mod tasks;
mod topics;

use std::time::Duration;

use anyhow::Result;
use shmbus::{ConnectError, MemoryError, SendError};

use crate::plan::Role;
use crate::worker::Context;

/// How long is waited for whoever was killed to be there again.
const SOON: Duration = Duration::from_secs(2);

/// Plays a role until the end.
pub fn play(role: Role, context: &mut Context) -> Result<()> {
    match role {
        Role::Server => calls::serve(context),
        Role::Client => calls::call(context),
        Role::Receiver => one_way::receive(context),
        Role::Sender => one_way::send(context),
        Role::ReliablePublisher => topics::publish_reliably(context),
        Role::ReliableSubscriber => topics::subscribe_reliably(context),
        Role::LossyPublisher => topics::publish_lossily(context),
        Role::LossySubscriber => topics::subscribe_lossily(context),
        Role::NewestPublisher => newest::publish(context),
        Role::NewestReader => newest::read(context),
        Role::TaskServer => tasks::serve(context),
        Role::TaskClient => tasks::call(context),
    }
}

/// Makes a port, as often as it takes: its other end may have been killed, and the system may be short of everything.
fn insist<T>(context: &Context, mut make: impl FnMut() -> Result<T, ConnectError>) -> Option<T> {
    while context.goes_on() {
        match make() {
            Ok(port) => return Some(port),
            Err(error) => {
                if !is_expected(context, &error) {
                    context.complain(format_args!("no port: {}", chain(&error)));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    None
}

/// Whether a port may fail to be made like this.
fn is_expected(context: &Context, error: &ConnectError) -> bool {
    match error {
        // Of one that was killed a moment ago.
        ConnectError::Taken { .. } | ConnectError::NoServer { .. } => true,
        ConnectError::Lost { fault, .. } => fault.is_none(),
        // Its process is stopped, or has no descriptors.
        ConnectError::NoAnswer { .. } => true,
        ConnectError::Open(_) => context.was_in_want(),
        ConnectError::Memory(_) => context.may_lack_memory(),
        _ => false,
    }
}

/// Whether a message may be refused like this. Who is gone is another matter.
fn is_refusal(context: &Context, error: &SendError) -> bool {
    match error {
        SendError::Full => true,
        SendError::Memory(MemoryError::Limit { .. }) => context.may_lack_memory(),
        SendError::Memory(MemoryError::Exhausted { .. }) => context.was_in_want(),
        _ => false,
    }
}

/// An error, and what it comes from.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text += &format!(": {inner}");
        source = inner.source();
    }
    text
}

/// Waits while what was begun arrives elsewhere. Ports stay open meanwhile.
fn rest(context: &Context) {
    while context.ledger.phase.get() < crate::ledger::phase::CLOSE {
        std::thread::sleep(Duration::from_millis(1));
    }
}
