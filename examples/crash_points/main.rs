//! Kills processes at each instruction of what they do with a bus, and has their peers say what is wrong then.
//!
//! A child is stepped through one operation, instruction by instruction, and killed at one of them; then another
//! one at the next. The survivor, which lives through all those deaths, has to learn of each; to have every
//! descriptor, mapping and block back; to have received all that was promised, whole and in order, and nothing else; and to
//! serve the next child. The table in the end says how many deaths of each operation there were.
//!
//! `cargo run --release --example crash_points -- --help`

#[cfg(target_arch = "x86_64")]
mod child;
#[cfg(target_arch = "x86_64")]
mod left;
#[cfg(target_arch = "x86_64")]
mod messages;
#[cfg(target_arch = "x86_64")]
mod operation;
#[cfg(target_arch = "x86_64")]
mod page;
#[cfg(target_arch = "x86_64")]
mod plan;
#[cfg(target_arch = "x86_64")]
mod record;
#[cfg(target_arch = "x86_64")]
mod report;
#[cfg(target_arch = "x86_64")]
mod run;
#[cfg(target_arch = "x86_64")]
mod survivor;
#[cfg(target_arch = "x86_64")]
mod task;
#[cfg(target_arch = "x86_64")]
mod tracer;
#[cfg(target_arch = "x86_64")]
mod watcher;
#[cfg(target_arch = "x86_64")]
mod worker;

#[cfg(target_arch = "x86_64")]
fn main() -> std::process::ExitCode {
    run::main()
}

/// The registers of other processors have other names.
#[cfg(not(target_arch = "x86_64"))]
fn main() {
    eprintln!("crash_points: only processors of x86-64 are stepped here");
}
