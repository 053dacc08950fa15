//! Reads the canonical form, from anyone.

use super::{MAX_NAME, SchemaError, within};
use crate::model::{Field, Form, Kind, Primitive, TypeDef, TypeId, Variant};

/// Bytes being read.
pub struct In<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
}

impl<'a> In<'a> {
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], SchemaError> {
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

    pub fn u8(&mut self) -> Result<u8, SchemaError> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, SchemaError> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn count(&mut self) -> Result<usize, SchemaError> {
        self.array().map(u16::from_le_bytes).map(usize::from)
    }

    fn child(&mut self) -> Result<TypeId, SchemaError> {
        self.count().map(|index| TypeId(index as u32))
    }

    pub fn name(&mut self) -> Result<String, SchemaError> {
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

    pub fn ty(&mut self) -> Result<TypeDef, SchemaError> {
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
            18 => Kind::Pinned {
                item: self.child()?,
            },
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
