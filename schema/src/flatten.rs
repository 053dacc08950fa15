//! From descriptions, which name their children, to a table, in which children are numbers.
//!
//! # Equal layouts have equal tables
//!
//! The types met from the root are first kept apart by their identity in this build, which only
//! serves to end the walk at a recursive type. Then the table is made as small as it can be: rows
//! are sorted into classes by what they say of themselves, and classes are split until two rows of
//! one class lead, child by child, to the same classes. What is left are rows that no reader of the
//! bytes can tell apart. They are numbered in the order in which they are met from the root. None
//! of these steps looks at a Rust path, an address or a hash that may change.

use std::any;
use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::description::{Child, Description, FieldDescription, Shape};
use crate::model::{Field, Kind, Schema, TypeDef, TypeId, Variant};

impl Schema {
    /// Builds the schema of the message `name` whose root is described by `root`.
    ///
    /// Runs once per message type, when it is first used; it allocates.
    pub fn flatten(name: &str, root: Child) -> Self {
        let mut walk = Walk::default();
        walk.intern(root);
        while let Some((id, description)) = walk.pending.pop_front() {
            walk.rows[id.index()] = Some(walk_row(&mut walk, &description));
        }
        let rows = walk.rows.into_iter().flatten().collect();
        Self {
            name: name.to_owned(),
            types: smallest(rows),
        }
    }
}

/// Types met so far, and those whose children are still to be followed.
#[derive(Default)]
struct Walk {
    ids: HashMap<any::TypeId, TypeId>,
    rows: Vec<Option<TypeDef>>,
    pending: VecDeque<(TypeId, Description)>,
}

impl Walk {
    fn intern(&mut self, child: Child) -> TypeId {
        let description = child();
        let next = TypeId(saturated(self.rows.len()));
        let id = *self.ids.entry((description.id)()).or_insert(next);
        if id == next {
            self.rows.push(None);
            self.pending.push_back((id, description));
        }
        id
    }

    fn fields(&mut self, fields: &[FieldDescription]) -> Vec<Field> {
        let field = |field: &FieldDescription| Field {
            name: field.name.to_owned(),
            offset: saturated(field.offset),
            ty: self.intern(field.child),
        };
        fields.iter().map(field).collect()
    }
}

fn walk_row(walk: &mut Walk, description: &Description) -> TypeDef {
    let kind = match description.shape {
        Shape::Primitive(primitive) => Kind::Primitive { primitive },
        Shape::NonZero(primitive) => Kind::NonZero { primitive },
        Shape::String => Kind::String,
        Shape::BoxedStr => Kind::BoxedStr,
        Shape::Vec { item } => Kind::Vec {
            item: walk.intern(item),
        },
        Shape::Box { item } => Kind::Box {
            item: walk.intern(item),
        },
        Shape::BoxedSlice { item } => Kind::BoxedSlice {
            item: walk.intern(item),
        },
        Shape::Option { item } => Kind::Option {
            item: walk.intern(item),
        },
        Shape::Array { item, len } => Kind::Array {
            item: walk.intern(item),
            len: saturated(len),
        },
        Shape::Tuple { fields } => Kind::Tuple {
            fields: walk.fields(fields),
        },
        Shape::Struct { name, form, fields } => Kind::Struct {
            name: name.to_owned(),
            form,
            fields: walk.fields(fields),
        },
        Shape::Enum {
            name,
            tag_size,
            variants,
        } => Kind::Enum {
            name: name.to_owned(),
            tag_size: saturated(tag_size),
            variants: variants
                .iter()
                .map(|variant| Variant {
                    name: variant.name.to_owned(),
                    tag: variant.tag,
                    form: variant.form,
                    fields: walk.fields(variant.fields),
                })
                .collect(),
        },
        Shape::HashMap { key, value } => Kind::HashMap {
            key: walk.intern(key),
            value: walk.intern(value),
        },
        Shape::HashSet { key } => Kind::HashSet {
            key: walk.intern(key),
        },
        Shape::BTreeMap { key, value } => Kind::BTreeMap {
            key: walk.intern(key),
            value: walk.intern(value),
        },
        Shape::BTreeSet { key } => Kind::BTreeSet {
            key: walk.intern(key),
        },
        Shape::Pinned { item } => Kind::Pinned {
            item: walk.intern(item),
        },
        Shape::Opaque { name } => Kind::Opaque {
            name: name.to_owned(),
        },
    };
    TypeDef {
        size: saturated(description.size),
        align: saturated(description.align),
        kind,
    }
}

/// A message is far smaller than 4 GiB, so a value that does not fit is not worth more than this.
fn saturated(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Merges rows that cannot be told apart and numbers the rest as they are met from the first.
pub(crate) fn smallest(rows: Vec<TypeDef>) -> Vec<TypeDef> {
    let class = classes(&rows);
    // One row of each class stands for it; the number of a class is when it was met.
    let mut number: BTreeMap<u32, TypeId> = BTreeMap::from([(class[0], TypeId(0))]);
    let mut order = vec![0];
    let mut next = 0;
    while let Some(&row) = order.get(next) {
        next += 1;
        for child in rows[row].kind.children() {
            let fresh = TypeId(saturated(order.len()));
            if *number.entry(class[child.index()]).or_insert(fresh) == fresh {
                order.push(child.index());
            }
        }
    }
    let renumbered = |row: usize| {
        let mut row = rows[row].clone();
        row.kind
            .for_each_child_mut(|child| *child = number[&class[child.index()]]);
        row
    };
    order.into_iter().map(renumbered).collect()
}

/// Returns the class of each row: rows of one class say the same and lead to the same classes.
fn classes(rows: &[TypeDef]) -> Vec<u32> {
    let mut class = vec![0; rows.len()];
    let mut count = 1;
    loop {
        let mut seen = BTreeMap::new();
        let refined: Vec<u32> = rows
            .iter()
            .map(|row| {
                let mut row = row.clone();
                row.kind
                    .for_each_child_mut(|child| *child = TypeId(class[child.index()]));
                let fresh = saturated(seen.len());
                *seen.entry(row).or_insert(fresh)
            })
            .collect();
        if seen.len() == count {
            return refined;
        }
        count = seen.len();
        class = refined;
    }
}
