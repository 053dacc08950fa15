//! Memory of the slab that a client lends to its user.

use bytemuck::Pod;

use super::Client;
use crate::error::SendError;
use crate::lane::{Bulk, Bytes};
use crate::message::ShmRequest;

impl<R: ShmRequest> Client<R> {
    /// Borrows memory of the slab to fill: bytes that the next request then carries uncopied.
    ///
    /// It holds whatever was there before. Put it into a field of type [`Bytes`]; where that field
    /// is sent by another client or sender, or for the second time, its bytes are copied.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Memory`].
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::{Bus, Bytes, ShmMessage};
    ///
    /// #[derive(ShmMessage)]
    /// #[shm(service = "save", reply = Saved)]
    /// struct Save { path: String, content: Bytes }
    ///
    /// #[derive(ShmMessage)]
    /// struct Saved { bytes: u64 }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-loan-bytes")?;
    /// # let mut server = bus.server::<Save>()?;
    /// # let serving = std::thread::spawn(move || {
    /// #     while let Ok(Some(call)) = server.next() {
    /// #         let bytes = call.content.iter().filter(|byte| **byte == 7).count() as u64;
    /// #         let _ = call.reply(&Saved { bytes });
    /// #     }
    /// # });
    /// let client = bus.client::<Save>()?;
    /// let mut content = client.loan_bytes(100_000)?;
    /// content.fill(7); // or read a file into it
    /// let reply = client.call(&Save { path: "a.txt".into(), content })?;
    /// assert_eq!(reply.bytes, 100_000);
    /// # bus.close();
    /// # serving.join().expect("the server does not panic");
    /// # Ok(()) }
    /// ```
    pub fn loan_bytes(&self, len: usize) -> Result<Bytes, SendError> {
        self.loan_slice(len)
    }

    /// As [`loan_bytes`](Self::loan_bytes), for numbers and other plain elements.
    ///
    /// # Errors
    ///
    /// [`SendError::TooLarge`], [`SendError::Memory`].
    ///
    /// # Examples
    ///
    /// ```
    /// use shmbus::{Bulk, Bus, ShmMessage};
    ///
    /// #[derive(ShmMessage)]
    /// #[shm(service = "mean", reply = Mean)]
    /// struct Samples { values: Bulk<u64> }
    ///
    /// #[derive(ShmMessage)]
    /// struct Mean { value: u64 }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let bus = Bus::open("doc-loan-slice")?;
    /// # let mut server = bus.server::<Samples>()?;
    /// # let serving = std::thread::spawn(move || {
    /// #     while let Ok(Some(call)) = server.next() {
    /// #         let sum: u64 = call.values.iter().map(|value| value.to_native()).sum();
    /// #         let value = sum / call.values.len() as u64;
    /// #         let _ = call.reply(&Mean { value });
    /// #     }
    /// # });
    /// let client = bus.client::<Samples>()?;
    /// let mut values = client.loan_slice::<u64>(3)?;
    /// values.copy_from_slice(&[1, 2, 6]);
    /// assert_eq!(client.call(&Samples { values })?.value, 3);
    /// # bus.close();
    /// # serving.join().expect("the server does not panic");
    /// # Ok(()) }
    /// ```
    pub fn loan_slice<T: Pod>(&self, len: usize) -> Result<Bulk<T>, SendError> {
        self.sessions.lease().outbox.borrow_mut().loan(len)
    }
}
