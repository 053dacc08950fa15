//! A stream of items as `futures` has streams.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::{FusedStream, Stream};

use super::AsyncItems;
use crate::error::CallError;
use crate::lane::Kept;
use crate::message::ShmRequest;

impl<R: ShmRequest> Stream for AsyncItems<R> {
    type Item = Result<Kept<R::Item>, CallError<R::Error>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        AsyncItems::poll_next(self.get_mut(), cx)
    }
}

impl<R: ShmRequest> FusedStream for AsyncItems<R> {
    fn is_terminated(&self) -> bool {
        self.is_over()
    }
}
