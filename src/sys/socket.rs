//! Unix sockets that carry whole messages (`SOCK_SEQPACKET`) and descriptors (`SCM_RIGHTS`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::process::Process;

const KIND: libc::c_int = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// No call ever waits, also where the socket was left to us by another process, which has a say in whether it blocks.
const SEND: libc::c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
const RECEIVE: libc::c_int = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;

/// Few messages of ours are longer, in bytes.
const SHORT: usize = 2048;

/// As many descriptors as one message of ours ever carries.
const MOST_FDS: usize = 4;

/// Who is at the other end, as the kernel saw it when the link was made (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credentials {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
}

/// One end of a connection.
pub(crate) struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Socket(fd)
    }
}

impl Socket {
    /// `socket` and `connect`.
    pub(crate) fn connect(path: &Path) -> io::Result<Socket> {
        let socket = new()?;
        let (address, len) = address(path)?;
        // SAFETY: the address is a local of at least `len` bytes.
        super::check(unsafe {
            libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len)
        })?;
        Ok(Socket(socket))
    }

    /// `socketpair`.
    pub(crate) fn pair() -> io::Result<(Socket, Socket)> {
        let mut fds = [-1; 2];
        // SAFETY: the array holds the two descriptors that the call writes.
        super::check(unsafe { libc::socketpair(libc::AF_UNIX, KIND, 0, fds.as_mut_ptr()) })?;
        let [a, b] = fds.map(|fd| {
            // SAFETY: the kernel just gave both to us alone.
            Socket(unsafe { OwnedFd::from_raw_fd(fd) })
        });
        Ok((a, b))
    }

    /// `getsockopt(SO_PEERCRED)`.
    pub(crate) fn credentials(&self) -> io::Result<Credentials> {
        let mut cred = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: both pointers are to locals, and `len` is the size of the first.
        super::check(unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut cred).cast(),
                &raw mut len,
            )
        })?;
        Ok(Credentials {
            pid: cred.pid as u32,
            uid: cred.uid,
        })
    }

    /// `getsockopt(SO_PEERPIDFD)`: the process that [`credentials`](Self::credentials) tell of. `None` before
    /// Linux 6.5, and where it is gone already.
    pub(crate) fn process(&self) -> Option<Process> {
        const SO_PEERPIDFD: libc::c_int = 77;
        let mut fd: RawFd = -1;
        let mut len = size_of::<RawFd>() as libc::socklen_t;
        // SAFETY: both pointers are to locals, and `len` is the size of the first.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_PEERPIDFD,
                (&raw mut fd).cast(),
                &raw mut len,
            )
        };
        // SAFETY: the kernel just gave this descriptor to us alone.
        (result == 0 && fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) }.into())
    }

    /// `getsockopt(SO_TYPE)`: whether this descriptor is a socket of our kind.
    pub(crate) fn is_seqpacket(&self) -> bool {
        let mut kind: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: both pointers are to locals, and `len` is the size of the first.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_TYPE,
                (&raw mut kind).cast(),
                &raw mut len,
            )
        };
        result == 0 && kind == libc::SOCK_SEQPACKET
    }

    /// `fcntl(F_SETFD)`: whether the descriptor closes when this process executes another program.
    pub(crate) fn set_close_on_exec(&self, close: bool) -> io::Result<()> {
        let flags = if close { libc::FD_CLOEXEC } else { 0 };
        // SAFETY: plain integers on an open descriptor.
        super::check(unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETFD, flags) }).map(drop)
    }

    /// `setsockopt(SO_PASSCRED)`: whether the kernel says with each message that was sent from then on who sent it.
    pub(crate) fn set_pass_credentials(&self, pass: bool) -> io::Result<()> {
        let pass = libc::c_int::from(pass);
        // SAFETY: the pointer is to a local, of the size that is given.
        super::check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PASSCRED,
                (&raw const pass).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        })
        .map(drop)
    }

    /// `shutdown(SHUT_WR)`: the end of what this side sends, which the other side then reads.
    pub(crate) fn shutdown_write(&self) {
        // SAFETY: plain integers; a socket that is not connected is no harm.
        unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_WR) };
    }

    /// `sendmsg`: one whole message with at most one descriptor; never blocks, raises no signal.
    pub(crate) fn send(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut iov = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut control = Control::default();
        // SAFETY: all zeros is a valid `msghdr`: null pointers and lengths of zero.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        if let Some(fd) = fd {
            control.put(&mut header, fd.as_raw_fd());
        }
        loop {
            // SAFETY: the header and all that it points to outlive the call.
            let n = unsafe { libc::sendmsg(self.0.as_raw_fd(), &header, SEND) };
            match n {
                -1 => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    e => return Err(e),
                },
                _ => return Ok(()),
            }
        }
    }

    /// `recvmsg`: one whole message into `buffer`, and its descriptors; none, where this process has no
    /// number left for them.
    ///
    /// `Ok(None)` is the end of the connection, behind all that was sent before it. A message that does not fit, or that carries more
    /// descriptors than any of ours, is an error of kind `InvalidData`.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<(usize, Descriptors)>> {
        let received = self.receive_with(buffer, 0, RECEIVE)?;
        Ok(received.map(|(n, descriptors, _)| (n, descriptors)))
    }

    /// As `receive`, but the message stays the next one until it is [taken](Self::take). So a descriptor that this
    /// process has no number left for is not lost. The buffer grows for a message that is longer, up to `most`.
    pub(crate) fn peek(
        &self,
        buffer: &mut Vec<u8>,
        most: usize,
    ) -> io::Result<Option<(usize, Descriptors)>> {
        let peeked = self.peek_with(buffer, most, 0)?;
        Ok(peeked.map(|(n, descriptors, _)| (n, descriptors)))
    }

    /// As [`peek`](Self::peek), and which user sent it, where that was [asked](Self::set_pass_credentials) for
    /// before; one that is none, where it was not.
    pub(crate) fn peek_from(
        &self,
        buffer: &mut Vec<u8>,
        most: usize,
    ) -> io::Result<Option<(usize, Descriptors, u32)>> {
        let peeked = self.peek_with(buffer, most, CREDENTIALS)?;
        Ok(peeked.map(|(n, descriptors, uid)| (n, descriptors, uid.unwrap_or(u32::MAX))))
    }

    fn peek_with(
        &self,
        buffer: &mut Vec<u8>,
        most: usize,
        more: usize,
    ) -> io::Result<Option<(usize, Descriptors, Option<u32>)>> {
        // The first is all that most messages need.
        for len in [buffer.len().max(SHORT).min(most), most] {
            buffer.resize(len, 0);
            match self.receive_with(buffer, more, RECEIVE | libc::MSG_PEEK) {
                Err(e) if e.kind() == io::ErrorKind::InvalidData && len < most => {}
                peeked => return peeked,
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    /// Takes the message that was [looked at](Self::peek) away.
    pub(crate) fn take(&self) {
        loop {
            let null = std::ptr::null_mut();
            // SAFETY: no byte is written: the kernel drops what has no room, and its descriptors.
            let taken = unsafe { libc::recv(self.0.as_raw_fd(), null, 0, RECEIVE) };
            let error = io::Error::last_os_error().raw_os_error();
            // The first says once, and before all that had been sent, that the other side closed: as in `receive_with`.
            if taken >= 0 || !matches!(error, Some(libc::ECONNRESET | libc::EINTR)) {
                return;
            }
        }
    }

    /// `setsockopt(SO_PEEK_OFF)`: each look begins with what comes next. Whoever handed the socket on may have had it
    /// otherwise.
    pub(crate) fn peek_from_start(&self) -> io::Result<()> {
        let none: libc::c_int = -1;
        // SAFETY: the pointer is to a local, of the size that is given.
        super::check(unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEEK_OFF,
                (&raw const none).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        })
        .map(drop)
    }

    /// With so much more room for what the kernel says of a message.
    fn receive_with(
        &self,
        buffer: &mut [u8],
        more: usize,
        flags: libc::c_int,
    ) -> io::Result<Option<(usize, Descriptors, Option<u32>)>> {
        let mut iov = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        let mut control = Control::default();
        // SAFETY: all zeros is a valid `msghdr`.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = size_of::<Control>() - CREDENTIALS + more;
        let mut was_reset = false;
        let n = loop {
            // SAFETY: the header and all that it points to outlive the call.
            let n = unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut header, flags) };
            match n {
                -1 => match io::Error::last_os_error() {
                    e if e.kind() == io::ErrorKind::Interrupted => {}
                    // The other side closed with something of ours unread. That is said once, and before
                    // what it had sent.
                    e if e.raw_os_error() == Some(libc::ECONNRESET) => {
                        if std::mem::replace(&mut was_reset, true) {
                            return Ok(None);
                        }
                    }
                    e => return Err(e),
                },
                n => break n as usize,
            }
        };
        let (fds, uid) = Control::take(&header);
        let is_cut = header.msg_flags & libc::MSG_CTRUNC != 0;
        if header.msg_flags & libc::MSG_TRUNC != 0 || is_cut && fds.len() >= MOST_FDS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if n == 0 && fds.is_empty() {
            return Ok(None);
        }
        let descriptors = match is_cut {
            true => Descriptors::Lacking,
            false => Descriptors::Came(fds),
        };
        Ok(Some((n, descriptors, uid)))
    }
}

