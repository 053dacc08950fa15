//! Handles that say what is not true, and what is looked at how often.
//!
//! Unsafe code is needed to archive handles that no honest process archives.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use shmbus::message::Describe;
use shmbus::rkyv::bytecheck::CheckBytes;
use shmbus::rkyv::rancor::Fallible;
use shmbus::rkyv::with::{ArchiveWith, DeserializeWith, SerializeWith};
use shmbus::rkyv::{Archive, Place, Portable};

use shmbus::schema::{Schema, SchemaError, Shape, decode};
use shmbus::{
    ArchivedPinned, Bus, Fault, PinError, Pinned, Receiver, Sender, ShmMessage, schema_of,
};

use super::{Document, document};
use crate::support::{name, open, together};

/// Archives any four words as a handle.
struct Forged<T>(PhantomData<T>);

impl<T> ArchiveWith<[u64; 4]> for Forged<T> {
    type Archived = ArchivedPinned<T>;
    type Resolver = ();

    fn resolve_with(words: &[u64; 4], (): (), out: Place<Self::Archived>) {
        // SAFETY: the place is only written to.
        let to = unsafe { out.ptr() }.cast::<[u64; 4]>();
        // SAFETY: a handle is four words, of which every bit pattern is one.
        unsafe { to.write(*words) };
    }
}

impl<T, S: Fallible + ?Sized> SerializeWith<[u64; 4], S> for Forged<T> {
    fn serialize_with(_: &[u64; 4], _: &mut S) -> Result<(), S::Error> {
        Ok(())
    }
}

impl<T, D: Fallible + ?Sized> DeserializeWith<ArchivedPinned<T>, [u64; 4], D> for Forged<T> {
    fn deserialize_with(_: &ArchivedPinned<T>, _: &mut D) -> Result<[u64; 4], D::Error> {
        Ok([0; 4])
    }
}

/// What an honest process receives.
#[derive(ShmMessage)]
struct Refer {
    document: Pinned<Document>,
    flags: Pinned<Flags>,
}

/// The same, as another sends it.
#[derive(ShmMessage)]
#[shm(name = "Refer")]
struct ForgedRefer {
    #[rkyv(with = Forged<Document>)]
    document: [u64; 4],
    #[rkyv(with = Forged<Flags>)]
    flags: [u64; 4],
}

#[derive(ShmMessage)]
struct Flags {
    all: [bool; 8],
}

/// The same bytes, and no flags.
#[derive(ShmMessage)]
struct Numbers {
    all: [u8; 8],
}

/// Says what handles to a document and to numbers look like.
#[derive(ShmMessage)]
struct Spy {
    document: Pinned<Document>,
    numbers: Pinned<Numbers>,
}

/// The words of a handle.
fn words<T>(handle: &ArchivedPinned<T>) -> [u64; 4] {
    // SAFETY: a handle is four words.
    unsafe { *std::ptr::from_ref(handle).cast::<[u64; 4]>() }
}

struct Bench {
    there: Bus,
    here: Bus,
    receiver: Receiver<Refer>,
    sender: Sender<ForgedRefer>,
    /// What honest handles look like.
    document: [u64; 4],
    numbers: [u64; 4],
    /// What keeps them.
    _pins: (Pinned<Document>, Pinned<Numbers>),
}

fn bench(of: &str) -> Bench {
    let name = name(of);
    let (there, here) = (open(&name), open(&name));
    let receiver = here.receiver("refer").expect("nobody else does");
    let sender = there.sender("refer").expect("a receiver is there");
    let mut spy = there.receiver::<Spy>("spy").expect("nobody else does");
    let mut to_spy = there.sender::<Spy>("spy").expect("a receiver is there");
    let (document, numbers) = (there.pin(&document(1)), there.pin(&Numbers { all: [7; 8] }));
    let pins = (document.expect("memory"), numbers.expect("memory"));
    let (document, numbers) = (pins.0.clone(), pins.1.clone());
    to_spy
        .send(&Spy { document, numbers })
        .expect("there is room");
    let view = spy.next().expect("not forked").expect("it was sent");
    Bench {
        there,
        here,
        receiver,
        sender,
        document: words(&view.document),
        numbers: words(&view.numbers),
        _pins: pins,
    }
}

