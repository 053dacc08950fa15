//! Processes that open the same bus and the same service at the same moment.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use shmbus::ConnectError;

use crate::support::{Ask, Child, Dir, answer, check_call, open, tell, together, told};

const RACERS: usize = 8;
const ROUNDS: usize = 25;

/// A part: when told, tries to serve; where another does, calls that one.
pub(crate) fn racer(name: &str) {
    // Whoever leaves a bus sweeps: the last round's is left during the next, so that what the
    // killed one had is there to race for.
    let mut _last = None;
    tell("ready");
    while told().is_some() {
        let bus = open(name);
        match bus.server::<Ask>() {
            Ok(server) => {
                tell("serves");
                answer(server);
            }
            Err(ConnectError::Taken { bus, service, pid }) => {
                assert_eq!((bus.as_str(), service.as_str()), (name, "ask"));
                tell(&format!("taken {pid}"));
            }
            Err(other) => panic!("{other}"),
        }
        assert_eq!(told().as_deref(), Some("call"));
        let client = bus.client::<Ask>().expect("the winner serves");
        for id in 0..20 {
            check_call(&client, id, 100);
        }
        _last = Some(bus);
        tell(&format!("answered {}", client.server_pid()));
    }
}

/// What a port's file says, and which file it is.
fn port(dir: &Path, bus: &str) -> (u64, String) {
    let path = dir.join("shmbus").join(bus).join("ask.port");
    let text = fs::read_to_string(&path).expect("the winner has a port");
    let meta = fs::metadata(&path).expect("the winner has a port");
    (meta.ino(), text)
}

#[test]
fn one_of_many_serves() {
    let _together = together();
    let dir = Dir::new();
    let start = || {
        let mut child = Child::start_in(dir.path(), "racer", &["race"]);
        assert_eq!(child.hear(), "ready");
        child
    };
    let mut racers: Vec<Child> = (0..RACERS).map(|_| start()).collect();
    for round in 0..ROUNDS {
        for racer in &mut racers {
            racer.say("go");
        }
        let said: Vec<String> = racers.iter_mut().map(Child::hear).collect();
        let winner = said.iter().position(|s| s == "serves").expect("one serves");
        let pid = racers[winner].pid();
        for (number, said) in said.iter().enumerate() {
            if number != winner {
                assert_eq!(*said, format!("taken {pid}"), "round {round}");
            }
        }
        let before = port(dir.path(), "race");
        assert!(before.1.contains(&format!("\n{pid}\n")), "{}", before.1);
        for number in (0..RACERS).filter(|n| *n != winner) {
            racers[number].say("call");
        }
        for number in (0..RACERS).filter(|n| *n != winner) {
            assert_eq!(racers[number].hear(), format!("answered {pid}"));
        }
        assert_eq!(port(dir.path(), "race"), before, "round {round}");
        // Its port and its socket stay behind, for the next round to deal with.
        racers[winner].kill();
        assert_eq!(port(dir.path(), "race"), before);
        racers[winner] = start();
    }
    for racer in &mut racers {
        assert!(racer.end().success());
    }
}
