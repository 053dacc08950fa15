//! Ports that are offered to peers under a name.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::node::{LISTENER, Node, Reach};
use super::place::{Claim, Owned, Place};
use super::wire::{Control, End, Refusal, Schemas, Types};
use super::{Answer, LaneId, Link, lock};
use crate::error::{ConnectError, Fault, OpenError};
use crate::sys::fork::Mine;

/// Something of this process that peers open lanes to.
pub(crate) trait Port: Send + Sync {
    /// Opens a lane for a peer, or says why not.
    fn accept(
        &self,
        node: &Arc<Node>,
        link: &Arc<Link>,
        id: LaneId,
        asked: Asked,
    ) -> Result<Answer, Fault>;

    /// On a topic: what is published from now on comes on this lane of this link.
    fn joined(&self, _lane: (u64, u32)) {}

    /// What a peer whose layout is another would have sent.
    fn differs(&self, pid: u32, schemas: &Schemas) -> String;

    /// No more peers will come: what was sent is still to be received.
    fn end(&self);
}

/// What a peer says that opens a lane to a port.
pub(crate) struct Asked {
    pub(crate) types: Types,
    pub(crate) end: End,
    /// On a topic: the number of the publisher.
    pub(crate) from: Option<u32>,
}

impl Node {
    /// Offers a port under a name, which is the caller's until the returned guard is dropped.
    pub(crate) fn offer(
        self: &Arc<Self>,
        name: &str,
        port: Arc<dyn Port>,
    ) -> Result<Offer, ConnectError> {
        super::place::check_name(name)?;
        let taken = |pid| ConnectError::Taken {
            bus: self.name().to_owned(),
            service: name.to_owned(),
            pid,
        };
        if lock(&self.ports).contains_key(name) {
            return Err(taken(std::process::id()));
        }
        let owned = match self.reach() {
            Reach::Inherited => None,
            Reach::Name { place, socket, .. } => {
                place.sweep();
                // The socket stands before its name does, so that whoever finds the one reaches
                // the other.
                self.listen(place, socket)?;
                match place.claim(name, socket, self.origin())? {
                    Claim::Ours(owned) => Some(owned),
                    Claim::Taken(owner) => return Err(taken(owner.pid)),
                }
            }
        };
        self.stand(name, port);
        let offer = Offer::new(self, name.to_owned(), owned);
        if let Some(owned) = &offer.owned {
            owned.tell()?;
        }
        for link in self.all_links() {
            let _ = link.say(&Control::Serving {
                name: name.to_owned(),
            });
        }
        Ok(offer)
    }

    /// From now on peers are given this port by its name. One that is made behind the end of the only link ends at
    /// once: whoever ends that link ends all ports that are there then, under the lock by which this one comes.
    pub(super) fn stand(&self, name: &str, port: Arc<dyn Port>) {
        lock(&self.ports).insert(name.to_owned(), port.clone());
        if self.is_cut_off() {
            port.end();
        }
    }

    pub(super) fn listen(&self, place: &Place, socket: &str) -> Result<(), OpenError> {
        let mut listener = lock(&self.listener);
        if listener.is_none() {
            let new = Arc::new(Mine::new(place.listen(socket)?));
            self.epoll
                .add(new.as_fd(), LISTENER)
                .map_err(OpenError::system("watch a socket"))?;
            *listener = Some(new);
        }
        Ok(())
    }

    pub(crate) fn accept(
        self: &Arc<Self>,
        link: &Arc<Link>,
        id: LaneId,
        name: &str,
        asked: Asked,
    ) -> Result<Answer, Fault> {
        let port = lock(&self.ports).get(name).cloned();
        match port {
            Some(port) => port.accept(self, link, id, asked),
            None => Ok(Err(Refusal::NoServer)),
        }
    }

    pub(super) fn joined(&self, name: &str, lane: (u64, u32)) {
        let port = lock(&self.ports).get(name).cloned();
        if let Some(port) = port {
            port.joined(lane);
        }
    }

    pub(crate) fn differs(&self, pid: u32, name: &str, schemas: &Schemas) {
        let port = lock(&self.ports).get(name).cloned();
        if let Some(port) = port {
            let what = port.differs(pid, schemas);
            self.report(pid, what);
        }
    }
}

/// A port that is offered until this is dropped.
pub(crate) struct Offer {
    node: Arc<Node>,
    name: String,
    /// Its name in the directory.
    owned: Option<Owned>,
}

impl Offer {
    pub(super) fn new(node: &Arc<Node>, name: String, owned: Option<Owned>) -> Offer {
        Offer {
            node: node.clone(),
            name,
            owned,
        }
    }

    /// Its name is ours in the directory, too.
    pub(super) fn own(&mut self, owned: Owned) {
        self.owned = Some(owned);
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        if self.node.origin().is_forked() {
            return;
        }
        lock(&self.node.ports).remove(&self.name);
        self.node.left(&self.name);
    }
}
