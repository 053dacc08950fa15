//! Every shape of type goes to bytes and comes back.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::num::NonZeroU32;
use std::time::Duration;

use shmbus::__private::{access, to_bytes, to_owned};
use shmbus::{ShmMessage, schema_of};

/// Archives, checks, copies out, and compares.
#[track_caller]
pub fn round_trip<T: ShmMessage + PartialEq + Debug>(value: T) {
    let bytes = to_bytes(&value).unwrap();
    let archived = access::<T>(&bytes).unwrap();
    assert_eq!(to_owned::<T>(archived).unwrap(), value);
    assert!(schema_of::<T>().root().size as usize <= bytes.len());
}

#[derive(ShmMessage, PartialEq, Debug, Clone, Default)]
pub struct Named {
    pub text: String,
    pub number: u64,
    pub small: u8,
    pub flag: bool,
    private: Option<f32>,
}

#[derive(ShmMessage, PartialEq, Debug)]
struct Tuple(u8, String, (u16, u64));

#[derive(ShmMessage, PartialEq, Debug)]
struct Unit;

#[derive(ShmMessage, PartialEq, Debug)]
struct Braces {}

#[derive(ShmMessage, PartialEq, Debug)]
enum Mixed {
    Nothing,
    One(u64),
    Two(u8, String),
    Named {
        left: Vec<u16>,
        right: Option<Box<str>>,
    },
    Nested(Named),
}

#[derive(ShmMessage, PartialEq, Debug, Clone, Copy)]
enum Numbered {
    Low = 3,
    Next,
    High = 200,
}

#[derive(ShmMessage, PartialEq, Debug)]
struct Everything {
    a: (u8, u16, u32, u64, u128),
    b: (i8, i16, i32, i64, i128),
    c: (f32, f64, bool, char, ()),
    id: [u8; 16],
    strings: [String; 3],
    list: Vec<Vec<Option<u16>>>,
    boxed: Box<u64>,
    slice: Box<[u32]>,
    text: Box<str>,
    time: Duration,
    non_zero: NonZeroU32,
    maybe: Option<NonZeroU32>,
    result: Result<u8, String>,
    map: HashMap<String, u32>,
    set: HashSet<u64>,
    tree: BTreeMap<u32, String>,
    sorted: BTreeSet<i16>,
    r#type: u8,
}

#[derive(ShmMessage, PartialEq, Debug)]
struct Generic<T> {
    item: T,
    items: Vec<T>,
}

#[derive(ShmMessage, PartialEq, Debug)]
enum GenericEnum<T, const N: usize>
where
    T: Clone,
{
    Array([T; N]),
    Next(Option<Box<GenericEnum<T, N>>>),
}

#[derive(ShmMessage, PartialEq, Debug)]
struct Node {
    name: String,
    next: Option<Box<Self>>,
    children: Vec<Node>,
}

#[derive(ShmMessage, PartialEq, Debug)]
enum Tree<T> {
    Leaf(T),
    Branch {
        left: Box<Tree<T>>,
        right: Box<Tree<T>>,
    },
}

#[derive(ShmMessage, PartialEq, Debug)]
struct First {
    #[rkyv(omit_bounds)]
    second: Vec<Second>,
}

#[derive(ShmMessage, PartialEq, Debug)]
struct Second {
    #[rkyv(omit_bounds)]
    first: Option<Box<First>>,
}

#[derive(ShmMessage, PartialEq, Debug)]
#[rkyv(derive(Debug))]
struct Wrapped {
    #[rkyv(with = rkyv::with::AsString)]
    path: std::path::PathBuf,
    #[rkyv(with = rkyv::with::Skip)]
    skipped: usize,
}

#[derive(ShmMessage, PartialEq, Debug)]
struct Sized2<const N: usize> {
    bytes: [u8; N],
}

use shmbus::rkyv;

