//! The canonical bytes of a schema, and the fingerprint over them.
//!
//! The form is little-endian throughout:
//!
//! ```text
//! schema   = "shmbus-schema" version:u8 flags:u8 name count:u16 type*
//! type     = kind:u8 size:u32 align:u32 rest of the kind
//! name     = length:u16 UTF-8
//! child    = u16, the number of a type
//! field    = name offset:u32 child
//! fields   = count:u16 field*
//! ```
//!
//! The flags say what all archived types here have in common: bit 0 little-endian, bit 1 aligned,
//! bits 2 and 3 the width of a relative pointer (1 for 32 bits).

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};
use thiserror::Error;

use crate::model::{Field, Form, Kind, Primitive, Schema, TypeDef, TypeId, Variant};

/// The most types that a schema read from bytes or JSON may have.
pub const MAX_TYPES: usize = 16_384;
/// The longest name of a message, a type, a field or a variant, in bytes.
pub const MAX_NAME: usize = 1_024;
/// The longest canonical form that is read, in bytes.
pub const MAX_BYTES: usize = 4 << 20;

const MAGIC: &[u8] = b"shmbus-schema";
const VERSION: u8 = 1;
/// Little-endian, aligned, 32-bit relative pointers.
const FLAGS: u8 = 0b0111;
/// Fixed for ever: they make the fingerprint one of schemas, and nothing else.
const KEYS: (u64, u64) = (0x7368_6d62_7573_2d73, 0x6368_656d_612d_3031);

/// Why bytes or JSON are not a schema.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// The bytes end in the middle.
    #[error("the schema ends after {at} bytes, in the middle of a value; was it sent whole?")]
    Truncated {
        /// Where more was expected.
        at: usize,
    },
    /// Bytes are left over.
    #[error("{extra} bytes follow the schema; cut them off")]
    TrailingBytes {
        /// How many.
        extra: usize,
    },
    /// The first bytes are something else.
    #[error("these bytes are not a schema")]
    NotASchema,
    /// Another version of this format.
    #[error("the schema has format {found}, this is {VERSION}; use the same release on both sides")]
    Version {
        /// What the bytes say.
        found: u8,
    },
    /// The peer archives with other settings of rkyv.
    #[error(
        "the peer archives with format flags {found:#06b}, here they are {FLAGS:#06b}; \
         build both with little-endian, aligned, 32-bit archives"
    )]
    Flags {
        /// What the bytes say.
        found: u8,
    },
    /// More than this library reads.
    #[error("the schema has {found} {what}, more than {limit}; split the message")]
    TooLarge {
        /// Of what there is too much.
        what: &'static str,
        /// How much was found.
        found: usize,
        /// How much is read.
        limit: usize,
    },
    /// A number that stands for nothing.
    #[error("{value} is no {what}; was the schema written by a newer release?")]
    Unknown {
        /// What it should be.
        what: &'static str,
        /// What was found.
        value: u64,
    },
    /// A name that is not UTF-8.
    #[error("a name is not UTF-8")]
    NotUtf8,
    /// A row that contradicts another or itself.
    #[error("type {row} of the schema is inconsistent: {what}")]
    Inconsistent {
        /// The number of the type.
        row: u32,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Not JSON, or JSON of another form.
    #[error("the schema is not in the expected JSON form: {0}")]
    Json(String),
}

impl Schema {
    /// Returns 128 bits that are equal exactly for equal layouts, as far as a hash can tell.
    ///
    /// What counts: names, kinds, sizes, offsets, alignments, order, tags and the format of the
    /// archive. What does not: Rust paths, crates, builds and machines.
    pub fn fingerprint(&self) -> u128 {
        let mut hasher = SipHasher24::new_with_keys(KEYS.0, KEYS.1);
        hasher.write(&self.to_bytes());
        hasher.finish128().as_u128()
    }

