//! One honest process, and a peer that is not: it speaks the protocol by hand, and writes and says what it
//! likes.
//!
//! Claim: nothing that a peer writes or says has the victim panic, hang, be misled, read out of bounds, or keep
//! anything of the peer's beyond the end of its link. The offender is named, and dropped; others do not notice.
//!
//! Here the test is the offender. The victim is a process that has every kind of port (`victim`), and an
//! innocent third calls it in each case. After each case the victim's incidents name nobody but the offender, its
//! descriptors, its mappings of the offender's memory, and its own memory in use are back where they were
//! (`bench`). A victim that panics aborts; what is awaited for a minute hangs.
//!
//! All that is random is made from `SHMBUS_SEED`: case *n* from that number and *n*. `SHMBUS_CASES` is how many
//! random cases there are in each of the tests.

mod arenas;
mod bench;
mod crowds;
mod descriptors;
mod endless;
mod files;
mod handshakes;
mod heirs;
mod lane;
mod lies;
mod memory;
mod messages;
mod session;
mod stranger;
#[path = "../bus/support.rs"]
#[allow(dead_code)]
mod support;
mod traps;
mod victim;
mod wire;

/// What another process of a test does: nothing, unless it was started as one.
#[test]
#[ignore = "a part that other processes play"]
fn child() {
    let Some((role, arguments)) = support::role() else {
        return;
    };
    let _watch = support::Watchdog::start("a child");
    match role.as_str() {
        "victim" => victim::victim(&arguments[0]),
        "heir" => victim::heir(),
        "innocent" => victim::innocent(&arguments[0]),
        other => panic!("no such part: {other}"),
    }
}
