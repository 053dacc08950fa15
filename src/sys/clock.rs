//! The clock that all processes of a machine share.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Nanoseconds of `CLOCK_MONOTONIC`: the same in every process that is not in a time namespace of
/// its own.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the time is ours to write. The clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// A moment of this process, and the same one in nanoseconds: they are never further apart, as both
/// clocks are one.
struct Anchor(Instant, u64);

fn anchor() -> &'static Anchor {
    static ANCHOR: OnceLock<Anchor> = OnceLock::new();
    ANCHOR.get_or_init(|| {
        // The best of some, as this thread may lose its processor between two looks.
        let looks = (0..16).map(|_| {
            let (before, moment, after) = (now(), Instant::now(), now());
            (
                after - before,
                Anchor(moment, before + (after - before) / 2),
            )
        });
        let best = looks.min_by_key(|(apart, _)| *apart);
        best.expect("there were looks").1
    })
}

/// A moment of this process, as all say it. Never zero, which stands for none.
pub(crate) fn nanos_of(moment: Instant) -> u64 {
    let &Anchor(here, now) = anchor();
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let ahead = nanos(moment.saturating_duration_since(here));
    let behind = nanos(here.saturating_duration_since(moment));
    now.saturating_add(ahead).saturating_sub(behind).max(1)
}

/// A moment that another process said, as this one does; `None` where it is none, or one that this
/// process cannot say.
pub(crate) fn moment_of(nanos: u64) -> Option<Instant> {
    let &Anchor(here, now) = anchor();
    match nanos.checked_sub(now) {
        _ if nanos == 0 => None,
        Some(ahead) => here.checked_add(Duration::from_nanos(ahead)),
        None => here.checked_sub(Duration::from_nanos(now - nanos)),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_moment_survives_its_number() {
        let here = Instant::now();
        let second = Duration::from_secs(1);
        for moment in [here + 100 * second, here, here - second / 10] {
            assert_eq!(moment_of(nanos_of(moment)), Some(moment));
        }
        assert_eq!(moment_of(0), None);
        for nanos in [1, u64::MAX] {
            assert!(moment_of(nanos).is_none_or(|moment| nanos_of(moment) == nanos));
        }
        // As exactly as one clock can be read twice.
        assert!(nanos_of(here) <= now() + 1_000_000);
    }
}
