//! A service that a pool of threads answers.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::call::AsyncCall;
use super::server::AsyncServer;
use crate::bus::Shared as BusShared;
use crate::error::{ConnectError, OpenError};
use crate::message::ShmRequest;
use crate::service::failure::Failure;

/// A service that threads answer, until this is dropped. What a handler calls itself has the deadline
/// of the call that it answers, or an earlier one.
///
/// When this is dropped, what was taken is answered, what was not is refused ([`CallError::Stopping`]), and the threads
/// end.
///
/// [`CallError::Stopping`]: crate::CallError::Stopping
#[must_use = "the service ends when this is dropped"]
pub struct Serving<R: ShmRequest> {
    server: Arc<AsyncServer<R>>,
    threads: Vec<JoinHandle<()>>,
}

impl<R: ShmRequest> Serving<R> {
    pub(crate) fn start<H>(
        bus: &Arc<BusShared>,
        threads: usize,
        handler: H,
    ) -> Result<Self, ConnectError>
    where
        H: Fn(&AsyncCall<R>) -> Result<R::Reply, R::Error> + Send + Sync + 'static,
    {
        let server = Arc::new(AsyncServer::offer(bus)?);
        let handler = Arc::new(handler);
        // What was started ends with this, should one thread more not start.
        let mut serving = Serving {
            server,
            threads: Vec::new(),
        };
        for _ in 0..threads.max(1) {
            let (server, handler) = (serving.server.clone(), handler.clone());
            let thread = std::thread::Builder::new()
                .name(R::SERVICE.to_owned())
                .spawn(move || work(&server, &*handler))
                .map_err(OpenError::system("start a thread"))?;
            serving.threads.push(thread);
        }
        Ok(serving)
    }

    /// Has what was not taken yet refused from now on. Dropping this does, too, and waits for the rest.
    pub fn stop(&self) {
        self.server.stop();
    }

    /// Waits until this was [stopped](Self::stop), the bus is [closed](crate::Bus::close), or the parent of an inherited link is gone,
    /// and all that came before is answered.
    pub fn join(mut self) {
        self.end_threads();
    }

    fn end_threads(&mut self) {
        for thread in self.threads.drain(..) {
            // A handler that drops what it serves would wait for itself. Handlers do not panic here.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl<R: ShmRequest> Drop for Serving<R> {
    fn drop(&mut self) {
        self.stop();
        self.end_threads();
    }
}

fn work<R, H>(server: &AsyncServer<R>, handler: &H)
where
    R: ShmRequest,
    H: Fn(&AsyncCall<R>) -> Result<R::Reply, R::Error>,
{
    while let Ok(Some(call)) = server.next().wait() {
        // Nothing of ours is left half done by a panic; what the handler shares is for it to say.
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let _entered = call.enter();
            handler(&call)
        }));
        // An answer that cannot be sent was told to the caller.
        let _ = match answer {
            Ok(Ok(reply)) => call.reply(&reply),
            Ok(Err(error)) => call.fail(&error),
            Err(panic) => {
                call.refuse(Failure::Panicked, said(&*panic));
                Ok(())
            }
        };
    }
}

/// What a panic said.
pub(super) fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("it said nothing")
}
