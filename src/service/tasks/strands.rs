//! The lane pairs of a client: to one server, and then to its successor.

use std::sync::{Arc, Mutex, Weak};
use std::task::Waker;
use std::time::Instant;

use super::OfBus;
use super::strand::Strand;
use crate::bus::Shared as BusShared;
use crate::error::{CallError, ConnectError, SendError};
use crate::link::{Until, lock};
use crate::memory::layout::MOST_OPEN;
use crate::message::ShmRequest;
use crate::service::client::Error;
use crate::service::connect::{Connected, Connecting, Wanted};
use crate::service::contract::Contract;
use crate::wait::{Wait, Waiter};

/// See the module.
pub(super) struct Strands {
    /// The first of them takes calls; the others those for which it has no place. Never empty.
    all: Mutex<Vec<OfBus<Strand>>>,
    /// The one that is being opened. Locked meanwhile, so that nobody opens another.
    opening: Mutex<Connecting>,
    pub(super) wait: Wait,
    pub(super) bus: Arc<BusShared>,
}

impl Strands {
    pub(super) fn open<R: ShmRequest>(
        bus: &Arc<BusShared>,
        deadline: Option<Instant>,
    ) -> Result<Self, ConnectError> {
        let first = open_strand::<R>(bus, |wanted| wanted.connect_first(deadline))?;
        Ok(Strands {
            all: Mutex::new(vec![first]),
            opening: Mutex::default(),
            wait: bus.node().config().wait,
            bus: bus.clone(),
        })
    }

    /// Until when lanes that are being opened may be: see [`another`](Self::another).
    pub(super) fn due(&self) -> Option<Instant> {
        lock(&self.opening).due()
    }

    pub(super) fn first(&self) -> OfBus<Strand> {
        lock(&self.all)[0].clone()
    }

    pub(super) fn is_forked(&self) -> bool {
        self.bus.node().origin().is_forked()
    }

    /// Lanes with a place for one more call, which the first have not.
    ///
    /// `None` where they are opened meanwhile, which wakes this.
    #[cold]
    pub(super) fn another<R: ShmRequest>(
        &self,
        waker: Option<&Waker>,
    ) -> Result<Option<OfBus<Strand>>, Error<R>> {
        if self.is_forked() {
            return Err(SendError::Forked.into());
        }
        let mut opening = lock(&self.opening);
        let first = self.first();
        if first.is_closed() {
            // Whoever asks learns that there, and looks for a successor.
            return Ok(Some(first));
        }
        let all = self.drop_closed();
        if let Some(strand) = all.iter().find(|strand| strand.has_place()) {
            return Ok(Some(strand.clone()));
        }
        // All of them are full.
        let open = all.len() * MOST_OPEN;
        let strand = open_strand::<R>(&self.bus, |wanted| {
            wanted.connect(&mut opening, woken(waker))
        });
        if strand.is_err() && opening.due().is_some() {
            return Ok(None);
        }
        let strand = strand.map_err(|_| CallError::TooMany { open })?;
        lock(&self.all).push(strand.clone());
        Ok(Some(strand))
    }

    /// Lanes to the successor of a server that is gone, if somebody offers the service. Never waits: where it has not
    /// answered yet, this is woken when it has, and fails until then.
    #[cold]
    pub(super) fn successor<R: ShmRequest>(
        &self,
        waker: Option<&Waker>,
    ) -> Result<OfBus<Strand>, NoSuccessor> {
        let mut opening = lock(&self.opening);
        let first = self.first();
        if !first.is_closed() {
            return Ok(first);
        }
        let strand = open_strand::<R>(&self.bus, |wanted| {
            wanted.connect(&mut opening, woken(waker))
        });
        let strand = strand.map_err(|error| NoSuccessor {
            error,
            due: opening.due(),
        })?;
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

/// Why there is none.
pub(super) struct NoSuccessor {
    pub(super) error: ConnectError,
    /// Where it may answer still: until when.
    pub(super) due: Option<Instant>,
}

/// A task waits for it, or nobody.
fn woken(waker: Option<&Waker>) -> Until<'_> {
    waker.map_or_else(|| Until::At(Instant::now()), Until::Woken)
}

fn open_strand<R: ShmRequest>(
    bus: &Arc<BusShared>,
    connect: impl FnOnce(&Wanted<'_>) -> Result<Connected, ConnectError>,
) -> Result<OfBus<Strand>, ConnectError> {
    let node = bus.node();
    let connected = connect(&Wanted {
        node,
        name: R::SERVICE,
        contract: &Contract::service::<R>(),
        waiter: Waiter::Tasks,
    })?;
    let (mut outbox, inbox, closer, sleeper) = connected.both()?;
    outbox.set_keeping(R::IDEMPOTENT);
    let strand = Strand::new(outbox, inbox, closer, node.origin());
    let strand = Arc::new(strand);
    let port = Arc::downgrade(&strand);
    sleeper.attach(port as Weak<_>, node.due().clone());
    Ok(OfBus::new(strand, bus))
}
