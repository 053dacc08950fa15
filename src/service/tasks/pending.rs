//! A call whose reply a task waits for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::OfBus;
use super::claim::Claim;
use super::client::AsyncClient;
use super::open::Open;
use super::strand::Strand;
use super::strands::{Lanes, NoLanes};
use crate::error::{CallError, ConnectError, Ended, Fault, SendError};
use crate::lane::{Kept, Parcel};
use crate::link::HANDSHAKE;
use crate::message::ShmRequest;
use crate::service::client::{Error, give_back, may_go_on, said_of};
use crate::service::connect::{Joined, may_come};
use crate::service::scope;
use crate::service::trace::Calling;
use crate::wait::block::block_on;
use crate::wait::tasks::{Place, Timeout};

/// After so many items that nobody asked for, others have their turn.
const TURN: usize = 1024;
/// How often a request is sent, or connected for, before others have their turn.
const LOOKS: usize = 8;
/// How long it takes until a successor is looked for that nobody may tell of.
const RETRY: Duration = Duration::from_millis(50);

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
    /// Set while there is no room for the request, or nobody to get it.
    timer: Timeout,
    /// Where it waits for room, if it does.
    waits: Option<(OfBus<Strand>, Place)>,
    /// Where the server is gone.
    succession: Succession,
}

enum Sent {
    /// There was no room for the request yet, or nobody to get it.
    Not,
    Open(Open),
    Done,
}

/// What is known of a request whose server is gone, and that waits for a successor.
#[derive(Default)]
struct Succession {
    /// The request, if it was sent through the slab and may be sent again.
    large: Option<Parcel>,
    gone: Option<Gone>,
    place: Place,
    /// Lanes that are being opened: which they are, where they are waited for, and until when.
    joined: Joined,
    coming: (Option<Instant>, Place),
    /// When it is looked for one again, whether or not anybody tells of one.
    retry: Option<Timeout>,
}

/// What its user is told if no successor comes.
enum Gone {
    Before(ConnectError),
    Meanwhile {
        pid: u32,
        fault: Option<Fault>,
        ended: Option<Ended>,
    },
}

impl Gone {
    fn new<E>(error: CallError<E>) -> Option<Gone> {
        match error {
            CallError::Connect(none) => Some(Gone::Before(none)),
            CallError::Lost { pid, fault, ended } => Some(Gone::Meanwhile { pid, fault, ended }),
            _ => None,
        }
    }
}

impl<E> From<Gone> for CallError<E> {
    fn from(gone: Gone) -> Self {
        match gone {
            Gone::Before(none) => none.into(),
            Gone::Meanwhile { pid, fault, ended } => CallError::Lost { pid, fault, ended },
        }
    }
}

impl Succession {
    /// When to look again at lanes that are late then. A request that may be sent twice waits for others; any other
    /// as long as one peer may take.
    fn until<R: ShmRequest>(&mut self, due: Instant) -> Option<Instant> {
        if R::IDEMPOTENT {
            return Some(due);
        }
        let now = Instant::now();
        let limit = *self.coming.0.get_or_insert(now + HANDSHAKE);
        (now < limit).then_some(due.min(limit))
    }

    /// There are lanes to somebody.
    fn found(&mut self) {
        (self.coming.0, self.joined) = (None, None);
        if matches!(self.gone, Some(Gone::Before(_))) {
            self.gone = None;
        }
    }
}

impl<'a, R: ShmRequest> Pending<'a, R> {
    pub(super) fn new(
        client: &'a AsyncClient<R>,
        request: &'a R,
        deadline: Option<Instant>,
    ) -> Self {
        let deadline = scope::until(deadline);
        let key = request.supersedes().cloned();
        let mut pending = Pending {
            client,
            request,
            deadline,
            state: Sent::Not,
            claim: key.and_then(|key| client.claims.claim(key)),
            calling: Calling::begin(R::SERVICE, || client.server_pid()),
            timer: Timeout::new(client.strands.bus.node().due(), deadline),
            waits: None,
            succession: Succession::default(),
        };
        // What goes wrong now goes wrong again when it is polled, and is said then.
        if let Ok(Some(open)) = pending.send(None) {
            pending.state = Sent::Open(open);
        }
        pending
    }

    fn send(&mut self, waker: Option<&Waker>) -> Result<Option<Open>, Error<R>> {
        let strands = &self.client.strands;
        self.succession.retry = None;
        if strands.is_forked() {
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
            None => (strands.first(), Place::default()),
        };
        let mut is_first = true;
        let mut looks = 0..LOOKS;
        let tag = loop {
            if looks.next().is_none() {
                // Servers come and go: others have their turn, and then it looks again.
                waker.into_iter().for_each(Waker::wake_by_ref);
                return Ok(None);
            }
            let waits = waker.map(|waker| (&mut place, waker));
            let request = (self.request, &mut self.succession.large);
            match strand.poll_send(request, self.deadline, &self.calling, waits) {
                Poll::Pending => {
                    self.succession.found();
                    self.waits = Some((strand, place));
                    return Ok(None);
                }
                // Perhaps others took the last places meanwhile.
                Poll::Ready(Err(error @ CallError::TooMany { .. })) => {
                    strand.leave(&mut place);
                    let Succession { joined, coming, .. } = &mut self.succession;
                    let waits = waker.map(|waker| (&mut coming.1, waker));
                    match strands.another::<R>(joined, waits)? {
                        Lanes::Open(next) => strand = next,
                        Lanes::Coming { due, .. } => match self.succession.until::<R>(due) {
                            Some(due) => {
                                self.look_again(due);
                                return Ok(None);
                            }
                            None => return Err(error),
                        },
                    }
                }
                Poll::Ready(Err(error)) if may_go_on::<R>(&error, is_first) => {
                    is_first = false;
                    strand.leave(&mut place);
                    match self.successor(error, waker)? {
                        Some(next) => strand = next,
                        None => return Ok(None),
                    }
                }
                Poll::Ready(tag) => {
                    strand.leave(&mut place);
                    self.succession.found();
                    break tag?;
                }
            }
        };
        if let Some(claim) = &self.claim {
            claim.sent(&strand, tag);
        }
        let timer = Timeout::new(strands.bus.node().due(), self.deadline);
        Ok(Some(Open::new((strand, tag), strands.wait, timer)))
    }

