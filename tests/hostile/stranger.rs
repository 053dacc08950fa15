//! One end of a link that no library keeps: it says what it likes, and reads when it likes.
//!
//! Unsafe code is needed for the locks that no safe crate here takes.
#![allow(unsafe_code)]

use std::fs::{File, FileTimes, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::wire::{self, Control};

/// Nothing that is awaited takes so long, unless it never comes.
pub(crate) const HANGS: Duration = Duration::from_secs(60);

/// As many descriptors as the kernel lets one message carry.
pub(crate) const MOST_FDS: usize = 253;

/// See the module.
pub(crate) struct Stranger {
    fd: OwnedFd,
    /// It heard that it was given up. Always Relaxed: whoever hears that says so to itself.
    is_over: AtomicBool,
}

fn socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .expect("there is a descriptor left")
}

fn address(path: &Path) -> SocketAddrUnix {
    SocketAddrUnix::new(path).expect("the path is short")
}

impl Stranger {
    pub(crate) fn connect(path: &Path) -> Stranger {
        Stranger::try_connect(path).expect("somebody listens")
    }

    pub(crate) fn try_connect(path: &Path) -> io::Result<Stranger> {
        let flags = SocketFlags::CLOEXEC;
        let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let fd = rustix::net::socket_with(kind.0, kind.1, flags, None)?;
        rustix::net::connect(&fd, &address(path))?;
        Ok(Stranger::of(fd))
    }

    /// One end of a pair.
    pub(crate) fn of(fd: OwnedFd) -> Stranger {
        for which in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&fd, which, Some(HANGS)).expect("it is a socket");
        }
        // A message that is too long is to get through.
        set_socket_send_buffer_size(&fd, 1 << 20).expect("it is a socket");
        Stranger {
            fd,
            is_over: AtomicBool::new(false),
        }
    }

    /// Sends bytes and descriptors. False where nobody is there any more.
    pub(crate) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let size = SendAncillaryMessage::ScmRights(fds).size();
        let mut space = vec![MaybeUninit::uninit(); size];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            let pushed = control.push(SendAncillaryMessage::ScmRights(fds));
            assert!(pushed, "there is room for {}", fds.len());
        }
        let flags = SendFlags::NOSIGNAL;
        match rustix::net::sendmsg(&self.fd, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(_) => true,
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => false,
            Err(error) => panic!("{} bytes are not taken: {error}", bytes.len()),
        }
    }

    /// Says something. False where nobody is there any more.
    pub(crate) fn say(&self, control: &Control) -> bool {
        self.send(&wire::encode(control), &[])
    }

    /// Says something that carries a descriptor.
    pub(crate) fn give(&self, control: &Control, fd: impl AsFd) -> bool {
        self.send(&wire::encode(control), &[fd.as_fd()])
    }

    /// The bytes of the next message, and its descriptors; `None` at the end.
    pub(crate) fn hear_all(&self) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
        let mut buffer = vec![0; 128 * 1024];
        let mut space = [MaybeUninit::uninit(); 256];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let n = match rustix::net::recvmsg(&self.fd, &mut slices, &mut control, flags) {
            Ok(got) => got.bytes,
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => panic!("the victim says nothing: {error}"),
        };
        let mut came = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                came.extend(fds);
            }
        }
        buffer.truncate(n);
        (n > 0).then_some((buffer, came))
    }

    /// Whether this end was given up; what else was said is passed over.
    pub(crate) fn is_over(&self) -> bool {
        let mut buffer = vec![0; 128 * 1024];
        while !self.is_over.load(Ordering::Relaxed) {
            match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT) {
                Err(rustix::io::Errno::AGAIN) => return false,
                Ok((n, _)) if n > 0 && wire::decode(&buffer[..n]) != Control::Bye => {}
                _ => self.is_over.store(true, Ordering::Relaxed),
            }
        }
        true
    }

    /// The next message; `None` at the end.
    pub(crate) fn hear(&self) -> Option<Control> {
        self.hear_all().map(|(bytes, _)| wire::decode(&bytes))
    }

    /// Says hello, and waits for the other's.
    pub(crate) fn greet(&self) {
        let (layout, barrier) = (1, false);
        self.say(&Control::Hello { layout, barrier });
        let hello = self.hear();
        assert!(matches!(hello, Some(Control::Hello { .. })), "{hello:?}");
    }

    /// Waits until this end was given up: `Bye`, or the end of the stream.
    pub(crate) fn wait_for_bye(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            let heard = self.hear();
            self.is_over.store(
                matches!(heard, None | Some(Control::Bye)),
                Ordering::Relaxed,
            );
        }
    }
}

/// A name in the directory of a bus, and a socket behind it: whoever looks for it finds a stranger.
pub(crate) struct Trap {
    listener: OwnedFd,
    socket: PathBuf,
    file: PathBuf,
    _locked: File,
}

impl Trap {
    /// Takes the name of this file.
    pub(crate) fn set(dir: &Path, file: &str) -> Trap {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Relaxed: only that none comes twice matters.
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("node-{}-{count:016x}", std::process::id());
        let (socket, file) = (dir.join(&name), dir.join(file));
        let listener = self::socket();
        rustix::net::bind(&listener, &address(&socket)).expect("nobody else has that name");
        rustix::net::listen(&listener, 64).expect("it is bound");
        set_socket_timeout(&listener, Timeout::Recv, Some(HANGS)).expect("it is a socket");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let mut locked = options.mode(0o600).open(&file).expect("it can be made");
        lock(&locked, 0);
        write!(locked, "shmbus 1\n{}\n{name}\n", std::process::id()).expect("it can be written");
        lock(&locked, 1);
        let now = SystemTime::now();
        let times = FileTimes::new().set_accessed(now).set_modified(now);
        locked.set_times(times).expect("it is ours");
        Trap {
            listener,
            socket,
            file,
            _locked: locked,
        }
    }

    /// Waits for whoever walks in.
    pub(crate) fn accept(&self) -> Stranger {
        let flags = SocketFlags::CLOEXEC;
        let fd = rustix::net::accept_with(&self.listener, flags).expect("the victim connects");
        Stranger::of(fd)
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Locks a byte of a file, as its owner does.
pub(crate) fn lock(file: &File, byte: i64) {
    // SAFETY: all zeros is a valid `flock`: integers only.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    (lock.l_start, lock.l_len) = (byte, 1);
    // SAFETY: the structure outlives the call.
    let locked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) };
    assert_eq!(locked, 0, "nobody else has it");
}
