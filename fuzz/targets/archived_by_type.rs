//! Bytes as messages: whatever is valid is read in full, copied out, and the same to the decoder of schemas.
#![no_main]

mod shapes;

use std::fmt::Debug;

use libfuzzer_sys::{Corpus, fuzz_target};
use shapes::{Everything, Exact, Maps, Mixed, Named, Node, Payloads, Pins, Tree};
use shmbus::__private::{access, to_bytes, to_owned};
use shmbus::schema::{DecodeError, decode};
use shmbus::{ShmMessage, schema_of};

/// Whether it is a message; then it is looked at in full.
fn is_message<T: ShmMessage>(bytes: &[u8], look: impl Fn(&T::Archived)) -> bool {
    let Ok(archived) = access::<T>(bytes) else {
        return false;
    };
    look(archived);
    // Both look at the same bytes: neither may see less than the other.
    match decode(schema_of::<T>(), bytes) {
        Ok(_) | Err(DecodeError::Limit { .. }) => {}
        Err(error) => panic!("valid, and not read by its schema: {error}"),
    }
    true
}

/// As [`is_message`], of what an honest process can send on.
fn is_honest<T: ShmMessage<Archived: Debug> + Debug>(bytes: &[u8]) -> bool {
    is_message::<T>(bytes, |archived| {
        assert!(!format!("{archived:?}").is_empty());
        let value = to_owned::<T>(archived).expect("these fields refuse nothing");
        assert!(!format!("{value:?}").is_empty());
        let again = to_bytes(&value).expect("it was a message before");
        access::<T>(&again).expect("it was just archived");
    })
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&which, bytes)) = data.split_first() else {
        return Corpus::Reject;
    };
    let exact = Exact::new(bytes);
    let bytes = exact.bytes(bytes.len());
    match which % 8 {
        0 => is_honest::<Named>(bytes),
        1 => is_honest::<Mixed>(bytes),
        2 => is_honest::<Node>(bytes),
        3 => is_honest::<Tree>(bytes),
        4 => is_honest::<Maps>(bytes),
        5 => is_honest::<Everything>(bytes),
        6 => is_message::<Payloads>(bytes, |archived| {
            let read = archived.bytes.iter().fold(0u8, |sum, byte| sum ^ byte);
            let samples = archived
                .samples
                .iter()
                .filter(|x| x.to_native().is_nan())
                .count();
            std::hint::black_box((read, samples));
            let value = to_owned::<Payloads>(archived).expect("these fields refuse nothing");
            assert_eq!(value.bytes.len(), archived.bytes.len());
        }),
        // What handles refer to is not looked at without a bus.
        _ => is_message::<Pins>(bytes, |archived| {
            std::hint::black_box(archived.others.iter().flatten().count());
        }),
    };
    Corpus::Keep
});
