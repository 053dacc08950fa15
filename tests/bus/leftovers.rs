//! What is left of a bus: nothing after a clean end, and nothing for long after any other.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::support::{Ask, Child, Dir, answer, check_call, open, tell, together, told};

/// All names below a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(at).expect("it can be read") {
            let path = entry.expect("it can be read").path();
            let below = path.strip_prefix(dir).expect("it lies there");
            names.push(below.display().to_string());
            if path.is_dir() && !path.is_symlink() {
                pending.push(path);
            }
        }
    }
    names.sort();
    names
}

/// The sockets of a bus.
fn sockets(bus: &Path) -> Vec<String> {
    let mut names = names(bus);
    names.retain(|name| name.starts_with("node-"));
    names
}

/// Starts a process that serves the bus `left`, until it is told to end.
fn serve(dir: &Path) -> Child {
    let mut server = Child::start_in(dir, "echo", &["left"]);
    assert_eq!(server.hear(), "ready");
    server
}

/// What this process has of `/dev/shm`, where nobody would remove a file after a crash.
fn in_dev_shm() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").expect("it can be read");
    let mapped = maps.lines().filter(|line| line.contains("/dev/shm"));
    let mut found: Vec<String> = mapped.map(str::to_owned).collect();
    for fd in fs::read_dir("/proc/self/fd").expect("it can be read") {
        let to = fs::read_link(fd.expect("it can be read").path()).unwrap_or_default();
        if to.starts_with("/dev/shm") {
            found.push(to.display().to_string());
        }
    }
    found
}

fn descriptors() -> usize {
    let all = fs::read_dir("/proc/self/fd").expect("it can be read");
    all.count()
}

/// Everything that a process can have of a bus, used once.
fn use_all(round: usize) {
    let bus = open("left");
    let other = open("left");
    let server = bus.server::<Ask>().expect("nobody else serves");
    let serving = std::thread::spawn(move || answer(server));
    let client = other.client::<Ask>().expect("a server is there");
    let mut receiver = other.receiver::<Ask>("asks").expect("nobody else does");
    let mut sender = bus.sender::<Ask>("asks").expect("a receiver is there");
    for len in [24, 5000, 500_000] {
        check_call(&client, 1, len);
        sender.send(&Ask::new(2, len)).expect("there is room");
        let got = receiver.next().expect("not forked").expect("it was sent");
        assert_eq!(got.id, 2);
    }
    let kept = client.call(&Ask::new(3, 500_000)).expect("it answers");
    let kept = kept.keep();
    assert_eq!(in_dev_shm(), Vec::<String>::new());
    bus.close();
    match round {
        0 => {
            serving.join().expect("the server does not panic");
            drop((client, sender, receiver));
            drop((bus, other));
        }
        1 => {
            // The ports hold what they are of.
            drop((bus, other));
            drop((receiver, sender, client));
            serving.join().expect("the server does not panic");
        }
        _ => {
            drop((other, receiver));
            serving.join().expect("the server does not panic");
            drop((sender, bus, client));
        }
    }
    assert_eq!(kept.text.len(), 500_000);
}

/// A part: uses a bus in full, with another end each time.
pub(crate) fn uses_all(dir: &str) {
    // The first bus of a process opens one descriptor for good: what a forked child finds in the
    // place of its parent's sockets.
    drop(open("left"));
    let before = descriptors();
    for round in 0..3 {
        use_all(round);
        assert_eq!(names(Path::new(dir)), Vec::<String>::new());
        assert_eq!(descriptors(), before);
    }
    tell("good");
}

/// What is in `/dev/shm` that bears our name, or the number of a process of ours.
fn shared_files(pid: u32) -> Vec<PathBuf> {
    let all = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let ours = |path: &PathBuf| {
        let text = path.display().to_string();
        text.contains("shmbus") || text.contains(&pid.to_string())
    };
    all.map(|entry| entry.path()).filter(ours).collect()
}

