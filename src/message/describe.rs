//! Descriptions of the archived forms of the standard types.

use std::num::{NonZeroI8, NonZeroU8};

use rkyv::boxed::ArchivedBox;
use rkyv::collections::btree_map::ArchivedBTreeMap;
use rkyv::collections::btree_set::ArchivedBTreeSet;
use rkyv::collections::swiss_table::{ArchivedHashMap, ArchivedHashSet};
use rkyv::net::{ArchivedIpv4Addr, ArchivedIpv6Addr};
use rkyv::option::ArchivedOption;
use rkyv::rend;
use rkyv::result::ArchivedResult;
use rkyv::string::ArchivedString;
use rkyv::time::ArchivedDuration;
use rkyv::tuple;
use rkyv::vec::ArchivedVec;

use crate::memory::layout::CELL;
use crate::schema::{Description, FieldDescription, Form, Primitive, Shape, VariantDescription};

/// The largest alignment, in bytes, of anything in a message: that of the memory it lies in.
pub const MAX_ALIGN: usize = CELL;

/// An archived type whose layout is known as data.
///
/// The derive implements it for the archived form of each message. To use an archived type of your
/// own in a message, through `#[rkyv(with = …)]`, implement it with [`Shape::Opaque`].
///
/// # Examples
///
/// ```
/// use shmbus::message::Describe;
/// use shmbus::schema::Shape;
///
/// #[repr(C)]
/// struct ArchivedColour([u8; 4]);
///
/// impl Describe for ArchivedColour {
///     const SHAPE: Shape = Shape::Opaque { name: "Colour" };
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "the layout of the archived type `{Self}` is not known",
    label = "no description of `{Self}`",
    note = "implement `shmbus::message::Describe` for `{Self}`, if only as `Shape::Opaque`"
)]
pub trait Describe: Sized + 'static {
    /// What the bytes of the type mean.
    const SHAPE: Shape;
    /// The shape with the size and the alignment of the type, which is at most [`MAX_ALIGN`].
    ///
    /// ```compile_fail,E0080
    /// # use shmbus::message::Describe;
    /// # use shmbus::schema::{Description, Shape};
    /// #[repr(C, align(128))]
    /// struct ArchivedPage([u8; 4096]);
    ///
    /// impl Describe for ArchivedPage {
    ///     const SHAPE: Shape = Shape::Opaque { name: "Page" };
    /// }
    /// const PAGE: Description = ArchivedPage::DESCRIPTION;
    /// ```
    const DESCRIPTION: Description = {
        assert!(
            align_of::<Self>() <= MAX_ALIGN,
            "messages lie on cache lines: nothing in them can be aligned to more than 64 bytes"
        );
        Description::of::<Self>(Self::SHAPE)
    };
}

/// Returns the description of `T`: what stands for `T` in the description of another type.
pub const fn describe<T: Describe>() -> Description {
    T::DESCRIPTION
}

macro_rules! primitives {
    ($($archived:ty => $primitive:ident),* $(,)?) => {$(
        impl Describe for $archived {
            const SHAPE: Shape = {
                assert!(size_of::<Self>() == Primitive::$primitive.size() as usize);
                Shape::Primitive(Primitive::$primitive)
            };
        }
    )*};
}

primitives! {
    () => Unit, bool => Bool, rend::char_le => Char,
    u8 => U8, rend::u16_le => U16, rend::u32_le => U32, rend::u64_le => U64, rend::u128_le => U128,
    i8 => I8, rend::i16_le => I16, rend::i32_le => I32, rend::i64_le => I64, rend::i128_le => I128,
    rend::f32_le => F32, rend::f64_le => F64,
}

macro_rules! non_zero {
    ($($archived:ty => $primitive:ident),* $(,)?) => {$(
        impl Describe for $archived {
            const SHAPE: Shape = {
                assert!(size_of::<Self>() == Primitive::$primitive.size() as usize);
                Shape::NonZero(Primitive::$primitive)
            };
        }
    )*};
}

non_zero! {
    NonZeroU8 => U8, rend::NonZeroU16_le => U16, rend::NonZeroU32_le => U32,
    rend::NonZeroU64_le => U64, rend::NonZeroU128_le => U128,
    NonZeroI8 => I8, rend::NonZeroI16_le => I16, rend::NonZeroI32_le => I32,
    rend::NonZeroI64_le => I64, rend::NonZeroI128_le => I128,
}

