//! What lies in the directory of a bus under a name that is looked for.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::bench::{Bench, Expect};
use crate::stranger::{Trap, lock};

/// Puts something there.
type Put = fn(&Path);

/// A file whose owner says that it is true, with this content.
fn file(path: &Path, content: &[u8]) -> fs::File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let mut file = options.mode(0o600).open(path).expect("it can be made");
    file.write_all(content).expect("there is room");
    lock(&file, 0);
    lock(&file, 1);
    file
}

const CONTENTS: [&[u8]; 11] = [
    b"",
    b"\0\0\0\0",
    b"shmbus 1",
    b"shmbus 1\n\n\n",
    b"shmbus 2\n1\nnode-1-1\n",
    b"shmbus 1\n99999999999999\nnode-1-1\n",
    b"shmbus 1\n-1\nnode-1-1\n",
    b"shmbus 1\n1\nnode-1-1\n",
    b"shmbus 1\n1\nnode-/../../../etc/passwd\n",
    b"shmbus 1\n1\nask.port\n",
    b"shmbus 1\n1\nnode-\xff\xfe\n",
];

const ODDITIES: [(&str, Put); 6] = [
    ("a directory", |path| {
        fs::create_dir(path).expect("it can be made");
    }),
    ("a pipe", |path| {
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, path, FileType::Fifo, mode, 0).expect("it can be made");
    }),
    ("a socket", |path| {
        drop(std::os::unix::net::UnixListener::bind(path).expect("it can be made"));
    }),
    ("a link to nothing", |path| {
        symlink("nothing", path).expect("it can be made");
    }),
    ("a link to itself", |path| {
        let name = path.file_name().expect("it has one");
        symlink(name, path).expect("it can be made");
    }),
    ("a link to what never ends", |path| {
        symlink("/dev/zero", path).expect("it can be made");
    }),
];

const NAMES: [(&str, &str, &str); 5] = [
    ("prey.port", "call", "refused"),
    ("prey-later.port", "call-later", "refused"),
    ("drain.port", "send", "refused"),
    ("feed~0.sub", "publish", "done"),
    ("board~0.get", "publish", "done"),
];

#[test]
fn a_name_that_leads_nowhere_is_nobody() {
    let mut bench = Bench::start("files");
    bench.slack = 2 << 20;
    for (name, order, answer) in NAMES {
        let path = bench.dir.join(name);
        for content in CONTENTS {
            let file = file(&path, content);
            let now = std::time::SystemTime::now();
            let times = fs::FileTimes::new().set_accessed(now).set_modified(now);
            file.set_times(times).expect("it is ours");
            bench.victim.say(order);
            assert_eq!(bench.victim.hear(), answer, "{name}: {content:?}");
            fs::remove_file(&path).expect("it is there");
            drop(file);
            bench.is_served("connect");
            let pids = [bench.victim.pid()];
            bench.settle_with(&pids, format!("{name}: {content:?}"));
        }
        for (what, put) in ODDITIES {
            put(&path);
            bench.victim.say(order);
            assert_eq!(bench.victim.hear(), answer, "{name}: {what}");
            let removed = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
            removed.expect("it is there");
            bench.is_served("connect");
            let pids = [bench.victim.pid()];
            bench.settle_with(&pids, format!("{name}: {what}"));
        }
    }
    bench.end();
}

/// Sockets of another kind, and such that nobody accepts at.
#[test]
fn a_socket_that_nobody_answers_at_stops_nobody() {
    let mut bench = Bench::start("sockets");
    for (name, order, answer) in NAMES {
        let trap = Trap::set(&bench.dir, name);
        bench.victim.say(order);
        if answer == "refused" {
            // It has connected, and is left without an answer.
            let stranger = trap.accept();
            bench.is_served("call");
            drop(stranger);
        }
        drop(trap);
        assert_eq!(bench.victim.hear(), answer, "{name}");
        bench.slack = 2 << 20;
        bench.check(Expect::Nothing, name);
    }
    bench.end();
}
