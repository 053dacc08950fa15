//! A client that many tasks and threads share.

use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytemuck::Pod;

use super::OfBus;
use super::claim::{Claim, Claims};
use super::strand::Strand;
use crate::bus::Shared as BusShared;
use crate::error::{CallError, ConnectError, Fault, SendError};
use crate::lane::{Bulk, Bytes, Inbox, Kept, Message, Role};
use crate::link::lock;
use crate::memory::layout::MOST_OPEN;
use crate::message::{ShmMessage, ShmRequest};
use crate::service::client::{Error, give_back, lost};
use crate::service::connect::{Connected, connect};
use crate::service::contract::Contract;
use crate::service::failure::{unanswered, unreadable};
use crate::service::scope;
use crate::service::trace::Calling;
use crate::wait::block::block_on;
use crate::wait::tasks::{Place, Timeout};
use crate::wait::{Wait, Waiter};

/// After so many items that nobody asked for, others have their turn.
const TURN: usize = 1024;

/// Calls a service from any number of tasks and threads, with any number of calls at once.
///
/// Clones are handles on the same client. It needs no executor of its own: what it returns are
/// futures that any executor runs, and that a thread can wait for, too. Answers come in any order.
/// Dropping what a call is waited for with cancels the call.
///
/// A [`Client`](crate::Client) of one thread is faster, and borrows replies where they lie; here a small
/// reply is copied once, as [`View::keep`](crate::View::keep) does.
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
/// # let bus = Bus::open("doc-async-client")?;
/// # let mut server = bus.server::<Double>()?;
/// # let serving = std::thread::spawn(move || {
/// #     while let Ok(Some(call)) = server.next() {
/// #         let number = call.number.to_native() * 2;
/// #         let _ = call.reply(&Doubled { number });
/// #     }
/// # });
/// let client = bus.async_client::<Double>()?;
/// # pollster::block_on(async {
/// let (two, three) = (client.call(&Double { number: 2 }), client.call(&Double { number: 3 }));
/// assert_eq!(three.await?.number, 6);
/// assert_eq!(two.await?.number, 4);
/// # Ok::<(), shmbus::CallError>(()) })?;
/// # drop(client);
/// # bus.close();
/// # serving.join().expect("the server does not panic");
/// # Ok(()) }
/// ```
pub struct AsyncClient<R: ShmRequest> {
    inner: Arc<Inner>,
    claims: Arc<Claims<R::Key>>,
    _request: PhantomData<fn(R)>,
}

struct Inner {
    first: OfBus<Strand>,
    /// More of them, which were opened when all others were full.
    more: Mutex<Vec<OfBus<Strand>>>,
    wait: Wait,
    bus: Arc<BusShared>,
}

impl<R: ShmRequest> Clone for AsyncClient<R> {
    fn clone(&self) -> Self {
        AsyncClient {
            inner: self.inner.clone(),
            claims: self.claims.clone(),
            _request: PhantomData,
        }
    }
}

impl<R: ShmRequest> AsyncClient<R> {
    pub(crate) fn connect(
        bus: &Arc<BusShared>,
        deadline: Option<Instant>,
    ) -> Result<Self, ConnectError> {
        let first = open_strand::<R>(bus, deadline)?;
        let inner = Inner {
            first,
            more: Mutex::default(),
            wait: bus.node().config().wait,
            bus: bus.clone(),
        };
        Ok(AsyncClient {
            inner: Arc::new(inner),
            claims: Claims::new(bus.node().origin()),
            _request: PhantomData,
        })
    }

    /// Sends a request, at once where there is room, and returns what its reply is waited for with.
    ///
    /// Each few hundred calls that are not answered yet share a pair of lanes; one more pair is opened
    /// when all are full, which takes as long as connecting does.
    pub fn call<'a>(&'a self, request: &'a R) -> Pending<'a, R> {
        Pending::new(self, request, None)
    }

    /// As [`call`](Self::call), for at most so long: the deadline travels with the request.
    pub fn call_timeout<'a>(&'a self, request: &'a R, timeout: Duration) -> Pending<'a, R> {
        Pending::new(self, request, Instant::now().checked_add(timeout))
    }