/// The descriptors of a message.
#[derive(Debug)]
pub(crate) enum Descriptors {
    Came(Vec<OwnedFd>),
    /// Some were sent, and this process could not take them.
    Lacking,
}

/// The room that who sent a message takes beside its descriptors: a header of 16 bytes, and `ucred` in whole words.
const CREDENTIALS: usize = 16 + size_of::<libc::ucred>().next_multiple_of(8);

/// A descriptor of who sent a message: Linux 6.5.
const SCM_PIDFD: libc::c_int = 4;

/// Room for the descriptors of one message and for who sent it, aligned as the kernel wants it.
#[repr(C, align(8))]
#[derive(Default)]
struct Control([u64; 9]);
// A header of 16 bytes and four descriptors.
static_assertions::const_assert!(
    size_of::<Control>() - CREDENTIALS >= 16 + MOST_FDS * size_of::<RawFd>()
);

impl Control {
    fn put(&mut self, header: &mut libc::msghdr, fd: RawFd) {
        const FD: libc::c_uint = size_of::<RawFd>() as libc::c_uint;
        header.msg_control = self.0.as_mut_ptr().cast();
        // SAFETY: arithmetic on a constant.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(FD) } as usize;
        // SAFETY: the control buffer is larger than one header.
        let first = unsafe { libc::CMSG_FIRSTHDR(header) };
        // SAFETY: arithmetic on a constant.
        let len = unsafe { libc::CMSG_LEN(FD) } as usize;
        let cmsg = libc::cmsghdr {
            cmsg_len: len,
            cmsg_level: libc::SOL_SOCKET,
            cmsg_type: libc::SCM_RIGHTS,
        };
        // SAFETY: `first` points into the control buffer, aligned and with room for a header.
        unsafe { first.write(cmsg) };
        // SAFETY: `first` is a header within the buffer.
        let data = unsafe { libc::CMSG_DATA(first) };
        // SAFETY: one descriptor's room was counted into `msg_controllen`.
        unsafe { data.cast::<RawFd>().write_unaligned(fd) };
    }

