//! What a bus may use, and how it begins: by name, with a child, or from a parent.
//!
//! Unsafe code is needed to take over a descriptor that a parent left to this process, and to
//! leave one to a child.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Bus;
use crate::error::OpenError;
use crate::link::Link;
use crate::link::node::Reach;
use crate::link::place::{self, Place};
use crate::sys::socket::Socket;
use crate::wait::Wait;

/// Names the descriptor that a child inherits.
const PARENT: &str = "SHMBUS_PARENT_FD";

/// Who the peers of a bus are, and so whether what they send is read where they wrote it.
///
/// A bus is the unit of trust: open two for two kinds of peers. It has an arena of its own, so it is the unit of
/// confidentiality as well: a peer can read all of each segment in which it was sent anything, also what lies there for
/// other peers. Each side decides for itself, and for what it receives.
///
/// | | peers | what they send | what a malicious one can do |
/// |---|---|---|---|
/// | `SameUser` | of this user | is validated and borrowed in place | change its own bytes after that, which is undefined behaviour here |
/// | `Untrusted` | of this user | is copied, and the copy validated and borrowed | waste its own link, and what `SECURITY.md` counts up |
/// | `AnyUser` | of any user | is copied, always | the same |
///
/// # Examples
///
/// ```
/// use shmbus::{Config, ShmMessage, Trust};
///
/// #[derive(ShmMessage)]
/// struct Line { text: String }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // For what runs the code of others: a plugin, say.
/// let bus = Config { trust: Trust::Untrusted, ..Config::default() }.open("doc-plugins")?;
/// let mut receiver = bus.receiver::<Line>("lines")?;
/// # let mut sender = bus.sender::<Line>("lines")?;
/// # sender.send(&Line { text: "fn main() {}".into() })?;
/// let line = receiver.next()?.expect("the bus is open");
/// assert_eq!(line.text, "fn main() {}"); // of a copy, which nobody else can change
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Processes of the same user, which may be broken, but mean no harm: they could as well trace this one.
    #[default]
    SameUser,
    /// Processes of the same user that may mean harm: as where a sandbox keeps them from doing it otherwise.
    ///
    /// Costs a copy and an allocation for each message, for each time that a pin is opened which is not open, and for
    /// each time that a newest value is read. What is larger than [`Config::max_message`] is not received. A thread
    /// that waits looks around twenty times a second, since a peer might have kept a wake-up from it, and tasks of peers
    /// are woken by control messages.
    Untrusted,
    /// As [`Untrusted`](Self::Untrusted), and of any user.
    ///
    /// The names of a bus are in a directory of this user's, so this is for inherited links: a
    /// [child](Config::spawn) that runs as another user, whose [parent](Config::from_parent) is one for it.
    AnyUser,
}

/// What a bus may use, and how its ports wait.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = shmbus::Config { max_message: 64 << 20, ..Default::default() };
/// let bus = config.open("doc-config")?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The most bytes of one archived message: 1 MiB by default, and 1 GiB at most, which is the format's own limit.
    pub max_message: usize,
    /// The most bytes of shared memory that this bus takes from the system for what it sends: 256 MiB by default.
    ///
    /// One sender, or client, has at most an eighth of it out in large messages: it then waits
    /// until their receiver drops the views that it holds.
    pub memory_limit: usize,
    /// How ports of this bus wait, unless told otherwise.
    pub wait: Wait,
    /// Whether all that this bus sends says when it was published: see
    /// [`View::published`](crate::View::published). Costs a look at the clock a message, some 20
    /// nanoseconds.
    pub timestamps: bool,
    /// Who the peers of this bus are: processes of this user that mean no harm, unless told otherwise.
    pub trust: Trust,
    /// How many messages of each lane and direction can be read when its peer has died: none by default, and 256 at
    /// most. See `Bus::take_flight_records`, which comes with the feature `json`: without it, nothing is recorded.
    pub flight_recorder: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_message: 1 << 20,
            memory_limit: 256 << 20,
            wait: Wait::Adaptive,
            timestamps: false,
            trust: Trust::SameUser,
            flight_recorder: 0,
        }
    }
}

impl Config {
    /// Where peers are not trusted: how many bytes of a message are copied at most.
    pub(crate) fn copies(&self) -> Option<usize> {
        match self.trust {
            Trust::SameUser => None,
            Trust::Untrusted | Trust::AnyUser => Some(self.max_message),
        }
    }

    /// Opens a bus with this configuration; see [`Bus::open`].
    ///
    /// # Errors
    ///
    /// As [`Bus::open`].
    pub fn open(self, name: &str) -> Result<Bus, OpenError> {
        let reach = Reach::Name {
            name: name.to_owned(),
            place: Place::open(name)?,
            socket: place::socket_name(),
        };
        Bus::start(reach, self)
    }

    /// Starts a child with this configuration; see [`Bus::spawn`].
    ///
    /// # Errors
    ///
    /// As [`Bus::spawn`].
    pub fn spawn(self, mut command: Command) -> Result<(Bus, Child), OpenError> {
        let (ours, theirs) = Socket::pair().map_err(OpenError::system("make a socket pair"))?;
        // Before the child is there: what it sends first is to say which user it runs as.
        ours.set_pass_credentials(true)
            .map_err(OpenError::system("ask which user a child runs as"))?;
        let fd = theirs.as_fd().as_raw_fd();
        command.env(PARENT, fd.to_string());
        let inherit = move || {
            // SAFETY: `theirs` is open in the parent until the child runs, and so in the child.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            crate::sys::socket::keep_over_exec(fd)
        };
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(inherit) };
        let program = command.get_program().to_owned();
        let action = format!("start {}", program.to_string_lossy());
        let child = command.spawn().map_err(OpenError::system(action))?;
        drop(theirs);
        let bus = Bus::start(Reach::Inherited, self)?;
        bus.shared.node.adopt_child(ours, child.id())?;
        Ok((bus, child))
    }

    /// Takes the link to the parent with this configuration; see [`Bus::from_parent`].
    ///
    /// # Errors
    ///
    /// As [`Bus::from_parent`].
    pub fn from_parent(self) -> Result<Bus, OpenError> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let fd = std::env::var(PARENT)
            .ok()
            .and_then(|v| v.parse::<RawFd>().ok());
        let fd = fd.filter(|fd| *fd > 2).ok_or(OpenError::NoParent)?;
        if TAKEN.swap(true, Ordering::Relaxed) || !crate::sys::socket::is_open(fd) {
            return Err(OpenError::NoParent);
        }
        // SAFETY: it is open, our parent says that it is ours, and `TAKEN` has us take it once.
        let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(fd) });
        if !socket.is_seqpacket() {
            // Some other descriptor, in a process that merely inherited the variable.
            std::mem::forget(socket);
            return Err(OpenError::NoParent);
        }
        socket
            .peek_from_start()
            .and_then(|()| socket.set_close_on_exec(true))
            .map_err(OpenError::system("mark the parent's link"))?;
        Ok(self.over(socket)?.0)
    }

    /// Takes the link over this socket, and no other.
    pub(crate) fn over(self, socket: Socket) -> Result<(Bus, Arc<Link>), OpenError> {
        let bus = Bus::start(Reach::Inherited, self)?;
        let link = bus.shared.node.adopt(socket)?;
        Ok((bus, link))
    }
}
