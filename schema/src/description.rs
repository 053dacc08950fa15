//! What a derive emits: the form of one archived type as a constant.

use std::any;

use crate::model::{Form, Primitive};

/// Names a type that another one contains.
///
/// A function rather than a value, so that the description of a recursive type is finite.
pub type Child = fn() -> Description;

/// The form of one archived type.
///
/// # Examples
///
/// ```
/// use shmbus_schema::{Description, Form, Kind, Primitive, Schema, Shape};
///
/// fn byte() -> Description {
///     Description::of::<u8>(Shape::Primitive(Primitive::U8))
/// }
///
/// let schema = Schema::flatten("bytes", || Description::of::<[u8; 4]>(Shape::Array { item: byte, len: 4 }));
/// assert_eq!(schema.types().len(), 2);
/// assert_eq!(schema.root().size, 4);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Tells types apart while a schema is flattened; not part of the schema.
    pub id: fn() -> any::TypeId,
    /// Bytes that the type takes in place, without what its pointers lead to.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// What the bytes mean.
    pub shape: Shape,
}

impl Description {
    /// Describes the archived type `T` by its size, its alignment and a shape.
    pub const fn of<T: 'static>(shape: Shape) -> Self {
        Self {
            id: any::TypeId::of::<T>,
            size: size_of::<T>(),
            align: align_of::<T>(),
            shape,
        }
    }
}

/// What the bytes of a type mean, with children as functions.
///
/// The variants are those of [`Kind`](crate::Kind), where each is explained.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Shape {
    Primitive(Primitive),
    NonZero(Primitive),
    String,
    BoxedStr,
    Vec {
        item: Child,
    },
    Box {
        item: Child,
    },
    BoxedSlice {
        item: Child,
    },
    Option {
        item: Child,
    },
    Array {
        item: Child,
        len: usize,
    },
    Tuple {
        fields: &'static [FieldDescription],
    },
    Struct {
        name: &'static str,
        form: Form,
        fields: &'static [FieldDescription],
    },
    Enum {
        name: &'static str,
        tag_size: usize,
        variants: &'static [VariantDescription],
    },
    HashMap {
        key: Child,
        value: Child,
    },
    HashSet {
        key: Child,
    },
    BTreeMap {
        key: Child,
        value: Child,
    },
    BTreeSet {
        key: Child,
    },
    Pinned {
        item: Child,
    },
    Opaque {
        name: &'static str,
    },
}

/// A field of a struct, a tuple or a variant.
#[derive(Clone, Copy, Debug)]
pub struct FieldDescription {
    /// The field's name, or its position in a tuple.
    pub name: &'static str,
    /// Bytes from the start of the struct or of the enum.
    pub offset: usize,
    /// The archived type of the field.
    pub child: Child,
}

/// A variant of an enum.
#[derive(Clone, Copy, Debug)]
pub struct VariantDescription {
    /// The variant's name.
    pub name: &'static str,
    /// The value of the tag that selects it.
    pub tag: u64,
    /// Whether the fields have names.
    pub form: Form,
    /// The fields, with offsets from the start of the enum.
    pub fields: &'static [FieldDescription],
}
