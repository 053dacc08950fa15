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

mod check;
mod read;
mod write;

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};
use thiserror::Error;

use self::read::In;
use self::write::Out;
use crate::model::{Schema, TypeDef};

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
            check::row(&types, ty).map_err(|what| SchemaError::Inconsistent {
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
