//! Who waits for a port to be offered.
//!
//! Whoever offers one tells it once it stands: in the directory of the bus, by the time of its file, or over an
//! inherited link; and whose inherited link has ended waits for nobody. A task first has its waker kept, and then looks whether somebody offers the port: so it either finds
//! the port, or is woken.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::Mutex;
use std::task::Waker;
use std::time::Instant;

use super::lock;
use super::node::{Node, Reach};
use super::place::PORT;
use crate::error::OpenError;
use crate::wait::tasks::{Place, Wakers};

/// By the name of the port, the wakers of tasks.
#[derive(Default)]
pub(super) struct Awaited(Mutex<HashMap<String, Wakers>>);

impl Node {
    /// Has a task woken when somebody offers a port of this name.
    pub(crate) fn await_port(
        &self,
        name: &str,
        at: &mut Place,
        waker: &Waker,
    ) -> Result<(), OpenError> {
        if let Reach::Name { place, socket, .. } = self.reach() {
            self.listen(place, socket)?;
            self.watch(place)?;
        }
        let mut awaited = lock(&self.awaited.0);
        let before = awaited.entry(name.to_owned()).or_default();
        let before = before.keep(at, waker);
        drop(awaited);
        // Dropped without the lock: it may be all that is left of a task.
        drop(before);
        Ok(())
    }

    /// Who waited for a port does no more.
    pub(crate) fn await_no_more(&self, name: &str, at: &mut Place) {
        if !at.is_taken() || self.origin().is_forked() {
            return;
        }
        let mut awaited = lock(&self.awaited.0);
        let waker = awaited.get_mut(name).and_then(|wakers| wakers.forget(at));
        if awaited.get(name).is_some_and(Wakers::is_empty) {
            awaited.remove(name);
        }
        drop(awaited);
        drop(waker);
    }

    /// A port of this name is offered; without a name, any may be, or none ever will. Whoever reads a link calls this,
    /// so the quiet thread wakes them, behind that.
    pub(super) fn offered(&self, name: Option<&str>) {
        let mut awaited = lock(&self.awaited.0);
        let woken: Vec<_> = match name {
            Some(name) => awaited.remove(name).into_iter().collect(),
            None => std::mem::take(&mut *awaited).into_values().collect(),
        };
        drop(awaited);
        let now = Instant::now();
        for waker in woken.into_iter().flat_map(|mut wakers| wakers.take()) {
            self.due().set_timer(now, waker);
        }
    }

    /// A file of the directory was touched: of a port, perhaps.
    pub(super) fn touched(&self, file: &OsStr) {
        let file = file.to_str().and_then(|file| file.rsplit_once('.'));
        if let Some((name, PORT)) = file {
            self.offered(Some(name));
        }
    }
}
