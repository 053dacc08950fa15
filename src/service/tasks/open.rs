//! A call of a task that was sent.

use std::task::{Context, Poll};

use super::OfBus;
use super::strand::Strand;
use crate::error::{CallError, Fault};
use crate::lane::{Inbox, Kept, Message, Role};
use crate::message::{ShmMessage, ShmRequest};
use crate::service::client::{Error, give_back, lost};
use crate::service::failure::{unanswered, unreadable};
use crate::wait::Wait;
use crate::wait::tasks::Timeout;

/// A call that was sent, and is cancelled when this is dropped before its end.
pub(super) struct Open {
    pub(super) strand: OfBus<Strand>,
    pub(super) tag: u16,
    wait: Wait,
    pub(super) over: bool,
    timer: Timeout,
    polls: u32,
}

impl Open {
    pub(super) fn new((strand, tag): (OfBus<Strand>, u16), wait: Wait, timer: Timeout) -> Open {
        Open {
            strand,
            tag,
            wait,
            over: false,
            timer,
            polls: 0,
        }
    }

    pub(super) fn poll<R: ShmRequest>(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Message, Error<R>>> {
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
    pub(super) fn end<R: ShmRequest>(&self, message: Message) -> Result<Kept<R::Reply>, Error<R>> {
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

pub(super) fn keep<R: ShmRequest, T: ShmMessage>(
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