/// A message that announces the segment: an honest one is sent first.
fn announce(bench: &mut Bench) {
    let mut sender = bench
        .there
        .sender::<Refer>("refer")
        .expect("a receiver is there");
    let flags = bench
        .there
        .pin(&Flags { all: [true; 8] })
        .expect("there is memory");
    let document = bench._pins.0.clone();
    sender
        .send(&Refer { document, flags })
        .expect("there is room");
    loop {
        let view = bench
            .receiver
            .next()
            .expect("not forked")
            .expect("it was sent")
            .keep();
        // Of a link that has ended, there may be lies that came before.
        if view.document.number() == bench.document[3] {
            if let Ok(document) = view.document.open(&view) {
                assert_eq!(document.version, 1);
                return assert!(view.flags.open(&view).expect("it is true").all[7]);
            }
        }
    }
}

/// Changes the words of an honest handle.
type Lie = fn([u64; 4]) -> [u64; 4];

#[test]
fn a_handle_that_is_not_true_ends_its_link() {
    let _together = together();
    let lies: [(&str, Lie); 11] = [
        ("another segment", |[_, o, l, n]| [77, o, l, n]),
        ("no segment", |[_, o, l, n]| [u64::MAX, o, l, n]),
        ("no alignment", |[s, o, l, n]| [s, o + 4, l, n]),
        ("no place", |[s, _, l, n]| [s, u64::MAX - 63, l, n]),
        ("an end that wraps", |[s, o, _, n]| {
            [s, o, u64::MAX - o + 1, n]
        }),
        ("an end outside", |[s, o, _, n]| [s, o, 1 << 40, n]),
        ("nothing", |[s, o, _, n]| [s, o, 0, n]),
        ("too little", |[s, o, l, n]| [s, o, l - 8, n]),
        ("something else", |[s, o, l, n]| [s, o + 64, l - 64, n]),
        ("the words of the lane", |[_, _, l, n]| [0, 0, l.min(64), n]),
        ("all zero", |_| [0; 4]),
    ];
    for (what, lie) in lies {
        for keeps in [false, true] {
            let mut bench = bench("forged");
            announce(&mut bench);
            let (document, flags) = (lie(bench.document), [0; 4]);
            bench
                .sender
                .send(&ForgedRefer { document, flags })
                .expect("there is room");
            let view = bench
                .receiver
                .next()
                .expect("not forked")
                .expect("it was sent");
            let error = if keeps {
                let kept = view.keep();
                kept.document.open(&kept).err()
            } else {
                let error = view.document.open(&view).err();
                drop(view);
                error
            };
            let Some(PinError::Fault { pid, .. }) = error else {
                panic!("{what}: {error:?}");
            };
            assert_eq!(pid, std::process::id());
            assert_eq!(bench.here.take_incidents().len(), 1, "{what}");
            // The link ends, as soon as the other side learns of it.
            while bench.sender.send(&ForgedRefer { document, flags }).is_ok() {}
            // The receiver is there for others.
            announce(&mut bench);
        }
    }
}