    /// Sends a request, at once where there is room, and gives the stream of items that the server
    /// answers with.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call), as far as they come from sending.
    pub fn stream<'a>(
        &'a self,
        request: &'a R,
    ) -> impl Future<Output = Result<AsyncItems<R>, CallError<R::Error>>> + 'a {
        Self::stream_by(self.call(request))
    }

    /// As [`stream`](Self::stream), with at most so long until its end: the deadline travels with the
    /// request.
    ///
    /// # Errors
    ///
    /// As [`stream`](Self::stream).
    pub fn stream_timeout<'a>(
        &'a self,
        request: &'a R,
        timeout: Duration,
    ) -> impl Future<Output = Result<AsyncItems<R>, CallError<R::Error>>> + 'a {
        Self::stream_by(self.call_timeout(request, timeout))
    }

    async fn stream_by(mut pending: Pending<'_, R>) -> Result<AsyncItems<R>, Error<R>> {
        let open = poll_fn(|cx| pending.poll_open(cx)).await?;
        Ok(AsyncItems {
            open,
            end: End::Open,
            _claim: pending.claim.take(),
            calling: std::mem::take(&mut pending.calling),
        })
    }

    /// Borrows memory of the slab to fill; see [`Client::loan_bytes`](crate::Client::loan_bytes).
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Memory`].
    pub fn loan_bytes(&self, len: usize) -> Result<Bytes, SendError> {
        self.loan_slice(len)
    }

    /// Borrows memory of the slab to fill with numbers; see
    /// [`Client::loan_slice`](crate::Client::loan_slice).
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Memory`].
    pub fn loan_slice<T: Pod>(&self, len: usize) -> Result<Bulk<T>, SendError> {
        self.inner.first.loan(len)
    }

    /// The process that serves.
    pub fn server_pid(&self) -> u32 {
        self.inner.first.pid()
    }

    /// Lanes with a place for one more call, which the first have not.
    #[cold]
    fn another(&self) -> Result<OfBus<Strand>, Error<R>> {
        if self.inner.bus.node().origin().is_forked() {
            return Err(SendError::Forked.into());
        }
        let mut more = lock(&self.inner.more);
        let mut all = std::iter::once(&self.inner.first).chain(&*more);
        if let Some(strand) = all.find(|strand| strand.has_place()) {
            return Ok(strand.clone());
        }
        // All of them are full.
        let open = (1 + more.len()) * MOST_OPEN;
        let strand = open_strand::<R>(&self.inner.bus, None);
        let strand = strand.map_err(|_| CallError::TooMany { open })?;
        more.push(strand.clone());
        Ok(strand)
    }
}

fn open_strand<R: ShmRequest>(
    bus: &Arc<BusShared>,
    deadline: Option<Instant>,
) -> Result<OfBus<Strand>, ConnectError> {
    let node = bus.node();
    let connected = connect(
        node,
        R::SERVICE,
        &Contract::service::<R>(),
        Waiter::Tasks,
        deadline,
    )?;
    let Connected {
        outbox,
        inbox,
        closer,
        sleeper,
    } = connected;
    let lost = ConnectError::Lost {
        pid: outbox.link().pid(),
        fault: None,
        ended: None,
    };
    let strand = Strand::new(outbox, inbox.ok_or(lost)?, closer, node.origin());
    let strand = Arc::new(strand);
    let port = Arc::downgrade(&strand);
    sleeper.attach(port as Weak<_>, node.due().clone());
    Ok(OfBus::new(strand, bus))
}

/// A call that was sent, and is cancelled when this is dropped before its end.
struct Open {
    strand: OfBus<Strand>,
    tag: u16,
    wait: Wait,
    over: bool,
    timer: Timeout,
    polls: u32,
}

impl Open {
    fn poll<R: ShmRequest>(&mut self, cx: &mut Context<'_>) -> Poll<Result<Message, Error<R>>> {
        self.polls = self.polls.wrapping_add(1);
        // Items may come without end, and be there whenever they are looked for.
        if self.polls % 64 == 0 && self.timer.is_over() {
            return Poll::Ready(Err(CallError::TimedOut));
        }
        let polled = self.strand.poll_next::<R>(self.tag, self.wait, cx.waker());
        if let Poll::Ready(Ok(message)) = &polled {
            self.over = message.record.role != Role::Item;
        }
        if polled.is_pending() && self.timer.poll(cx).is_ready() {
            return Poll::Ready(Err(CallError::TimedOut));
        }
        polled
    }

    /// The last word on the call, which was found.
    fn end<R: ShmRequest>(&self, message: Message) -> Result<Kept<R::Reply>, Error<R>> {
        self.strand
            .end(self.tag, |inbox| judge::<R>(inbox, message))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.over {
            self.strand.abandon(self.tag);
        }
    }
}

fn keep<R: ShmRequest, T: ShmMessage>(
    inbox: &mut Inbox,
    message: Message,
) -> Result<Kept<T>, Error<R>> {
    Kept::of(inbox, message).ok_or_else(|| lost(inbox))
}

