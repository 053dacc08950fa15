//! The sessions of a client: one server after the other.
//!
//! Unsafe code is needed to give up a session that views were borrowed from.
//!
//! # Why no session goes while it is looked at
//!
//! A session is looked at through a [`Lease`], which is counted, or by a view, which is counted in cells
//! (`Session::held`). One that is not the last is freed when neither is left. All of that is on one thread: what
//! counts is no atomic, and a client is not shared. The last one, and all others with it, are freed with the client,
//! from which every lease and view borrows.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;

use super::session::Session;
use crate::message::ShmRequest;

/// See the module.
pub(super) struct Sessions<R: ShmRequest> {
    now: Cell<NonNull<Counted<R>>>,
    /// Those before, which are looked at still.
    before: RefCell<Vec<NonNull<Counted<R>>>>,
    has_before: Cell<bool>,
}

struct Counted<R: ShmRequest> {
    session: Session<R>,
    leases: Cell<usize>,
}

/// The right to look at a session.
pub(in crate::service) struct Lease<'a, R: ShmRequest> {
    /// No reference, which would have to be good for as long as a function that is given this one.
    counted: NonNull<Counted<R>>,
    _sessions: PhantomData<&'a Sessions<R>>,
}

// SAFETY: the sessions are owned, and nothing else refers to them: leases and views borrow from this, which is not
// moved meanwhile.
unsafe impl<R: ShmRequest> Send for Sessions<R> where Session<R>: Send {}

impl<R: ShmRequest> Sessions<R> {
    pub(super) fn new(first: Session<R>) -> Self {
        Sessions {
            now: Cell::new(counted(first)),
            before: RefCell::default(),
            has_before: Cell::new(false),
        }
    }

    /// Looks at the session that is the last.
    #[inline(always)]
    pub(super) fn lease(&self) -> Lease<'_, R> {
        if self.has_before.get() {
            self.sweep();
        }
        let lease = Lease {
            counted: self.now.get(),
            _sessions: PhantomData,
        };
        let leases = &lease.counted().leases;
        leases.set(leases.get() + 1);
        lease
    }

    /// Has another session be the last.
    pub(super) fn succeed(&self, session: Session<R>) -> Lease<'_, R> {
        let before = self.now.replace(counted(session));
        self.before.borrow_mut().push(before);
        self.has_before.set(true);
        self.lease()
    }

    /// Gives up the sessions that nobody looks at any more.
    #[cold]
    fn sweep(&self) {
        let mut before = self.before.borrow_mut();
        let is_idle = |counted: &NonNull<Counted<R>>| {
            // SAFETY: it is freed where it leaves the list, and with `self`.
            let counted = unsafe { counted.as_ref() };
            counted.leases.get() == 0 && counted.session.held.get() == 0
        };
        let mut idle = Vec::new();
        before.retain(|counted| {
            let is_idle = is_idle(counted);
            idle.extend(is_idle.then_some(*counted));
            !is_idle
        });
        self.has_before.set(!before.is_empty());
        drop(before);
        // SAFETY: 1. they are no more in the list, nor the last. 2. No lease and no view is left.
        idle.into_iter().for_each(|idle| unsafe { free(idle) });
    }
}

impl<R: ShmRequest> Drop for Sessions<R> {
    fn drop(&mut self) {
        let before = std::mem::take(self.before.get_mut());
        for session in before.into_iter().chain([self.now.get()]) {
            // SAFETY: 1. `self` goes with them. 2. Whoever looks at one borrows from `self`.
            unsafe { free(session) };
        }
    }
}

impl<'a, R: ShmRequest> Lease<'a, R> {
    #[inline(always)]
    fn counted(&self) -> &Counted<R> {
        // SAFETY: it is freed once another has come in its place and no lease is left, or with the sessions.
        unsafe { self.counted.as_ref() }
    }

    /// The session, for views.
    ///
    /// # Safety
    ///
    /// 1. Nothing is borrowed from it for longer than this lease but what [`Session::held`] counts.
    #[inline(always)]
    pub(in crate::service) unsafe fn session(&self) -> &'a Session<R> {
        // SAFETY: as in `counted`, as long as this lease; and by 1. as long as anything that was borrowed.
        let counted: &'a Counted<R> = unsafe { self.counted.as_ref() };
        &counted.session
    }
}

impl<R: ShmRequest> Deref for Lease<'_, R> {
    type Target = Session<R>;

    #[inline(always)]
    fn deref(&self) -> &Session<R> {
        &self.counted().session
    }
}

impl<R: ShmRequest> Drop for Lease<'_, R> {
    #[inline(always)]
    fn drop(&mut self) {
        let leases = &self.counted().leases;
        leases.set(leases.get() - 1);
    }
}

fn counted<R: ShmRequest>(session: Session<R>) -> NonNull<Counted<R>> {
    let counted = Box::new(Counted {
        session,
        leases: Cell::new(0),
    });
    NonNull::from(Box::leak(counted))
}

/// # Safety
///
/// 1. It came from [`counted`], and was not freed.
/// 2. Nobody looks at it.
unsafe fn free<R: ShmRequest>(session: NonNull<Counted<R>>) {
    // SAFETY: by 1. it is a box that was leaked, and by 2. nobody has a reference to it.
    drop(unsafe { Box::from_raw(session.as_ptr()) });
}