    /// Returns the canonical form: equal bytes exactly for equal schemas.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Out(Vec::with_capacity(64 * self.types.len()));
        out.0.extend_from_slice(MAGIC);
        out.u8(VERSION);
        out.u8(FLAGS);
        out.name(&self.name);
        out.count(self.types.len());
        for ty in &self.types {
            out.ty(ty);
        }
        out.0
    }

    /// Reads the canonical form, as it was written by [`to_bytes`](Self::to_bytes).
    ///
    /// The bytes may come from anyone: the work is bounded by [`MAX_BYTES`], [`MAX_TYPES`] and
    /// [`MAX_NAME`], and a schema that is returned is consistent in itself.
    ///
    /// # Errors
    ///
    /// Says what is wrong, see [`SchemaError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SchemaError> {
        within("bytes", bytes.len(), MAX_BYTES)?;
        let mut input = In { bytes, at: 0 };
        if input.take(MAGIC.len())? != MAGIC {
            return Err(SchemaError::NotASchema);
        }
        match input.u8()? {
            VERSION => {}
            found => return Err(SchemaError::Version { found }),
        }
        match input.u8()? {
            FLAGS => {}
            found => return Err(SchemaError::Flags { found }),
        }
        let name = input.name()?;
        let count = input.count()?;
        within("types", count, MAX_TYPES)?;
        let types = (0..count)
            .map(|_| input.ty())
            .collect::<Result<Vec<_>, _>>()?;
        match bytes.len() - input.at {
            0 => Self::checked(name, types),
            extra => Err(SchemaError::TrailingBytes { extra }),
        }
    }

    /// Takes a table that someone else made and believes it only where it is consistent.
    pub(crate) fn checked(name: String, types: Vec<TypeDef>) -> Result<Self, SchemaError> {
        within("types", types.len(), MAX_TYPES)?;
        within("bytes of a name", name.len(), MAX_NAME)?;
        for (row, ty) in types.iter().enumerate() {
            check_row(&types, ty).map_err(|what| SchemaError::Inconsistent {
                row: row as u32,
                what,
            })?;
        }
        match types.is_empty() {
            true => Err(SchemaError::Inconsistent {
                row: 0,
                what: "there is no root",
            }),
            false => Ok(Self { name, types }),
        }
    }
}

fn within(what: &'static str, found: usize, limit: usize) -> Result<(), SchemaError> {
    match found <= limit {
        true => Ok(()),
        false => Err(SchemaError::TooLarge { what, found, limit }),
    }
}

fn check_row(types: &[TypeDef], ty: &TypeDef) -> Result<(), &'static str> {
    if !ty.align.is_power_of_two() || ty.align > 4_096 || ty.size % ty.align != 0 {
        return Err("its alignment is not a power of two that divides its size");
    }
    if ty.kind.children().any(|child| child.index() >= types.len()) {
        return Err("it names a type that is not in the table");
    }
    let row = |id: TypeId| &types[id.index()];
    let fits = |field: &Field| {
        field.name.len() <= MAX_NAME
            && u64::from(field.offset) + u64::from(row(field.ty).size) <= u64::from(ty.size)
            && row(field.ty).align <= ty.align
            && field.offset % row(field.ty).align == 0
    };
    const MISPLACED: &str = "a field lies outside of it, or unaligned, or has too long a name";
    const MISSIZED: &str = "its size is not that of its kind";
    let (size, place) = match &ty.kind {
        Kind::Primitive { primitive } => (primitive.size(), true),
        Kind::NonZero { primitive } => match primitive {
            Primitive::Unit
            | Primitive::Bool
            | Primitive::Char
            | Primitive::F32
            | Primitive::F64 => return Err("only a whole number can be non-zero"),
            _ => (primitive.size(), true),
        },
        Kind::String | Kind::BoxedStr | Kind::Vec { .. } | Kind::BoxedSlice { .. } => (8, true),
        Kind::BTreeMap { .. } | Kind::BTreeSet { .. } => (8, true),
        Kind::HashMap { .. } | Kind::HashSet { .. } => (12, true),
        Kind::Box { .. } => (4, true),
        Kind::Option { item } => {
            let item = row(*item);
            (item.align.saturating_add(item.size), item.align <= ty.align)
        }
        Kind::Array { item, len } => (row(*item).size.saturating_mul(*len), true),
        Kind::Tuple { fields } => (ty.size, fields.iter().all(fits)),
        Kind::Struct { name, fields, .. } => {
            (ty.size, fields.iter().all(fits) && name.len() <= MAX_NAME)
        }
        Kind::Enum {
            name,
            tag_size,
            variants,
        } => {
            if !matches!(tag_size, 1 | 2 | 4 | 8) || *tag_size > ty.size {
                return Err("its tag has no known size");
            }
            let named = |variant: &Variant| variant.name.len() <= MAX_NAME;
            let mut fields = variants.iter().flat_map(|variant| &variant.fields);
            (
                ty.size,
                fields.all(fits) && variants.iter().all(named) && name.len() <= MAX_NAME,
            )
        }
        Kind::Opaque { name } => (ty.size, name.len() <= MAX_NAME),
    };
    match (size == ty.size, place) {
        (true, true) => Ok(()),
        (false, _) => Err(MISSIZED),
        (_, false) => Err(MISPLACED),
    }
}

