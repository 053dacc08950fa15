//! `socketpair(SOCK_STREAM)`: numbers that one process says to another, neither of whom ever waits.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const KIND: libc::c_int = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
/// The most numbers that one [`take`] gives.
pub(crate) const MOST: usize = 256;
const SIZE: usize = size_of::<u32>();

/// `socketpair`: where numbers are taken, and where they are put.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: the array holds the two descriptors that the call writes.
    super::check(unsafe { libc::socketpair(libc::AF_UNIX, KIND, 0, fds.as_mut_ptr()) })?;
    let [take, put] = fds.map(|fd| {
        // SAFETY: the kernel just gave both to us alone.
        unsafe { OwnedFd::from_raw_fd(fd) }
    });
    Ok((take, put))
}

/// `send(MSG_DONTWAIT)`: true where the number is on its way as a whole.
///
/// The descriptor may be anything that a peer has sent: what is no socket is refused by the kernel, and
/// none blocks, whatever its owner made of it.
pub(crate) fn put(fd: BorrowedFd<'_>, number: u32) -> bool {
    let bytes = number.to_le_bytes();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: four bytes of a local that outlives the call.
    let n = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), SIZE, flags) };
    n == SIZE as isize
}

/// `recv(MSG_DONTWAIT)`: adds the numbers that have come, at most [`MOST`]; no more come now where there
/// are fewer. `None` where none will come ever again.
pub(crate) fn take(fd: BorrowedFd<'_>, numbers: &mut Vec<u32>) -> Option<usize> {
    let mut bytes = [0u8; MOST * SIZE];
    // SAFETY: a local of so many bytes that outlives the call.
    let n = unsafe {
        libc::recv(
            fd.as_raw_fd(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
            libc::MSG_DONTWAIT,
        )
    };
    if n < 0 {
        let kind = io::Error::last_os_error().kind();
        let later = matches!(kind, io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
        return later.then_some(0);
    }
    let n = n as usize;
    if n == 0 || n % SIZE != 0 {
        return None;
    }
    let whole = bytes[..n].chunks_exact(SIZE);
    numbers.extend(whole.map(|bytes| {
        let bytes = bytes.try_into().expect("a chunk is exact");
        u32::from_le_bytes(bytes)
    }));
    Some(n / SIZE)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn numbers_come_in_order_and_nobody_waits() {
        let (from, to) = pair().unwrap();
        let mut numbers = Vec::new();
        assert_eq!(take(from.as_fd(), &mut numbers), Some(0));
        let sent = (0..).take_while(|&n| put(to.as_fd(), n)).count();
        assert!(sent > 0, "a socket that is full takes no more");
        while take(from.as_fd(), &mut numbers) == Some(MOST) {}
        assert!(numbers.iter().copied().eq(0..sent as u32));
        assert!(put(to.as_fd(), 7), "there is room again");
        drop(to);
        assert_eq!(take(from.as_fd(), &mut numbers), Some(1));
        assert_eq!(take(from.as_fd(), &mut numbers), None);
    }

    #[test]
    fn what_is_no_socket_and_what_is_half_a_number_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(!put(file.as_fd(), 1));
        let (from, to) = pair().unwrap();
        rustix::io::write(&to, &[1, 2, 3]).unwrap();
        assert_eq!(take(from.as_fd(), &mut Vec::new()), None);
    }
}
