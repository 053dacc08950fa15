//! Peers of another user: refused, or let in and copied from. Only root can start one.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use shmbus::{ConnectError, Fault, Trust};

use super::{config, is_shared};
use crate::support::{Answer, Ask, Child, tell, together, told};

/// Whom each system has (`nobody`), and where none has that number it is as good.
const OTHER: u32 = 65_534;

fn trust(of: &str) -> Trust {
    match of {
        "SameUser" => Trust::SameUser,
        "Untrusted" => Trust::Untrusted,
        _ => Trust::AnyUser,
    }
}

/// A part: serves its parent, if it takes it for one, and says where requests lie.
pub(crate) fn has_a_parent(of: &str) {
    // Its parent has said hello: whose link ends before that has no child.
    told();
    let bus = match config(trust(of)).from_parent() {
        Ok(bus) => bus,
        Err(error) => return tell(&error.to_string()),
    };
    tell("open");
    let mut server = bus.server::<Ask>().expect("nobody else serves");
    while let Some(call) = server.next().expect("not forked") {
        let answer = Answer {
            id: call.id.to_native(),
            pid: std::process::id(),
            text: is_shared(&*call).to_string(),
        };
        call.reply(&answer).expect("there is room");
    }
}

/// This program as another user, which may not reach it by its path; `None`, and told of, where that cannot be.
fn as_another(of: Trust) -> Option<Command> {
    // Its owner is whom this process runs as.
    let here = std::fs::metadata("/proc/self").expect("it is there");
    if here.uid() != 0 {
        // Not by a macro, which would be seen only if the test failed.
        let skipped = "SKIPPED: only root can start a process of another user\n";
        let _ = std::io::stderr().write_all(skipped.as_bytes());
        return None;
    }
    let known = Child::command("has-a-parent", &[&format!("{of:?}")]);
    let mut command = Command::new("/proc/self/exe");
    command.args(known.get_args());
    let variables = known.get_envs();
    command.envs(variables.filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.uid(OTHER).gid(OTHER);
    Some(command)
}

fn names_both(text: &str) -> bool {
    let how = "set `Config::trust` to `Trust::AnyUser`";
    [
        "user 0",
        &format!("user {OTHER}"),
        "as 0",
        &format!("as {OTHER}"),
    ]
    .iter()
    .filter(|user| text.contains(**user))
    .count()
        == 2
        && text.contains(how)
}

#[test]
fn a_child_refuses_a_parent_of_another_user() {
    let _together = together();
    for theirs in [Trust::SameUser, Trust::Untrusted] {
        let Some(command) = as_another(theirs) else {
            return;
        };
        let (bus, child) = config(Trust::AnyUser).spawn(command).expect("it starts");
        let mut child = Child::adopt(child);
        child.say("go");
        let told = child.hear();
        assert!(names_both(&told), "{told}");
        assert!(child.end().success());
        drop(bus);
    }
}

#[test]
fn a_parent_refuses_a_child_of_another_user() {
    let _together = together();
    for ours in [Trust::SameUser, Trust::Untrusted] {
        let Some(command) = as_another(Trust::AnyUser) else {
            return;
        };
        let (bus, child) = config(ours).spawn(command).expect("it starts");
        let mut child = Child::adopt(child);
        child.say("go");
        assert_eq!(child.hear(), "open", "it lets in its parent");
        let error = bus.client_timeout::<Ask>(Duration::from_secs(100));
        let error = error.map(drop).expect_err("the child is another user's");
        let fault = match error {
            ConnectError::Lost { fault, .. } => fault,
            other => panic!("{other}"),
        };
        let told = fault.as_ref().map(Fault::to_string).unwrap_or_default();
        assert!(names_both(&told), "{told}");
        let (theirs, ours) = (OTHER, 0);
        assert_eq!(fault, Some(Fault::User { theirs, ours }));
        assert!(child.end().success(), "its link has ended");
        let again = bus.client_timeout::<Ask>(Duration::from_secs(100));
        assert!(matches!(again, Err(ConnectError::Lost { fault: again, .. }) if again == fault));
    }
}

#[test]
fn users_that_let_each_other_in_copy() {
    let _together = together();
    let Some(command) = as_another(Trust::AnyUser) else {
        return;
    };
    let (bus, child) = config(Trust::AnyUser).spawn(command).expect("it starts");
    let mut child = Child::adopt(child);
    child.say("go");
    assert_eq!(child.hear(), "open");
    let client = bus
        .client_timeout::<Ask>(Duration::from_secs(100))
        .expect("the child serves");
    for len in [0, 24, 3_000, 300_000] {
        let reply = client.call(&Ask::new(7, len)).expect("it answers");
        assert_eq!(reply.pid, child.pid());
        assert_eq!(reply.text, "false", "the request was copied");
        assert!(!is_shared(&*reply), "and so was the reply");
    }
    drop(client);
    drop(bus);
    assert!(child.end().success());
}
