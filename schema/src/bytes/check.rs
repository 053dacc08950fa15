//! What a row of a table that someone else made must satisfy.

use std::collections::HashSet;
use std::hash::Hash;

use super::MAX_NAME;
use crate::model::{Field, Kind, Primitive, TypeDef, TypeId, Variant};

/// Says what is wrong with the size and the alignment of `ty` by themselves.
///
/// Asked of all rows before [`row`] is asked of any, since that looks at other rows.
pub fn size(ty: &TypeDef) -> Result<(), &'static str> {
    match ty.align.is_power_of_two() && ty.align <= 4_096 && ty.size % ty.align == 0 {
        true => Ok(()),
        false => Err("its alignment is not a power of two that divides its size"),
    }
}

/// Says what is wrong with `ty`, if it does not fit to itself and to the rows that it names.
pub fn row(types: &[TypeDef], ty: &TypeDef) -> Result<(), &'static str> {
    if ty.kind.children().any(|child| child.index() >= types.len()) {
        return Err("it names a type that is not in the table");
    }
    if !is_distinct(&ty.kind) {
        return Err("two of its fields, or of its variants, have the same name or tag");
    }
    let child = |id: TypeId| &types[id.index()];
    let fits = |field: &Field| {
        field.name.len() <= MAX_NAME
            && u64::from(field.offset) + u64::from(child(field.ty).size) <= u64::from(ty.size)
            && child(field.ty).align <= ty.align
            && field.offset % child(field.ty).align == 0
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
        Kind::Pinned { .. } => (32, ty.align == 8),
        Kind::Option { item } => {
            let item = child(*item);
            (item.align.saturating_add(item.size), item.align <= ty.align)
        }
        Kind::Array { item, len } => (child(*item).size.saturating_mul(*len), true),
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

/// Tells whether no two fields bear the same name, and no two variants the same name or tag: each is known
/// by those.
fn is_distinct(kind: &Kind) -> bool {
    fn all<T: Eq + Hash>(mut items: impl Iterator<Item = T>) -> bool {
        let mut seen = HashSet::new();
        items.all(|item| seen.insert(item))
    }
    let fields = |fields: &[Field]| all(fields.iter().map(|field| &field.name));
    match kind {
        Kind::Struct { fields: of, .. } | Kind::Tuple { fields: of } => fields(of),
        Kind::Enum { variants, .. } => {
            all(variants.iter().map(|variant| &variant.name))
                && all(variants.iter().map(|variant| variant.tag))
                && variants.iter().all(|variant| fields(&variant.fields))
        }
        _ => true,
    }
}
