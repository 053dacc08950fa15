//! What is there with features only. In a process of its own: who listens to traces listens to all of them.

mod streams;
#[allow(dead_code)] // it is what other tests need, too
#[path = "../bus/support.rs"]
mod support;
mod traced;

use shmbus::ShmMessage;

#[derive(ShmMessage)]
#[shm(service = "count", stream = Number, reply = Sum)]
pub(crate) struct Count {
    pub(crate) to: u32,
}

#[derive(ShmMessage, Debug)]
pub(crate) struct Number {
    pub(crate) value: u32,
}

#[derive(ShmMessage)]
pub(crate) struct Sum {
    pub(crate) value: u32,
}

/// What another process of a test does: nothing, unless it was started as one.
#[test]
#[ignore = "a part that other processes play"]
fn child() {
    let _watch = support::Watchdog::start("a child");
    match support::role() {
        Some((role, _)) if role == "relays" => traced::relays(),
        Some((role, _)) => panic!("no such part: {role}"),
        None => {}
    }
}
