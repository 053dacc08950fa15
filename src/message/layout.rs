//! What the bus must know of a message type, made once.

use std::any::TypeId;
use std::sync::OnceLock;

use rkyv::Archive;

use super::{Describe, ShmMessage};
use crate::schema::{Kind, Schema};

/// What the bus must know of a message type.
#[derive(Debug)]
pub struct Layout {
    /// Equal on both sides, or the bytes mean something else there.
    #[allow(dead_code, reason = "compared by the floors above")]
    pub(crate) fingerprint: u128,
    /// The alignment that the start of a message needs, in bytes; at least 8.
    #[allow(dead_code, reason = "used by the floors above")]
    pub(crate) align: usize,
    /// Bytes of the root, which a message ends with.
    #[allow(dead_code, reason = "used by the floors above")]
    pub(crate) root_size: usize,
    /// Whether values of the type can be nested in themselves, and so too deep.
    pub(crate) recursive: bool,
    /// Whether a value may refer to pins, which its record then lends.
    #[allow(dead_code, reason = "used by the floors above")]
    pub(crate) holds_pins: bool,
    /// Where each field lies.
    pub(crate) schema: Schema,
}

impl Layout {
    fn of<T: ShmMessage>() -> Self {
        let schema = Schema::flatten(T::NAME, || <T::Archived as Describe>::DESCRIPTION);
        Self {
            fingerprint: schema.fingerprint(),
            align: schema.max_align().max(8),
            root_size: size_of::<<T as Archive>::Archived>(),
            recursive: schema.is_recursive(),
            holds_pins: schema
                .types()
                .iter()
                .any(|ty| matches!(ty.kind, Kind::Pinned { .. })),
            schema,
        }
    }
}

/// Returns what the bus must know of `T`: a few loads after the first call.
#[inline]
pub(crate) fn layout_of<T: ShmMessage>() -> &'static Layout {
    T::layouts().get::<T>()
}

/// The layouts of one derived type: one, or one for each choice of its generic arguments.
///
/// A list, since a static cannot be generic. It only grows, and each link is set once, so that a
/// reader takes no lock.
#[derive(Debug)]
pub struct Layouts(OnceLock<Box<Entry>>);

#[derive(Debug)]
struct Entry {
    id: TypeId,
    layout: Layout,
    next: Layouts,
}

impl Layouts {
    /// Starts an empty list, as the initial value of a static.
    #[allow(
        clippy::new_without_default,
        reason = "only ever the value of a static"
    )]
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    #[inline]
    fn get<T: ShmMessage>(&'static self) -> &'static Layout {
        let id = TypeId::of::<T>();
        let mut list = self;
        loop {
            let entry = list.0.get_or_init(|| {
                Box::new(Entry {
                    id,
                    layout: Layout::of::<T>(),
                    next: Layouts::new(),
                })
            });
            if entry.id == id {
                return &entry.layout;
            }
            list = &entry.next;
        }
    }
}
