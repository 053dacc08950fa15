//! A client that many tasks and threads share.

use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::Pod;

use super::claim::Claims;
use super::items::AsyncItems;
use super::pending::Pending;
use super::strands::Strands;
use crate::bus::Shared as BusShared;
use crate::error::{CallError, ConnectError, SendError};
use crate::lane::{Bulk, Bytes};
use crate::message::ShmRequest;
use crate::service::client::Error;

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
    pub(super) strands: Arc<Strands>,
    pub(super) claims: Arc<Claims<R::Key>>,
    _request: PhantomData<fn(R)>,
}

impl<R: ShmRequest> Clone for AsyncClient<R> {
    fn clone(&self) -> Self {
        AsyncClient {
            strands: self.strands.clone(),
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
        Ok(AsyncClient {
            strands: Arc::new(Strands::open::<R>(bus, deadline)?),
            claims: Claims::new(bus.node().origin()),
            _request: PhantomData,
        })
    }

    /// Sends a request, at once where there is room, and returns what its reply is waited for with.
    ///
    /// Each few hundred calls that are not answered yet share a pair of lanes; one more pair is opened
    /// when all are full, and what has no place until then is sent once it is polled behind that.
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
        Ok(AsyncItems::new(open, pending.take_claim()))
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
        self.strands.first().loan(len)
    }

    /// The process that serves.
    pub fn server_pid(&self) -> u32 {
        self.strands.first().pid()
    }
}
