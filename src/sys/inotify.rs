//! `inotify(7)`: what changes in a directory.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Tells of files whose times are set, in one directory.
pub(crate) struct Inotify(OwnedFd);

/// A number that an [`Inotify`] will have, lower than those of all descriptors that are made from now on.
///
/// When a process is killed, the kernel closes its descriptors from the highest number on, and each is closed before the
/// next is begun with. That of an `inotify` takes 15 ms, and on a machine that is busy has been seen to take a minute: it
/// waits for everybody who tells of changes, anywhere. All that others are to notice at once is to be closed before.
pub(crate) struct Seat(OwnedFd);

impl Seat {
    /// `eventfd`: the least that has a number.
    pub(crate) fn new() -> io::Result<Seat> {
        // SAFETY: takes integers only.
        let fd = super::check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) })?;
        // SAFETY: the kernel just gave this descriptor to us alone.
        Ok(Seat(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl AsFd for Inotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Inotify {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// What happened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// To the file of this name.
    File(OsString),
    /// More than was kept: whatever may have changed is to be looked at.
    Lost,
}

impl Inotify {
    /// `inotify_init1`, and `inotify_add_watch` for one directory.
    pub(crate) fn new(dir: &Path) -> io::Result<Inotify> {
        let dir = CString::new(dir.as_os_str().as_bytes())?;
        // SAFETY: takes flags only.
        let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC | libc::IN_NONBLOCK) };
        let fd = super::check(fd)?;
        // SAFETY: the kernel just gave this descriptor to us alone.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let what = libc::IN_ATTRIB | libc::IN_ONLYDIR;
        // SAFETY: the path is a string that outlives the call.
        super::check(unsafe { libc::inotify_add_watch(fd.as_raw_fd(), dir.as_ptr(), what) })?;
        Ok(Inotify(fd))
    }

    /// `dup3`: the same with the number of `seat`, if there is one.
    pub(crate) fn seated(self, seat: Option<Seat>) -> io::Result<Inotify> {
        let Some(Seat(seat)) = seat else {
            return Ok(self);
        };
        // SAFETY: both are open descriptors of ours, and nobody else knows the second, which the kernel closes.
        super::check(unsafe { libc::dup3(self.0.as_raw_fd(), seat.as_raw_fd(), libc::O_CLOEXEC) })?;
        Ok(Inotify(seat))
    }

    /// `read`: what happened since the last call, as far as one look shows it; empty where nothing did.
    pub(crate) fn read(&self) -> Vec<Change> {
        const HEAD: usize = size_of::<libc::inotify_event>();
        // Aligned as the kernel wants it; room for some events with the longest names.
        let mut buffer = [0u64; 1024];
        let len = size_of_val(&buffer);
        // SAFETY: the buffer outlives the call and has so many bytes.
        let read = unsafe { libc::read(self.as_raw_fd(), buffer.as_mut_ptr().cast(), len) };
        let bytes: &[u8] = bytemuck::cast_slice(&buffer);
        let mut left = &bytes[..usize::try_from(read).unwrap_or(0)];
        let mut changes = Vec::new();
        while let Some((head, rest)) = left.split_at_checked(HEAD) {
            let word = |at: usize| {
                let word = head[at..at + 4].try_into();
                u32::from_ne_bytes(word.expect("it is as long"))
            };
            // The watch, the mask, a cookie, and the length of the name with the zeros behind it.
            let (mask, len) = (word(4), word(12) as usize);
            let Some((name, rest)) = rest.split_at_checked(len) else {
                break;
            };
            left = rest;
            if mask & libc::IN_Q_OVERFLOW != 0 {
                changes.push(Change::Lost);
            } else if let Some(name) = name.split(|byte| *byte == 0).next() {
                if !name.is_empty() {
                    changes.push(Change::File(OsString::from_vec(name.to_vec())));
                }
            }
        }
        changes
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::fs::{File, FileTimes};
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_file_whose_time_is_set_is_told() {
        let dir = std::env::temp_dir().join(format!("shmbus-inotify-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let watch = Inotify::new(&dir).unwrap();
        assert_eq!(watch.read(), []);
        let names = ["one", "a name that is longer", "three"];
        for name in names {
            let file = File::create(dir.join(name)).unwrap();
            let now = SystemTime::now();
            let times = FileTimes::new().set_accessed(now).set_modified(now);
            file.set_times(times).unwrap();
        }
        let told: Vec<_> = names.map(|name| Change::File(name.into())).into();
        assert_eq!(watch.read(), told);
        assert_eq!(watch.read(), []);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
