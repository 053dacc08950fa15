//! Buses as their users have them: real processes, real memory, real ends.

mod absent;
mod bulk;
mod changes;
mod conversation;
mod deadlines;
mod dialogue;
mod driver;
mod endings;
mod ends;
mod faults;
#[cfg(feature = "json")]
mod flight;
mod fork;
mod gathering;
mod handover;
mod hot_path;
mod latest;
mod layouts;
mod leftovers;
mod lifetimes;
mod one_writer;
mod panics;
mod pinned;
mod places;
mod race;
mod room;
mod sequence;
mod serving;
mod spike;
mod streams;
mod subscribers;
mod succession;
mod superseded;
mod support;
mod tasks;
mod topics;
mod trust;
mod unreached;
mod unseen;
mod wait_set;
mod want;

/// What another process of a test does: nothing, unless it was started as one.
#[test]
#[ignore = "a part that other processes play"]
fn child() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let _watch = support::Watchdog::start("a child");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match role.as_str() {
        "forbidden" => hot_path::forbidden(),
        "hot-client" => hot_path::client(arguments[0], arguments[1]),
        "hot-client-of" => hot_path::client_of(arguments[0]),
        "hot-server-of" => hot_path::server_of(arguments[0]),
        "hot-server" => hot_path::server(arguments[0]),
        "echo" => conversation::echo(arguments[0]),
        "inherits" => conversation::inherits(),
        "many" => conversation::many(arguments[0]),
        "stuck" => conversation::stuck(arguments[0]),
        "forks" => fork::forks(),
        "forks-with-views" => fork::forks_with_views(),
        "forks-with-newest-values" => fork::forks_with_newest_values(),
        "forks-with-tasks" => fork::forks_with_tasks(),
        "forks-with-a-loan" => fork::forks_with_a_loan(),
        "forks-with-pins" => fork::forks_with_pins(),
        "serves-and-forks" => fork::serves_and_forks(arguments[0]),
        "racer" => race::racer(arguments[0]),
        "holder" => one_writer::holder(arguments[0]),
        "longest-names" => places::longest_names(),
        "calls-longest-names" => places::calls_longest_names(),
        "opens" => places::opens(),
        "serves-nobody" => absent::serves_nobody(),
        "uses-all" => leftovers::uses_all(arguments[0]),
        "comes-and-goes" => leftovers::comes_and_goes(arguments[0]),
        "visits" => leftovers::visits(arguments[0]),
        "has-namesakes" => leftovers::has_namesakes(arguments[0]),
        "ends" => endings::ends(arguments[0]),
        "ends-inherited" => endings::ends_inherited(),
        #[cfg(feature = "json")]
        "dies-in-a-stream" => flight::dies_in_a_stream(arguments[0]),
        #[cfg(feature = "json")]
        "dies-as-a-sender" => flight::dies_as_a_sender(arguments[0]),
        #[cfg(feature = "json")]
        "dies-as-a-client" => flight::dies_as_a_client(arguments[0]),
        #[cfg(feature = "json")]
        "dies-mad" => flight::dies_mad(arguments[0], arguments[1]),
        "calls-and-dies" => ends::calls_and_dies(arguments[0]),
        "drops-buses" => ends::drops_buses(arguments[0]),
        "looks-up" => succession::looks_up(arguments[0], arguments[1]),
        "drops-its-ports" => succession::drops_its_ports(),
        "receives-and-serves" => succession::receives_and_serves(arguments[0]),
        "looks-up-for-its-parent" => succession::looks_up_for_its_parent(),
        "serves-for-a-while" => handover::serves_for_a_while(),
        "subscribes" => topics::subscribes(arguments[0], arguments[1]),
        "publishes" => topics::publishes(arguments[0]),
        "converses" => topics::converses(),
        "scribbles" => trust::scribbled::scribbles(arguments[0], arguments[1]),
        "flips" => trust::scribbled::flips(arguments[0]),
        "has-a-parent" => trust::users::has_a_parent(arguments[0]),
        "reads-newest" => latest::reads_newest(arguments[0]),
        "publishes-newest" => changes::publishes_newest(arguments[0]),
        "looks-at-a-value" => latest::looks_at_a_value(arguments[0]),
        "shares-state" => latest::shares_state(),
        "tells-a-set" => wait_set::processes::tells_a_set(arguments[0]),
        "forks-with-a-set" => wait_set::processes::forks_with_a_set(),
        "edits" => pinned::ends::edits(arguments[0]),
        "holds-requests" => pinned::ends::holds_requests(arguments[0]),
        "rises-and-falls" => spike::rises_and_falls(),
        "publishes-on" => unseen::publishes_on(),
        "grows" => want::grows(),
        "calls-with-no-descriptor" => want::calls_with_no_descriptor(),
        "takes-with-one-descriptor" => want::takes_with_one_descriptor(),
        "sends-large" => want::sends_large(),
        "watches-last" => leftovers::watches_last(),
        "sends-in-want" => want::sends_in_want(),
        "subscribes-to-wanted" => want::subscribes_to_wanted(),
        "publishes-in-want" => want::publishes_in_want(),
        other => panic!("no such part: {other}"),
    }
}
