//! A link that is inherited, with a stranger for a parent.
//!
//! Unsafe code is needed to leave a descriptor to a child.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::bench::{random, report};
use crate::lane::Form;
use crate::lies;
use crate::stranger::Stranger;
use crate::support::{Child, together};
use crate::wire::Control;

/// A victim, and the other end of the link that it inherits: one that blocks, which no honest parent leaves.
fn heir() -> (Child, Stranger) {
    let kind = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let pair = socketpair(kind.0, kind.1, SocketFlags::CLOEXEC, None);
    let (ours, theirs): (OwnedFd, OwnedFd) = pair.expect("there are descriptors left");
    let mut command = Child::command("heir", &[]);
    let number = theirs.as_raw_fd();
    command.env("SHMBUS_PARENT_FD", number.to_string());
    let leave = move || {
        // SAFETY: plain integers, on a descriptor that stays open until the child was started.
        match unsafe { libc::fcntl(number, libc::F_SETFD, 0) } {
            -1 => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: the closure makes one system call, and takes no lock and no memory.
    unsafe { command.pre_exec(leave) };
    let child = command.spawn().expect("the program starts");
    drop(theirs);
    let mut child = Child::adopt(child);
    assert_eq!(child.hear(), "ready");
    (child, Stranger::of(ours))
}

#[test]
fn an_heir_waits_for_no_parent_that_is_silent() {
    let _together = together();
    let (mut heir, parent) = heir();
    parent.greet();
    // The bus is dropped while nothing comes over the link: nobody waits for that.
    assert!(heir.end().success());
    drop(parent);
}

/// Whatever a parent says, its heir does not panic, and ends when it is to.
#[test]
fn random_parents_do_no_harm() {
    const NAMES: [&str; 5] = ["feed/sub/0", "feed/sub/1", "board/get/0", "prey", "x/put/9"];
    let _together = together();
    let mut cases = 0;
    random(60, |seed| {
        cases += 1;
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut heir, parent) = heir();
        if rng.u8(..4) > 0 {
            parent.greet();
        }
        for _ in 0..rng.usize(..4) {
            let name = NAMES[rng.usize(..NAMES.len())].to_owned();
            parent.say(&Control::Serving { name });
        }
        heir.say("publish");
        for _ in 0..rng.usize(..20) {
            let (bytes, fds) = lies::message(&mut rng, Form::Call);
            let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            if parent.is_over() || !parent.send(&bytes, &fds) {
                break;
            }
        }
        assert_eq!(heir.hear(), "done", "seed {seed}");
        if rng.bool() {
            drop(parent);
            assert!(heir.end().success(), "seed {seed}");
        } else {
            assert!(heir.end().success(), "seed {seed}");
            drop(parent);
        }
    });
    report("heirs", cases, &BTreeMap::new());
}
