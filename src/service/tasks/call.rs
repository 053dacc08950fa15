//! A call of a server that tasks share.

use std::future::{Future, poll_fn};
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::OfBus;
use super::gather::Gather;
use super::server::Core;
use crate::error::SendError;
use crate::lane::{Incoming, Kept, Outbox, Sealed, To, Within};
use crate::link::{Line, lock};
use crate::memory::layout::{Envelope, MOST_OPEN, SenderBlock};
use crate::memory::shared::Shared;
use crate::message::{ShmMessage, ShmRequest};
use crate::service::connect::Closer;
use crate::service::failure::Failure;
use crate::service::port::Lane;
use crate::service::scope;
use crate::service::server::{give_up, give_up_with, has_passed, unsent};
use crate::service::trace::Answering;
use crate::sys::clock;
use crate::wait::block::block_on;
use crate::wait::tasks::{Place, Timeout};

/// The way back to a caller: shared by its calls that are not answered yet.
pub(in crate::service) struct Answers {
    pub(super) outbox: Mutex<Outbox>,
    requests: Option<Shared<SenderBlock>>,
    /// One bit a tag: which requests were taken and are not answered.
    open: [AtomicU64; MOST_OPEN / 64],
    line: Arc<Line>,
    pid: u32,
    /// Behind the outbox: once it is dropped, nothing more may be sent.
    _closer: Option<Closer>,
}

impl Answers {
    /// A request of this tag, which was checked, is taken; false where one is that was not answered.
    pub(super) fn begin(&self, tag: u16) -> bool {
        let (word, bit) = (usize::from(tag) / 64, 1 << (tag % 64));
        // Relaxed: the tag comes again only behind its last word, which is published behind `end`.
        self.open[word].fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// The last word on a request is about to be said: from then on its tag may come again.
    fn end(&self, tag: u16) {
        let (word, bit) = (usize::from(tag) / 64, 1 << (tag % 64));
        // Relaxed: as above.
        self.open[word].fetch_and(!bit, Ordering::Relaxed);
    }

    /// Whether the caller has cancelled the request with this tag, which was checked.
    #[inline]
    pub(super) fn is_cancelled(&self, tag: u16) -> bool {
        let requests = self.requests.as_ref();
        requests.is_some_and(|requests| requests.is_cancelled(tag))
    }
}

/// The way back of a lane, which takes its outbox.
pub(super) fn answers_of(lane: &mut Lane) -> Arc<Answers> {
    let (outbox, closer) = (&mut lane.outbox, &mut lane.closer);
    let answers = lane.answers.get_or_insert_with(|| {
        let outbox = outbox.take().expect("a server's lanes go both ways");
        let outbox = outbox.into_inner();
        Arc::new(Answers {
            requests: outbox.requests(),
            open: Default::default(),
            line: outbox.line().clone(),
            pid: outbox.link().pid(),
            outbox: Mutex::new(outbox),
            _closer: closer.take(),
        })
    });
    answers.clone()
}

/// A request that was found, and what is needed to answer it.
pub(super) struct Found<R: ShmRequest> {
    pub(super) request: Kept<R>,
    pub(super) answers: Arc<Answers>,
    pub(super) number: usize,
    pub(super) tag: u16,
    pub(super) said: Envelope,
}

/// A request that was taken, to be answered by any task or thread: dereferences to the archived
/// request, and takes the reply.
///
/// Dropped without a reply, it tells its caller so.
pub struct AsyncCall<R: ShmRequest> {
    request: Kept<R>,
    answers: Arc<Answers>,
    core: OfBus<Core>,
    number: usize,
    tag: u16,
    said: Envelope,
    answering: Answering,
    answered: AtomicBool,
    gather: Mutex<Option<Arc<Gather>>>,
}

impl<R: ShmRequest> AsyncCall<R> {
    pub(super) fn new(found: Found<R>, core: OfBus<Core>) -> Self {
        let Found {
            request,
            answers,
            number,
            tag,
            said,
        } = found;
        let answering = Answering::begin(R::SERVICE, || answers.pid, &said);
        AsyncCall {
            request,
            answers,
            core,
            number,
            tag,
            said,
            answering,
            answered: AtomicBool::new(false),
            gather: Mutex::default(),
        }
    }

