//! The schema itself: a table of types in which a type is a number.

use std::fmt;

/// The place of a type in [`Schema::types`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "json", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "json", serde(transparent))]
pub struct TypeId(pub u32);

impl TypeId {
    /// Returns the number as an index of [`Schema::types`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The archived layout of one message.
///
/// The table holds every type once. It is numbered in the order in which the types are met from the
/// root, so that equal layouts have equal tables; the root is the first.
///
/// # Examples
///
/// ```
/// use shmbus_schema::{Description, Primitive, Schema, Shape};
///
/// let schema = Schema::flatten("count", || Description::of::<u32>(Shape::Primitive(Primitive::U32)));
/// let same = Schema::from_bytes(&schema.to_bytes())?;
/// assert_eq!(same, schema);
/// assert_eq!(same.fingerprint(), schema.fingerprint());
/// # Ok::<(), shmbus_schema::SchemaError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schema {
    pub(crate) name: String,
    pub(crate) types: Vec<TypeDef>,
}

impl Schema {
    /// Returns the chosen name of the message: no Rust path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns all types that can be reached from the message, the message first.
    pub fn types(&self) -> &[TypeDef] {
        &self.types
    }

    /// Returns the place of the message's own type, which is the first.
    pub fn root_id(&self) -> TypeId {
        TypeId(0)
    }

    /// Returns the message's own type.
    pub fn root(&self) -> &TypeDef {
        &self.types[0]
    }

    /// Returns a type by its number, or `None` where the table has no such row.
    pub fn get(&self, id: TypeId) -> Option<&TypeDef> {
        self.types.get(id.index())
    }

    /// Returns the largest alignment, in bytes, of any type that can be reached.
    ///
    /// The start of a message must have it. What lies inside an [`Kind::Opaque`] type is not
    /// known, so that one counts at least 16.
    pub fn max_align(&self) -> usize {
        let align = |ty: &TypeDef| match ty.kind {
            Kind::Opaque { .. } => ty.align.max(16),
            _ => ty.align,
        };
        self.types.iter().map(align).max().unwrap_or(1) as usize
    }

    /// Tells whether a type of the message can contain a value of itself.
    ///
    /// Only such messages can be nested deeper than their schema is.
    pub fn is_recursive(&self) -> bool {
        // A type whose children are all settled is settled; what remains lies on a cycle, or leads
        // to one.
        let mut settled = vec![false; self.types.len()];
        loop {
            let mut changed = false;
            for index in (0..self.types.len()).rev() {
                let ready = !settled[index]
                    && self.types[index]
                        .kind
                        .children()
                        .all(|child| settled[child.index()]);
                settled[index] |= ready;
                changed |= ready;
            }
            if !changed {
                return settled.contains(&false);
            }
        }
    }
}

/// One type: how large it is, how it is aligned, and what its bytes mean.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "json", derive(serde::Serialize, serde::Deserialize))]
pub struct TypeDef {
    /// Bytes that the type takes in place, without what its pointers lead to.
    pub size: u32,
    /// Alignment in bytes, a power of two.
    pub align: u32,
    /// What the bytes mean.
    #[cfg_attr(feature = "json", serde(flatten))]
    pub kind: Kind,
}

