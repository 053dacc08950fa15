//! How long does a conversation take: streams, tasks, cancelled calls, a small call behind a large one?
//!
//! Two processes, each pinned to a processor of its own, with all of their threads. Every message is
//! checked. Times are in nanoseconds.
//!
//! | case | what is timed | beside it |
//! |---|---|---|
//! | `small` | a call and its reply, on a thread | the baseline of most others |
//! | `time-to-first-item` | from before `stream` until the first item was read | `small` |
//! | `one-way` | 1,000 messages of one cache line, one way, divided by 1,000 | |
//! | `items` | 1,000 such items of a stream, divided by 1,000 | `one-way` |
//! | `async-small` | a call of a task and its reply from a task, each on tokio's current thread, which also wakes them | `small` spinning; `raw-eventfd`, `tokio-eventfd` |
//! | `raw-eventfd` | an eventfd there and one back: the limit of those that sleep | |
//! | `tokio-eventfd` | the same, each side a task on tokio's current thread | `raw-eventfd` |
//! | `cancel-to-seen` | from before a stream is dropped until `is_cancelled` says so on the other side | `small`, halved |
//! | `small-behind-40MiB` | a call right after another was made that carries 40 MiB | `small` asleep |
//! | `upload-40MiB` | making that other call: 40 MiB are copied into shared memory | |
//! | `successor` | from when a server is about to offer its service until it has answered a call that its predecessor took and was killed for | 100 ms |
//!
//! `cargo bench --bench conversation -- --help` lists the options.

#[path = "../common/mod.rs"]
mod common;
mod drive;
mod event;
mod stream;
mod successor;
mod tasks;

use std::process::ExitCode;

use common::messages::{LINE_BYTES, SMALL_BYTES};
use common::{Mode, case, small};

fn main() -> ExitCode {
    let cases = [
        case(
            "small",
            Mode::Spin,
            200_000,
            SMALL_BYTES,
            small::parent,
            small::child,
        ),
        case(
            "time-to-first-item",
            Mode::Spin,
            100_000,
            SMALL_BYTES,
            stream::first,
            stream::first_child,
        ),
        case(
            "one-way",
            Mode::Spin,
            5_000,
            LINE_BYTES,
            stream::one_way,
            stream::one_way_child,
        ),
        case(
            "items",
            Mode::Spin,
            5_000,
            LINE_BYTES,
            stream::items,
            stream::items_child,
        ),
        case(
            "async-small",
            Mode::Spin,
            100_000,
            SMALL_BYTES,
            tasks::small,
            tasks::small_child,
        ),
        case(
            "cancel-to-seen",
            Mode::Spin,
            20_000,
            SMALL_BYTES,
            stream::cancel,
            stream::cancel_child,
        ),
        case(
            "raw-eventfd",
            Mode::Park,
            5_000,
            8,
            event::parent,
            event::child,
        ),
        case(
            "tokio-eventfd",
            Mode::Park,
            5_000,
            8,
            event::task_parent,
            event::task_child,
        ),
        case(
            "small",
            Mode::Park,
            5_000,
            SMALL_BYTES,
            small::parent,
            small::child,
        ),
        case(
            "async-small",
            Mode::Park,
            5_000,
            SMALL_BYTES,
            tasks::small,
            tasks::small_child,
        ),
        case(
            "small-behind-40MiB",
            Mode::Park,
            100,
            SMALL_BYTES,
            tasks::behind,
            tasks::behind_child,
        ),
        case(
            "upload-40MiB",
            Mode::Park,
            100,
            tasks::UPLOAD,
            tasks::upload,
            tasks::behind_child,
        ),
        case(
            "successor",
            Mode::Park,
            50,
            successor::BYTES,
            successor::parent,
            successor::child,
        ),
    ];
    common::main("conversation", &cases)
}
