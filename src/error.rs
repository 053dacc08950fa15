//! What can go wrong, said so that a reader knows what to do.

mod ended;

use std::io;
use std::path::PathBuf;

pub use ended::Ended;

use crate::schema::Difference;

/// How a peer broke the protocol. The link to it was closed; every other link goes on.
///
/// No value of this type comes from an honest peer of the same version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// A descriptor that should be a memory file is none.
    #[error("the peer sent a descriptor that is no sealable memory file")]
    NotMemory,
    /// A segment without the seals that keep it from changing under its readers.
    #[error("the peer sent memory with seals {found:#x} where {wanted:#x} are needed")]
    Unsealed {
        /// The seals that were found (`fcntl(F_GET_SEALS)`).
        found: i32,
        /// The seals that are needed.
        wanted: i32,
    },
    /// A segment of a size that is not allowed.
    #[error(
        "the peer announced a segment of {announced} bytes; whole pages up to {most} are allowed"
    )]
    SegmentSize {
        /// The announced size in bytes.
        announced: u64,
        /// The most that is allowed, in bytes.
        most: u64,
    },
    /// A segment that is not as large as it was said to be, or not allocated to its end.
    #[error("the peer announced a segment of {announced} bytes, but its file has {found}")]
    SegmentShort {
        /// The announced size in bytes.
        announced: u64,
        /// The size of the file in bytes.
        found: u64,
    },
    /// A segment that could not be mapped.
    #[error("a segment of {bytes} bytes of the peer's could not be mapped")]
    CannotMap {
        /// The size in bytes.
        bytes: u64,
    },
    /// A segment number that is not, or already, in use.
    #[error("the peer referred to segment {segment}, which it never announced or announced twice")]
    Segment {
        /// The number of the segment.
        segment: u64,
    },
    /// A reference that leaves its segment, or is not aligned.
    #[error("the peer referred to bytes {offset}..+{len} of segment {segment}, which has {size}")]
    Reference {
        /// The number of the segment.
        segment: u64,
        /// Where the reference starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
        /// The size of the segment in bytes.
        size: u64,
    },
    /// A record's header that no version of this format writes.
    #[error("the peer published the header {word:#018x}, which means nothing")]
    Header {
        /// The word as it was read.
        word: u64,
    },
    /// A cell outside of the lane.
    #[error("the peer pointed to cell {cell} of a lane that has {cells}")]
    Cell {
        /// The cell.
        cell: usize,
        /// How many the lane has.
        cells: usize,
    },
    /// A record longer than its kind or its place allows.
    #[error("the peer published a record of {len} bytes where {left} are left")]
    Length {
        /// The length in bytes.
        len: usize,
        /// The bytes up to the end of the row of cells.
        left: usize,
    },
    /// An extension that would make a lane too large.
    #[error(
        "the peer added {cells} cells to a lane of {had}; it may have {most} in multiples of 64"
    )]
    Extension {
        /// The cells that were to be added.
        cells: usize,
        /// The cells that the lane had.
        had: usize,
        /// The most that a lane may have.
        most: usize,
    },
    /// A record handed back that was never sent.
    #[error("the peer handed back a record at cell {cell}, where none is")]
    HandBack {
        /// The cell.
        cell: usize,
    },
    /// A message that is no valid value of the type that both sides agreed on.
    #[error("the peer sent a message that is no valid {message}: {what}")]
    Message {
        /// The name of the message's type.
        message: &'static str,
        /// What validation found.
        what: String,
    },
    /// A client that holds more replies than any of ours would.
    #[error("the peer holds more than {cells} cells of replies and went on calling")]
    Hoarding {
        /// The most cells of replies that may be held.
        cells: usize,
    },
    /// A peer that reads no control messages, or far too few.
    #[error("the peer lets {bytes} bytes of control messages wait")]
    Deaf {
        /// The bytes that wait for it.
        bytes: usize,
    },
    /// A message larger than what a bus takes that copies what it receives: see [`Trust`](crate::Trust).
    #[error(
        "the peer sent a message of {bytes} bytes; a bus that copies what it receives takes {most}, its \
         `Config::max_message`"
    )]
    TooLarge {
        /// The bytes of the message.
        bytes: usize,
        /// The most that is taken.
        most: usize,
    },
    /// A child that runs as another user.
    #[error(
        "the peer runs as user {theirs}, this process as {ours}: to let it in, and copy what it sends, set \
         `Config::trust` to `Trust::AnyUser`"
    )]
    User {
        /// The user that the peer runs as.
        theirs: u32,
        /// The user that this process runs as.
        ours: u32,
    },
    /// A control message that makes no sense, or none at that moment.
    #[error("the peer sent a control message that is {what}")]
    Control {
        /// What was wrong with it.
        what: &'static str,
    },
}