fn everything() -> Everything {
    Everything {
        a: (1, 2, 3, 4, u128::MAX - 5),
        b: (-1, -2, -3, -4, i128::MIN + 5),
        c: (1.5, -2.5, true, 'ß', ()),
        id: [7; 16],
        strings: [
            "".into(),
            "short".into(),
            "long enough to lie elsewhere".into(),
        ],
        list: vec![vec![], vec![None, Some(9)]],
        boxed: Box::new(11),
        slice: Box::new([1, 2, 3]),
        text: "boxed text".into(),
        time: Duration::new(3, 141),
        non_zero: NonZeroU32::new(5).unwrap(),
        maybe: None,
        result: Err("no".into()),
        map: (0..20).map(|n| (format!("key number {n}"), n)).collect(),
        set: (0..9).collect(),
        tree: (0..40).map(|n| (n, n.to_string())).collect(),
        sorted: (-6..6).collect(),
        r#type: 1,
    }
}

#[test]
fn structs() {
    round_trip(Named {
        text: "a text that is long".into(),
        number: 7,
        ..Named::default()
    });
    round_trip(Tuple(1, "x".into(), (2, 3)));
    round_trip(Unit);
    round_trip(Braces {});
    round_trip(Sized2::<5> { bytes: *b"hello" });
    round_trip(Sized2::<0> { bytes: [] });
}

#[test]
fn enums() {
    round_trip(Mixed::Nothing);
    round_trip(Mixed::One(1));
    round_trip(Mixed::Two(2, "two".into()));
    round_trip(Mixed::Named {
        left: vec![1, 2, 3],
        right: Some("right".into()),
    });
    round_trip(Mixed::Nested(Named::default()));
    round_trip(Numbered::Low);
    round_trip(Numbered::Next);
    round_trip(Numbered::High);
    assert_eq!(to_bytes(&Numbered::Next).unwrap()[0], 4);
}

#[test]
fn the_standard_types() {
    round_trip(everything());
}

#[test]
fn generics() {
    round_trip(Generic {
        item: 1_u8,
        items: vec![2, 3],
    });
    round_trip(Generic {
        item: "one".to_owned(),
        items: vec![],
    });
    round_trip(Generic {
        item: Named::default(),
        items: vec![],
    });
    round_trip(GenericEnum::<String, 2>::Next(Some(Box::new(
        GenericEnum::Array(["a".into(), "b".into()]),
    ))));
    assert_ne!(
        schema_of::<Generic<u8>>().fingerprint(),
        schema_of::<Generic<u16>>().fingerprint(),
    );
}

#[test]
fn recursion() {
    let leaf = || Node {
        name: "leaf".into(),
        next: None,
        children: vec![],
    };
    round_trip(Node {
        name: "root".into(),
        next: Some(Box::new(leaf())),
        children: vec![leaf(), leaf()],
    });
    round_trip(Tree::Branch {
        left: Box::new(Tree::Leaf(1_u32)),
        right: Box::new(Tree::Leaf(2)),
    });
    round_trip(First {
        second: vec![Second {
            first: Some(Box::new(First { second: vec![] })),
        }],
    });
}

#[test]
fn wrappers() {
    round_trip(Wrapped {
        path: "/tmp/x".into(),
        skipped: 0,
    });
    let bytes = to_bytes(&Wrapped {
        path: "/tmp/x".into(),
        skipped: 3,
    })
    .unwrap();
    let archived = access::<Wrapped>(&bytes).unwrap();
    assert_eq!(
        format!("{archived:?}"),
        "ArchivedWrapped { path: \"/tmp/x\", skipped: () }"
    );
}

#[test]
fn fields_of_the_archived_type_are_those_of_the_type() {
    let value = Named {
        text: "text".into(),
        number: 7,
        small: 8,
        flag: true,
        private: Some(1.5),
    };
    let bytes = to_bytes(&value).unwrap();
    let archived: &ArchivedNamed = access::<Named>(&bytes).unwrap();
    assert_eq!(archived.text, "text");
    assert_eq!(
        (archived.number.to_native(), archived.small, archived.flag),
        (7, 8, true)
    );
}