macro_rules! containers {
    ($([$($generics:tt)*] $archived:ty => $shape:expr),* $(,)?) => {$(
        impl<$($generics)*> Describe for $archived {
            const SHAPE: Shape = $shape;
        }
    )*};
}

containers! {
    [] ArchivedString => Shape::String,
    [] ArchivedBox<str> => Shape::BoxedStr,
    [T: Describe] ArchivedVec<T> => Shape::Vec { item: describe::<T> },
    [T: Describe] ArchivedBox<T> => Shape::Box { item: describe::<T> },
    [T: Describe] ArchivedBox<[T]> => Shape::BoxedSlice { item: describe::<T> },
    [T: Describe] ArchivedOption<T> => Shape::Option { item: describe::<T> },
    [T: Describe, const N: usize] [T; N] => Shape::Array { item: describe::<T>, len: N },
    [K: Describe, V: Describe, H: 'static] ArchivedHashMap<K, V, H> =>
        Shape::HashMap { key: describe::<K>, value: describe::<V> },
    [K: Describe, H: 'static] ArchivedHashSet<K, H> => Shape::HashSet { key: describe::<K> },
    [K: Describe, V: Describe] ArchivedBTreeMap<K, V> =>
        Shape::BTreeMap { key: describe::<K>, value: describe::<V> },
    [K: Describe] ArchivedBTreeSet<K> => Shape::BTreeSet { key: describe::<K> },
    [] ArchivedIpv4Addr => Shape::Opaque { name: "Ipv4Addr" },
    [] ArchivedIpv6Addr => Shape::Opaque { name: "Ipv6Addr" },
}

impl Describe for ArchivedDuration {
    const SHAPE: Shape = {
        // Two numbers in the order of C, of which the fields are not public.
        assert!(size_of::<Self>() == 16 && align_of::<Self>() == 8);
        Shape::Struct {
            name: "Duration",
            form: Form::Named,
            fields: &[
                FieldDescription {
                    name: "secs",
                    offset: 0,
                    child: describe::<rend::u64_le>,
                },
                FieldDescription {
                    name: "nanos",
                    offset: 8,
                    child: describe::<rend::u32_le>,
                },
            ],
        }
    };
}

impl<T: Describe, E: Describe> Describe for ArchivedResult<T, E> {
    // An enum with `repr(u8)`: a variant is a struct of the tag and its field, in the order of C.
    const SHAPE: Shape = Shape::Enum {
        name: "Result",
        tag_size: 1,
        variants: &[
            VariantDescription {
                name: "Ok",
                tag: 0,
                form: Form::Tuple,
                fields: &[FieldDescription {
                    name: "0",
                    offset: align_of::<T>(),
                    child: describe::<T>,
                }],
            },
            VariantDescription {
                name: "Err",
                tag: 1,
                form: Form::Tuple,
                fields: &[FieldDescription {
                    name: "0",
                    offset: align_of::<E>(),
                    child: describe::<E>,
                }],
            },
        ],
    };
}

macro_rules! tuples {
    ($($name:ident: $($ty:ident $index:tt),*;)*) => {$(
        impl<$($ty: Describe),*> Describe for tuple::$name<$($ty),*> {
            const SHAPE: Shape = Shape::Tuple {
                fields: &[$(FieldDescription {
                    name: stringify!($index),
                    offset: std::mem::offset_of!(Self, $index),
                    child: describe::<$ty>,
                }),*],
            };
        }
    )*};
}

tuples! {
    ArchivedTuple1: A 0;
    ArchivedTuple2: A 0, B 1;
    ArchivedTuple3: A 0, B 1, C 2;
    ArchivedTuple4: A 0, B 1, C 2, D 3;
    ArchivedTuple5: A 0, B 1, C 2, D 3, E 4;
    ArchivedTuple6: A 0, B 1, C 2, D 3, E 4, F 5;
    ArchivedTuple7: A 0, B 1, C 2, D 3, E 4, F 5, G 6;
    ArchivedTuple8: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7;
    ArchivedTuple9: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8;
    ArchivedTuple10: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9;
    ArchivedTuple11: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10;
    ArchivedTuple12: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11;
    ArchivedTuple13: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12;
}