    /// Lanes to whoever offers the service in place of a server that is gone. `None` where somebody may yet, for
    /// which a request that may be sent twice waits.
    #[cold]
    fn successor(
        &mut self,
        error: Error<R>,
        waker: Option<&Waker>,
    ) -> Result<Option<OfBus<Strand>>, Error<R>> {
        let node = self.client.strands.bus.node();
        let Succession {
            gone,
            place,
            coming,
            joined,
            ..
        } = &mut self.succession;
        if R::IDEMPOTENT {
            // A waker before the look: whoever offers it wakes this, or is found.
            let kept = waker.map(|waker| node.await_port(R::SERVICE, place, waker));
            kept.transpose().map_err(ConnectError::from)?;
        }
        let waits = waker.map(|waker| (&mut coming.1, waker));
        let none = match self.client.strands.successor::<R>(joined, waits) {
            Ok(Lanes::Open(strand)) => return Ok(Some(strand)),
            Ok(Lanes::Coming { due, late }) => {
                let said = said_of(gone.take().map_or(error, Error::<R>::from), late);
                let Some(due) = self.succession.until::<R>(due) else {
                    return Err(said);
                };
                self.look_again(due);
                self.succession.gone = Gone::new(said);
                return Ok(None);
            }
            Err(none) => none,
        };
        let NoLanes {
            error: none,
            is_refused,
        } = none;
        coming.0 = None;
        let waits = R::IDEMPOTENT && may_come(node, &none);
        // Of anything else nobody may tell when it is over: descriptors that are lacking, for one; or it was told
        // before the peer's refusal came.
        let is_told = matches!(none, ConnectError::NoServer { .. }) && !is_refused;
        let said = said_of(gone.take().map_or(error, Error::<R>::from), none);
        if !waits {
            return Err(said);
        }
        *gone = Gone::new(said);
        if !is_told {
            self.look_again(Instant::now() + RETRY);
        }
        Ok(None)
    }

    /// Looks at the latest then.
    fn look_again(&mut self, at: Instant) {
        let due = self.client.strands.bus.node().due();
        self.succession.retry = Some(Timeout::new(due, Some(at)));
    }

    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<Open, Error<R>>> {
        match std::mem::replace(&mut self.state, Sent::Done) {
            Sent::Open(open) => return Poll::Ready(Ok(open)),
            Sent::Not => self.state = Sent::Not,
            Sent::Done => panic!("a future is not polled after its end"),
        }
        let sent = self.send(Some(cx.waker()));
        let sent = match sent {
            Ok(None) if self.timer.poll(cx).is_pending() => {
                let retry = self.succession.retry.as_mut();
                if retry.is_some_and(|retry| retry.poll(cx).is_ready()) {
                    cx.waker().wake_by_ref();
                }
                return Poll::Pending;
            }
            Ok(None) => Err(match self.succession.gone.take() {
                None => SendError::Full.into(),
                Some(Gone::Before(ConnectError::NoAnswer { .. })) => CallError::TimedOut,
                Some(gone) => gone.into(),
            }),
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
        self.client.strands.leave(&mut self.succession.coming.1);
        let node = self.client.strands.bus.node();
        node.await_no_more(R::SERVICE, &mut self.succession.place);
    }

    /// What of it goes over to the stream that it opened.
    pub(super) fn take_claim(&mut self) -> (Option<Claim<R::Key>>, Calling) {
        (self.claim.take(), std::mem::take(&mut self.calling))
    }

    /// Waits for the reply on this thread.
    ///
    /// # Errors
    ///
    /// As [`Client::call`](crate::Client::call).
    pub fn wait(self) -> Result<Kept<R::Reply>, CallError<R::Error>> {
        let due = self.client.strands.bus.node().due().clone();
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
        for _ in 0..LOOKS {
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
            match poll_reply::<R>(open, cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error))
                    if may_go_on::<R>(&error, false) && !self.timer.is_over() =>
                {
                    self.succession.gone = Gone::new(error);
                    self.state = Sent::Not;
                }
                Poll::Ready(reply) => {
                    if let Err(error) = &reply {
                        self.calling.failed(error);
                    }
                    self.state = Sent::Done;
                    return Poll::Ready(reply);
                }
            }
        }
        // Each of its servers was gone before it answered: others have their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The last word on a call, once it has come.
fn poll_reply<R: ShmRequest>(
    open: &mut Open,
    cx: &mut Context<'_>,
) -> Poll<Result<Kept<R::Reply>, Error<R>>> {
    for _ in 0..TURN {
        match open.poll::<R>(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(message)) if open.over => {
                return Poll::Ready(open.end::<R>(message));
            }
            // Nobody asked for a stream.
            Poll::Ready(Ok(item)) => open.strand.with_inbox(|inbox| give_back(inbox, &item)),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}
