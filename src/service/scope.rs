//! What a handler hands on to the calls that it makes: the deadline of the call that it answers, and
//! its trace.
//!
//! Kept by thread. A task moves from thread to thread, so its scope is entered at each poll.

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::Instant;

use super::trace;

thread_local! {
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A scope that ends when this is dropped, on the thread that entered it.
pub(crate) struct Entered<'a> {
    outer: Option<Instant>,
    _trace: trace::Entered<'a>,
    _thread: PhantomData<*const ()>,
}

/// Has calls of this thread end with this deadline, or with an earlier one of their own.
pub(crate) fn enter(deadline: Option<Instant>, trace: trace::Entered<'_>) -> Entered<'_> {
    let outer = DEADLINE.get();
    DEADLINE.set(earlier(outer, deadline));
    Entered {
        outer,
        _trace: trace,
        _thread: PhantomData,
    }
}

/// When a call ends that is made now, with this deadline of its own.
#[inline(always)]
pub(crate) fn until(deadline: Option<Instant>) -> Option<Instant> {
    match DEADLINE.get() {
        None => deadline,
        outer => earlier(outer, deadline),
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        DEADLINE.set(self.outer);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::trace::Answering;
    use super::*;
    use crate::memory::layout::Envelope;

    #[test]
    fn the_earliest_deadline_holds_until_its_scope_ends() {
        let (said, soon) = (Envelope::default(), Instant::now());
        let answering = Answering::begin("none", std::process::id, &said);
        let enter = |deadline| enter(deadline, answering.enter());
        let late = soon + Duration::from_secs(1);
        assert_eq!(until(None), None);
        let outer = enter(Some(late));
        assert_eq!((until(None), until(Some(soon))), (Some(late), Some(soon)));
        {
            let _inner = enter(Some(soon));
            assert_eq!(until(Some(late)), Some(soon));
            let _none = enter(None);
            assert_eq!(until(None), Some(soon));
        }
        assert_eq!(until(None), Some(late));
        drop(outer);
        assert_eq!(until(Some(late)), Some(late));
    }
}
