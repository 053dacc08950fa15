//! Who takes part in topics, and who learns of it.
//!
//! Publishers find subscribers: those that are there when they begin, by looking; and those that come later, by
//! what changes in the directory of the bus, or by what the peer of an inherited link says.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::lacking::Read;
use super::member::{Member, Part};
use super::node::{MEMBERS, Node, Reach};
use super::offer::{Offer, Port};
use super::place::Place;
use super::wire::Control;
use super::{Link, lock};
use crate::error::OpenError;
use crate::sys::fork::Mine;
use crate::sys::inotify::{Change, Inotify, Seat};

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
    /// Where that will be.
    seat: Mutex<Option<Seat>>,
}

impl Topics {
    pub(super) fn with(seat: Option<Seat>) -> Topics {
        Topics {
            seat: Mutex::new(seat),
            ..Topics::default()
        }
    }
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
        self.reach_members(part)?;
        for number in 0..=u32::MAX {
            let member = Member::new(topic, part, number);
            let name = member.name();
            if !lock(&self.topics.ours).insert(name.clone()) {
                continue;
            }
            let mut offer = Offer::new(self, name.clone(), None);
            // The port stands once the name is ours, so that none is asked for it that was meant for another;
            // and before that is told, as whoever learns of it asks at once.
            match self.reach() {
                Reach::Inherited => {
                    port.into_iter().for_each(|port| self.stand(&name, port));
                    self.tell(&Control::Serving { name });
                }
                Reach::Name { place, socket, .. } => {
                    let Some(owned) = place.try_claim(&name, socket, self.origin())? else {
                        continue;
                    };
                    port.into_iter().for_each(|port| self.stand(&name, port));
                    owned.tell()?;
                    offer.own(owned);
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
    pub(crate) fn members(&self, topic: &str, part: Part) -> Result<Vec<Member>, OpenError> {
        match self.reach() {
            Reach::Name { place, .. } => place.members(topic, part),
            Reach::Inherited => {
                /// More than any honest peer has said that was not read.
                const MOST_TURNS: usize = 1024;
                let links = self.all_links();
                // Of two who begin, each says so first and then reads: so one of them learns of the other.
                for link in &links {
                    let mut turns = 0..MOST_TURNS;
                    let mut read = Read::Some;
                    while turns.next().is_some() && read == Read::Some {
                        read = link.pump();
                    }
                    if read == Read::Held {
                        let lacks = io::Error::from_raw_os_error(libc::EMFILE);
                        return Err(OpenError::system("read what a peer has said")(lacks));
                    }
                }
                let all = links.iter().flat_map(|link| link.members());
                Ok(all.filter(|m| m.part == part && m.topic == topic).collect())
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

    /// Lets members reach us, and has the quiet thread learn of who comes, where that is to be known. The
    /// directory stays as long as our socket is in it.
    fn reach_members(&self, part: Part) -> Result<(), OpenError> {
        let Reach::Name { place, socket, .. } = self.reach() else {
            return Ok(());
        };
        self.listen(place, socket)?;
        // Subscribers are found: a user has few such descriptors.
        match part.receives() {
            true => Ok(()),
            false => self.watch(place),
        }
    }

    /// Has the quiet thread learn of what changes in the directory, in which our socket is.
    pub(super) fn watch(&self, place: &Place) -> Result<(), OpenError> {
        let watch = &self.topics.watch;
        if watch.get().is_some() {
            return Ok(());
        }
        let mut seat = lock(&self.topics.seat);
        if watch.get().is_some() {
            // Another thread was first.
            return Ok(());
        }
        let failed = OpenError::system("watch the directory of the bus");
        let made = Inotify::new(place.dir()).map_err(failed)?;
        let failed = OpenError::system("move an inotify descriptor");
        let made = Mine::new(made.seated(seat.take()).map_err(failed)?);
        let failed = OpenError::system("watch an inotify descriptor");
        self.epoll.add(made.as_fd(), MEMBERS).map_err(failed)?;
        let _ = watch.set(made);
        Ok(())
    }

    /// Looks who came, and returns whether all were seen. Called by the quiet thread.
    pub(super) fn look_for_members(self: &Arc<Self>) -> bool {
        let Some(watch) = self.topics.watch.get() else {
            return true;
        };
        let mut saw_all = true;
        for change in watch.read() {
            match change {
                Change::File(file) => {
                    if let Some(member) = Member::of_file(&file) {
                        self.came(&member);
                    }
                    self.touched(&file);
                }
                Change::Lost => {
                    self.offered(None);
                    saw_all &= self.look_for_all_members();
                }
            }
        }
        saw_all
    }

    /// Looks who is there, where it is not known who came; false where not all can be seen now.
    pub(super) fn look_for_all_members(self: &Arc<Self>) -> bool {
        let topics: Vec<_> = lock(&self.topics.followers).keys().cloned().collect();
        let mut saw_all = true;
        for (topic, part) in topics {
            match self.members(&topic, part) {
                Ok(members) => members.iter().for_each(|member| self.came(member)),
                Err(_) => saw_all = false,
            }
        }
        saw_all
    }
}

#[cfg(all(test, not(loom)))]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use super::super::offer::Asked;
    use super::super::place::{self, socket_name};
    use super::*;
    use crate::Config;
    use crate::error::Fault;
    use crate::link::wire::Schemas;
    use crate::link::{Answer, LaneId};
    use crate::sys::socket::Socket;
    use crate::wait::tasks::Drive;

    /// Only what hangs takes so long.
    const WATCHDOG: Duration = Duration::from_secs(60);

    /// A bus.
    pub(crate) struct Party(pub(crate) Arc<Node>);

    impl Drop for Party {
        fn drop(&mut self) {
            self.0.stop();
        }
    }

    impl Party {
        /// Holds the quiet thread up until the returned is dropped.
        pub(crate) fn halt(&self) -> Halt {
            let (enters, entered) = channel();
            let (go, goes) = channel();
            let halted = Arc::new(Halted(Mutex::new((enters, goes))));
            self.0.due().push(Arc::downgrade(&halted) as Weak<_>);
            entered.recv_timeout(WATCHDOG).expect("it comes by");
            Halt {
                _go: go,
                _halted: halted,
            }
        }
    }

    pub(crate) struct Halt {
        _go: Sender<()>,
        _halted: Arc<Halted>,
    }

    struct Halted(Mutex<(Sender<()>, Receiver<()>)>);

    impl Drive for Halted {
        fn drive(&self) -> bool {
            let (enters, goes) = &*lock(&self.0);
            let _ = enters.send(());
            let _ = goes.recv();
            false
        }
    }

    /// Some that have the same name, which no others have.
    pub(crate) fn parties<const N: usize>() -> [Party; N] {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only that none comes twice matters.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("parties-{}-{count}", std::process::id());
        [(); N].map(|()| {
            let reach = Reach::Name {
                name: name.clone(),
                place: place::Place::open(&name).unwrap(),
                socket: socket_name(),
            };
            Party(Node::start(reach, Config::default()).unwrap())
        })
    }

    pub(crate) struct Silent;

    impl Port for Silent {
        fn accept(
            &self,
            _: &Arc<Node>,
            _: &Arc<Link>,
            _: LaneId,
            _: Asked,
        ) -> Result<Answer, Fault> {
            unreachable!("nobody publishes")
        }

        fn differs(&self, _: u32, _: &Schemas) -> String {
            unreachable!("nobody publishes")
        }

        fn end(&self) {}
    }

    fn subscribe(party: &Party) -> (Member, Offer) {
        let port = Arc::new(Silent);
        let joined = party.0.join_topic("news", Part::Subscriber, Some(port));
        joined.unwrap()
    }

    /// Another thread looks all the time: that it looks at the right moment once in some thousand is as good as
    /// certain.
    #[test]
    fn no_port_stands_under_a_name_that_is_anothers() {
        const OTHERS: u32 = 32;
        let [here, there] = parties();
        let _others = [(); OTHERS as usize].map(|()| subscribe(&there));
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let looking = scope.spawn(|| {
                let mut wrong = None;
                // Relaxed: only how long it looks.
                while !is_over.load(Ordering::Relaxed) {
                    let ports = lock(&here.0.ports);
                    let numbers = ports.keys().filter_map(|name| Member::parse(name));
                    wrong = numbers.map(|m| m.number).find(|&n| n < OTHERS).or(wrong);
                }
                wrong
            });
            let numbers = [(); 100].map(|()| subscribe(&here).0.number);
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(looking.join().unwrap(), None);
            assert_eq!(numbers, [OTHERS; 100]);
        });
    }

    #[test]
    fn only_who_publishes_watches_the_directory() {
        let [bus] = parties();
        let _subscriber = subscribe(&bus);
        assert!(bus.0.topics.watch.get().is_none());
        let joined = bus.0.join_topic("news", Part::Publisher, None);
        assert!(joined.is_ok());
        assert!(bus.0.topics.watch.get().is_some());
    }

    #[test]
    fn who_is_gone_before_it_is_greeted_is_as_one_that_ended() {
        let [bus] = parties();
        let (near, far) = Socket::pair().unwrap();
        drop(far);
        let link = bus.0.adopt(near).unwrap();
        assert!(link.is_dead());
        assert!(link.fault().is_none());
        assert_eq!(bus.0.take_incidents(), []);
    }
}