    /// Archives the reply for the caller; see [`Call::reply`](crate::Call::reply).
    ///
    /// # Errors
    ///
    /// As [`Call::reply`](crate::Call::reply).
    pub fn reply(self, reply: &R::Reply) -> Result<(), SendError> {
        let to = To::tag(self.tag);
        self.answer(reply, to)
    }

    /// Answers with an error of the service's own.
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply).
    pub fn fail(self, error: &R::Error) -> Result<(), SendError> {
        let to = To::error(self.tag);
        self.answer(error, to)
    }

    /// As [`reply`](Self::reply), for a call that its handler may still hold.
    pub(super) fn reply_shared(&self, reply: &R::Reply) -> Result<(), SendError> {
        self.answer(reply, To::tag(self.tag))
    }

    /// As [`fail`](Self::fail), for a call that its handler may still hold.
    pub(super) fn fail_shared(&self, error: &R::Error) -> Result<(), SendError> {
        self.answer(error, To::error(self.tag))
    }

    fn answer<T: ShmMessage>(&self, answer: &T, to: To) -> Result<(), SendError> {
        if has_passed(self.said.deadline) {
            // Its caller was told that its time is up, or is about to be.
            self.refuse(Failure::Expired, "");
            return Ok(());
        }
        if to.is_error() {
            self.answering.failed("of the service");
        }
        let mut outbox = self.outbox(&self.answers)?;
        // Relaxed: it is set with the outbox. The tag may be another call's by now.
        if self.answered.load(Ordering::Relaxed) {
            return Err(SendError::Cancelled);
        }
        self.answers.end(self.tag);
        let sent = outbox.try_send(answer, to);
        // Only now: an answer that panics while it is archived leaves the call to `drop`. Relaxed: who
        // sends items looks at it with the outbox, and whoever drops the last handle comes behind that.
        self.answered.store(true, Ordering::Relaxed);
        sent.or_else(|error| unsent(&mut outbox, self.tag, error))
    }

    /// Wakes those who wait for this call to be cancelled, which was answered while there are other handles
    /// on it.
    pub(super) fn wake_watchers(&self) {
        self.core.wake_watchers(self.number);
    }

