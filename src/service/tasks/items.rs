//! The items of a stream, as a task takes them.

use std::future::poll_fn;
use std::task::{Context, Poll};

use super::claim::Claim;
use super::open::{Open, keep};
use crate::error::{CallError, SendError};
use crate::lane::{Kept, Message, Role};
use crate::message::ShmRequest;
use crate::service::client::{Error, give_back};
use crate::service::trace::Calling;

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
    pub(super) fn new(open: Open, (claim, calling): (Option<Claim<R::Key>>, Calling)) -> Self {
        AsyncItems {
            open,
            end: End::Open,
            _claim: claim,
            calling,
        }
    }

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
