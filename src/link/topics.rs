//! Who takes part in topics, and who learns of it.
//!
//! Publishers find subscribers: those that are there when they begin, by looking; and those that come later, by
//! what changes in the directory of the bus, or by what the peer of an inherited link says.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::incoming::Read;
use super::member::{Member, Part};
use super::node::{MEMBERS, Node, Reach};
use super::offer::{Offer, Port};
use super::wire::Control;
use super::{Link, lock};
use crate::error::OpenError;
use crate::sys::fork::Mine;
use crate::sys::inotify::{Change, Inotify};

/// A publisher, as far as it looks for subscribers.
pub(crate) trait Follow: Send + Sync {
    /// Somebody subscribes. Called by any thread, also for who is known.
    fn found(self: Arc<Self>, node: &Arc<Node>, member: &Member);
}

type Followers = Vec<Weak<dyn Follow>>;

/// What a node knows of topics.
#[derive(Default)]
pub(super) struct Topics {
    /// Who looks for whom.
    followers: Mutex<HashMap<(String, Part), Followers>>,
    /// Those of this node, by which its numbers are told apart where the bus has no directory.
    ours: Mutex<BTreeSet<String>>,
    watch: OnceLock<Mine<Inotify>>,
}

impl Node {
    /// Takes part in a topic, by the lowest number that is free, until the returned is dropped. A subscriber has
    /// a port.
    pub(crate) fn join_topic(
        self: &Arc<Self>,
        topic: &str,
        part: Part,
        port: Option<Arc<dyn Port>>,
    ) -> Result<(Member, Offer), OpenError> {
        super::place::check_name(topic)?;
        self.watch_members()?;
        for number in 0..=u32::MAX {
            let member = Member::new(topic, part, number);
            let name = member.name();
            if !lock(&self.topics.ours).insert(name.clone()) {
                continue;
            }
            // The port stands before its name does: whoever learns of the name asks for it at once.
            if let Some(port) = &port {
                lock(&self.ports).insert(name.clone(), port.clone());
            }
            let mut offer = Offer::new(self, name.clone(), None);
            match self.reach() {
                Reach::Inherited => self.tell(&Control::Serving { name }),
                Reach::Name { place, socket, .. } => {
                    match place.try_claim(&name, socket, self.origin())? {
                        Some(owned) => offer.own(owned),
                        None => continue,
                    }
                }
            }
            return Ok((member, offer));
        }
        unreachable!("no directory has so many files");
    }

    fn tell(&self, control: &Control) {
        for link in self.all_links() {
            // A link that cannot be told anything is given up.
            let _ = link.say(control);
        }
    }

    /// A port is offered no more.
    pub(super) fn left(&self, name: &str) {
        let was_member = lock(&self.topics.ours).contains(name);
        if was_member {
            if matches!(self.reach(), Reach::Inherited) {
                let name = name.to_owned();
                self.tell(&Control::Gone { name });
            }
            // Only now may the next one take the name, and tell of itself.
            lock(&self.topics.ours).remove(name);
        }
    }

    /// Those of one part who take part in a topic now, other than by an inherited link those of this process.
    pub(crate) fn members(&self, topic: &str, part: Part) -> Vec<Member> {
        match self.reach() {
            Reach::Name { place, .. } => place.members(topic, part),
            Reach::Inherited => {
                /// More than any honest peer has said that was not read.
                const MOST_TURNS: usize = 1024;
                let links = self.all_links();
                // Of two who begin, each says so first and then reads: so one of them learns of the other.
                for link in &links {
                    let mut turns = 0..MOST_TURNS;
                    while turns.next().is_some() && matches!(link.pump(), Read::Some) {}
                }
                let all = links.iter().flat_map(|link| link.members());
                all.filter(|m| m.part == part && m.topic == topic).collect()
            }
        }
    }

    /// Has a publisher learn of each subscriber, or reader, that comes from now on.
    pub(crate) fn follow(&self, topic: &str, part: Part, follower: Weak<dyn Follow>) {
        let mut followers = lock(&self.topics.followers);
        followers.retain(|_, list| {
            list.retain(|follower| follower.strong_count() > 0);
            !list.is_empty()
        });
        followers
            .entry((topic.to_owned(), part))
            .or_default()
            .push(follower);
    }

    /// Somebody takes part in a topic.
    pub(super) fn came(self: &Arc<Self>, member: &Member) {
        if !member.part.receives() {
            return;
        }
        let followers = lock(&self.topics.followers)
            .get(&(member.topic.clone(), member.part))
            .cloned();
        for follower in followers.into_iter().flatten() {
            if let Some(follower) = follower.upgrade() {
                follower.found(self, member);
            }
        }
    }

    /// The link to the process of a member; `None` where it is gone. Never waits.
    pub(crate) fn link_of(
        self: &Arc<Self>,
        member: &Member,
    ) -> Result<Option<Arc<Link>>, OpenError> {
        let name = member.name();
        match self.reach() {
            Reach::Name { place, .. } => match place.find(&name)? {
                Some(owner) => self.begin_link(&owner).map(Some),
                None => Ok(None),
            },
            Reach::Inherited => {
                let mut links = self.all_links().into_iter();
                Ok(links.find(|link| link.is_serving(&name)))
            }
        }
    }

    /// Has the quiet thread learn of who comes. The directory stays as long as our socket is in it.
    fn watch_members(&self) -> Result<(), OpenError> {
        let Reach::Name { place, socket, .. } = self.reach() else {
            return Ok(());
        };
        self.listen(place, socket)?;
        let watch = &self.topics.watch;
        if watch.get().is_some() {
            return Ok(());
        }
        let failed = OpenError::system("watch the directory of the bus");
        let made = Inotify::new(place.dir()).map_err(failed)?;
        if watch.set(Mine::new(made)).is_ok() {
            let fd = watch.get().expect("it was just set").as_fd();
            let failed = OpenError::system("watch an inotify descriptor");
            self.epoll.add(fd, MEMBERS).map_err(failed)?;
        }
        Ok(())
    }

    /// Looks who came. Called by the quiet thread.
    pub(super) fn look_for_members(self: &Arc<Self>) {
        let Some(watch) = self.topics.watch.get() else {
            return;
        };
        for change in watch.read() {
            match change {
                Change::File(file) => {
                    if let Some(member) = Member::of_file(&file) {
                        self.came(&member);
                    }
                }
                Change::Lost => {
                    let topics: Vec<_> = lock(&self.topics.followers).keys().cloned().collect();
                    for (topic, part) in topics {
                        let members = self.members(&topic, part);
                        members.iter().for_each(|member| self.came(member));
                    }
                }
            }
        }
    }
}
