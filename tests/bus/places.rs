//! Where a bus lies: its names and its directories.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shmbus::{Bus, ConnectError, Nothing, OpenError, ShmMessage, ShmRequest};

use crate::support::{Answer, Ask, Child, Dir, name, open, tell, together};

const fn text(ascii: &'static [u8]) -> &'static str {
    match std::str::from_utf8(ascii) {
        Ok(text) => text,
        Err(_) => panic!("ASCII only"),
    }
}

const LONGEST: &str = text(&[b'n'; 100]);
const LONGEST_OTHER: &str = text(&[b'o'; 100]);

/// What no bus and no port can be called, and why.
const REFUSED: [(&str, &str); 8] = [
    ("", "is empty"),
    (".", "means a directory"),
    ("..", "means a directory"),
    ("/", "has a slash"),
    ("some/where", "has a slash"),
    ("\0", "has a zero byte"),
    ("some\0where", "has a zero byte"),
    (text(&[b'n'; 101]), "is longer than 100 bytes"),
];

macro_rules! service {
    ($request:ident, $name:expr) => {
        #[derive(ShmMessage)]
        struct $request;

        impl ShmRequest for $request {
            type Reply = Answer;
            type Item = Nothing;
            type Error = Nothing;
            type Key = ();
            const SERVICE: &'static str = $name;
        }
    };
}

service!(Longest, LONGEST);
service!(Refused0, REFUSED[0].0);
service!(Refused1, REFUSED[1].0);
service!(Refused2, REFUSED[2].0);
service!(Refused3, REFUSED[3].0);
service!(Refused4, REFUSED[4].0);
service!(Refused5, REFUSED[5].0);
service!(Refused6, REFUSED[6].0);
service!(Refused7, REFUSED[7].0);

fn check_refused<T>(result: Result<T, impl Into<ConnectError>>, (name, why): (&str, &str)) {
    let error = result
        .map(drop)
        .map_err(Into::into)
        .expect_err("it is refused");
    let ConnectError::Open(OpenError::Name { name: of, problem }) = &error else {
        panic!("{name:?}: {error}");
    };
    assert_eq!((of.as_str(), *problem), (name, why));
    let text = error.to_string();
    assert!(text.contains(&format!("{name:?} {why}")), "{text}");
}

fn check_service<R: ShmRequest>(bus: &Bus, case: (&str, &str)) {
    assert_eq!(R::SERVICE, case.0);
    check_refused(bus.server::<R>(), case);
    check_refused(bus.client::<R>(), case);
    check_refused(bus.client_timeout::<R>(Duration::MAX), case);
}

#[test]
fn names_that_are_refused() {
    let _together = together();
    let bus = open(&name("names"));
    for case in REFUSED {
        check_refused(Bus::open(case.0), case);
        check_refused(bus.receiver::<Ask>(case.0), case);
        check_refused(bus.sender::<Ask>(case.0), case);
        check_refused(bus.sender_timeout::<Ask>(case.0, Duration::MAX), case);
    }
    check_service::<Refused0>(&bus, REFUSED[0]);
    check_service::<Refused1>(&bus, REFUSED[1]);
    check_service::<Refused2>(&bus, REFUSED[2]);
    check_service::<Refused3>(&bus, REFUSED[3]);
    check_service::<Refused4>(&bus, REFUSED[4]);
    check_service::<Refused5>(&bus, REFUSED[5]);
    check_service::<Refused6>(&bus, REFUSED[6]);
    check_service::<Refused7>(&bus, REFUSED[7]);
}

/// A part: serves once and receives once, under the longest names.
pub(crate) fn longest_names() {
    let first = open(LONGEST);
    let bus = open(LONGEST);
    // It takes the empty directory along, which is made anew.
    drop(first);
    let mut server = bus.server::<Longest>().expect("nobody else serves");
    let mut receiver = bus
        .receiver::<Ask>(LONGEST_OTHER)
        .expect("nobody else does");
    tell("ready");
    let call = server.next().expect("not forked").expect("it comes");
    let reply = Answer {
        id: 100,
        ..Answer::default()
    };
    call.reply(&reply).expect("there is room");
    let got = receiver.next().expect("not forked").expect("it comes");
    tell(&format!("received {}", got.id));
}

/// A part: calls once and sends once.
pub(crate) fn calls_longest_names() {
    let bus = open(LONGEST);
    let client = bus.client::<Longest>().expect("a server is there");
    assert_eq!(client.call(&Longest).expect("it answers").id, 100);
    let mut sender = bus.sender(LONGEST_OTHER).expect("a receiver is there");
    sender.send(&Ask::new(101, 24)).expect("there is room");
    tell("sent");
}

/// The address of a socket has room for 107 bytes, a path for thousands.
#[test]
fn the_longest_names() {
    let _together = together();
    let short = Dir::new();
    let long = short.path().join("d".repeat(255)).join("e".repeat(255));
    DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(&long)
        .expect("a directory can be made");
    for dir in [short.path(), &long] {
        let mut server = Child::start_in(dir, "longest-names", &[]);
        assert_eq!(server.hear(), "ready");
        let mut client = Child::start_in(dir, "calls-longest-names", &[]);
        assert_eq!(client.hear(), "sent");
        assert_eq!(server.hear(), "received 101");
        assert!(client.end().success());
        assert!(server.end().success());
        assert!(!dir.join("shmbus").exists());
    }
}

/// A part: opens a bus, and tells what came of it.
pub(crate) fn opens() {
    match Bus::open("place") {
        Ok(_) => tell("opened"),
        Err(error) => tell(&error.to_string()),
    }
}

/// How a process is told where its runtime files go.
#[derive(Clone, Copy, Debug)]
enum Told {
    Runtime,
    /// Not at all, or by an empty variable: they go to the temporary directory.
    Nothing,
    Empty,
}

impl Told {
    /// Opens a bus in another process, and returns what that one tells.
    fn open_in(self, dir: &Path) -> String {
        let mut command = Child::command("opens", &[]);
        match self {
            Told::Runtime => command.env("XDG_RUNTIME_DIR", dir),
            Told::Nothing => command.env_remove("XDG_RUNTIME_DIR").env("TMPDIR", dir),
            Told::Empty => command.env("XDG_RUNTIME_DIR", "").env("TMPDIR", dir),
        };
        let mut child = Child::adopt(command.spawn().expect("the program starts"));
        let said = child.hear();
        assert!(child.end().success());
        said
    }

    /// The directory of all buses.
    fn root(self, dir: &Path) -> PathBuf {
        match self {
            Told::Runtime => dir.join("shmbus"),
            Told::Nothing | Told::Empty => {
                let user = rustix::process::getuid().as_raw();
                dir.join(format!("shmbus-{user}"))
            }
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("it is ours");
}

fn check_opens(told: Told, dir: &Path) {
    assert_eq!(told.open_in(dir), "opened", "{told:?}");
    // It was the last one to leave.
    assert!(!told.root(dir).exists(), "{told:?}");
}

fn check_refuses(told: Told, dir: &Path, path: &Path, why: &str) {
    let said = told.open_in(dir);
    let start = format!("{} {why}", path.display());
    assert!(said.starts_with(&start), "{told:?}: {said}, not {start}");
    assert!(said.ends_with("set XDG_RUNTIME_DIR to a directory of your own"));
}

/// Runs for each way to say where, with the directories above a bus's and its own.
fn for_each_place(run: impl Fn(Told, &Dir, &Path, &Path)) {
    for told in [Told::Runtime, Told::Nothing, Told::Empty] {
        let dir = Dir::new();
        let root = told.root(dir.path());
        let bus = root.join("place");
        check_opens(told, dir.path());
        for path in [&root, &bus] {
            fs::create_dir(path).expect("it was removed");
            set_mode(path, 0o700);
        }
        run(told, &dir, &root, &bus);
        fs::remove_dir_all(&root).expect("it is ours");
        check_opens(told, dir.path());
    }
}

#[test]
fn directories_that_are_open_to_others() {
    let _together = together();
    for_each_place(|told, dir, root, bus| {
        for path in [root, bus] {
            for mode in [0o770, 0o720, 0o710, 0o707, 0o702, 0o701, 0o777, 0o750] {
                set_mode(path, mode);
                let why = format!("is open to others (mode {mode:o}, 700 is needed)");
                check_refuses(told, dir.path(), path, &why);
            }
            set_mode(path, 0o700);
        }
        // Above, others may look, and make what is theirs; they may not put theirs for ours.
        for mode in [0o770, 0o720, 0o777, 0o702] {
            set_mode(dir.path(), mode);
            check_refuses(
                told,
                dir.path(),
                dir.path(),
                "can be changed by other users",
            );
        }
        for mode in [0o755, 0o1777, 0o700] {
            fs::create_dir_all(bus).expect("it is ours");
            set_mode(root, 0o700);
            set_mode(bus, 0o700);
            set_mode(dir.path(), mode);
            check_opens(told, dir.path());
        }
        fs::create_dir(root).expect("it was removed");
    });
}

#[test]
fn a_directory_that_is_missing() {
    let _together = together();
    let dir = Dir::new();
    let missing = dir.path().join("missing");
    for told in [Told::Runtime, Told::Nothing] {
        let said = told.open_in(&missing);
        assert_eq!(said, format!("cannot look at {}", missing.display()));
        assert!(!missing.exists(), "it is not ours to make");
    }
}

#[test]
fn what_is_no_directory() {
    let _together = together();
    for_each_place(|told, dir, root, bus| {
        let elsewhere = Dir::new();
        for path in [bus, root] {
            fs::remove_dir(path).expect("it is empty");
            let to: [&Path; 2] = [elsewhere.path(), Path::new("/nowhere")];
            for to in to {
                symlink(to, path).expect("a link can be made");
                check_refuses(told, dir.path(), path, "is no directory");
                fs::remove_file(path).expect("the link is still there");
            }
            fs::write(path, "").expect("a file can be made");
            check_refuses(told, dir.path(), path, "is no directory");
            fs::remove_file(path).expect("the file is still there");
        }
        let left = fs::read_dir(elsewhere.path()).expect("it is ours").count();
        assert_eq!(left, 0, "the links were not followed");
        fs::create_dir(root).expect("nothing is there");
    });
}

#[test]
fn directories_of_somebody_else() {
    const SOMEBODY: u32 = 54_321;
    let _together = together();
    let dir = Dir::new();
    if let Err(error) = chown(dir.path(), Some(SOMEBODY), None) {
        // Not `eprintln`, which is shown for tests that fail only.
        let _ = writeln!(
            io::stderr(),
            "directories_of_somebody_else: skipped, cannot give a directory away: {error}"
        );
        return;
    }
    let user = rustix::process::getuid().as_raw();
    for_each_place(|told, dir, root, bus| {
        for path in [bus, root] {
            chown(path, Some(SOMEBODY), None).expect("it was possible before");
            let why = format!("belongs to user {SOMEBODY}, not to {user}");
            check_refuses(told, dir.path(), path, &why);
            chown(path, Some(user), None).expect("it was possible before");
        }
        chown(dir.path(), Some(SOMEBODY), None).expect("it was possible before");
        check_refuses(
            told,
            dir.path(),
            dir.path(),
            "can be changed by other users",
        );
        chown(dir.path(), Some(user), None).expect("it was possible before");
    });
}