    fn outbox<'a>(&self, answers: &'a Answers) -> Result<MutexGuard<'a, Outbox>, SendError> {
        if self.core.origin.is_forked() {
            return Err(SendError::Forked);
        }
        Ok(lock(&answers.outbox))
    }

    /// Sends an item of the stream that the caller takes, which a reply ends. Waits while the caller
    /// has not taken as many as the lane has room for.
    ///
    /// # Errors
    ///
    /// As [`Call::send`](crate::Call::send).
    pub fn send<'a>(&'a self, item: &'a R::Item) -> Sending<'a, R> {
        Sending {
            call: self,
            item,
            timer: None,
            place: Place::default(),
        }
    }

    /// As [`send`](Self::send), without waiting.
    ///
    /// # Errors
    ///
    /// As [`Call::try_send`](crate::Call::try_send).
    pub fn try_send(&self, item: &R::Item) -> Result<(), SendError> {
        if self.is_cancelled() {
            return Err(SendError::Cancelled);
        }
        let mut outbox = self.outbox(&self.answers)?;
        // Relaxed: it is set with the outbox. From then on the tag may be another call's.
        if self.answered.load(Ordering::Relaxed) {
            return Err(SendError::Cancelled);
        }
        let send = |outbox: &mut Outbox| outbox.try_send(item, To::stream(self.tag));
        let gather = lock(&self.gather).clone();
        match gather {
            None => send(&mut outbox),
            Some(gather) => gather.send((&self.answers, &mut outbox), self.core.port.due(), send),
        }
    }

    /// Has a caller that sleeps woken for items at most once in so long: the first goes at once, and
    /// the others with the last word on the call at the latest. Zero, as at first, wakes it for each.
    ///
    /// For items that come often and are shown together, such as tokens of text at 16 ms.
    pub fn gather(&self, window: Duration) {
        let before = std::mem::replace(
            &mut *lock(&self.gather),
            (!window.is_zero()).then(|| Gather::new(window)),
        );
        if before.is_some() && !self.core.origin.is_forked() {
            // What the other one put off is not of this window.
            lock(&self.answers.outbox).ring_owed();
        }
    }

    fn poll_send(
        &self,
        item: &R::Item,
        (place, cx): (&mut Place, &mut Context<'_>),
    ) -> Poll<Result<(), SendError>> {
        match self.try_send(item) {
            Err(SendError::Full) => {}
            sent => return Poll::Ready(sent),
        }
        self.core.enter(|state| {
            state.later.discard(state.room.keep(place, cx.waker()));
        });
        self.outbox(&self.answers)?.ask_for_room();
        match self.try_send(item) {
            Err(SendError::Full) => Poll::Pending,
            sent => Poll::Ready(sent),
        }
    }

    /// Who waited for room does no more.
    fn leave(&self, place: &mut Place) {
        if !self.core.origin.is_forked() {
            self.core.enter(|state| {
                state.later.discard(state.room.forget(place));
            });
        }
    }

    /// Answers that there is no reply, and why.
    pub(super) fn refuse(&self, why: Failure, text: &str) {
        self.answering.failed(why.name());
        if self.core.origin.is_forked() {
            return;
        }
        let mut outbox = lock(&self.answers.outbox);
        // Relaxed: as in `answer`.
        if self.answered.swap(true, Ordering::Relaxed) {
            return;
        }
        self.answers.end(self.tag);
        give_up_with(&mut outbox, self.tag, why, text);
    }

    /// How many items the caller has not taken and dropped yet, as far as is known.
    pub fn behind(&self) -> usize {
        let outbox = self.outbox(&self.answers);
        let behind = outbox.and_then(|mut outbox| outbox.behind(self.tag));
        // A caller that is gone takes nothing.
        behind.map_or(0, |behind| behind.items)
    }

    /// Whether the caller waits no longer, or the call is answered; see
    /// [`Call::is_cancelled`](crate::Call::is_cancelled).
    #[inline]
    pub fn is_cancelled(&self) -> bool {
        // Relaxed: who finds it a moment later finds it then.
        self.answered.load(Ordering::Relaxed)
            || self.answers.is_cancelled(self.tag)
            || has_passed(self.said.deadline)
            || self.answers.line.is_closed()
    }

    /// Waits until the caller waits no longer, or the call is answered.
    pub async fn cancelled(&self) {
        let mut timer = self.timeout();
        let mut watch = Watch(self, Place::default());
        poll_fn(|cx| match watch.poll(cx) {
            Poll::Pending => timer.poll(cx),
            cancelled => cancelled,
        })
        .await;
    }

    fn timeout(&self) -> Timeout {
        Timeout::new(self.core.port.due(), self.deadline())
    }

    /// As [`scope`](Self::scope), on this thread until the returned is dropped.
    pub(super) fn enter(&self) -> scope::Entered<'_> {
        scope::enter(self.deadline(), self.answering.enter())
    }

    /// Does work for this call: calls that are made in it have this call's deadline, or an earlier one
    /// of their own, and belong to its trace.
    pub async fn scope<F: Future>(&self, work: F) -> F::Output {
        let deadline = self.deadline();
        let mut work = std::pin::pin!(work);
        poll_fn(|cx| {
            let _entered = scope::enter(deadline, self.answering.enter());
            work.as_mut().poll(cx)
        })
        .await
    }

    /// When the caller waits no longer.
    pub fn deadline(&self) -> Option<Instant> {
        clock::moment_of(self.said.deadline)
    }

    /// When the request was sent, where it says so; see [`Call::published`](crate::Call::published).
    pub fn published(&self) -> Option<Instant> {
        clock::moment_of(self.said.published).or_else(|| self.request.published())
    }

    /// How many requests came before it on its lane; see [`View::sequence`](crate::View::sequence).
    pub fn sequence(&self) -> u64 {
        self.request.sequence()
    }

    /// The process that called.
    pub fn caller_pid(&self) -> u32 {
        self.answers.pid
    }

    /// Makes the owned request, copying what it needs.
    ///
    /// # Errors
    ///
    /// As [`View::to_value`](crate::View::to_value).
    pub fn to_value(&self) -> Result<R, crate::CodecError> {
        self.request.to_value()
    }
}

