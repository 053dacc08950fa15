//! Messages that should not be: of another bus's memory, changed while they are archived, invalid.
//!
//! Unsafe code is needed to archive what no honest type archives.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use shmbus::rkyv::Place;
use shmbus::rkyv::rancor::Fallible;
use shmbus::rkyv::vec::{ArchivedVec, VecResolver};
use shmbus::rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use shmbus::{Bytes, SendError, ShmMessage};

use crate::support::{name, open, together};

#[derive(ShmMessage)]
struct Chunk {
    content: Bytes,
}

/// Segments of two buses bear the same numbers: a loan of one means nothing on the other.
#[test]
fn a_loan_of_another_bus_is_copied() {
    const LEN: usize = 9_000;
    let _together = together();
    let (here, there) = (open(&name("here")), open(&name("there")));
    let _receiver = here.receiver::<Chunk>("chunks").expect("nobody else does");
    let mut receiver = there.receiver::<Chunk>("chunks").expect("nobody else does");
    let mut lender = here.sender::<Chunk>("chunks").expect("a receiver is there");
    let mut sender = there
        .sender::<Chunk>("chunks")
        .expect("a receiver is there");
    for turn in 1..20u8 {
        let mut content = lender.loan_bytes(LEN).expect("there is memory");
        content.fill(turn);
        let chunk = Chunk { content };
        sender.send(&chunk).expect("there is room");
        assert!(chunk.content.is_in_place(), "nobody else refers to it");
        let got = receiver.next().expect("not forked").expect("it was sent");
        assert_eq!(got.content.len(), LEN);
        assert!(got.content.iter().all(|byte| *byte == turn));
    }
}

static TURN: AtomicUsize = AtomicUsize::new(0);

/// Archives a byte more each time.
struct Growing;

impl ArchiveWith<Vec<u8>> for Growing {
    type Archived = ArchivedVec<u8>;
    type Resolver = (usize, VecResolver);

    fn resolve_with(_: &Vec<u8>, (len, resolver): Self::Resolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(len, resolver, out);
    }
}

impl<S> SerializeWith<Vec<u8>, S> for Growing
where
    S: Fallible + shmbus::rkyv::ser::Writer + shmbus::rkyv::ser::Allocator + ?Sized,
{
    fn serialize_with(field: &Vec<u8>, serializer: &mut S) -> Result<Self::Resolver, S::Error> {
        let len = field.len() + 100 * TURN.fetch_add(1, Ordering::Relaxed);
        let grown = vec![1; len];
        Ok((len, ArchivedVec::serialize_from_slice(&grown, serializer)?))
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<ArchivedVec<u8>, Vec<u8>, D> for Growing {
    fn deserialize_with(field: &ArchivedVec<u8>, _: &mut D) -> Result<Vec<u8>, D::Error> {
        Ok(field.to_vec())
    }
}

#[derive(ShmMessage)]
struct Restless {
    #[rkyv(with = Growing)]
    before: Vec<u8>,
    content: Bytes,
}

#[test]
fn a_value_that_changes_while_it_is_archived_is_refused_and_overwrites_nothing() {
    let _together = together();
    let bus = open(&name("restless"));
    let _receiver = bus.receiver::<Restless>("all").expect("nobody else does");
    let mut sender = bus.sender::<Restless>("all").expect("a receiver is there");
    let mut content = sender.loan_bytes(20_000).expect("there is memory");
    content.fill(7);
    let message = Restless {
        before: vec![1; 64],
        content,
    };
    for _ in 0..3 {
        let error = sender.send(&message).expect_err("it changes each time");
        assert!(matches!(error, SendError::Encode { .. }), "{error}");
        assert!(message.content.iter().all(|byte| *byte == 7));
    }
}

/// Archives a byte as a bool, whatever it is.
pub(crate) struct Unchecked;

impl ArchiveWith<u8> for Unchecked {
    type Archived = bool;
    type Resolver = ();

    fn resolve_with(field: &u8, (): (), out: Place<bool>) {
        // SAFETY: the place is only written to.
        let to = unsafe { out.ptr() }.cast::<u8>();
        // SAFETY: a byte where a byte is; that it may be no bool is what the test is about, and
        // nobody reads it as one.
        unsafe { to.write(*field) };
    }
}

impl<S: Fallible + ?Sized> SerializeWith<u8, S> for Unchecked {
    fn serialize_with(_: &u8, _: &mut S) -> Result<(), S::Error> {
        Ok(())
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<bool, u8, D> for Unchecked {
    fn deserialize_with(field: &bool, _: &mut D) -> Result<u8, D::Error> {
        Ok(u8::from(*field))
    }
}

#[derive(ShmMessage)]
struct Flag {
    number: u32,
    #[rkyv(with = Unchecked)]
    flag: u8,
}

#[test]
fn nothing_is_taken_of_a_lane_after_an_invalid_message() {
    let _together = together();
    let bus = open(&name("invalid"));
    let mut receiver = bus.receiver::<Flag>("flags").expect("nobody else does");
    let mut sender = bus.sender::<Flag>("flags").expect("a receiver is there");
    for (number, flag) in [(1, 1), (2, 2), (3, 1), (4, 2), (5, 0)] {
        sender.send(&Flag { number, flag }).expect("there is room");
    }
    let first = receiver.next().expect("not forked").expect("it was sent");
    assert_eq!(first.number, 1);
    drop(first);
    assert!(receiver.try_next().expect("not forked").is_none());
    let incidents = bus.take_incidents();
    assert_eq!(incidents.len(), 1, "{incidents:?}");
    assert!(incidents[0].what.contains("Flag"), "{incidents:?}");
    // Its receiver is there for others.
    drop(sender);
    let mut sender = bus
        .sender_timeout::<Flag>("flags", Duration::from_secs(60))
        .expect("a receiver is there");
    sender
        .send(&Flag { number: 6, flag: 1 })
        .expect("there is room");
    let next = receiver.next().expect("not forked").expect("it was sent");
    assert_eq!(next.number, 6);
}
