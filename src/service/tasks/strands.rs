//! The lane pairs of a client: to one server, and then to its successor.

use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use super::OfBus;
use super::strand::Strand;
use crate::bus::Shared as BusShared;
use crate::error::{CallError, ConnectError, SendError};
use crate::link::lock;
use crate::memory::layout::MOST_OPEN;
use crate::message::ShmRequest;
use crate::service::client::Error;
use crate::service::connect::connect;
use crate::service::contract::Contract;
use crate::wait::{Wait, Waiter};

/// See the module.
pub(super) struct Strands {
    /// The first of them takes calls; the others those for which it has no place. Never empty.
    all: Mutex<Vec<OfBus<Strand>>>,
    /// Held while one is opened, so that nobody opens another meanwhile.
    opening: Mutex<()>,
    pub(super) wait: Wait,
    pub(super) bus: Arc<BusShared>,
}

impl Strands {
    pub(super) fn open<R: ShmRequest>(
        bus: &Arc<BusShared>,
        deadline: Option<Instant>,
    ) -> Result<Self, ConnectError> {
        let first = open_strand::<R>(bus, deadline)?;
        Ok(Strands {
            all: Mutex::new(vec![first]),
            opening: Mutex::default(),
            wait: bus.node().config().wait,
            bus: bus.clone(),
        })
    }

    pub(super) fn first(&self) -> OfBus<Strand> {
        lock(&self.all)[0].clone()
    }

    pub(super) fn is_forked(&self) -> bool {
        self.bus.node().origin().is_forked()
    }

    /// Lanes with a place for one more call, which the first have not.
    #[cold]
    pub(super) fn another<R: ShmRequest>(&self) -> Result<OfBus<Strand>, Error<R>> {
        if self.is_forked() {
            return Err(SendError::Forked.into());
        }
        let _opening = lock(&self.opening);
        let first = self.first();
        if first.is_closed() {
            // Whoever asks learns that there, and looks for a successor.
            return Ok(first);
        }
        let all = self.drop_closed();
        if let Some(strand) = all.iter().find(|strand| strand.has_place()) {
            return Ok(strand.clone());
        }
        // All of them are full.
        let open = all.len() * MOST_OPEN;
        let strand = open_strand::<R>(&self.bus, None);
        let strand = strand.map_err(|_| CallError::TooMany { open })?;
        lock(&self.all).push(strand.clone());
        Ok(strand)
    }

    /// Lanes to the successor of a server that is gone, if somebody offers the service.
    #[cold]
    pub(super) fn successor<R: ShmRequest>(&self) -> Result<OfBus<Strand>, ConnectError> {
        let _opening = lock(&self.opening);
        let first = self.first();
        if !first.is_closed() {
            return Ok(first);
        }
        let strand = open_strand::<R>(&self.bus, None)?;
        lock(&self.all).insert(0, strand.clone());
        self.drop_closed();
        Ok(strand)
    }

    /// Gives up those whose server is gone, but for the first; says which are left. For who holds `opening`.
    fn drop_closed(&self) -> Vec<OfBus<Strand>> {
        let all = lock(&self.all).clone();
        let is_of_use = |(at, strand): &(usize, OfBus<Strand>)| *at == 0 || !strand.is_closed();
        let live = all.into_iter().enumerate().filter(is_of_use);
        let live: Vec<_> = live.map(|(_, strand)| strand).collect();
        let before = std::mem::replace(&mut *lock(&self.all), live.clone());
        // Without the lock: they may be all that holds their lanes.
        drop(before);
        live
    }
}

fn open_strand<R: ShmRequest>(
    bus: &Arc<BusShared>,
    deadline: Option<Instant>,
) -> Result<OfBus<Strand>, ConnectError> {
    let node = bus.node();
    let connected = connect(
        node,
        R::SERVICE,
        &Contract::service::<R>(),
        Waiter::Tasks,
        deadline,
    )?;
    let (mut outbox, inbox, closer, sleeper) = connected.both()?;
    outbox.set_keeping(R::IDEMPOTENT);
    let strand = Strand::new(outbox, inbox, closer, node.origin());
    let strand = Arc::new(strand);
    let port = Arc::downgrade(&strand);
    sleeper.attach(port as Weak<_>, node.due().clone());
    Ok(OfBus::new(strand, bus))
}