impl<R: ShmRequest> Incoming for AsyncCall<R> {}

impl<R: ShmRequest> Sealed for AsyncCall<R> {
    fn within(&self) -> Within<'_> {
        self.request.within()
    }
}

impl<R: ShmRequest> Deref for AsyncCall<R> {
    type Target = R::Archived;

    fn deref(&self) -> &R::Archived {
        &self.request
    }
}

impl<R: ShmRequest> Drop for AsyncCall<R> {
    fn drop(&mut self) {
        if !*self.answered.get_mut() && !self.core.origin.is_forked() {
            let mut outbox = lock(&self.answers.outbox);
            let why = Failure::of_drop(
                outbox.is_cancelled(self.tag),
                has_passed(self.said.deadline),
            );
            self.answering.failed(why.name());
            self.answers.end(self.tag);
            give_up(&mut outbox, self.tag, why);
        }
    }
}

/// Waits for a call to be cancelled.
struct Watch<'a, R: ShmRequest>(&'a AsyncCall<R>, Place);

impl<R: ShmRequest> Watch<'_, R> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Watch(call, place) = self;
        if call.is_cancelled() || call.core.origin.is_forked() {
            return Poll::Ready(());
        }
        call.core.watch(call.number, place, cx.waker());
        if call.is_cancelled() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl<R: ShmRequest> Drop for Watch<'_, R> {
    fn drop(&mut self) {
        self.0.core.unwatch(self.0.number, &mut self.1);
    }
}

/// An item that is sent, as [`AsyncCall::send`] waits for room: a future, or on a thread
/// [`wait`](Self::wait).
#[must_use = "nothing is sent before this is awaited"]
pub struct Sending<'a, R: ShmRequest> {
    call: &'a AsyncCall<R>,
    item: &'a R::Item,
    /// The call's deadline: who waits longer waits for nobody.
    timer: Option<Timeout>,
    /// Where it waits for room.
    place: Place,
}

impl<R: ShmRequest> Sending<'_, R> {
    /// Waits for room on this thread.
    ///
    /// # Errors
    ///
    /// As [`AsyncCall::send`].
    pub fn wait(self) -> Result<(), SendError> {
        block_on(self.call.core.port.due(), self)
    }
}

impl<R: ShmRequest> Future for Sending<'_, R> {
    type Output = Result<(), SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (call, item) = (self.call, self.item);
        let sent = call.poll_send(item, (&mut self.place, cx));
        if sent.is_pending() {
            let timer = self.timer.get_or_insert_with(|| call.timeout());
            if timer.poll(cx).is_ready() {
                return Poll::Ready(Err(SendError::Cancelled));
            }
        }
        sent
    }
}

impl<R: ShmRequest> Drop for Sending<'_, R> {
    fn drop(&mut self) {
        if self.place.is_taken() {
            self.call.leave(&mut self.place);
        }
    }
}
