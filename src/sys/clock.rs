//! The clock that all processes of a machine share.

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

/// A moment of this process, as all say it. Never zero, which stands for none.
pub(crate) fn nanos_of(moment: Instant) -> u64 {
    let left = moment.saturating_duration_since(Instant::now());
    let left = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
    now().saturating_add(left).max(1)
}

/// A moment that another process said, as this one does; `None` where it is none, or too far ahead.
pub(crate) fn moment_of(nanos: u64) -> Option<Instant> {
    if nanos == 0 {
        return None;
    }
    let (here, now) = (Instant::now(), now());
    let moment = match nanos.checked_sub(now) {
        Some(left) => here.checked_add(Duration::from_nanos(left)),
        None => here.checked_sub(Duration::from_nanos(now - nanos)),
    };
    moment.or((nanos < now).then_some(here))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_moment_survives_its_number() {
        let moment = Instant::now() + Duration::from_secs(100);
        let nanos = nanos_of(moment);
        let back = moment_of(nanos).expect("it is a moment");
        let apart = back.max(moment) - back.min(moment);
        assert!(apart < Duration::from_secs(50), "{apart:?}");
        assert_eq!(moment_of(0), None);
        assert!(moment_of(1).expect("long ago") < moment - Duration::from_secs(100));
    }
}