#[test]
fn what_was_validated_as_one_type_is_none_of_another() {
    let _together = together();
    let mut bench = bench("confused");
    announce(&mut bench);
    #[derive(ShmMessage)]
    #[shm(name = "Count")]
    struct Count {
        numbers: Pinned<Numbers>,
    }
    let mut receiver = bench
        .here
        .receiver::<Count>("count")
        .expect("nobody else does");
    let mut sender = bench.there.sender::<Count>("count").expect("it is there");
    let numbers = bench._pins.1.clone();
    sender.send(&Count { numbers }).expect("there is room");
    let view = receiver.next().expect("not forked").expect("it was sent");
    assert_eq!(view.numbers.open(&view).expect("it is true").all[0], 7);
    let (document, flags) = (bench.document, bench.numbers);
    bench
        .sender
        .send(&ForgedRefer { document, flags })
        .expect("there is room");
    let view = bench
        .receiver
        .next()
        .expect("not forked")
        .expect("it was sent");
    assert!(view.document.open(&view).is_ok());
    let error = view.flags.open(&view).err();
    let Some(PinError::Fault { fault, .. }) = error else {
        panic!("seven is no flag: {error:?}");
    };
    assert!(
        matches!(
            fault,
            Fault::Message {
                message: "Flags",
                ..
            }
        ),
        "{fault}"
    );
}

#[test]
fn a_number_is_part_of_what_is_known() {
    let _together = together();
    let mut bench = bench("renumbered");
    announce(&mut bench);
    let [segment, offset, len, number] = bench.document;
    let (document, flags) = ([segment, offset, len, number + 1000], [0; 4]);
    bench
        .sender
        .send(&ForgedRefer { document, flags })
        .expect("there is room");
    let view = bench
        .receiver
        .next()
        .expect("not forked")
        .expect("it was sent");
    // It is true for all that can be seen: looked at once more, and that is all.
    assert_eq!(view.document.open(&view).expect("it is valid").version, 1);
    assert_eq!(view.document.number(), number + 1000);
}

#[test]
fn other_documents_are_other_layouts() {
    #[derive(ShmMessage)]
    #[shm(name = "Refer")]
    struct Other {
        document: Pinned<Numbers>,
        flags: Pinned<Flags>,
    }
    let _together = together();
    let bus = open(&name("pinned-layout"));
    let _receiver = bus.receiver::<Refer>("refer").expect("nobody else does");
    let error = bus.sender::<Other>("refer").err().expect("it differs");
    let error = error.to_string();
    assert!(error.contains("Refer.document"), "{error}");
    assert!(
        error.contains("Numbers") && error.contains("Document"),
        "{error}"
    );
}

#[test]
fn a_schema_says_what_a_handle_is() {
    let forged = ForgedRefer {
        document: [1, 2, 3, 4],
        flags: [5, 6, 7, u64::MAX],
    };
    let bytes = shmbus::__private::to_bytes(&forged).expect("it can be archived");
    let schema = schema_of::<Refer>();
    let written = schema.to_bytes();
    assert_eq!(&Schema::from_bytes(&written).expect("it is one"), schema);
    let decoded = decode(schema, &bytes).expect("it is of this schema");
    let handle = |segment: u64, number: u64| {
        let (offset, len) = (segment + 1, segment + 2);
        json!({ "segment": segment, "offset": offset, "len": len, "number": number })
    };
    let wanted = json!({ "document": handle(1, 4), "flags": handle(5, u64::MAX) });
    assert_eq!(decoded, wanted);
    // Kind, size and alignment of a handle; one of another size is none.
    let row = [18, 32, 0, 0, 0, 8, 0, 0, 0];
    let at = written.windows(row.len()).position(|window| window == row);
    let mut other = written.clone();
    other[at.expect("there is a handle") + 1] = 24;
    let error = Schema::from_bytes(&other).expect_err("it has no such size");
    assert!(matches!(error, SchemaError::Inconsistent { .. }), "{error}");
}

static CHECKS: AtomicUsize = AtomicUsize::new(0);

/// Archives a number whose checks are counted.
struct Counted;

#[repr(C)]
struct ArchivedCounted(<u32 as Archive>::Archived);

// SAFETY: a number of one byte order.
unsafe impl Portable for ArchivedCounted {}

