//! Memory is written by its owner only: a peer that holds its descriptors cannot change a byte.
//!
//! Unsafe code is needed to try.
#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use crate::support::{Ask, Child, answer, check_call, name, open, tell, together, told};

/// A part: has a bus with a lane pair, and memory for messages of all sizes.
pub(crate) fn holder(bus: &str) {
    let bus = open(bus);
    let server = bus.server::<Ask>().expect("nobody else serves");
    let serving = std::thread::spawn(move || answer(server));
    let client = bus.client::<Ask>().expect("a server is there");
    let kept = client
        .call(&Ask::new(1, 500_000))
        .expect("it answers")
        .keep();
    tell("ready");
    while told().is_some() {
        check_call(&client, 2, 24);
        check_call(&client, 3, 300_000);
        assert_eq!(kept.text.len(), 500_000);
        tell("good");
    }
    bus.close();
    serving.join().expect("the server does not panic");
}

fn last_error(result: i64) -> Option<i32> {
    (result < 0).then(|| io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

/// Takes a descriptor of another process: the very one, not a new opening of its file.
fn take(pid: u32, fd: i32) -> OwnedFd {
    // SAFETY: plain integers.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert_eq!(last_error(process), None, "the process is alive");
    // SAFETY: the kernel just gave it to us alone.
    let process = unsafe { OwnedFd::from_raw_fd(process as i32) };
    // SAFETY: plain integers on an open descriptor.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    assert_eq!(last_error(taken), None, "a child's descriptor can be taken");
    // SAFETY: as above.
    unsafe { OwnedFd::from_raw_fd(taken as i32) }
}

/// The error of mapping a file shared with these rights; the mapping itself otherwise.
fn map(fd: i32, rights: i32) -> Result<*mut libc::c_void, i32> {
    let null = std::ptr::null_mut();
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(null, 4096, rights, libc::MAP_SHARED, fd, 0) };
    if at == libc::MAP_FAILED {
        return Err(last_error(-1).unwrap_or(0));
    }
    Ok(at)
}

fn assert_unwritable(file: File) {
    const EPERM: Option<i32> = Some(libc::EPERM);
    let fd = file.as_raw_fd();
    let len = file.metadata().expect("it can be looked at").len();

    assert_eq!(map(fd, libc::PROT_WRITE), Err(libc::EPERM));
    let both = libc::PROT_READ | libc::PROT_WRITE;
    assert_eq!(map(fd, both), Err(libc::EPERM));
    let read = map(fd, libc::PROT_READ).expect("a peer may read");
    // SAFETY: the mapping is ours, and nothing refers to it.
    let changed = unsafe { libc::mprotect(read, 4096, both) };
    assert_eq!(last_error(changed.into()), Some(libc::EACCES));
    // SAFETY: as above.
    unsafe { libc::munmap(read, 4096) };

    for size in [0, len - 1, len + 1, len + 4096] {
        let error = file.set_len(size).expect_err("the size is fixed");
        assert_eq!(error.raw_os_error(), EPERM, "{size} of {len} bytes");
    }
    let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    for (mode, from) in [(hole, 0), (0, len as i64)] {
        // SAFETY: plain integers on an open descriptor.
        let made = unsafe { libc::fallocate(fd, mode, from, 4096) };
        assert_eq!(last_error(made.into()), EPERM, "fallocate {mode}");
    }
    let error = (&file).write(&[1]).expect_err("nobody writes");
    assert_eq!(error.raw_os_error(), EPERM);

    // SAFETY: plain integers on an open descriptor.
    let seals = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
    let wanted =
        libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;
    // A newer kernel also seals that it is never run as a program.
    const F_SEAL_EXEC: i32 = 0x20;
    assert_eq!(seals & !F_SEAL_EXEC, wanted);
    // SAFETY: as above.
    let added = unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
    assert_eq!(last_error(added.into()), EPERM);
}

#[test]
fn a_peer_cannot_write() {
    let _together = together();
    let mut holder = Child::start("holder", &[&name("one-writer")]);
    assert_eq!(holder.hear(), "ready");
    let dir = format!("/proc/{}/fd", holder.pid());
    let mut seen = 0;
    for entry in fs::read_dir(dir).expect("a child can be looked at") {
        let path = entry.expect("a child can be looked at").path();
        let target = fs::read_link(&path).unwrap_or_default();
        if !target.to_string_lossy().starts_with("/memfd:shmbus") {
            continue;
        }
        seen += 1;
        let number = path.file_name().and_then(|n| n.to_str()?.parse().ok());
        assert_unwritable(take(holder.pid(), number.expect("a number")).into());
        let again = OpenOptions::new().read(true).write(true).open(&path);
        assert_unwritable(again.expect("its owner may open it again"));
        let emptied = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_TRUNC)
            .open(&path);
        assert!(emptied.is_err(), "it cannot be emptied by opening it");
    }
    assert!(
        seen >= 2,
        "memory for messages, and for what is shared: {seen}"
    );
    holder.say("go on");
    assert_eq!(holder.hear(), "good");
    assert!(holder.end().success());
}
