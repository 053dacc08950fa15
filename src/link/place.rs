//! The directory of a bus: who offers what, and where to reach them.
//!
//! `$XDG_RUNTIME_DIR/shmbus/<bus>/`, or `shmbus-<uid>` under the temporary directory where that
//! variable is not set. Both levels belong to this user and are closed to others; that is checked
//! each time, not assumed. In it lie
//!
//! - `<topic>~<number>.sub`, `<topic>~<number>.pub`: who takes part in a topic, said in the same way. Once
//!   it is true and the port stands, its time is set, which whoever watches the directory learns of.
//! - `<port>.port`: who offers a port: its process and its socket. Byte 0 is locked by the owner
//!   as long as it lives, byte 1 once what the file says is true. The kernel frees both locks when
//!   the owner dies, so a file without them is a stale one, and the next owner takes it over.
//! - `node-<pid>-<random>`: the socket of a process that offers something.
//!
//! What a dead process left is removed by whoever offers something next, and by whoever leaves.
//!
//! # Why exactly one of many owns a port
//!
//! The lock on byte 0 is exclusive. A file is removed only by the holder of its lock, and whoever
//! gets the lock checks that the path still names the file that was locked; if not, it starts over.
//!
//! # Why nobody loses a socket
//!
//! No two nodes have the same name for theirs, also where processes of two PID namespaces have the
//! same number. A socket is removed by its owner, or where the kernel says that nobody listens.

use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use super::member::{Member, Part};
use crate::error::OpenError;
use crate::sys::fork::{Mine, Origin};
use crate::sys::lock::{is_locked, try_lock};
use crate::sys::socket::{Listener, Socket};
use crate::sys::user_id;

/// The ending of files of ports.
pub(super) const PORT: &str = "port";

const OWNED: i64 = 0;
const TRUE: i64 = 1;

/// How long somebody may take between locking a file and writing it before we give up on it.
const SETTLES: Duration = Duration::from_secs(5);

/// Checks the name of a bus, a service or a lane.
pub(crate) fn check_name(name: &str) -> Result<(), OpenError> {
    let problem = match name {
        "" => "is empty",
        "." | ".." => "means a directory",
        _ if name.len() > 100 => "is longer than 100 bytes",
        _ if name.contains('/') => "has a slash",
        _ if name.contains('\0') => "has a zero byte",
        _ => return Ok(()),
    };
    Err(OpenError::Name {
        name: name.to_owned(),
        problem,
    })
}

/// A name for the socket of a node, which no other has, had, or will have.
pub(crate) fn socket_name() -> String {
    let random = RandomState::new().build_hasher().finish();
    format!("node-{}-{random:016x}", std::process::id())
}

/// The directory of one bus.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    root: PathBuf,
    dir: PathBuf,
}

/// Who offers a port, as its file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) pid: u32,
    pub(crate) socket: String,
}

/// What came of trying to own a port.
pub(crate) enum Claim {
    Ours(Owned),
    Taken(Owner),
}

/// A port that this process owns: released, and its file removed, when dropped.
pub(crate) struct Owned {
    path: PathBuf,
    origin: Origin,
    /// Holds the locks.
    file: Mine<File>,
}

