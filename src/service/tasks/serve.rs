//! Services that a pool of threads answers.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::thread::JoinHandle;

use super::call::AsyncCall;
use super::server::{AsyncServer, LOOKS, Look};
use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, OpenError};
use crate::message::ShmRequest;
use crate::service::failure::Failure;
use crate::wait::Wait;
use crate::wait::block::block_on;

/// Services that one pool of threads will answer: see [`Bus::services`](crate::Bus::services).
#[must_use = "nobody answers before the pool is started"]
pub struct Services {
    bus: Arc<BusShared>,
    services: Vec<Arc<dyn Service>>,
    name: &'static str,
}

/// Services that threads answer, until this is dropped. What a handler calls itself has the deadline
/// of the call that it answers, or an earlier one.
///
/// When this is dropped, what was taken is answered, what was not is refused
/// ([`CallError::Stopping`]), and the threads end.
///
/// [`CallError::Stopping`]: crate::CallError::Stopping
#[must_use = "the service ends when this is dropped"]
pub struct Serving {
    services: Arc<[Arc<dyn Service>]>,
    threads: Vec<JoinHandle<()>>,
}

/// A server and its handler.
trait Service: Send + Sync {
    /// Answers a request, if one has come. With a waker, it is woken when one comes later.
    fn answer(&self, waker: Option<&Waker>) -> Answered;

    fn stop(&self);

    fn is_forked(&self) -> bool;
}

/// What there was to answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answered {
    /// Something; there may be more.
    Some,
    Nothing,
    /// Nothing, now or later.
    Ended,
}

struct Handled<R: ShmRequest, H> {
    server: AsyncServer<R>,
    handler: H,
}

impl Services {
    pub(crate) fn new(bus: &Arc<BusShared>) -> Services {
        Services {
            bus: bus.clone(),
            services: Vec::new(),
            name: "services",
        }
    }

    /// Adds the service of the request `R`, which is offered from now on. Requests of services that were
    /// added before it are taken first.
    ///
    /// # Errors
    ///
    /// As [`Bus::server`](crate::Bus::server).
    pub fn on<R, H>(mut self, handler: H) -> Result<Services, ConnectError>
    where
        R: ShmRequest,
        H: Fn(&AsyncCall<R>) -> Result<R::Reply, R::Error> + Send + Sync + 'static,
    {
        let server = AsyncServer::offer(&self.bus)?;
        if self.services.is_empty() {
            self.name = R::SERVICE;
        }
        self.services.push(Arc::new(Handled { server, handler }));
        Ok(self)
    }

    /// Starts so many threads, at least one, that answer.
    ///
    /// # Errors
    ///
    /// [`OpenError::System`] where a thread cannot be started.
    pub fn start(self, threads: usize) -> Result<Serving, OpenError> {
        // What was started ends with this, should one thread more not start.
        let mut serving = Serving {
            services: self.services.into(),
            threads: Vec::new(),
        };
        for _ in 0..threads.max(1) {
            let (services, bus) = (serving.services.clone(), self.bus.clone());
            let thread = std::thread::Builder::new()
                .name(self.name.to_owned())
                .spawn(move || work(&services, &bus))
                .map_err(OpenError::system("start a thread"))?;
            serving.threads.push(thread);
        }
        Ok(serving)
    }
}

impl Serving {
    /// Has what was not taken yet refused from now on. Dropping this does, too, and waits for the rest.
    pub fn stop(&self) {
        self.services.iter().for_each(|service| service.stop());
    }

    /// Whether this process was forked off the one that has the threads.
    fn is_forked(&self) -> bool {
        self.services.iter().any(|service| service.is_forked())
    }

    /// Waits until this was [stopped](Self::stop), the bus is [closed](crate::Bus::close), or the parent
    /// of an inherited link is gone, and all that came before is answered.
    pub fn join(mut self) {
        self.end_threads();
    }

    fn end_threads(&mut self) {
        let is_forked = self.is_forked();
        for thread in self.threads.drain(..) {
            if is_forked {
                // There is no such thread here, and nothing to wait for.
                std::mem::forget(thread);
                continue;
            }
            // A handler that drops what it serves would wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop();
        self.end_threads();
    }
}

/// A thread of the pool.
fn work(services: &[Arc<dyn Service>], bus: &BusShared) {
    let node = bus.node();
    let wait = node.config().wait;
    let looks = if wait == Wait::Park { 0 } else { LOOKS };
    let turn = poll_fn(|cx| {
        let mut left = looks;
        loop {
            let waker = (left == 0).then_some(cx.waker());
            match (answer_first(services, waker), left) {
                (Answered::Some, _) => left = looks,
                (Answered::Ended, _) => return Poll::Ready(()),
                (Answered::Nothing, 0) => return Poll::Pending,
                (Answered::Nothing, _) => {
                    std::hint::spin_loop();
                    left -= usize::from(wait != Wait::Spin);
                }
            }
        }
    });
    block_on(node.due(), turn);
}

/// Answers a request of the first service that has one.
fn answer_first(services: &[Arc<dyn Service>], waker: Option<&Waker>) -> Answered {
    let mut all = Answered::Ended;
    for service in services {
        match service.answer(waker) {
            Answered::Some => return Answered::Some,
            Answered::Nothing => all = Answered::Nothing,
            Answered::Ended => {}
        }
    }
    all
}

impl<R, H> Service for Handled<R, H>
where
    R: ShmRequest,
    H: Fn(&AsyncCall<R>) -> Result<R::Reply, R::Error> + Send + Sync,
{
    fn answer(&self, waker: Option<&Waker>) -> Answered {
        let call = match self.server.look_once(waker) {
            Look::Found(call) => call,
            Look::More => return Answered::Some,
            Look::Nothing => return Answered::Nothing,
            Look::Ended => return Answered::Ended,
        };
        // Nothing of ours is left half done by a panic, of the handler or while its answer is archived;
        // what the handler shares is for it to say. An answer that cannot be sent was told to the caller.
        let answered = catch_unwind(AssertUnwindSafe(|| {
            let answer = {
                let _entered = call.enter();
                (self.handler)(&call)
            };
            let _ = match answer {
                Ok(reply) => call.reply_shared(&reply),
                Err(error) => call.fail_shared(&error),
            };
        }));
        if let Err(panic) = answered {
            call.refuse(Failure::Panicked, said(&*panic));
        }
        Answered::Some
    }

    fn stop(&self) {
        self.server.stop();
    }

    fn is_forked(&self) -> bool {
        self.server.is_forked()
    }
}

/// What a panic said.
pub(super) fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("it said nothing")
}