/// What the last word on a call says.
fn judge<R: ShmRequest>(inbox: &mut Inbox, message: Message) -> Result<Kept<R::Reply>, Error<R>> {
    let pid = inbox.link().pid();
    match message.record.role {
        Role::Message => keep::<R, _>(inbox, message),
        Role::Error => {
            let error = keep::<R, R::Error>(inbox, message)?;
            Err(error
                .to_value()
                .map_or_else(|_| unreadable(pid), CallError::Service))
        }
        Role::Failed => {
            let text = inbox.text(message.record);
            give_back(inbox, &message);
            Err(unanswered(pid, message.record.failed, text))
        }
        Role::Item | Role::Call | Role::Missed => {
            inbox.refuse(Fault::Control {
                what: "an item of no stream",
            });
            Err(lost(inbox))
        }
    }
}

/// A call whose reply is waited for: a future of the kept reply. Dropped, it cancels the call.
///
/// [`wait`](Self::wait) waits for it on a thread.
#[must_use = "a call that is dropped is cancelled"]
pub struct Pending<'a, R: ShmRequest> {
    client: &'a AsyncClient<R>,
    request: &'a R,
    deadline: Option<Instant>,
    state: Sent,
    /// Where the request says what it supersedes.
    claim: Option<Claim<R::Key>>,
    calling: Calling,
    /// Set while there is no room for the request.
    timer: Timeout,
    /// Where it waits for room, if it does.
    waits: Option<(OfBus<Strand>, Place)>,
}

enum Sent {
    /// There was no room for the request yet.
    Not,
    Open(Open),
    Done,
}

impl<'a, R: ShmRequest> Pending<'a, R> {
    fn new(client: &'a AsyncClient<R>, request: &'a R, deadline: Option<Instant>) -> Self {
        let deadline = scope::until(deadline);
        let key = request.supersedes().cloned();
        let mut pending = Pending {
            client,
            request,
            deadline,
            state: Sent::Not,
            claim: key.and_then(|key| client.claims.claim(key)),
            calling: Calling::begin(R::SERVICE, || client.server_pid()),
            timer: Timeout::new(client.inner.bus.node().due(), deadline),
            waits: None,
        };
        // What goes wrong now goes wrong again when it is polled, and is said then.
        if let Ok(Some(open)) = pending.send(None) {
            pending.state = Sent::Open(open);
        }
        pending
    }

    fn send(&mut self, waker: Option<&Waker>) -> Result<Option<Open>, Error<R>> {
        let inner = &self.client.inner;
        if inner.bus.node().origin().is_forked() {
            return Err(SendError::Forked.into());
        }
        if let Some(claim) = &self.claim {
            // A waker before the look: whoever supersedes it wakes it, or is seen.
            waker.into_iter().for_each(|waker| claim.waits(waker));
            if !claim.is_newest() {
                return Err(CallError::Superseded);
            }
        }
        let (mut strand, mut place) = match self.waits.take() {
            Some(waits) => waits,
            None => (inner.first.clone(), Place::default()),
        };
        let tag = loop {
            let waits = waker.map(|waker| (&mut place, waker));
            match strand.poll_send(self.request, self.deadline, &self.calling, waits) {
                Poll::Pending => {
                    self.waits = Some((strand, place));
                    return Ok(None);
                }
                // Perhaps others took the last places meanwhile.
                Poll::Ready(Err(CallError::TooMany { .. })) => {
                    strand.leave(&mut place);
                    strand = self.client.another()?;
                }
                Poll::Ready(tag) => {
                    strand.leave(&mut place);
                    break tag?;
                }
            }
        };
        if let Some(claim) = &self.claim {
            claim.sent(&strand, tag);
        }
        Ok(Some(Open {
            tag,
            strand,
            wait: inner.wait,
            over: false,
            polls: 0,
            timer: Timeout::new(inner.bus.node().due(), self.deadline),
        }))
    }

    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<Open, Error<R>>> {
        match std::mem::replace(&mut self.state, Sent::Done) {
            Sent::Open(open) => return Poll::Ready(Ok(open)),
            Sent::Not => self.state = Sent::Not,
            Sent::Done => panic!("a future is not polled after its end"),
        }
        let sent = self.send(Some(cx.waker()));
        let sent = match sent {
            Ok(None) if self.timer.poll(cx).is_pending() => return Poll::Pending,
            Ok(None) => Err(SendError::Full.into()),
            Ok(Some(open)) => Ok(open),
            Err(error) => Err(error),
        };
        self.state = Sent::Done;
        if let Err(error) = &sent {
            self.leave();
            self.calling.failed(error);
        }
        Poll::Ready(sent)
    }

