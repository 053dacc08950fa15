//! What a handler hands on to the calls that it makes: the deadline of the call that it answers.
//!
//! Kept by thread. A task moves from thread to thread, so its scope is entered at each poll.

use std::cell::Cell;
use std::marker::PhantomData;
use std::time::Instant;

thread_local! {
    static DEADLINE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A scope that ends when this is dropped, on the thread that entered it.
pub(crate) struct Entered {
    outer: Option<Instant>,
    _thread: PhantomData<*const ()>,
}

/// Has calls of this thread end with this deadline, or with an earlier one of their own.
pub(crate) fn enter(deadline: Option<Instant>) -> Entered {
    let outer = DEADLINE.get();
    DEADLINE.set(earlier(outer, deadline));
    Entered {
        outer,
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

impl Drop for Entered {
    fn drop(&mut self) {
        DEADLINE.set(self.outer);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_earliest_deadline_holds_until_its_scope_ends() {
        let soon = Instant::now();
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
