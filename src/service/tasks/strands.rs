//! The lane pairs of a client: to one server, and then to its successor.

use std::sync::{Arc, Mutex, Weak};
use std::task::{Wake, Waker};
use std::time::Instant;

use super::OfBus;
use super::strand::Strand;
use crate::bus::Shared as BusShared;
use crate::error::{CallError, ConnectError, SendError};
use crate::link::{Until, lock};
use crate::memory::layout::MOST_OPEN;
use crate::message::ShmRequest;
use crate::service::client::Error;
use crate::service::connect::{Connected, Connecting, Joined, Wanted};
use crate::service::contract::Contract;
use crate::wait::tasks::{Place, Wakers, wake};
use crate::wait::{Wait, Waiter};

/// See the module.
pub(super) struct Strands {
    /// The first of them takes calls; the others those for which it has no place. Never empty.
    all: Mutex<Vec<OfBus<Strand>>>,
    /// The one that is being opened. Locked meanwhile, so that nobody opens another.
    opening: Mutex<Connecting>,
    /// Who waits for it.
    coming: Arc<Coming>,
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
            coming: Arc::default(),
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
    pub(super) fn another<R: ShmRequest>(
        &self,
        joined: &mut Joined,
        waits: Option<(&mut Place, &Waker)>,
    ) -> Result<Lanes, Error<R>> {
        if self.is_forked() {
            return Err(SendError::Forked.into());
        }
        self.wait(waits);
        let mut opening = lock(&self.opening);
        let first = self.first();
        if first.is_closed() {
            // Whoever asks learns that there, and looks for a successor.
            return Ok(Lanes::Open(first));
        }
        let all = self.drop_closed();
        if let Some(strand) = all.iter().find(|strand| strand.has_place()) {
            return Ok(Lanes::Open(strand.clone()));
        }
        // All of them are full.
        let open = all.len() * MOST_OPEN;
        let lanes = self.poll_open::<R>(&mut opening, joined);
        let lanes = lanes.map_err(|_| CallError::TooMany { open })?;
        if let Lanes::Open(strand) = &lanes {
            lock(&self.all).push(strand.clone());
        }
        Ok(lanes)
    }

    /// Lanes to the successor of a server that is gone, if somebody offers the service.
    #[cold]
    pub(super) fn successor<R: ShmRequest>(
        &self,
        joined: &mut Joined,
        waits: Option<(&mut Place, &Waker)>,
    ) -> Result<Lanes, NoLanes> {
        self.wait(waits);
        let mut opening = lock(&self.opening);
        let first = self.first();
        if !first.is_closed() {
            return Ok(Lanes::Open(first));
        }
        let lanes = self.poll_open::<R>(&mut opening, joined)?;
        if let Lanes::Open(strand) = &lanes {
            lock(&self.all).insert(0, strand.clone());
            self.drop_closed();
        }
        Ok(lanes)
    }

    /// Has a task woken when there is more to do for lanes that are being opened. Before the look: what comes behind
    /// that wakes it.
    fn wait(&self, waits: Option<(&mut Place, &Waker)>) {
        if let Some((place, waker)) = waits {
            let before = lock(&self.coming.0).keep(place, waker);
            // Dropped without a lock: it may be all that is left of a task.
            drop(before);
        }
    }

    /// Goes on with opening lanes.
    fn poll_open<R: ShmRequest>(
        &self,
        opening: &mut Connecting,
        joined: &mut Joined,
    ) -> Result<Lanes, NoLanes> {
        let coming = Waker::from(self.coming.clone());
        let opened = open_strand::<R>(&self.bus, |wanted| {
            wanted.connect(opening, joined, Until::Woken(&coming))
        });
        match (opened, opening.due()) {
            (Ok(strand), _) => Ok(Lanes::Open(strand)),
            (Err(late), Some(due)) => Ok(Lanes::Coming { due, late }),
            (Err(error), None) => Err(NoLanes {
                error,
                is_refused: opening.is_refused(),
            }),
        }
    }

    /// A task waits for lanes no more.
    pub(super) fn leave(&self, place: &mut Place) {
        if place.is_taken() && !self.is_forked() {
            let waker = lock(&self.coming.0).forget(place);
            // Dropped without the lock: it may be all that is left of a task.
            drop(waker);
        }
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

/// Lanes, or what is known of them.
pub(super) enum Lanes {
    Open(OfBus<Strand>),
    /// Whoever is asked has not answered yet.
    Coming {
        /// When it is late.
        due: Instant,
        /// What is said then.
        late: ConnectError,
    },
}

/// Why there are none.
pub(super) struct NoLanes {
    pub(super) error: ConnectError,
    /// Whether a peer said so, and not the directory of the bus.
    pub(super) is_refused: bool,
}

/// Tasks that wait for lanes: all of them look when there is more to do, and one gets on with it.
#[derive(Default)]
struct Coming(Mutex<Wakers>);

impl Wake for Coming {
    fn wake(self: Arc<Self>) {
        let wakers = lock(&self.0).take();
        wake(wakers);
    }
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