/// What the bytes of a type mean.
///
/// A *pointer* is an `i32`: bytes from the pointer's own address to its target.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "json", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "json",
    serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)
)]
#[non_exhaustive]
pub enum Kind {
    /// A number, a `bool`, a `char` or `()`.
    Primitive {
        /// Which one.
        primitive: Primitive,
    },
    /// A whole number that is never zero.
    NonZero {
        /// Which number.
        primitive: Primitive,
    },
    /// UTF-8 text of up to 8 bytes in place, or elsewhere: length, then offset from the string.
    String,
    /// UTF-8 text elsewhere: pointer, length.
    BoxedStr,
    /// A sequence elsewhere: pointer, `u32` length.
    Vec {
        /// The elements.
        item: TypeId,
    },
    /// One value elsewhere: pointer.
    Box {
        /// The value.
        item: TypeId,
    },
    /// A sequence elsewhere: pointer, `u32` length.
    BoxedSlice {
        /// The elements.
        item: TypeId,
    },
    /// A `u8` tag, 0 for none and 1 for some, and the value at its own alignment.
    Option {
        /// The value.
        item: TypeId,
    },
    /// Elements in a row.
    Array {
        /// The elements.
        item: TypeId,
        /// How many there are.
        len: u32,
    },
    /// Values side by side, as in a C struct.
    Tuple {
        /// The values in order.
        fields: Vec<Field>,
    },
    /// Named values side by side, as in a C struct.
    Struct {
        /// The struct's name, without a path.
        name: String,
        /// Whether the fields have names.
        form: Form,
        /// The fields in order.
        fields: Vec<Field>,
    },
    /// A tag, and after it the fields of the variant that the tag selects.
    Enum {
        /// The enum's name, without a path.
        name: String,
        /// Bytes of the tag at the start: 1, 2, 4 or 8.
        tag_size: u32,
        /// The variants in order.
        variants: Vec<Variant>,
    },
    /// A hash table of pairs: pointer to the control bytes, length, capacity.
    HashMap {
        /// The keys.
        key: TypeId,
        /// The values.
        value: TypeId,
    },
    /// A hash table of keys: pointer to the control bytes, length, capacity.
    HashSet {
        /// The keys.
        key: TypeId,
    },
    /// A B-tree of pairs, five in a node: pointer to the root node, length.
    #[cfg_attr(feature = "json", serde(rename = "btree_map"))]
    BTreeMap {
        /// The keys.
        key: TypeId,
        /// The values.
        value: TypeId,
    },
    /// A B-tree of keys, five in a node: pointer to the root node, length.
    #[cfg_attr(feature = "json", serde(rename = "btree_set"))]
    BTreeSet {
        /// The keys.
        key: TypeId,
    },
    /// A message elsewhere, which was sent once for any number that refer to it: where it lies, as segment,
    /// offset and length, and a number, each a `u64`.
    Pinned {
        /// That message.
        item: TypeId,
    },
    /// Bytes of which only the name, the size and the alignment are known.
    Opaque {
        /// What to call it.
        name: String,
    },
}

impl Kind {
    /// Returns the types that this one contains or points to, in order.
    pub fn children(&self) -> impl Iterator<Item = TypeId> + '_ {
        let (one, two, fields, variants): (_, _, &[Field], &[Variant]) = match self {
            Kind::Vec { item }
            | Kind::Box { item }
            | Kind::BoxedSlice { item }
            | Kind::Option { item }
            | Kind::Array { item, .. }
            | Kind::Pinned { item } => (Some(*item), None, &[], &[]),
            Kind::HashMap { key, value } | Kind::BTreeMap { key, value } => {
                (Some(*key), Some(*value), &[], &[])
            }
            Kind::HashSet { key } | Kind::BTreeSet { key } => (Some(*key), None, &[], &[]),
            Kind::Tuple { fields } | Kind::Struct { fields, .. } => (None, None, fields, &[]),
            Kind::Enum { variants, .. } => (None, None, &[], variants),
            Kind::Primitive { .. }
            | Kind::NonZero { .. }
            | Kind::String
            | Kind::BoxedStr
            | Kind::Opaque { .. } => (None, None, &[], &[]),
        };
        let in_variants = variants.iter().flat_map(|variant| &variant.fields);
        one.into_iter()
            .chain(two)
            .chain(fields.iter().chain(in_variants).map(|field| field.ty))
    }

    /// Calls `f` on each type that this one contains or points to, in the order of
    /// [`children`](Self::children).
    pub(crate) fn for_each_child_mut(&mut self, mut f: impl FnMut(&mut TypeId)) {
        match self {
            Kind::Vec { item }
            | Kind::Box { item }
            | Kind::BoxedSlice { item }
            | Kind::Option { item }
            | Kind::Array { item, .. }
            | Kind::Pinned { item } => f(item),
            Kind::HashMap { key, value } | Kind::BTreeMap { key, value } => {
                f(key);
                f(value);
            }
            Kind::HashSet { key } | Kind::BTreeSet { key } => f(key),
            Kind::Tuple { fields } | Kind::Struct { fields, .. } => {
                fields.iter_mut().for_each(|field| f(&mut field.ty));
            }
            Kind::Enum { variants, .. } => {
                let fields = variants.iter_mut().flat_map(|variant| &mut variant.fields);
                fields.for_each(|field| f(&mut field.ty));
            }
            Kind::Primitive { .. }
            | Kind::NonZero { .. }
            | Kind::String
            | Kind::BoxedStr
            | Kind::Opaque { .. } => {}
        }
    }
}