/// Why there is no memory for a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The bus may not take more memory: views that are still held keep it.
    #[error(
        "no room for {bytes} bytes: the bus has taken {used} of its limit of {limit}; drop views, \
         or raise `Config::memory_limit`"
    )]
    Limit {
        /// The bytes that were asked for.
        bytes: u64,
        /// The bytes that the bus has taken from the system.
        used: u64,
        /// The most that it may take.
        limit: u64,
    },
    /// The system has no memory for it.
    #[error("the system gave no {bytes} bytes of shared memory")]
    Exhausted {
        /// The bytes that were asked for.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// More than this machine can address, or a segment can hold.
    #[error("{bytes} bytes are more than one segment can hold")]
    TooLarge {
        /// The bytes that were asked for.
        bytes: u64,
    },
    /// The kernel cannot keep others from writing.
    #[error(
        "this kernel ({}.{}) cannot seal memory against writing by others; Linux 5.1 or newer is needed",
        kernel.0, kernel.1
    )]
    Unsealable {
        /// The kernel's version.
        kernel: (u32, u32),
        /// What the system said.
        source: io::Error,
    },
}

/// Why a bus could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A name that cannot be the name of a bus, a service or a lane.
    #[error("the name {name:?} {problem}: use 1 to 100 bytes without a slash or a zero byte")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A directory that others could tamper with.
    #[error("{} {problem}; remove it, or set XDG_RUNTIME_DIR to a directory of your own", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// This process was not started by [`Bus::spawn`](crate::Bus::spawn), or took its link before.
    #[error(
        "no link to a parent: start this program with `Bus::spawn`, and call `Bus::from_parent` once"
    )]
    NoParent,
    /// The bus was opened before this process was forked off.
    #[error("this process was forked from the one that opened the bus: open a bus of its own")]
    Forked,
    /// The peer at the other end cannot be spoken to.
    #[error("the link to process {pid} was refused: {problem}")]
    Peer {
        /// The process at the other end.
        pid: u32,
        /// What was wrong.
        problem: String,
    },
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The system refused something.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn system(action: impl Into<String>) -> impl FnOnce(io::Error) -> OpenError {
        let action = action.into();
        move |source| OpenError::System { action, source }
    }
}

/// Why a service could not be offered, or not be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Another process offers it already.
    #[error("the service {service:?} of the bus {bus:?} is offered by process {pid} already")]
    Taken {
        /// The bus.
        bus: String,
        /// The service.
        service: String,
        /// The process that offers it.
        pid: u32,
    },
    /// Nobody offers it.
    #[error("nobody offers the service {service:?} on the bus {bus:?} (looked at {place})")]
    NoServer {
        /// The bus.
        bus: String,
        /// The service.
        service: String,
        /// The path or link that was looked at.
        place: String,
    },
    /// The server's messages have another layout.
    #[error(
        "the service {service:?} of process {pid} has another layout:{}",
        differences.iter().map(|d| format!("\n  {d}")).collect::<String>()
    )]
    Layout {
        /// The service.
        service: String,
        /// The process that offers it.
        pid: u32,
        /// Each difference with its path; *here* is this process, *there* the server.
        differences: Vec<Difference>,
    },
    /// The peer went away, or was refused, while the lanes were made.
    #[error("the link to process {pid} ended{}", reason(fault, ended))]
    Lost {
        /// The process at the other end.
        pid: u32,
        /// How it broke the protocol, if it did.
        #[source]
        fault: Option<Fault>,
        /// How its process ended, where it has, and that is known.
        ended: Option<Ended>,
    },
    /// The server did not answer in time.
    #[error("process {pid} did not answer for the service {service:?} in time")]
    NoAnswer {
        /// The service.
        service: String,
        /// The process that offers it.
        pid: u32,
    },
    /// The bus, the directory or the system.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No memory for the lanes.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// How a link ended: by what its peer did wrong, or with its process.
fn reason(fault: &Option<Fault>, ended: &Option<Ended>) -> String {
    let fault = fault.as_ref().map(|f| format!(": {f}"));
    let ended = || ended.map(|ended| format!(": {ended}"));
    fault.or_else(ended).unwrap_or_default()
}

