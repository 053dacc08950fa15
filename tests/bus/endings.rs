//! How the process at the other end ended, as the errors and the incidents say.
//!
//! Unsafe code is needed to end this process by a signal.
#![allow(unsafe_code)]

use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use shmbus::{Bus, CallError, Client, ConnectError, Ended, Incident};

use crate::support::{Ask, Child, check_call, name, open, tell, together, told};

/// In a child: takes the request with this number's end for its own.
pub(crate) fn ends(name: &str) {
    ends_with(open(name));
}

/// The same, of a bus without a name.
pub(crate) fn ends_inherited() {
    ends_with(Bus::from_parent().expect("this process was started by a bus"));
}

fn ends_with(bus: Bus) {
    let mut server = bus.server::<Ask>().expect("nobody else serves");
    tell("serving");
    while let Some(call) = server.next().expect("not forked") {
        let text = call.text.as_str().to_owned();
        match text.as_str() {
            "exit" => std::process::exit(3),
            "bye" => break,
            "" => {
                let (id, pid) = (call.id.to_native(), std::process::id());
                let reply = crate::support::Answer { id, pid, text };
                call.reply(&reply).expect("the reply fits");
            }
            signal => {
                let signal = signal.parse().expect("a number");
                let none = libc::rlimit {
                    rlim_cur: 0,
                    rlim_max: 0,
                };
                // SAFETY: raises a signal that ends this process, with no core file.
                unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
                // SAFETY: as above.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
                // SAFETY: as above.
                unsafe { libc::raise(signal) };
                unreachable!("the signal ends it");
            }
        }
    }
    drop((server, bus));
    tell("closed");
    told();
}

fn ask(text: &str) -> Ask {
    Ask {
        text: text.to_owned(),
        ..Ask::default()
    }
}

/// How the server's process ended, as the errors of calls say that it did not survive: each waits for some
/// milliseconds only, so the first may not know it yet.
fn how(bus: &Bus, text: &str) -> Ended {
    let client = bus.async_client::<Ask>().expect("a server is there");
    let request = ask(text);
    let calls: Vec<_> = (0..400).map(|_| client.call(&request)).collect();
    for call in calls {
        let error = call.wait().err().expect("the server has ended");
        let CallError::Lost { ended, pid, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*pid, client.server_pid());
        if let Some(ended) = ended {
            assert!(error.to_string().contains(&ended.to_string()), "{error}");
            return *ended;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("nobody learns of it");
}

fn wait_for_incident(bus: &Bus) -> Vec<Incident> {
    loop {
        let incidents = bus.take_incidents();
        if !incidents.is_empty() {
            return incidents;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

const ENDS: [(&str, Ended); 4] = [
    ("exit", Ended::Exited(3)),
    ("9", Ended::Killed(9)),
    ("11", Ended::Killed(11)),
    ("15", Ended::Killed(15)),
];

fn check_end(bus: &Bus, client: &Client<Ask>, (text, ended): (&str, Ended)) {
    let pid = client.server_pid();
    check_call(client, 1, 0);
    assert_eq!(how(bus, text), ended);
    if let Ended::Killed(_) = ended {
        let what = ended.to_string();
        assert_eq!(wait_for_incident(bus), [Incident { pid, what }]);
    }
}

#[test]
fn a_child_that_was_not_waited_for() {
    let _together = together();
    for end in ENDS {
        let name = name(&format!("ends-{}", end.0));
        let mut child = Child::start("ends", &[&name]);
        assert_eq!(child.hear(), "serving");
        let bus = open(&name);
        let client = bus.client::<Ask>().expect("a server is there");
        check_end(&bus, &client, end);
        // It is still there to be waited for.
        let status = child.end();
        match end.1 {
            Ended::Exited(code) => assert_eq!(status.code(), Some(code)),
            Ended::Killed(signal) => {
                use std::os::unix::process::ExitStatusExt;
                assert_eq!(status.signal(), Some(signal));
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_child_of_a_bus_without_a_name() {
    let _together = together();
    for end in ENDS {
        let command = Child::command("ends-inherited", &[]);
        let (bus, child) = Bus::spawn(command).expect("the program starts");
        let mut child = Child::adopt(child);
        assert_eq!(child.hear(), "serving");
        let client = bus
            .client_timeout::<Ask>(Duration::from_secs(60))
            .expect("a server is there");
        check_end(&bus, &client, end);
        child.end();
    }
}

/// The server's parent waits for it, or does not: it is no child of ours either way.
#[test]
fn a_process_that_is_not_our_child() {
    let _together = together();
    for script in [
        r#""$0" "$@"; echo @reaped; read line"#,
        r#""$0" "$@" <&- & exec sleep 1000 >&-"#,
    ] {
        for end in ENDS {
            let name = name(&format!("grandchild-{}", end.0));
            let server = Child::command("ends", &[&name]);
            let mut shell = Command::new("sh");
            shell
                .args(["-c", script])
                .arg(server.get_program())
                .args(server.get_args());
            shell.envs(
                server
                    .get_envs()
                    .filter_map(|(key, value)| Some((key, value?))),
            );
            shell.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut shell = Child::adopt(shell.spawn().expect("there is a shell"));
            assert_eq!(shell.hear(), "serving");
            let bus = open(&name);
            let client = bus.client::<Ask>().expect("a server is there");
            assert_ne!(client.server_pid(), shell.pid());
            check_end(&bus, &client, end);
        }
    }
}

#[test]
fn who_closes_its_bus_and_lives_on_has_not_ended() {
    let _together = together();
    let name = name("lives-on");
    let mut child = Child::start("ends", &[&name]);
    assert_eq!(child.hear(), "serving");
    let bus = open(&name);
    let client = bus.client::<Ask>().expect("a server is there");
    check_call(&client, 1, 0);
    // Whatever it says of the call: it is dropped first.
    drop(client.call(&ask("bye")));
    assert_eq!(child.hear(), "closed");
    loop {
        match client.call(&ask("")).err().expect("the server has ended") {
            CallError::Lost { ended, .. } => assert_eq!(ended, None),
            // Nobody is in its place.
            CallError::Connect(_) => break,
            error => panic!("{error}"),
        }
    }
    let error = bus.client::<Ask>().err();
    assert!(
        matches!(error, Some(ConnectError::NoServer { .. })),
        "{error:?}"
    );
    // A signal that ends it later has nothing to do with the link.
    child.kill();
    let mut other = Child::start("ends", &[&name]);
    assert_eq!(other.hear(), "serving");
    let client = bus.client::<Ask>().expect("a server is there");
    check_end(&bus, &client, ("9", Ended::Killed(9)));
    assert_eq!(other.end().code(), None);
}
