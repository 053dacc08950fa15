//! Reads an archived message by its schema alone.
//!
//! Both the schema and the bytes may come from anyone. Each read is of a slice and within its bounds;
//! how deep values are nested, how many there are and how much text they hold is limited, since bytes
//! may refer to the same place again and again.

mod maps;

use serde_json::{Map, Value};
use thiserror::Error;

use crate::diff::type_name;
use crate::model::{Field, Form, Kind, Primitive, Schema, TypeDef, TypeId};

/// How much is decoded before it is called too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How deep values are nested; each level takes stack. 128.
    pub depth: usize,
    /// How many values there are, and slots of hash tables that are looked at. 4 million.
    pub values: usize,
    /// Bytes of text, counted each time they are referred to. 64 MiB.
    pub text: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            depth: 128,
            values: 4 << 20,
            text: 64 << 20,
        }
    }
}

/// Why bytes could not be read by a schema.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Something lies outside of the message.
    #[error("a {ty} at {at} does not lie in the message of {len} bytes; is this its schema?")]
    OutOfBounds {
        /// What should be there.
        ty: String,
        /// Where it should be, in bytes from the start.
        at: i64,
        /// Bytes of the message.
        len: usize,
    },
    /// Bytes that no value of the type has.
    #[error("the bytes at {at} are no {ty}; is this the message's schema?")]
    Invalid {
        /// What should be there.
        ty: String,
        /// Where it should be, in bytes from the start.
        at: usize,
    },
    /// One of the [`Limits`].
    #[error(
        "the message has more {what} than the limit of {limit}; raise it if the sender is trusted"
    )]
    Limit {
        /// Of what there is too much.
        what: &'static str,
        /// How much is read.
        limit: usize,
    },
}

/// Reads a message that ends with its root, as it is sent, into JSON.
///
/// The value is the one that serde would make of the Rust value, with the following choices: numbers
/// that JSON has not (infinite, not a number, beyond 64 bits) and opaque bytes (in hexadecimal) are
/// text; maps whose keys are not text, numbers, `bool` or `char` are lists of pairs.
///
/// # Errors
///
/// The bytes are not a message of this schema, or are more than the default [`Limits`].
///
/// # Examples
///
/// ```
/// use shmbus_schema::{Description, Schema, Shape, decode};
///
/// let schema = Schema::flatten("text", || Description::of::<[u32; 2]>(Shape::String));
/// assert_eq!(decode(&schema, b"hello\xFF\0\0")?, "hello");
/// # Ok::<(), shmbus_schema::DecodeError>(())
/// ```
pub fn decode(schema: &Schema, bytes: &[u8]) -> Result<Value, DecodeError> {
    let at = bytes.len() as i64 - i64::from(schema.root().size);
    let at = usize::try_from(at).map_err(|_| DecodeError::OutOfBounds {
        ty: type_name(schema, schema.root_id()),
        at,
        len: bytes.len(),
    })?;
    decode_at(schema, bytes, at, Limits::default())
}

/// Reads a message whose root lies `at` bytes from the start, into JSON.
///
/// # Errors
///
/// As [`decode`].
pub fn decode_at(
    schema: &Schema,
    bytes: &[u8],
    at: usize,
    limits: Limits,
) -> Result<Value, DecodeError> {
    let reader = &mut Reader {
        schema,
        bytes,
        limits,
        left: limits,
    };
    reader.value(schema.root_id(), at)
}

struct Reader<'a> {
    schema: &'a Schema,
    bytes: &'a [u8],
    limits: Limits,
    left: Limits,
}

type Result<T, E = DecodeError> = std::result::Result<T, E>;

impl<'a> Reader<'a> {
    /// Reads the value of type `id` that starts at `at`.
    fn value(&mut self, id: TypeId, at: usize) -> Result<Value> {
        self.spend_values(1)?;
        if self.left.depth == 0 {
            return Err(DecodeError::Limit {
                what: "levels",
                limit: self.limits.depth,
            });
        }
        self.left.depth -= 1;
        let schema = self.schema;
        let Some(ty) = schema.get(id) else {
            return Err(self.invalid(id, at));
        };
        self.slice(id, at as i64, ty.size as usize)?;
        let value = self.value_of(id, ty, at)?;
        self.left.depth += 1;
        Ok(value)
    }

