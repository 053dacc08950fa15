//! Writes the canonical form.

use crate::model::{Field, Form, Kind, TypeDef, TypeId};

/// Bytes being written.
pub struct Out(pub Vec<u8>);

impl Out {
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    pub fn count(&mut self, value: usize) {
        self.u16(u16::try_from(value).unwrap_or(u16::MAX));
    }

    pub fn name(&mut self, name: &str) {
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

    pub fn ty(&mut self, ty: &TypeDef) {
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
            | Kind::Option { item }
            | Kind::Pinned { item } => self.child(*item),
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
        Kind::Pinned { .. } => 18,
    }
}