/// Why a message was not sent. It is still the caller's, and nothing of it was published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The receiver holds everything that the lane has room for (`try_` and `_timeout` only).
    #[error("the lane is full: the receiver has not handed enough back; try again, or wait")]
    Full,
    /// Too large by configuration.
    #[error(
        "a message of {bytes} bytes is larger than the {most} that this bus allows; raise \
         `Config::max_message`"
    )]
    TooLarge {
        /// The size of the archived message in bytes.
        bytes: usize,
        /// The most that is allowed, in bytes.
        most: usize,
    },
    /// The value cannot be archived.
    #[error("the message cannot be archived: {what}")]
    Encode {
        /// What its serializer said.
        what: String,
    },
    /// The receiver is gone, and with it what it had not taken. A [`Sender`](crate::Sender) that is used again looks for
    /// its successor.
    #[error(
        "process {pid} receives no more{}; what it had not taken is lost",
        reason(fault, ended)
    )]
    Closed {
        /// The process at the other end.
        pid: u32,
        /// How it broke the protocol, if it did.
        #[source]
        fault: Option<Fault>,
        /// How its process ended, where it has, and that is known.
        ended: Option<Ended>,
    },
    /// Its caller has cancelled the call that it belongs to.
    #[error("the caller has cancelled the call")]
    Cancelled,
    /// There is no memory for it, and there will be none by waiting.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A publisher of newest values has one for so many keys already.
    #[error(
        "a publisher has newest values for {most} keys at most, of 16 MiB together; remove some"
    )]
    Keys {
        /// The most that is possible.
        most: usize,
    },
    /// The handle was made before this process was forked off.
    #[error("this process was forked from the one that opened the bus: open a bus of its own")]
    Forked,
}

/// Why nothing was received.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Messages of a publisher were missed: it did not wait, and there was no room for them. What comes next is
    /// newer.
    #[error("{missed} messages of process {pid} were missed")]
    Lagged {
        /// The process that published them.
        pid: u32,
        /// How many there were.
        missed: u64,
    },
    /// The handle was made before this process was forked off.
    #[error("this process was forked from the one that opened the bus: open a bus of its own")]
    Forked,
}

/// Why a pinned message cannot be opened.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The handle is no part of the message that it was opened with. Nothing is wrong with the peer.
    #[error("the handle is not part of this message: open it with the one that it is a field of")]
    NotOfMessage,
    /// What the peer wrote cannot be true. The link to it was closed.
    #[error("process {pid} refers to a message that is none: {fault}")]
    Fault {
        /// The process at the other end.
        pid: u32,
        /// How it broke the protocol.
        #[source]
        fault: Fault,
    },
    /// The link ended before the memory that the handle refers to was known here.
    #[error("the link to process {pid} ended{}", reason(fault, ended))]
    Lost {
        /// The process at the other end.
        pid: u32,
        /// How it broke the protocol, if it did.
        #[source]
        fault: Option<Fault>,
        /// How its process ended, where it has, and that is known.
        ended: Option<Ended>,
    },
    /// The message was received before this process was forked off.
    #[error("this process was forked from the one that opened the bus: open a bus of its own")]
    Forked,
}

/// Why a call has no reply. `E` is the error of the service's own.
#[cfg(not(loom))]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError<E = crate::message::Nothing> {
    /// The service answered with an error of its own.
    #[error("the service answered with an error: {0:?}")]
    Service(E),
    /// The request was not sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The server was gone before the request was sent, and nobody is in its place yet.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server is gone, with the request taken or not.
    #[error("process {pid} went away before it replied{}", reason(fault, ended))]
    Lost {
        /// The process at the other end.
        pid: u32,
        /// How it broke the protocol, if it did.
        #[source]
        fault: Option<Fault>,
        /// How its process ended, where it has, and that is known.
        ended: Option<Ended>,
    },
    /// The server dropped the call without a reply.
    #[error("process {pid} dropped the call without a reply")]
    Unanswered {
        /// The process at the other end.
        pid: u32,
    },
    /// The server stops: it answers what it has taken, and this call it had not.
    #[error("process {pid} stops its service, and did not take the call")]
    Stopping {
        /// The process at the other end.
        pid: u32,
    },
    /// The server panicked while it handled the call.
    #[error("process {pid} panicked while it handled the call: {what}")]
    Panicked {
        /// The process at the other end.
        pid: u32,
        /// What the panic said, if that is known.
        what: String,
    },
    /// The server's reply could not be sent, as it said on its side.
    #[error("the reply of process {pid} could not be sent: {what}")]
    Failed {
        /// The process at the other end.
        pid: u32,
        /// What the server could not do.
        what: &'static str,
    },
    /// A newer call of the same key was made, and this one is cancelled.
    #[error("a newer call of the same key supersedes this one")]
    Superseded,
    /// The time is up. A reply that comes later is dropped.
    #[error("no reply within the time that was given")]
    TimedOut,
    /// Too many calls of this client are not answered yet.
    #[error("{open} calls of this client are not answered yet; wait for some of them")]
    TooMany {
        /// How many there are.
        open: usize,
    },
    /// Too many replies are held: the lane has no room for another.
    #[error(
        "{held} replies of this client are still held; drop some views or `keep` them before the \
         next call"
    )]
    ViewsHeld {
        /// How many views of this client are alive.
        held: usize,
    },
}
