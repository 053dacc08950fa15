//! Archiving into a destination: what it takes, what it needs, and what it leaves alone.
//!
//! Unsafe code: an allocator that counts, and destinations that are bytes of the test.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;

use shmbus::__private::{access, encode, to_bytes};
use shmbus::message::SlotWriter;
use shmbus::{ShmMessage, schema_of};

use super::shapes::{Generic, Node, everything};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is asked of the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller promises what `alloc` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller promises what `dealloc` asks for.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(f: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    f();
    ALLOCATIONS.get() - before
}

fn writer(bytes: &mut [u8]) -> SlotWriter {
    // SAFETY: the tests do not touch the bytes until they are done with the writer.
    unsafe { SlotWriter::new(bytes.as_mut_ptr(), bytes.len()) }
}

#[derive(ShmMessage)]
struct Reply {
    items: Vec<Item>,
    by_name: HashMap<String, u32>,
}

#[derive(ShmMessage)]
struct Item {
    label: String,
    detail: Option<String>,
}

fn reply(len: u32) -> Reply {
    let detail = |n| (n % 2 == 0).then(|| format!("the detail of item {n}"));
    Reply {
        items: (0..len)
            .map(|n| Item {
                label: format!("label {n}"),
                detail: detail(n),
            })
            .collect(),
        by_name: (0..len).map(|n| (format!("name {n}"), n)).collect(),
    }
}

#[test]
fn nothing_is_allocated_once_a_thread_is_warm() {
    let (reply, generic) = (
        reply(300),
        Generic {
            item: 1_u8,
            items: vec![1; 100],
        },
    );
    let node = Node {
        name: "root".into(),
        next: None,
        children: vec![],
    };
    let mut bytes = to_bytes(&reply).unwrap();
    to_bytes(&node).unwrap();
    schema_of::<Generic<u8>>();
    schema_of::<Generic<u16>>();
    let counted = allocations(|| {
        for _ in 0..10 {
            encode(&reply, writer(&mut bytes)).unwrap();
            access::<Reply>(&bytes).unwrap();
            encode(&generic, SlotWriter::counting()).unwrap();
            encode(&node, SlotWriter::counting()).unwrap();
            schema_of::<Generic<u16>>();
        }
    });
    assert_eq!(counted, 0);
}

#[test]
fn a_destination_of_any_size() {
    let value = everything();
    let mut whole = to_bytes(&value).unwrap();
    let needed = whole.len();
    for capacity in 0..=needed {
        whole.fill(0xEE);
        let said = encode(&value, writer(&mut whole[..capacity])).unwrap();
        assert_eq!(said, needed);
        assert!(whole[capacity..].iter().all(|byte| *byte == 0xEE));
    }
    access::<super::shapes::Everything>(&whole).unwrap();
}

#[test]
fn archiving_within_archiving() {
    use shmbus::rkyv::rancor::Fallible;
    use shmbus::rkyv::with::{ArchiveWith, SerializeWith};
    use shmbus::rkyv::{Archive, Deserialize, Place, Serialize};

    /// Archives another message while it is archived itself.
    struct Nested;

    impl ArchiveWith<u32> for Nested {
        type Archived = <u32 as Archive>::Archived;
        type Resolver = ();

        fn resolve_with(field: &u32, resolver: (), out: Place<Self::Archived>) {
            field.resolve(resolver, out);
        }
    }

    impl<S: Fallible + ?Sized> SerializeWith<u32, S> for Nested {
        fn serialize_with(field: &u32, serializer: &mut S) -> Result<(), S::Error> {
            encode(&reply(*field), SlotWriter::counting()).unwrap();
            field.serialize(serializer)
        }
    }

    impl<D: Fallible + ?Sized>
        shmbus::rkyv::with::DeserializeWith<<u32 as Archive>::Archived, u32, D> for Nested
    {
        fn deserialize_with(
            field: &<u32 as Archive>::Archived,
            deserializer: &mut D,
        ) -> Result<u32, D::Error> {
            field.deserialize(deserializer)
        }
    }

    #[derive(ShmMessage)]
    struct Outer {
        items: Vec<Inner>,
    }

    #[derive(ShmMessage)]
    struct Inner {
        text: String,
        #[rkyv(with = Nested)]
        len: u32,
    }

    let inner = |len| Inner {
        text: "a text of some length".into(),
        len,
    };
    let outer = Outer {
        items: (0..30).map(inner).collect(),
    };
    let bytes = to_bytes(&outer).unwrap();
    let archived = access::<Outer>(&bytes).unwrap();
    assert!(
        archived
            .items
            .iter()
            .all(|item| item.text == "a text of some length")
    );
    assert_eq!(archived.items[29].len, 29);
}