    fn leave(&mut self) {
        if let Some((strand, mut place)) = self.waits.take() {
            strand.leave(&mut place);
        }
    }

    /// Waits for the reply on this thread.
    ///
    /// # Errors
    ///
    /// As [`Client::call`](crate::Client::call).
    pub fn wait(self) -> Result<Kept<R::Reply>, CallError<R::Error>> {
        let due = self.client.inner.bus.node().due().clone();
        block_on(&due, self)
    }
}

impl<R: ShmRequest> Drop for Pending<'_, R> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<R: ShmRequest> Future for Pending<'_, R> {
    type Output = Result<Kept<R::Reply>, CallError<R::Error>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if !matches!(self.state, Sent::Open(_)) {
            match self.poll_open(cx) {
                Poll::Ready(Ok(open)) => self.state = Sent::Open(open),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let Sent::Open(open) = &mut self.state else {
            return Poll::Pending;
        };
        for _ in 0..TURN {
            let reply = match open.poll::<R>(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(message)) if open.over => open.end::<R>(message),
                Poll::Ready(Ok(item)) => {
                    // Nobody asked for a stream.
                    open.strand.with_inbox(|inbox| give_back(inbox, &item));
                    continue;
                }
                Poll::Ready(Err(error)) => Err(error),
            };
            if let Err(error) = &reply {
                self.calling.failed(error);
            }
            self.state = Sent::Done;
            return Poll::Ready(reply);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What a call is answered with, item by item, and then in one reply. Dropped before its end, it
/// cancels the call.
pub struct AsyncItems<R: ShmRequest> {
    open: Open,
    end: End,
    /// Behind `open`: it is the newest of its key as long as that.
    _claim: Option<Claim<R::Key>>,
    calling: Calling,
}

/// An item that was taken, or why there is none.
type Taken<R> = Result<Kept<<R as ShmRequest>::Item>, Error<R>>;

/// How far a stream has come.
enum End {
    Open,
    Found(Message),
    Over,
}

impl<R: ShmRequest> AsyncItems<R> {
    /// Waits for the next item; `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// As [`Client::call`](crate::Client::call); then the stream has ended.
    pub async fn next(&mut self) -> Option<Result<Kept<R::Item>, CallError<R::Error>>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`next`](Self::next), for those who write futures by hand.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Taken<R>>> {
        if !matches!(self.end, End::Open) {
            return Poll::Ready(None);
        }
        let message = match self.open.poll::<R>(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(message)) => message,
            Poll::Ready(Err(error)) => {
                self.end = End::Over;
                self.calling.failed(&error);
                return Poll::Ready(Some(Err(error)));
            }
        };
        Poll::Ready(match message.record.role {
            Role::Item => {
                let item = self
                    .open
                    .strand
                    .with_inbox(|inbox| keep::<R, _>(inbox, message));
                if item.is_err() {
                    self.end = End::Over;
                }
                Some(item)
            }
            Role::Message => {
                self.end = End::Found(message);
                None
            }
            Role::Error | Role::Failed | Role::Call | Role::Missed => {
                self.end = End::Over;
                let error = self.open.end::<R>(message).err();
                error.iter().for_each(|error| self.calling.failed(error));
                error.map(Err)
            }
        })
    }

    /// Whether there are no more items.
    #[cfg(feature = "futures")]
    pub(super) fn is_over(&self) -> bool {
        !matches!(self.end, End::Open)
    }

    /// Waits for the reply that ends the stream. Items that were not taken are dropped.
    ///
    /// # Errors
    ///
    /// As [`Client::call`](crate::Client::call); [`CallError::Unanswered`] where
    /// [`next`](Self::next) gave the error already.
    pub async fn finish(mut self) -> Result<Kept<R::Reply>, CallError<R::Error>> {
        while let Some(item) = self.next().await {
            item?;
        }
        if self.open.strand.is_forked() {
            return Err(SendError::Forked.into());
        }
        match std::mem::replace(&mut self.end, End::Over) {
            End::Found(message) => self.open.end::<R>(message),
            End::Open | End::Over => Err(CallError::Unanswered {
                pid: self.open.strand.pid(),
            }),
        }
    }
}

impl<R: ShmRequest> Drop for AsyncItems<R> {
    fn drop(&mut self) {
        if self.open.strand.is_forked() {
            return;
        }
        // A reply that nobody wants goes back like one that was looked at.
        if let End::Found(message) = std::mem::replace(&mut self.end, End::Over) {
            self.open
                .strand
                .end(self.open.tag, |inbox| give_back(inbox, &message));
        }
    }
}