    /// Takes ownership of every descriptor that came, so that none is ever left open; and who sent them, if the
    /// kernel says so.
    fn take(header: &libc::msghdr) -> (Vec<OwnedFd>, Option<u32>) {
        let (mut fds, mut uid) = (Vec::new(), None);
        // SAFETY: the kernel filled the control buffer and its length.
        let mut at = unsafe { libc::CMSG_FIRSTHDR(header) };
        while !at.is_null() {
            // SAFETY: the macros return null or a whole header within the buffer.
            let cmsg = unsafe { at.read() };
            if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
                // SAFETY: arithmetic on a constant.
                let before = unsafe { libc::CMSG_LEN(0) } as usize;
                let count = cmsg.cmsg_len.saturating_sub(before) / size_of::<RawFd>();
                // SAFETY: `at` is a header within the buffer.
                let data = unsafe { libc::CMSG_DATA(at) }.cast::<RawFd>();
                for i in 0..count {
                    // SAFETY: `cmsg_len` says that `count` descriptors follow the header.
                    let place = unsafe { data.add(i) };
                    // SAFETY: as above; the place may be unaligned.
                    let fd = unsafe { place.read_unaligned() };
                    // SAFETY: the kernel installed this descriptor for us alone.
                    fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
            if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_CREDENTIALS {
                // SAFETY: `at` is a header within the buffer.
                let data = unsafe { libc::CMSG_DATA(at) }.cast::<libc::ucred>();
                // SAFETY: the kernel writes all of it, or no header; the place may be unaligned.
                uid = Some(unsafe { data.read_unaligned() }.uid);
            }
            if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == SCM_PIDFD {
                // Nobody asked for it but who has another handle on this socket.
                // SAFETY: `at` is a header within the buffer.
                let data = unsafe { libc::CMSG_DATA(at) }.cast::<RawFd>();
                // SAFETY: the kernel writes all of it, or no header; the place may be unaligned.
                let fd = unsafe { data.read_unaligned() };
                // SAFETY: the kernel just gave this descriptor to us alone.
                drop((fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
            // SAFETY: `at` is a header within the buffer that `header` describes.
            at = unsafe { libc::CMSG_NXTHDR(header, at) };
        }
        (fds, uid)
    }
}

/// A socket that others connect to; its file stays until [`Listener`]'s owner removes it.
pub(crate) struct Listener(OwnedFd);

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Listener {
    /// `socket`, `bind` and `listen`.
    pub(crate) fn bind(path: &Path) -> io::Result<Listener> {
        let socket = new()?;
        let (address, len) = address(path)?;
        // SAFETY: the address is a local of at least `len` bytes.
        super::check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
        // SAFETY: plain integers on an open descriptor.
        super::check(unsafe { libc::listen(socket.as_raw_fd(), 1024) })?;
        Ok(Listener(socket))
    }

    /// `accept4`: `None` when nobody is waiting.
    pub(crate) fn accept(&self) -> io::Result<Option<Socket>> {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let null = std::ptr::null_mut();
        // SAFETY: null pointers say that the address is not wanted.
        match super::check(unsafe {
            libc::accept4(self.0.as_raw_fd(), null, std::ptr::null_mut(), flags)
        }) {
            // SAFETY: the kernel just gave this descriptor to us alone.
            Ok(fd) => Ok(Some(Socket(unsafe { OwnedFd::from_raw_fd(fd) }))),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn new() -> io::Result<OwnedFd> {
    // SAFETY: takes integers only.
    let fd = super::check(unsafe { libc::socket(libc::AF_UNIX, KIND, 0) })?;
    // SAFETY: the kernel just gave this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The address of a path, and its length. A path over 107 bytes has no address.
fn address(path: &Path) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all zeros is a valid `sockaddr_un`: integers only.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "the socket path {} is longer than 107 bytes",
                path.display()
            ),
        ));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Ok((address, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

/// `fcntl(F_SETFD, 0)`: the descriptor survives the execution of another program. Makes one system
/// call and nothing else, so that a forked child may call it.
pub(crate) fn keep_over_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain integers on an open descriptor.
    super::check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) }).map(drop)
}

/// `fcntl(F_GETFD)`: whether this number is an open descriptor.
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: plain integers; a number that is no descriptor is an error, no more.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_who_sent_what_was_sent_after_it_was_asked() {
        let (near, far) = Socket::pair().unwrap();
        let mut buffer = vec![0; 64];
        let mut receive = || {
            let received = near.peek_from(&mut buffer, 64).unwrap().unwrap();
            near.take();
            received
        };
        let here = crate::sys::user_id();
        far.send(&[1], None).unwrap();
        assert_eq!(receive().2, u32::MAX);
        near.set_pass_credentials(true).unwrap();
        far.send(&[1, 2], Some(far.as_fd())).unwrap();
        let (n, descriptors, uid) = receive();
        assert_eq!((n, uid), (2, here));
        assert!(matches!(descriptors, Descriptors::Came(fds) if fds.len() == 1));
        near.set_pass_credentials(false).unwrap();
        far.send(&[1], None).unwrap();
        assert_eq!(receive().2, u32::MAX);
    }

    /// The kernel says once that the other side has closed with something unread, whatever is asked for next.
    #[test]
    fn a_message_is_taken_once_of_one_that_is_gone() {
        let (near, far) = Socket::pair().unwrap();
        far.send(b"one", None).unwrap();
        far.send(b"two", None).unwrap();
        near.send(b"never read", None).unwrap();
        let mut buffer = Vec::new();
        let mut peek = || near.peek(&mut buffer, 64).unwrap().map(|(n, _)| n);
        assert_eq!(peek(), Some(3));
        drop(far);
        near.take();
        near.peek_from_start().unwrap();
        assert_eq!(peek(), Some(3));
        near.take();
        assert_eq!(peek(), None);
    }

    #[test]
    fn what_was_sent_before_a_reset_is_read() {
        let (near, far) = Socket::pair().unwrap();
        far.send(&[1], None).unwrap();
        far.send(&[2, 2], None).unwrap();
        near.send(&[3], None).unwrap();
        // With what was sent to it unread.
        drop(far);
        let mut buffer = [0; 64];
        let mut receive = || near.receive(&mut buffer).unwrap().map(|(n, _)| n);
        assert_eq!(receive(), Some(1));
        assert_eq!(receive(), Some(2));
        assert_eq!(receive(), None);
        assert_eq!(receive(), None);
    }
}