// SAFETY: every bit pattern is one.
unsafe impl<C: Fallible + ?Sized> CheckBytes<C> for ArchivedCounted {
    unsafe fn check_bytes(_: *const Self, _: &mut C) -> Result<(), C::Error> {
        CHECKS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Describe for ArchivedCounted {
    const SHAPE: Shape = Shape::Opaque { name: "Counted" };
}

impl ArchiveWith<u32> for Counted {
    type Archived = ArchivedCounted;
    type Resolver = ();

    fn resolve_with(number: &u32, (): (), out: Place<ArchivedCounted>) {
        // SAFETY: the place is only written to.
        let to = unsafe { out.ptr() };
        // SAFETY: as above.
        unsafe { to.write(ArchivedCounted((*number).into())) };
    }
}

impl<S: Fallible + ?Sized> SerializeWith<u32, S> for Counted {
    fn serialize_with(_: &u32, _: &mut S) -> Result<(), S::Error> {
        Ok(())
    }
}

impl<D: Fallible + ?Sized> DeserializeWith<ArchivedCounted, u32, D> for Counted {
    fn deserialize_with(number: &ArchivedCounted, _: &mut D) -> Result<u32, D::Error> {
        Ok(number.0.to_native())
    }
}

#[derive(ShmMessage)]
struct Checked {
    #[rkyv(with = Counted)]
    number: u32,
}

#[derive(ShmMessage)]
#[shm(service = "look", reply = Looked)]
struct Look {
    checked: Pinned<Checked>,
}

#[derive(ShmMessage)]
struct Looked {
    number: u32,
}

#[derive(ShmMessage)]
struct Glance {
    checked: Pinned<Checked>,
}

#[test]
fn a_pin_is_validated_once() {
    let _together = together();
    let name = name("pinned-once");
    let (there, here) = (open(&name), open(&name));
    let serving = here.serve::<Look, _>(1, |call| {
        let number = call
            .checked
            .open(call)
            .expect("it is kept")
            .number
            .0
            .to_native();
        Ok(Looked { number })
    });
    let serving = serving.expect("nobody else serves");
    let mut receiver = here.receiver::<Glance>("glance").expect("nobody else does");
    let client = there.client::<Look>().expect("it is served");
    let mut sender = there.sender::<Glance>("glance").expect("it is there");
    for turn in 1..=3 {
        let checked = there
            .pin(&Checked { number: turn })
            .expect("there is memory");
        for _ in 0..100 {
            let checked = checked.clone();
            let looked = client.call(&Look { checked }).expect("it is answered");
            assert_eq!(looked.number, turn);
        }
        for _ in 0..100 {
            let checked = checked.clone();
            sender.send(&Glance { checked }).expect("there is room");
            let glance = receiver.next().expect("not forked").expect("it was sent");
            assert_eq!(
                glance.checked.open(&glance).expect("it is kept").number.0,
                turn
            );
            let glance = glance.keep();
            assert_eq!(
                glance.checked.open(&glance).expect("it is kept").number.0,
                turn
            );
        }
        // By whichever message, of whichever service.
        assert_eq!(CHECKS.load(Ordering::Relaxed), turn as usize);
    }
    // Far more than are remembered: looked at anew, and as good.
    let pins: Vec<_> = (0..1_000)
        .map(|number| there.pin(&Checked { number }).expect("there is memory"))
        .collect();
    for (checked, number) in pins.iter().zip(0..) {
        let checked = checked.clone();
        let looked = client.call(&Look { checked }).expect("it is answered");
        assert_eq!(looked.number, number);
    }
    assert_eq!(CHECKS.load(Ordering::Relaxed), 1_003);
    for (checked, number) in pins.iter().zip(0..).take(2) {
        let checked = checked.clone();
        let looked = client.call(&Look { checked }).expect("it is answered");
        assert_eq!(looked.number, number);
    }
    assert_eq!(CHECKS.load(Ordering::Relaxed), 1_005, "it is bounded");
    drop(serving);
}