#[test]
fn nothing_after_a_clean_end() {
    let _together = together();
    let dir = Dir::new();
    let path = dir.path().to_str().expect("a plain name");
    let mut child = Child::start_in(dir.path(), "uses-all", &[path]);
    let before = shared_files(child.pid());
    assert_eq!(child.hear(), "good");
    let pid = child.pid();
    assert!(child.end().success());
    assert_eq!(shared_files(pid), before);
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

/// A part: opens and leaves a bus again and again; sometimes it offers something.
pub(crate) fn comes_and_goes(number: &str) {
    assert_eq!(told().as_deref(), Some("go"));
    for round in 0..300 {
        let bus = open("left");
        if round % 3 == 0 {
            let receiver = bus.receiver::<Ask>(number);
            receiver.expect("nobody else does");
        }
    }
    tell("good");
}

#[test]
fn nothing_after_many_that_come_and_go() {
    let _together = together();
    let dir = Dir::new();
    let start = |number| Child::start_in(dir.path(), "comes-and-goes", &[number]);
    let mut children = ["1", "2", "3", "4"].map(start);
    for child in &mut children {
        child.say("go");
    }
    for child in &mut children {
        assert_eq!(child.hear(), "good");
        assert!(child.end().success());
    }
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn the_next_server_takes_over_from_a_killed_one() {
    let _together = together();
    let dir = Dir::new();
    let bus = dir.path().join("shmbus/left");
    let mut first = serve(dir.path());
    let before = sockets(&bus);
    first.kill();
    assert_eq!(sockets(&bus), before);
    let mut second = serve(dir.path());
    let after = sockets(&bus);
    assert_eq!((before.len(), after.len()), (1, 1));
    assert_ne!(before, after);
    assert_eq!(names(&bus).len(), 2, "a port and its socket");
    assert!(second.end().success());
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

/// A part: opens a bus, offers another port there if it shall, and waits.
pub(crate) fn visits(offers: &str) {
    let bus = open("left");
    let _receiver = (offers == "offers").then(|| bus.receiver::<Ask>("asks"));
    tell("there");
    while told().is_some() {}
}

fn visit(dir: &Path, offers: &str) -> Child {
    let mut visitor = Child::start_in(dir, "visits", &[offers]);
    assert_eq!(visitor.hear(), "there");
    visitor
}

#[test]
fn whoever_offers_something_sweeps() {
    let _together = together();
    let dir = Dir::new();
    let bus = dir.path().join("shmbus/left");
    let mut killed = serve(dir.path());
    killed.kill();
    let before = sockets(&bus);
    let mut visitor = visit(dir.path(), "offers");
    assert!(!bus.join("ask.port").exists());
    assert!(bus.join("asks.port").exists());
    assert!(!sockets(&bus).contains(&before[0]));
    assert!(visitor.end().success());
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn whoever_leaves_sweeps() {
    let _together = together();
    let dir = Dir::new();
    let mut visitor = visit(dir.path(), "only looks");
    serve(dir.path()).kill();
    visit(dir.path(), "offers").kill();
    assert!(visitor.end().success());
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[test]
fn what_topics_left_is_swept() {
    let _together = together();
    let dir = Dir::new();
    let mut visitor = visit(dir.path(), "only looks");
    let mut publishes = Child::start_in(dir.path(), "publishes-newest", &["left"]);
    assert_eq!(publishes.hear(), "published");
    let mut reads = Child::start_in(dir.path(), "reads-newest", &["left"]);
    assert_eq!(reads.hear(), "reads");
    let mut subscribes = Child::start_in(dir.path(), "subscribes", &["left", "all"]);
    assert_eq!(subscribes.hear(), "joined");
    for child in [&mut publishes, &mut reads, &mut subscribes] {
        child.kill();
    }
    assert!(visitor.end().success());
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

/// What a living process has stays, whoever leaves and sweeps.
#[test]
fn the_living_keep_what_they_have() {
    let _together = together();
    let dir = Dir::new();
    let bus = dir.path().join("shmbus/left");
    let mut server = serve(dir.path());
    let before = names(&bus);
    for socket in sockets(&bus) {
        make_old(&bus.join(socket));
    }
    assert!(visit(dir.path(), "offers").end().success());
    assert!(visit(dir.path(), "only looks").end().success());
    assert_eq!(names(&bus), before);
    let mut caller = Child::start_in(dir.path(), "many", &["left"]);
    assert_eq!(caller.hear(), "good");
    assert!(server.end().success());
}

/// Has a socket be made long ago.
fn make_old(path: &Path) {
    set_time(path, SystemTime::now() - Duration::from_secs(3600));
}

fn set_time(path: &Path, then: SystemTime) {
    let then = then.duration_since(SystemTime::UNIX_EPOCH);
    let then = then.expect("it is after 1970");
    let then = Timespec {
        tv_sec: then.as_secs() as i64,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: then,
        last_modification: then,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("it is ours");
}

/// A socket of the kind that a bus has.
fn socket() -> rustix::fd::OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .expect("a socket can be made")
}

/// Listens on a path, for one connection.
fn listen(path: &Path) -> rustix::fd::OwnedFd {
    let listener = socket();
    net::bind(&listener, &SocketAddrUnix::new(path).expect("short")).expect("nothing is there");
    net::listen(&listener, 0).expect("it is bound");
    listener
}

/// Connects as often as there is room for.
fn fill(path: &Path) -> Vec<rustix::fd::OwnedFd> {
    let address = SocketAddrUnix::new(path).expect("short");
    let mut all = Vec::new();
    loop {
        let socket = socket();
        match net::connect(&socket, &address) {
            Ok(()) => all.push(socket),
            Err(Errno::AGAIN) => return all,
            Err(other) => panic!("{other}"),
        }
    }
}

/// A process that died between making its socket and naming it leaves one that is swept when it is
/// old; a new one may be about to be named. One that is merely slow to accept keeps its own.
#[test]
fn sockets_that_no_port_names() {
    let _together = together();
    let dir = Dir::new();
    let bus = dir.path().join("shmbus/left");
    let mut server = serve(dir.path());
    let known = sockets(&bus);
    for name in ["node-old", "node-new", "node-alive", "node-full"] {
        drop(listen(&bus.join(name)));
    }
    fs::remove_file(bus.join("node-alive")).expect("it is ours");
    fs::remove_file(bus.join("node-full")).expect("it is ours");
    let _alive = listen(&bus.join("node-alive"));
    let _full = listen(&bus.join("node-full"));
    let callers = fill(&bus.join("node-full"));
    assert!(!callers.is_empty());
    for name in ["node-old", "node-alive", "node-full"] {
        make_old(&bus.join(name));
    }
    let mut visitor = visit(dir.path(), "offers");
    let mut left = sockets(&bus);
    left.retain(|name| !known.contains(name));
    for name in ["node-alive", "node-full", "node-new"] {
        assert!(left.iter().any(|l| l == name), "{name} of {left:?}");
    }
    assert!(!left.iter().any(|l| l == "node-old"), "{left:?}");
    assert!(visitor.end().success());
    assert!(server.end().success());
}

/// A clock that was ahead, and was set right, leaves sockets that seem to be made in the future.
#[test]
fn sockets_of_a_clock_that_was_set_back() {
    let _together = together();
    let dir = Dir::new();
    let bus = dir.path().join("shmbus/left");
    let mut server = serve(dir.path());
    let known = sockets(&bus);
    drop(listen(&bus.join("node-dead")));
    for socket in sockets(&bus) {
        set_time(
            &bus.join(socket),
            SystemTime::now() + Duration::from_secs(3600),
        );
    }
    assert!(visit(dir.path(), "offers").end().success());
    assert_eq!(sockets(&bus), known);
    assert!(server.end().success());
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

/// A part: serves beside sockets of a namesake.
///
/// Processes of two containers can have the same number, and the same bus. Here the other one's
/// sockets are made by the process itself.
pub(crate) fn has_namesakes(bus: &str) {
    let pid = std::process::id();
    let bus = Path::new(bus);
    let paths = [0, 1, 2].map(|n| bus.join(format!("node-{pid}-{n}")));
    let inode = |path: &PathBuf| fs::symlink_metadata(path).map(|m| m.ino()).ok();
    let _listening = [0, 1, 2].map(|n| listen(&paths[n]));
    let before = paths.each_ref().map(inode);
    for id in 0..2 {
        let bus = open("left");
        let server = bus.server::<Ask>().expect("nobody else serves");
        let serving = std::thread::spawn(move || answer(server));
        check_call(&bus.client().expect("a server is there"), id, 24);
        bus.close();
        serving.join().expect("the server does not panic");
    }
    assert_eq!(paths.each_ref().map(inode), before);
    tell("good");
}

#[test]
fn a_namesake_keeps_its_socket() {
    let _together = together();
    let dir = Dir::new();
    // Makes the directory.
    let mut visitor = visit(dir.path(), "only looks");
    let bus = dir.path().join("shmbus/left");
    let bus = bus.to_str().expect("a plain name");
    let mut child = Child::start_in(dir.path(), "has-namesakes", &[bus]);
    assert_eq!(child.hear(), "good");
    assert!(child.end().success());
    assert!(visitor.end().success());
}

/// Where somebody cleans up too much, the next one starts anew, and the one before takes nothing
/// that is the next one's.
#[test]
fn a_server_whose_directory_was_removed() {
    let _together = together();
    let dir = Dir::new();
    let mut first = serve(dir.path());
    fs::remove_dir_all(dir.path().join("shmbus")).expect("it is ours");
    let mut second = serve(dir.path());
    let before = names(dir.path());
    assert!(first.end().success());
    assert_eq!(names(dir.path()), before);
    let mut caller = Child::start_in(dir.path(), "many", &["left"]);
    assert_eq!(caller.hear(), "good");
    assert!(caller.end().success());
    assert!(second.end().success());
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[derive(shmbus::ShmMessage)]
#[shm(topic = "watched")]
struct Watched {
    number: u64,
}

/// A part: publishes, offers, and is connected, and then looks at its descriptors.
pub(crate) fn watches_last() {
    let bus = open("left");
    let _receiver = bus.receiver::<Ask>("asks").expect("nobody else does");
    let _publisher = bus.publisher::<Watched>().expect("nothing lacks");
    let _sender = bus.sender::<Ask>("asks").expect("it is offered");
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")
        .expect("it is there")
        .flatten()
    {
        let number = entry.file_name().into_string().expect("digits");
        let number: u32 = number.parse().expect("digits");
        if let Ok(file) = fs::read_link(entry.path()) {
            all.push((number, file.display().to_string()));
        }
    }
    let watches = |file: &str| file.contains("inotify");
    let (watch, _) = all.iter().find(|(_, file)| watches(file)).expect("one");
    // The files by which it owns its names, and its connections.
    let is_seen = |file: &str| file.starts_with("socket:") || file.contains("/shmbus/");
    let seen: Vec<_> = all.iter().filter(|(_, file)| is_seen(file)).collect();
    assert!(seen.len() >= 5, "{all:?}");
    assert!(seen.iter().all(|(number, _)| number > watch), "{all:?}");
    tell("good");
}

/// The kernel closes the descriptors of who is killed from the highest number on, and takes its time for one: all that
/// others are to see at once is to be closed before that.
#[test]
fn what_others_wait_for_is_closed_first() {
    let dir = Dir::new();
    let _together = together();
    let mut child = Child::start_in(dir.path(), "watches-last", &[]);
    assert_eq!(child.hear(), "good");
    assert!(child.end().success());
}