impl Owned {
    /// Has whoever watches the directory look who owns this.
    pub(super) fn tell(&self) -> Result<(), OpenError> {
        let now = SystemTime::now();
        // Both times: one alone would be another change.
        let times = FileTimes::new().set_accessed(now).set_modified(now);
        let action = format!("touch {}", self.path.display());
        let touched = self.file.set_times(times);
        touched.map_err(OpenError::system(action))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // While the lock is held, so that nobody takes it for a stale one. Somebody may have removed
        // it: then another may be there. A forked child owns nothing.
        if !self.origin.is_forked() && is_still(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Place {
    /// The directory of the bus of this name, which is made where it is missing.
    pub(crate) fn open(name: &str) -> Result<Place, OpenError> {
        check_name(name)?;
        let root = match std::env::var_os("XDG_RUNTIME_DIR").filter(|v| !v.is_empty()) {
            Some(dir) => PathBuf::from(dir).join("shmbus"),
            None => std::env::temp_dir().join(format!("shmbus-{}", user_id())),
        };
        let place = Place {
            dir: root.join(name),
            root,
        };
        place.make()?;
        Ok(place)
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of a port.
    pub(crate) fn port_path(&self, port: &str) -> PathBuf {
        let member = Member::parse(port).map(|member| member.file());
        self.dir
            .join(member.unwrap_or_else(|| format!("{port}.port")))
    }

    /// Those who take part in a topic now, in one way. An error where they cannot be seen, so that nobody is left out.
    pub(crate) fn members(&self, topic: &str, part: Part) -> Result<Vec<Member>, OpenError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(OpenError::system(format!("list {}", self.dir.display()))(e)),
        };
        let files = entries.flatten();
        let mut members: Vec<_> = files
            .filter_map(|e| Member::of_file(&e.file_name()))
            .filter(|member| member.part == part && member.topic == topic)
            .collect();
        let mut unseen = None;
        members.retain(|member| match self.find(&member.name()) {
            Ok(owner) => owner.is_some(),
            Err(error) => {
                if lacks_something(&error) {
                    unseen = Some(error);
                }
                false
            }
        });
        unseen.map_or(Ok(members), Err)
    }

    fn make(&self) -> Result<(), OpenError> {
        // Whoever leaves may remove what was just made or seen, each time as long as others come.
        for _ in 0..1000 {
            if let Some(parent) = self.root.parent() {
                check_parent(parent)?;
            }
            if make_private(&self.root)? && make_private(&self.dir)? {
                return Ok(());
            }
        }
        let problem = "is removed as often as it is made".into();
        Err(refused(&self.dir, problem))
    }

    /// Tries to own a port; `socket` is where its callers will connect.
    pub(crate) fn claim(
        &self,
        port: &str,
        socket: &str,
        origin: Origin,
    ) -> Result<Claim, OpenError> {
        let path = self.port_path(port);
        let failed = |action: &str| OpenError::system(format!("{action} {}", path.display()));
        let deadline = Instant::now() + SETTLES;
        loop {
            let Some(mut file) = self.open_port(&path)? else {
                continue;
            };
            if try_lock(&file, OWNED).map_err(failed("lock"))? {
                if !is_still(&file, &path) {
                    continue;
                }
                return Ok(Claim::Ours(self.own(path, file, socket, origin)?));
            }
            if let Some(owner) = read_true(&mut file).map_err(failed("read"))? {
                return Ok(Claim::Taken(owner));
            }
            if Instant::now() >= deadline {
                let held = io::Error::other("somebody holds its lock and never wrote it");
                return Err(failed("settle")(held));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// As [`claim`](Self::claim), where another's is passed over at once.
    pub(crate) fn try_claim(
        &self,
        port: &str,
        socket: &str,
        origin: Origin,
    ) -> Result<Option<Owned>, OpenError> {
        let path = self.port_path(port);
        loop {
            let Some(file) = self.open_port(&path)? else {
                continue;
            };
            let locked = try_lock(&file, OWNED);
            let action = format!("lock {}", path.display());
            if !locked.map_err(OpenError::system(action))? {
                return Ok(None);
            }
            if is_still(&file, &path) {
                return self.own(path, file, socket, origin).map(Some);
            }
        }
    }

    /// Writes who owns a file whose first lock is ours, and says that it is true.
    fn own(
        &self,
        path: PathBuf,
        mut file: File,
        socket: &str,
        origin: Origin,
    ) -> Result<Owned, OpenError> {
        let failed = |action: &str| OpenError::system(format!("{action} {}", path.display()));
        self.clean_after(&mut file);
        write_owner(&mut file, socket).map_err(failed("write"))?;
        try_lock(&file, TRUE).map_err(failed("lock"))?;
        Ok(Owned {
            path,
            origin,
            file: Mine::new(file),
        })
    }

    fn open_port(&self, path: &Path) -> Result<Option<File>, OpenError> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        options.custom_flags(crate::sys::NO_FOLLOW);
        match options.open(path) {
            Ok(file) => Ok(Some(file)),
            // The last one to leave removed the directory.
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.make().map(|()| None),
            Err(e) => Err(OpenError::system(format!("open {}", path.display()))(e)),
        }
    }

    /// Who offers a port now, if anybody does.
    pub(crate) fn find(&self, port: &str) -> Result<Option<Owner>, OpenError> {
        let path = self.port_path(port);
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(OpenError::system(format!("open {}", path.display()))(e)),
        };
        read_true(&mut file).map_err(OpenError::system(format!("read {}", path.display())))
    }

    /// Removes what dead processes left: their ports, and their sockets.
    pub(crate) fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return;
        };
        let paths = entries.flatten().map(|e| e.path());
        let (ports, others): (Vec<_>, Vec<_>) = paths.partition(|p| {
            let ending = p.extension();
            ending.is_some_and(|e| e == PORT || Part::ALL.iter().any(|part| e == part.ending()))
        });
        let named: Vec<PathBuf> = ports.iter().filter_map(|p| self.sweep_port(p)).collect();
        for path in others.iter().filter(|p| !named.contains(p)) {
            self.sweep_socket(path);
        }
    }

    /// Removes a port whose owner is dead. One that is alive has its socket returned.
    fn sweep_port(&self, path: &Path) -> Option<PathBuf> {
        let mut file = OpenOptions::new().read(true).write(true).open(path).ok()?;
        if is_locked(&file, OWNED).ok()? {
            let owner = read_true(&mut file).ok()??;
            return Some(self.dir.join(owner.socket));
        }
        if try_lock(&file, OWNED).ok()? && is_still(&file, path) {
            self.clean_after(&mut file);
            let _ = fs::remove_file(path);
        }
        None
    }

    /// Removes a socket that no file names: its maker died right after making it. One that is new
    /// may be about to listen.
    fn sweep_socket(&self, path: &Path) {
        const NEW: Duration = Duration::from_secs(10);
        let made = fs::symlink_metadata(path).and_then(|m| m.modified());
        // What was made in the future was made before the clock was set: that may be long ago.
        let off = made.map(|made| made.elapsed().unwrap_or_else(|ahead| ahead.duration()));
        let is_old = off.is_ok_and(|off| off > NEW);
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("");
        if name.starts_with("node-") && is_old && self.is_deserted(name) {
            let _ = fs::remove_file(path);
        }
    }

    /// Removes the socket of a port's last owner, which is dead: its lock is ours.
    fn clean_after(&self, file: &mut File) {
        if let Ok(Some(owner)) = read_owner(file) {
            // Other ports of the same owner may name it too, and it may live on without this one.
            if self.is_deserted(&owner.socket) {
                let _ = fs::remove_file(self.dir.join(owner.socket));
            }
        }
    }

    /// Whether nobody listens on a socket. Somebody who is only too busy to accept does.
    fn is_deserted(&self, socket: &str) -> bool {
        matches!(self.connect(socket), Err(e) if e.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Opens the socket on which this process is reached.
    pub(crate) fn listen(&self, socket: &str) -> Result<Listener, OpenError> {
        loop {
            match self.with_short(socket, Listener::bind) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => self.make()?,
                other => {
                    let action = format!("listen on {}", self.dir.join(socket).display());
                    return other.map_err(OpenError::system(action));
                }
            }
        }
    }

    /// Connects to the socket of this name.
    pub(crate) fn connect(&self, socket: &str) -> io::Result<Socket> {
        self.with_short(socket, Socket::connect)
    }

    /// Removes our socket, and the directories if nobody uses them.
    pub(crate) fn leave(&self, socket: Option<&str>) {
        if let Some(socket) = socket {
            let _ = fs::remove_file(self.dir.join(socket));
        }
        // These fail while anybody has something in there, be it a dead one.
        if fs::remove_dir(&self.dir).is_err() {
            self.sweep();
            let _ = fs::remove_dir(&self.dir);
        }
        let _ = fs::remove_dir(&self.root);
    }

    /// A socket's address has room for 107 bytes; a longer path is reached through a descriptor.
    fn with_short<T>(
        &self,
        socket: &str,
        then: impl FnOnce(&Path) -> io::Result<T>,
    ) -> io::Result<T> {
        let path = self.dir.join(socket);
        if path.as_os_str().len() <= 107 {
            return then(&path);
        }
        let dir = File::open(&self.dir)?;
        let through = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        // Without `/proc`, the error is that the path is too long.
        if through.exists() {
            then(&through.join(socket))
        } else {
            then(&path)
        }
    }
}

/// Whether something failed as this process, or the system, has no more of something: not by what it was done to.
fn lacks_something(error: &OpenError) -> bool {
    let OpenError::System { source, .. } = error else {
        return false;
    };
    matches!(
        source.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
    )
}

/// A directory above ours: of ours or of root's, and not open to a swap by others.
fn check_parent(path: &Path) -> Result<(), OpenError> {
    let meta =
        fs::metadata(path).map_err(OpenError::system(format!("look at {}", path.display())))?;
    let sticky = meta.mode() & 0o1000 != 0;
    if (meta.uid() != user_id() && meta.uid() != 0) || (meta.mode() & 0o022 != 0 && !sticky) {
        return Err(refused(path, "can be changed by other users".into()));
    }
    Ok(())
}

/// Makes a directory of ours, or checks the one that is there. False where it is gone again, or
/// its parent.
fn make_private(path: &Path) -> Result<bool, OpenError> {
    let failed = |action: &str| OpenError::system(format!("{action} {}", path.display()));
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(failed("make"))?,
    }
    let meta = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(failed("look at"))?,
    };
    if !meta.is_dir() {
        return Err(refused(path, "is no directory".into()));
    }
    if meta.uid() != user_id() {
        return Err(refused(
            path,
            format!("belongs to user {}, not to {}", meta.uid(), user_id()),
        ));
    }
    if meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o777;
        return Err(refused(
            path,
            format!("is open to others (mode {mode:o}, 700 is needed)"),
        ));
    }
    Ok(true)
}

fn refused(path: &Path, problem: String) -> OpenError {
    OpenError::Directory {
        path: path.to_owned(),
        problem,
    }
}

fn is_still(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn write_owner(file: &mut File, socket: &str) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    write!(file, "shmbus 1\n{}\n{socket}\n", std::process::id())
}

/// What the file says, if its owner is alive and has finished writing.
fn read_true(file: &mut File) -> io::Result<Option<Owner>> {
    if !is_locked(file, TRUE)? {
        Ok(None)
    } else {
        read_owner(file)
    }
}

fn read_owner(file: &mut File) -> io::Result<Option<Owner>> {
    file.rewind()?;
    let mut text = String::new();
    file.take(1024).read_to_string(&mut text)?;
    let mut lines = text.lines();
    let (Some("shmbus 1"), Some(pid), Some(socket)) = (lines.next(), lines.next(), lines.next())
    else {
        return Ok(None);
    };
    let sane = socket.starts_with("node-") && !socket.contains('/');
    Ok(pid.parse().ok().filter(|_| sane).map(|pid| Owner {
        pid,
        socket: socket.to_owned(),
    }))
}