/// A field of a struct, a tuple or a variant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "json", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "json", serde(deny_unknown_fields))]
pub struct Field {
    /// The field's name, or its position in a tuple.
    pub name: String,
    /// Bytes from the start of the struct or of the enum.
    pub offset: u32,
    /// The field's type.
    #[cfg_attr(feature = "json", serde(rename = "type"))]
    pub ty: TypeId,
}

/// A variant of an enum.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "json", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "json", serde(deny_unknown_fields))]
pub struct Variant {
    /// The variant's name.
    pub name: String,
    /// The value of the tag that selects it.
    pub tag: u64,
    /// Whether the fields have names.
    pub form: Form,
    /// The fields in order, with offsets from the start of the enum.
    pub fields: Vec<Field>,
}

/// How the fields of a struct or a variant are written in Rust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "json", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "json", serde(rename_all = "snake_case"))]
#[allow(missing_docs)]
pub enum Form {
    Unit,
    Tuple,
    Named,
}

/// A type that is not made of others. Numbers are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "json", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "json", serde(rename_all = "snake_case"))]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum Primitive {
    Unit,
    Bool,
    Char,
    U8,
    U16,
    U32,
    U64,
    U128,
    I8,
    I16,
    I32,
    I64,
    I128,
    F32,
    F64,
}

impl Primitive {
    /// Every primitive, in the order of the numbers that stand for them in bytes.
    pub(crate) const ALL: [Primitive; 15] = [
        Primitive::Unit,
        Primitive::Bool,
        Primitive::Char,
        Primitive::U8,
        Primitive::U16,
        Primitive::U32,
        Primitive::U64,
        Primitive::U128,
        Primitive::I8,
        Primitive::I16,
        Primitive::I32,
        Primitive::I64,
        Primitive::I128,
        Primitive::F32,
        Primitive::F64,
    ];

    /// Returns the size in bytes.
    pub const fn size(self) -> u32 {
        match self {
            Primitive::Unit => 0,
            Primitive::Bool | Primitive::U8 | Primitive::I8 => 1,
            Primitive::U16 | Primitive::I16 => 2,
            Primitive::Char | Primitive::U32 | Primitive::I32 | Primitive::F32 => 4,
            Primitive::U64 | Primitive::I64 | Primitive::F64 => 8,
            Primitive::U128 | Primitive::I128 => 16,
        }
    }
}

impl fmt::Display for Primitive {
    /// Writes the name that the type has in Rust.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Primitive::Unit => "()",
            Primitive::Bool => "bool",
            Primitive::Char => "char",
            Primitive::U8 => "u8",
            Primitive::U16 => "u16",
            Primitive::U32 => "u32",
            Primitive::U64 => "u64",
            Primitive::U128 => "u128",
            Primitive::I8 => "i8",
            Primitive::I16 => "i16",
            Primitive::I32 => "i32",
            Primitive::I64 => "i64",
            Primitive::I128 => "i128",
            Primitive::F32 => "f32",
            Primitive::F64 => "f64",
        })
    }
}