/// Bytes being written.
struct Out(Vec<u8>);

impl Out {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn count(&mut self, value: usize) {
        self.u16(u16::try_from(value).unwrap_or(u16::MAX));
    }

    fn name(&mut self, name: &str) {
        self.count(name.len());
        self.0.extend_from_slice(name.as_bytes());
    }

    fn child(&mut self, id: TypeId) {
        self.count(id.index());
    }

    fn form(&mut self, form: Form) {
        self.u8(form as u8);
    }

    fn fields(&mut self, fields: &[Field]) {
        self.count(fields.len());
        for field in fields {
            self.name(&field.name);
            self.u32(field.offset);
            self.child(field.ty);
        }
    }

    fn ty(&mut self, ty: &TypeDef) {
        self.u8(tag(&ty.kind));
        self.u32(ty.size);
        self.u32(ty.align);
        match &ty.kind {
            Kind::Primitive { primitive } | Kind::NonZero { primitive } => {
                self.u8(*primitive as u8)
            }
            Kind::String | Kind::BoxedStr => {}
            Kind::Vec { item }
            | Kind::Box { item }
            | Kind::BoxedSlice { item }
            | Kind::Option { item } => self.child(*item),
            Kind::Array { item, len } => {
                self.child(*item);
                self.u32(*len);
            }
            Kind::Tuple { fields } => self.fields(fields),
            Kind::Struct { name, form, fields } => {
                self.name(name);
                self.form(*form);
                self.fields(fields);
            }
            Kind::Enum {
                name,
                tag_size,
                variants,
            } => {
                self.name(name);
                self.u32(*tag_size);
                self.count(variants.len());
                for variant in variants {
                    self.name(&variant.name);
                    self.0.extend_from_slice(&variant.tag.to_le_bytes());
                    self.form(variant.form);
                    self.fields(&variant.fields);
                }
            }
            Kind::HashMap { key, value } | Kind::BTreeMap { key, value } => {
                self.child(*key);
                self.child(*value);
            }
            Kind::HashSet { key } | Kind::BTreeSet { key } => self.child(*key),
            Kind::Opaque { name } => self.name(name),
        }
    }
}

/// The number that stands for a kind. They are never given to another.
fn tag(kind: &Kind) -> u8 {
    match kind {
        Kind::Primitive { .. } => 1,
        Kind::NonZero { .. } => 2,
        Kind::String => 3,
        Kind::BoxedStr => 4,
        Kind::Vec { .. } => 5,
        Kind::Box { .. } => 6,
        Kind::BoxedSlice { .. } => 7,
        Kind::Option { .. } => 8,
        Kind::Array { .. } => 9,
        Kind::Tuple { .. } => 10,
        Kind::Struct { .. } => 11,
        Kind::Enum { .. } => 12,
        Kind::HashMap { .. } => 13,
        Kind::HashSet { .. } => 14,
        Kind::BTreeMap { .. } => 15,
        Kind::BTreeSet { .. } => 16,
        Kind::Opaque { .. } => 17,
    }
}

