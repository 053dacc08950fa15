//! What publishing costs: for each subscriber more, from here to there, and to join.
//!
//! - `publish-64B-x1` and others: one call of `Publisher::publish` of a message of so many bytes to so many
//!   subscribers, which all poll in the other process, and have room. What one subscriber more costs is the
//!   difference, divided by theirs.
//! - `stream-64B-x1` and others: one of many messages, published as fast as all subscribers take them.
//! - `one-way-64B-x1` and others: half of the time from before a message is published until the answer to it, a message
//!   of the same size on another topic, was read. Half of `line_ns` is the limit. To several subscribers: from before it
//!   is published until the last of them has read it, by one clock that both processes look at, some 20 ns each.
//! - `join-1000`: making a subscriber where 1,000 publishers of other topics are on the bus, and one of its own,
//!   until all that is published reaches it.
//!
//! - `killed`: from the kill of a subscriber that holds all that it may, in messages of 512 KiB, until the reliable
//!   publisher that waits for it has published, and has all of it back.
//! - `latest-get-64B` and others: reading the newest value, where a peer publishes seldom; `keyed`, one after another of
//!   1,000 documents, found by their paths; `busy`, while the peer replaces it as fast as it can.
//! - `latest-put-64B-x1` and others: one call of `LatestPublisher::publish`, while so many readers look as often as
//!   they can.
//!
//! Each message is checked where it is taken.

#[path = "../common/mod.rs"]
mod common;
mod fan;
mod join;
mod killed;
mod newest;
mod trip;

use std::process::ExitCode;

use common::{Case, Mode, case};

fn main() -> ExitCode {
    let publish = |name, iterations, bytes| {
        case(name, Mode::Spin, iterations, bytes, fan::publish, fan::take)
    };
    let stream =
        |name, iterations, bytes| case(name, Mode::Spin, iterations, bytes, fan::stream, fan::take);
    let trip = |name, iterations, bytes| {
        case(name, Mode::Spin, iterations, bytes, trip::ask, trip::answer)
    };
    let one_way = |name, iterations, bytes| {
        case(name, Mode::Spin, iterations, bytes, fan::one_way, fan::take)
    };
    let mut cases: Vec<Case> = vec![
        trip("one-way-64B-x1", 50_000, fan::SMALL),
        one_way("one-way-64B-x8", 20_000, fan::SMALL),
        one_way("one-way-64B-x64", 5_000, fan::SMALL),
        trip("one-way-4KiB-x1", 20_000, fan::MEDIUM),
        one_way("one-way-4KiB-x8", 20_000, fan::MEDIUM),
        one_way("one-way-4KiB-x64", 5_000, fan::MEDIUM),
        trip("one-way-512KiB-x1", 2_000, fan::LARGE),
        one_way("one-way-512KiB-x8", 2_000, fan::LARGE),
        one_way("one-way-512KiB-x64", 1_000, fan::LARGE),
    ];
    cases.extend([
        publish("publish-64B-x1", 20_000, fan::SMALL),
        publish("publish-64B-x8", 20_000, fan::SMALL),
        publish("publish-64B-x64", 5_000, fan::SMALL),
        publish("publish-4KiB-x1", 20_000, fan::MEDIUM),
        publish("publish-4KiB-x8", 20_000, fan::MEDIUM),
        publish("publish-4KiB-x64", 5_000, fan::MEDIUM),
        publish("publish-512KiB-x1", 3_000, fan::LARGE),
        publish("publish-512KiB-x8", 3_000, fan::LARGE),
        publish("publish-512KiB-x64", 2_000, fan::LARGE),
        stream("stream-64B-x1", 2_000, fan::SMALL),
        stream("stream-64B-x8", 500, fan::SMALL),
        stream("stream-64B-x64", 100, fan::SMALL),
        stream("stream-4KiB-x1", 500, fan::MEDIUM),
        stream("stream-4KiB-x8", 500, fan::MEDIUM),
        stream("stream-4KiB-x64", 100, fan::MEDIUM),
        stream("stream-512KiB-x1", 20, fan::LARGE),
        stream("stream-512KiB-x8", 20, fan::LARGE),
        stream("stream-512KiB-x64", 10, fan::LARGE),
    ]);
    cases.push(case(
        "join-1000",
        Mode::Park,
        100,
        0,
        join::parent,
        join::child,
    ));
    cases.push(case(
        "killed",
        Mode::Park,
        20,
        0,
        killed::parent,
        killed::child,
    ));
    let get = |name, iterations| case(name, Mode::Spin, iterations, 0, newest::get, newest::put);
    let put = |name, iterations, bytes| {
        case(
            name,
            Mode::Spin,
            iterations,
            bytes,
            newest::publish,
            newest::look,
        )
    };
    cases.extend([
        get("latest-get-64B", 2_000),
        get("latest-get-512KiB", 2_000),
        get("latest-get-64B-busy", 2_000),
        case(
            "latest-get-64B-keyed",
            Mode::Spin,
            2_000,
            0,
            newest::get_keyed,
            newest::put_keyed,
        ),
        put("latest-put-64B-x1", 50_000, fan::SMALL),
        put("latest-put-64B-x8", 50_000, fan::SMALL),
        put("latest-put-64B-x64", 20_000, fan::SMALL),
        put("latest-put-512KiB-x1", 2_000, fan::LARGE),
    ]);
    common::main("topics", &cases)
}