    fn value_of(&mut self, id: TypeId, ty: &'a TypeDef, at: usize) -> Result<Value> {
        match &ty.kind {
            Kind::Primitive { primitive } => self.primitive(id, *primitive, at),
            Kind::NonZero { primitive } => {
                let bytes = self.slice(id, at as i64, ty.size as usize)?;
                match bytes.iter().all(|byte| *byte == 0) {
                    true => Err(self.invalid(id, at)),
                    false => self.primitive(id, *primitive, at),
                }
            }
            Kind::String => self.string(id, at),
            Kind::BoxedStr => {
                let (start, len) = self.slice_header(id, at)?;
                self.text(id, start, len).map(Value::String)
            }
            Kind::Vec { item } | Kind::BoxedSlice { item } => {
                let (start, len) = self.slice_header(id, at)?;
                self.items(id, *item, start, len)
            }
            Kind::Array { item, len } => self.items(id, *item, at as i64, *len as usize),
            Kind::Box { item } => {
                let to = self.pointer(id, at)?;
                let to = usize::try_from(to).map_err(|_| self.out_of_bounds(*item, to))?;
                self.value(*item, to)
            }
            Kind::Option { item } => match self.slice(id, at as i64, 1)?[0] {
                0 => Ok(Value::Null),
                1 => self.value(*item, at + self.align(*item).max(1)),
                _ => Err(self.invalid(id, at)),
            },
            Kind::Tuple { fields } => self.list(fields, at),
            Kind::Struct { form, fields, .. } => self.fields(*form, fields, at),
            Kind::Enum {
                tag_size, variants, ..
            } => {
                let mut tag = [0; 8];
                let size = (*tag_size as usize).min(8);
                tag[..size].copy_from_slice(self.slice(id, at as i64, size)?);
                let tag = u64::from_le_bytes(tag);
                let Some(variant) = variants.iter().find(|variant| variant.tag == tag) else {
                    return Err(self.invalid(id, at));
                };
                match variant.form {
                    Form::Unit => Ok(Value::String(variant.name.clone())),
                    form => {
                        let value = self.fields(form, &variant.fields, at)?;
                        Ok(Value::Object(Map::from_iter([(
                            variant.name.clone(),
                            value,
                        )])))
                    }
                }
            }
            Kind::HashMap { key, value } => {
                let entries = self.table(id, *key, Some(*value), at)?;
                Ok(maps::to_json(entries))
            }
            Kind::HashSet { key } => {
                let entries = self.table(id, *key, None, at)?;
                Ok(Value::Array(
                    entries.into_iter().map(|(key, _)| key).collect(),
                ))
            }
            Kind::BTreeMap { key, value } => {
                let entries = self.tree(id, *key, Some(*value), at)?;
                Ok(maps::to_json(entries))
            }
            Kind::BTreeSet { key } => {
                let entries = self.tree(id, *key, None, at)?;
                Ok(Value::Array(
                    entries.into_iter().map(|(key, _)| key).collect(),
                ))
            }
            Kind::Pinned { .. } => {
                let mut object = Map::new();
                for (word, name) in ["segment", "offset", "len", "number"].iter().enumerate() {
                    let word = u64::from_le_bytes(self.array(id, at + 8 * word)?);
                    object.insert((*name).to_owned(), word.into());
                }
                Ok(Value::Object(object))
            }
            Kind::Opaque { .. } => {
                let bytes = self.slice(id, at as i64, ty.size as usize)?;
                self.spend_text(2 * bytes.len())?;
                Ok(Value::String(
                    bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
                ))
            }
        }
    }