/// Bytes being read.
struct In<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> In<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], SchemaError> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..len).ok_or(SchemaError::Truncated {
            at: self.bytes.len(),
        })?;
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SchemaError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, SchemaError> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, SchemaError> {
        self.array().map(u32::from_le_bytes)
    }

    fn count(&mut self) -> Result<usize, SchemaError> {
        self.array().map(u16::from_le_bytes).map(usize::from)
    }

    fn child(&mut self) -> Result<TypeId, SchemaError> {
        self.count().map(|index| TypeId(index as u32))
    }

    fn name(&mut self) -> Result<String, SchemaError> {
        let len = self.count()?;
        within("bytes of a name", len, MAX_NAME)?;
        let name = std::str::from_utf8(self.take(len)?).map_err(|_| SchemaError::NotUtf8)?;
        Ok(name.to_owned())
    }

    fn form(&mut self) -> Result<Form, SchemaError> {
        match self.u8()? {
            0 => Ok(Form::Unit),
            1 => Ok(Form::Tuple),
            2 => Ok(Form::Named),
            value => Err(SchemaError::Unknown {
                what: "form of fields",
                value: value.into(),
            }),
        }
    }

    fn primitive(&mut self) -> Result<Primitive, SchemaError> {
        let value = self.u8()?;
        let primitive = Primitive::ALL.get(usize::from(value)).copied();
        primitive.ok_or(SchemaError::Unknown {
            what: "primitive type",
            value: value.into(),
        })
    }

    fn fields(&mut self) -> Result<Vec<Field>, SchemaError> {
        // Collected one by one: a count that is a lie ends at the end of the bytes, and no memory
        // is promised to it before.
        let count = self.count()?;
        (0..count)
            .map(|_| {
                Ok(Field {
                    name: self.name()?,
                    offset: self.u32()?,
                    ty: self.child()?,
                })
            })
            .collect()
    }

    fn variant(&mut self) -> Result<Variant, SchemaError> {
        Ok(Variant {
            name: self.name()?,
            tag: self.array().map(u64::from_le_bytes)?,
            form: self.form()?,
            fields: self.fields()?,
        })
    }

    fn ty(&mut self) -> Result<TypeDef, SchemaError> {
        let tag = self.u8()?;
        let (size, align) = (self.u32()?, self.u32()?);
        let kind = match tag {
            1 => Kind::Primitive {
                primitive: self.primitive()?,
            },
            2 => Kind::NonZero {
                primitive: self.primitive()?,
            },
            3 => Kind::String,
            4 => Kind::BoxedStr,
            5 => Kind::Vec {
                item: self.child()?,
            },
            6 => Kind::Box {
                item: self.child()?,
            },
            7 => Kind::BoxedSlice {
                item: self.child()?,
            },
            8 => Kind::Option {
                item: self.child()?,
            },
            9 => Kind::Array {
                item: self.child()?,
                len: self.u32()?,
            },
            10 => Kind::Tuple {
                fields: self.fields()?,
            },
            11 => Kind::Struct {
                name: self.name()?,
                form: self.form()?,
                fields: self.fields()?,
            },
            12 => {
                let (name, tag_size, count) = (self.name()?, self.u32()?, self.count()?);
                let variants = (0..count)
                    .map(|_| self.variant())
                    .collect::<Result<_, _>>()?;
                Kind::Enum {
                    name,
                    tag_size,
                    variants,
                }
            }
            13 => Kind::HashMap {
                key: self.child()?,
                value: self.child()?,
            },
            14 => Kind::HashSet { key: self.child()? },
            15 => Kind::BTreeMap {
                key: self.child()?,
                value: self.child()?,
            },
            16 => Kind::BTreeSet { key: self.child()? },
            17 => Kind::Opaque { name: self.name()? },
            value => {
                return Err(SchemaError::Unknown {
                    what: "kind of type",
                    value: value.into(),
                });
            }
        };
        Ok(TypeDef { size, align, kind })
    }
}
