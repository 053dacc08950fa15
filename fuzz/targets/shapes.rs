//! Message types of every shape, and their bytes as they come from anyone.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use shmbus::{Bulk, Bytes, Pinned, ShmMessage};

#[derive(ShmMessage, Debug, Default)]
#[rkyv(derive(Debug))]
pub struct Named {
    pub text: String,
    pub number: u64,
    pub small: u8,
    pub flag: bool,
    pub letter: char,
    pub extra: Option<f32>,
}

#[derive(ShmMessage, Debug)]
#[rkyv(derive(Debug))]
pub enum Mixed {
    Nothing,
    One(u64),
    Two(u8, String),
    Named {
        left: Vec<u16>,
        right: Option<Box<str>>,
    },
    Nested(Named),
    Boxed(Box<Option<Result<u8, String>>>),
}

#[derive(ShmMessage, Debug)]
#[rkyv(derive(Debug))]
pub struct Node {
    pub name: String,
    pub next: Option<Box<Self>>,
    pub children: Vec<Node>,
}

#[derive(ShmMessage, Debug)]
#[rkyv(derive(Debug))]
pub enum Tree {
    Leaf(u16),
    Text(String),
    Branch { left: Box<Tree>, right: Box<Tree> },
}

#[derive(ShmMessage, Debug)]
#[rkyv(derive(Debug))]
pub struct Maps {
    pub hash: HashMap<String, u32>,
    pub set: HashSet<u64>,
    pub tree: BTreeMap<u32, String>,
    pub sorted: BTreeSet<i16>,
    pub nested: HashMap<u8, BTreeMap<String, Vec<u8>>>,
}

#[derive(ShmMessage, Debug)]
#[rkyv(derive(Debug))]
pub struct Everything {
    pub a: (u8, u16, u32, u64, u128),
    pub b: (i8, i16, i32, i64, i128),
    pub c: (f32, f64, bool, char, ()),
    pub id: [u8; 16],
    pub strings: [String; 3],
    pub list: Vec<Vec<Option<u16>>>,
    pub flags: Vec<bool>,
    pub boxed: Box<u64>,
    pub slice: Box<[u32]>,
    pub text: Box<str>,
    pub time: Duration,
    pub non_zero: NonZeroU32,
    pub maybe: Option<NonZeroU32>,
    pub result: Result<u8, String>,
    pub mixed: Vec<Mixed>,
    pub maps: Box<Maps>,
}

#[derive(ShmMessage)]
pub struct Payloads {
    pub bytes: Bytes,
    pub samples: Bulk<f64>,
    pub more: Vec<Bytes>,
    pub text: Option<String>,
}

#[derive(ShmMessage)]
pub struct Pins {
    pub named: Pinned<Named>,
    pub others: Vec<Option<Pinned<Mixed>>>,
}

#[allow(dead_code)] // not used by all
/// Bytes that start on a cache line, and end where their allocation does.
pub struct Exact {
    start: *mut u8,
    layout: Layout,
}

#[allow(dead_code)] // as above
impl Exact {
    pub fn new(bytes: &[u8]) -> Exact {
        let layout = Layout::from_size_align(bytes.len().max(1), 64).expect("it is small");
        // SAFETY: the size is not zero.
        let start = unsafe { alloc(layout) };
        assert!(!start.is_null());
        // SAFETY: it was just allocated for so many bytes.
        unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Exact { start, layout }
    }

    pub fn bytes(&self, len: usize) -> &[u8] {
        assert!(len <= self.layout.size());
        // SAFETY: they were written when it was made.
        unsafe { std::slice::from_raw_parts(self.start, len) }
    }
}

impl Drop for Exact {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start, self.layout) };
    }
}