    fn primitive(&mut self, id: TypeId, primitive: Primitive, at: usize) -> Result<Value> {
        let float = |number: f64| match serde_json::Number::from_f64(number) {
            Some(number) => Value::Number(number),
            None => Value::String(number.to_string()),
        };
        Ok(match primitive {
            Primitive::Unit => Value::Null,
            Primitive::Bool => match self.array::<1>(id, at)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return Err(self.invalid(id, at)),
            },
            Primitive::Char => match char::from_u32(u32::from_le_bytes(self.array(id, at)?)) {
                Some(char) => Value::String(char.to_string()),
                None => return Err(self.invalid(id, at)),
            },
            Primitive::U8 => u8::from_le_bytes(self.array(id, at)?).into(),
            Primitive::U16 => u16::from_le_bytes(self.array(id, at)?).into(),
            Primitive::U32 => u32::from_le_bytes(self.array(id, at)?).into(),
            Primitive::U64 => u64::from_le_bytes(self.array(id, at)?).into(),
            Primitive::U128 => {
                let number = u128::from_le_bytes(self.array(id, at)?);
                u64::try_from(number).map_or_else(|_| number.to_string().into(), Value::from)
            }
            Primitive::I8 => i8::from_le_bytes(self.array(id, at)?).into(),
            Primitive::I16 => i16::from_le_bytes(self.array(id, at)?).into(),
            Primitive::I32 => i32::from_le_bytes(self.array(id, at)?).into(),
            Primitive::I64 => i64::from_le_bytes(self.array(id, at)?).into(),
            Primitive::I128 => {
                let number = i128::from_le_bytes(self.array(id, at)?);
                i64::try_from(number).map_or_else(|_| number.to_string().into(), Value::from)
            }
            Primitive::F32 => float(f32::from_le_bytes(self.array(id, at)?).into()),
            Primitive::F64 => float(f64::from_le_bytes(self.array(id, at)?)),
        })
    }

    fn string(&mut self, id: TypeId, at: usize) -> Result<Value> {
        let repr: [u8; 8] = self.array(id, at)?;
        let (start, len) = if repr[0] & 0xC0 == 0x80 {
            let [a, b, c, d, e, f, g, h] = repr;
            // The two marking bits are taken out of the length; what is above moves down.
            let marked = u32::from_le_bytes([a, b, c, d]);
            let len = (marked & 0x3F) | ((marked & !0xFF) >> 2);
            let offset = i32::from_le_bytes([e, f, g, h]);
            (at as i64 + i64::from(offset), len as usize)
        } else {
            let len = repr
                .iter()
                .position(|byte| *byte == 0xFF)
                .unwrap_or(repr.len());
            (at as i64, len)
        };
        self.text(id, start, len).map(Value::String)
    }

    fn text(&mut self, id: TypeId, start: i64, len: usize) -> Result<String> {
        let bytes = self.slice(id, start, len)?;
        self.spend_text(len)?;
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned)
            .map_err(|_| self.invalid(id, start as usize))
    }

    fn items(&mut self, id: TypeId, item: TypeId, start: i64, len: usize) -> Result<Value> {
        let size = self.size(item);
        let bytes = size
            .checked_mul(len)
            .ok_or_else(|| self.out_of_bounds(id, start))?;
        self.slice(id, start, bytes)?;
        let start = start as usize;
        // One by one: a length that is a lie ends at a limit, and no memory is promised to it.
        let items = (0..len).map(|index| self.value(item, start + index * size));
        items.collect::<Result<_>>().map(Value::Array)
    }

    fn fields(&mut self, form: Form, fields: &'a [Field], at: usize) -> Result<Value> {
        match (form, fields) {
            (Form::Unit, _) => Ok(Value::Null),
            (Form::Tuple, [one]) => self.value(one.ty, at + one.offset as usize),
            (Form::Tuple, _) => self.list(fields, at),
            (Form::Named, _) => {
                let mut object = Map::new();
                for field in fields {
                    let value = self.value(field.ty, at + field.offset as usize)?;
                    object.insert(field.name.clone(), value);
                }
                Ok(Value::Object(object))
            }
        }
    }

    fn list(&mut self, fields: &'a [Field], at: usize) -> Result<Value> {
        let values = fields
            .iter()
            .map(|field| self.value(field.ty, at + field.offset as usize));
        values.collect::<Result<_>>().map(Value::Array)
    }

    /// Reads a pointer and a length.
    fn slice_header(&mut self, id: TypeId, at: usize) -> Result<(i64, usize)> {
        let len = u32::from_le_bytes(self.array(id, at + 4)?);
        Ok((self.pointer(id, at)?, len as usize))
    }

    /// Reads a pointer, and returns where it leads to, which may be anywhere.
    fn pointer(&mut self, id: TypeId, at: usize) -> Result<i64> {
        Ok(at as i64 + i64::from(i32::from_le_bytes(self.array(id, at)?)))
    }

    fn array<const N: usize>(&self, id: TypeId, at: usize) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(id, at as i64, N)?);
        Ok(array)
    }

    /// The one place that reads the message.
    fn slice(&self, id: TypeId, start: i64, len: usize) -> Result<&'a [u8]> {
        let from = usize::try_from(start).ok();
        let range = from.and_then(|from| Some(from..from.checked_add(len)?));
        range
            .and_then(|range| self.bytes.get(range))
            .ok_or_else(|| self.out_of_bounds(id, start))
    }

    fn size(&self, id: TypeId) -> usize {
        self.schema.get(id).map_or(0, |ty| ty.size as usize)
    }

    fn align(&self, id: TypeId) -> usize {
        self.schema.get(id).map_or(1, |ty| ty.align as usize)
    }

    fn spend_values(&mut self, count: usize) -> Result<()> {
        let left = self.left.values.checked_sub(count);
        let limit = self.limits.values;
        self.left.values = left.ok_or(DecodeError::Limit {
            what: "values",
            limit,
        })?;
        Ok(())
    }

    fn spend_text(&mut self, bytes: usize) -> Result<()> {
        let left = self.left.text.checked_sub(bytes);
        let limit = self.limits.text;
        self.left.text = left.ok_or(DecodeError::Limit {
            what: "bytes of text",
            limit,
        })?;
        Ok(())
    }

    #[cold]
    fn out_of_bounds(&self, id: TypeId, at: i64) -> DecodeError {
        DecodeError::OutOfBounds {
            ty: type_name(self.schema, id),
            at,
            len: self.bytes.len(),
        }
    }

    #[cold]
    fn invalid(&self, id: TypeId, at: usize) -> DecodeError {
        DecodeError::Invalid {
            ty: type_name(self.schema, id),
            at,
        }
    }
}
