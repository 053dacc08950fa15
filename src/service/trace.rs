//! What a call says of itself to `tracing`: one span on each side, of one trace.
//!
//! Each side has its own spans, so what they share travels in the request's envelope: the number of the
//! trace, and that of the caller's span. A call that is made while another is answered belongs to the
//! trace of that one; any other begins a trace.
//!
//! Without the feature these types are empty and nothing of this costs anything; with it, but where
//! nobody listens to these spans, a call costs a load more.

#[cfg(not(feature = "tracing"))]
pub(crate) use off::{Answering, Calling, Entered};
#[cfg(feature = "tracing")]
pub(crate) use on::{Answering, Calling, Entered};

use crate::error::CallError;
use crate::memory::layout::Envelope;

/// What an error is called in a span.
#[cfg_attr(not(feature = "tracing"), allow(dead_code))]
fn name_of<E>(error: &CallError<E>) -> &'static str {
    match error {
        CallError::Service(_) => "of the service",
        CallError::Send(_) | CallError::Connect(_) => "not sent",
        CallError::Lost { .. } => "lost",
        CallError::Unanswered { .. } => "unanswered",
        CallError::Stopping { .. } => "stopping",
        CallError::Panicked { .. } => "panicked",
        CallError::Failed { .. } => "failed",
        CallError::Superseded => "superseded",
        CallError::TimedOut => "timed out",
        CallError::TooMany { .. } | CallError::ViewsHeld { .. } => "too many",
    }
}

#[cfg(not(feature = "tracing"))]
mod off {
    use super::{CallError, Envelope};

    /// The calling side of a call.
    #[derive(Default)]
    pub(crate) struct Calling;

    /// The answering side of a call.
    pub(crate) struct Answering;

    /// Work for a call, until this is dropped.
    pub(crate) struct Entered<'a>(std::marker::PhantomData<&'a ()>);

    impl Calling {
        #[inline(always)]
        pub(crate) fn begin(_service: &'static str, _pid: impl FnOnce() -> u32) -> Calling {
            Calling
        }

        #[inline(always)]
        pub(crate) fn sign(&self, _envelope: &mut Envelope) -> bool {
            false
        }

        #[inline(always)]
        pub(crate) fn failed<E>(&self, _error: &CallError<E>) {}
    }

    impl Answering {
        #[inline(always)]
        pub(crate) fn begin(
            _service: &'static str,
            _pid: impl FnOnce() -> u32,
            _said: &Envelope,
        ) -> Answering {
            Answering
        }

        #[inline(always)]
        pub(crate) fn enter(&self) -> Entered<'_> {
            Entered(std::marker::PhantomData)
        }

        #[inline(always)]
        pub(crate) fn failed(&self, _error: &'static str) {}
    }
}

#[cfg(feature = "tracing")]
mod on {
    use std::cell::Cell;
    use std::hash::{BuildHasher, Hasher, RandomState};

    use tracing::{Span, debug_span, field};

    use super::{CallError, Envelope, name_of};
    use crate::sys::clock;

    thread_local! {
        /// The trace of the call that this thread answers, or zero.
        static TRACE: Cell<u64> = const { Cell::new(0) };
    }

    /// The calling side of a call.
    pub(crate) struct Calling {
        span: Span,
        trace: u64,
        number: u64,
    }

    impl Default for Calling {
        fn default() -> Calling {
            Calling {
                span: Span::none(),
                trace: 0,
                number: 0,
            }
        }
    }

    impl Calling {
        /// A call of a service of this process, which is made now.
        #[inline]
        pub(crate) fn begin(service: &'static str, pid: impl FnOnce() -> u32) -> Calling {
            let trace = TRACE.get();
            if !tracing::enabled!(tracing::Level::DEBUG) {
                // The trace goes on through this process, also where nobody looks.
                return Calling {
                    trace,
                    ..Calling::default()
                };
            }
            let trace = if trace == 0 { random() } else { trace };
            let number = random();
            let span = debug_span!(
                "call",
                service,
                server = pid(),
                trace = field::display(hex(trace)),
                span = field::display(hex(number)),
                error = field::Empty,
            );
            Calling {
                span,
                trace,
                number,
            }
        }

        /// Has the request say which span it comes from. False where it belongs to no trace.
        #[inline]
        pub(crate) fn sign(&self, envelope: &mut Envelope) -> bool {
            (envelope.trace, envelope.span) = (self.trace, self.number);
            self.trace != 0
        }

        pub(crate) fn failed<E>(&self, error: &CallError<E>) {
            self.span.record("error", name_of(error));
        }
    }

    /// The answering side of a call.
    pub(crate) struct Answering {
        span: Span,
        trace: u64,
    }

    impl Answering {
        /// A call of this process was taken, of which its caller said this.
        #[inline]
        pub(crate) fn begin(
            service: &'static str,
            pid: impl FnOnce() -> u32,
            said: &Envelope,
        ) -> Answering {
            if !tracing::enabled!(tracing::Level::DEBUG) {
                return Answering {
                    span: Span::none(),
                    trace: said.trace,
                };
            }
            let trace = match said.trace {
                0 => random(),
                trace => trace,
            };
            let span = debug_span!(
                parent: None,
                "answer",
                service,
                client = pid(),
                trace = field::display(hex(trace)),
                parent = field::Empty,
                waited_ns = field::Empty,
                error = field::Empty,
            );
            if said.span != 0 {
                span.record("parent", field::display(hex(said.span)));
            }
            if said.published != 0 {
                span.record("waited_ns", clock::now().saturating_sub(said.published));
            }
            Answering { span, trace }
        }

        /// Work for this call: what happens meanwhile is part of its span.
        pub(crate) fn enter(&self) -> Entered<'_> {
            Entered {
                _span: self.span.enter(),
                outer: TRACE.replace(self.trace),
            }
        }

        pub(crate) fn failed(&self, error: &'static str) {
            self.span.record("error", error);
        }
    }

    /// Work for a call, until this is dropped.
    pub(crate) struct Entered<'a> {
        _span: tracing::span::Entered<'a>,
        outer: u64,
    }

    impl Drop for Entered<'_> {
        fn drop(&mut self) {
            TRACE.set(self.outer);
        }
    }

    /// A number that no other trace or span has, never zero.
    fn random() -> u64 {
        RandomState::new().build_hasher().finish().max(1)
    }

    fn hex(number: u64) -> String {
        format!("{number:016x}")
    }
}
