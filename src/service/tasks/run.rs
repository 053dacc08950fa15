//! A service that tasks answer, on the executor of its user.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use super::call::AsyncCall;
use super::serve::said;
use super::server::AsyncServer;
use crate::error::ReceiveError;
use crate::message::ShmRequest;
use crate::service::failure::Failure;

/// A task that answers one call.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

impl<R: ShmRequest> AsyncServer<R> {
    /// Answers every call by a task of its own, which `spawn` gives to an executor.
    ///
    /// Ends when [`next`](Self::next) would, after [`stop`](Self::stop) for one, and all that was taken
    /// is answered. A handler that panics answers [`CallError::Panicked`]. What it calls itself has the
    /// deadline of the call that it answers. It goes on when its call is cancelled, unless it looks:
    /// [`AsyncCall::cancelled`].
    ///
    /// [`CallError::Panicked`]: crate::CallError::Panicked
    ///
    /// # Errors
    ///
    /// [`ReceiveError::Forked`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use shmbus::{Bus, ShmMessage};
    /// # #[derive(ShmMessage)]
    /// # #[shm(service = "double", reply = Doubled)]
    /// # struct Double { number: u32 }
    /// # #[derive(ShmMessage)]
    /// # struct Doubled { number: u32 }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-async-run")?;
    /// # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    /// let server = bus.async_server::<Double>()?;
    /// # let client = bus.async_client::<Double>()?;
    /// # runtime.block_on(async {
    /// # let calling = async {
    /// #     let six = client.call(&Double { number: 3 }).await.map(|reply| reply.number.to_native());
    /// #     server.stop();
    /// #     six
    /// # };
    /// let spawn = |task| drop(tokio::spawn(task));
    /// let serving = server.run(spawn, |call| async move {
    ///     // Here is time for others: read a file, ask another service.
    ///     Ok(Doubled { number: call.number.to_native() * 2 })
    /// });
    /// # let (ended, six) = tokio::join!(serving, calling);
    /// # ended?;
    /// # assert_eq!(six?, 6);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok(()) }
    /// ```
    pub async fn run<H, F>(&self, spawn: impl Fn(Task), handler: H) -> Result<(), ReceiveError>
    where
        H: Fn(Arc<AsyncCall<R>>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<R::Reply, R::Error>> + Send,
        R::Archived: Send + Sync,
    {
        let handler = Arc::new(handler);
        let tasks = Arc::new(Tasks::default());
        while let Some(call) = self.next().await? {
            let (handler, begun) = (handler.clone(), tasks.begin());
            spawn(Box::pin(async move {
                answer(Arc::new(call), &*handler).await;
                drop(begun);
            }));
        }
        tasks.ended().await;
        Ok(())
    }
}

/// Answers one call, whatever its handler does.
async fn answer<R, H, F>(call: Arc<AsyncCall<R>>, handler: &H)
where
    R: ShmRequest,
    H: Fn(Arc<AsyncCall<R>>) -> F,
    F: Future<Output = Result<R::Reply, R::Error>>,
{
    let work = {
        let call = call.clone();
        async move { handler(call).await }
    };
    // Nothing of ours is left half done by a panic; what handlers share is for them to say.
    let mut work = pin!(call.scope(work));
    let answer = poll_fn(|cx| {
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx)));
        match polled {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    });
    let answer = answer.await;
    // An answer that cannot be sent was told to the caller.
    let _ = match answer {
        Ok(Ok(reply)) => call.reply_shared(&reply),
        Ok(Err(error)) => call.fail_shared(&error),
        Err(panic) => {
            call.refuse(Failure::Panicked, said(&*panic));
            Ok(())
        }
    };
    if Arc::strong_count(&call) > 1 {
        // The handler gave it to somebody else, who may wait for its end.
        call.wake_watchers();
    }
}

/// How many tasks go on, and who waits for their end.
#[derive(Default)]
struct Tasks(Mutex<(usize, Option<Waker>)>);

/// A task that goes on until this is dropped: by its end, or by its executor.
struct Begun(Arc<Tasks>);

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, (usize, Option<Waker>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>) -> Begun {
        self.lock().0 += 1;
        Begun(self.clone())
    }

    async fn ended(&self) {
        poll_fn(|cx| {
            let mut state = self.lock();
            if state.0 == 0 {
                return Poll::Ready(());
            }
            state.1 = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.0 -= 1;
        let waker = if state.0 == 0 { state.1.take() } else { None };
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}
