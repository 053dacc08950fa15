//! Where two schemas differ, in words.

use std::collections::{HashSet, VecDeque};
use std::fmt::{self, Write};

use crate::model::{Field, Form, Kind, Schema, TypeDef, TypeId, Variant};

/// The most differences that are listed.
pub const MAX_DIFFERENCES: usize = 64;
/// The most pairs of types that are compared, and the longest path, so that a schema that a peer has
/// made up cannot cost more than a short while.
const MAX_PAIRS: usize = 65_536;
const MAX_PATH: usize = 4_096;
/// How deep the name of a type without a name of its own is written out.
const MAX_NESTING: usize = 6;

/// One place at which two schemas say something else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Where: `CompletionReply.items[].score`.
    ///
    /// `[]` stands for the elements, `{key}` and `{value}` for the parts of a map, and
    /// `::Variant` for a variant.
    pub path: String,
    /// What the first schema says.
    pub here: String,
    /// What the second schema says.
    pub there: String,
    /// Where the field lies, in bytes from the start of what contains it, if it is a field.
    pub offsets: Option<(u32, u32)>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} here, {} there", self.path, self.here, self.there)?;
        match self.offsets {
            Some((here, there)) => write!(f, " (offset {here}, {there})"),
            None => Ok(()),
        }
    }
}

/// Lists where two schemas differ, from the root downwards.
///
/// A field that lies elsewhere only because one before it changed is not listed. For schemas made by
/// the derive, the list is empty exactly if the fingerprints are equal. It ends after
/// [`MAX_DIFFERENCES`].
///
/// # Examples
///
/// ```
/// use shmbus_schema::{Child, Description, FieldDescription, Form, Primitive, Schema, Shape, diff};
///
/// fn float() -> Description {
///     Description::of::<f32>(Shape::Primitive(Primitive::F32))
/// }
/// fn double() -> Description {
///     Description::of::<f64>(Shape::Primitive(Primitive::F64))
/// }
/// let here = Schema::flatten("Item", || Description::of::<[f32; 1]>(Shape::Struct {
///     name: "Item",
///     form: Form::Named,
///     fields: &[FieldDescription { name: "score", offset: 0, child: float as Child }],
/// }));
/// let there = Schema::flatten("Item", || Description::of::<[f64; 1]>(Shape::Struct {
///     name: "Item",
///     form: Form::Named,
///     fields: &[FieldDescription { name: "score", offset: 0, child: double as Child }],
/// }));
///
/// let found = diff(&here, &there);
/// assert_eq!(found[0].to_string(), "Item.score: f32 here, f64 there (offset 0, 0)");
/// assert!(diff(&here, &here).is_empty());
/// ```
pub fn diff(here: &Schema, there: &Schema) -> Vec<Difference> {
    let mut walk = Walk {
        here,
        there,
        seen: HashSet::new(),
        queue: VecDeque::new(),
        found: Vec::new(),
    };
    if here.name != there.name {
        walk.add("message".into(), &here.name, &there.name);
    }
    walk.visit(here.root_id(), there.root_id(), here.name.clone(), None);
    while let Some(pair) = walk.queue.pop_front() {
        walk.compare(pair);
        if walk.found.len() >= MAX_DIFFERENCES {
            walk.found.truncate(MAX_DIFFERENCES);
            break;
        }
    }
    walk.found
}

/// Two types that stand at the same place.
struct Pair {
    path: String,
    here: TypeId,
    there: TypeId,
    offsets: Option<(u32, u32)>,
}

struct Walk<'a> {
    here: &'a Schema,
    there: &'a Schema,
    seen: HashSet<(TypeId, TypeId)>,
    queue: VecDeque<Pair>,
    found: Vec<Difference>,
}

impl Walk<'_> {
    fn add(&mut self, path: String, here: impl Into<String>, there: impl Into<String>) {
        self.push(Difference {
            path,
            here: here.into(),
            there: there.into(),
            offsets: None,
        });
    }

    fn push(&mut self, difference: Difference) {
        self.found.push(difference);
    }

    fn visit(&mut self, here: TypeId, there: TypeId, path: String, offsets: Option<(u32, u32)>) {
        let more = self.seen.len() < MAX_PAIRS && path.len() <= MAX_PATH;
        if more && self.seen.insert((here, there)) {
            self.queue.push_back(Pair {
                path,
                here,
                there,
                offsets,
            });
        }
    }

    fn compare(
        &mut self,
        Pair {
            path,
            here,
            there,
            offsets,
        }: Pair,
    ) {
        let (Some(a), Some(b)) = (self.here.get(here), self.there.get(there)) else {
            return;
        };
        let below = |suffix: &str| format!("{path}{suffix}");
        let before = self.found.len();
        let mut same_kind = true;
        match (&a.kind, &b.kind) {
            (Kind::Vec { item: x }, Kind::Vec { item: y })
            | (Kind::BoxedSlice { item: x }, Kind::BoxedSlice { item: y }) => {
                self.visit(*x, *y, below("[]"), None);
            }
            (
                Kind::Array { item: x, len },
                Kind::Array {
                    item: y,
                    len: other,
                },
            ) if len == other => {
                self.visit(*x, *y, below("[]"), None);
            }
            (Kind::Box { item: x }, Kind::Box { item: y })
            | (Kind::Option { item: x }, Kind::Option { item: y }) => {
                self.visit(*x, *y, path.clone(), offsets);
            }
            (Kind::Pinned { item: x }, Kind::Pinned { item: y }) => {
                self.visit(*x, *y, path.clone(), None);
            }
            (Kind::HashSet { key: x }, Kind::HashSet { key: y })
            | (Kind::BTreeSet { key: x }, Kind::BTreeSet { key: y }) => {
                self.visit(*x, *y, below("{key}"), None);
            }
            (Kind::HashMap { key: x, value: v }, Kind::HashMap { key: y, value: w })
            | (Kind::BTreeMap { key: x, value: v }, Kind::BTreeMap { key: y, value: w }) => {
                self.visit(*x, *y, below("{key}"), None);
                self.visit(*v, *w, below("{value}"), None);
            }
            (Kind::Tuple { fields: x }, Kind::Tuple { fields: y }) => {
                self.fields(&path, x, y);
            }
            (
                Kind::Struct { name, form, fields },
                Kind::Struct {
                    name: other_name,
                    form: other_form,
                    fields: other_fields,
                },
            ) => {
                self.names(&path, "struct", name, other_name);
                self.forms(&path, *form, *other_form);
                self.fields(&path, fields, other_fields);
            }
            (
                Kind::Enum {
                    name,
                    tag_size,
                    variants,
                },
                Kind::Enum {
                    name: other_name,
                    tag_size: other_size,
                    variants: other_variants,
                },
            ) => {
                self.names(&path, "enum", name, other_name);
                if tag_size != other_size {
                    let say = |size: &u32| format!("a tag of {size} bytes");
                    self.add(path.clone(), say(tag_size), say(other_size));
                }
                self.variants(&path, variants, other_variants);
            }
            (x, y) => same_kind = x == y,
        }
        if !same_kind {
            let (x, y) = (type_name(self.here, here), type_name(self.there, there));
            let (x, y) = match x == y {
                true => (
                    format!("{} {x}", kind_name(a)),
                    format!("{} {y}", kind_name(b)),
                ),
                false => (x, y),
            };
            self.push(Difference {
                path,
                here: x,
                there: y,
                offsets,
            });
        } else if self.found.len() == before && !self.parts_differ(a, b) {
            let say = |ty: &TypeDef| format!("{} bytes aligned to {}", ty.size, ty.align);
            if (a.size, a.align) != (b.size, b.align) {
                self.add(path, say(a), say(b));
            }
        }
    }

    /// Tells whether parts in place have another size or alignment, which then explains that of the
    /// whole, and is listed with them.
    fn parts_differ(&self, a: &TypeDef, b: &TypeDef) -> bool {
        let layout = |schema: &Schema, id| schema.get(id).map(|ty| (ty.size, ty.align));
        let pairs = a.kind.children().zip(b.kind.children());
        pairs
            .into_iter()
            .any(|(x, y)| layout(self.here, x) != layout(self.there, y))
    }

    fn names(&mut self, path: &str, what: &str, here: &str, there: &str) {
        if here != there {
            self.add(
                path.into(),
                format!("{what} {here}"),
                format!("{what} {there}"),
            );
        }
    }

    fn forms(&mut self, path: &str, here: Form, there: Form) {
        let say = |form| match form {
            Form::Unit => "without fields",
            Form::Tuple => "fields without names",
            Form::Named => "fields with names",
        };
        if here != there {
            self.add(path.into(), say(here), say(there));
        }
    }

    fn fields(&mut self, path: &str, here: &[Field], there: &[Field]) {
        let at = |field: &Field| format!("{path}.{}", field.name);
        let before = self.found.len();
        for field in here {
            match find(there, &field.name) {
                Some(other) => {
                    let offsets = Some((field.offset, other.offset));
                    self.visit(field.ty, other.ty, at(field), offsets);
                }
                None => self.add(at(field), type_name(self.here, field.ty), "missing"),
            }
        }
        for field in there
            .iter()
            .filter(|field| find(here, &field.name).is_none())
        {
            self.add(at(field), "missing", type_name(self.there, field.ty));
        }
        if self.found.len() > before {
            return;
        }
        if !here
            .iter()
            .map(|field| &field.name)
            .eq(there.iter().map(|field| &field.name))
        {
            let say = |fields: &[Field]| {
                let names: Vec<_> = fields.iter().map(|field| field.name.as_str()).collect();
                format!("fields in the order {}", names.join(", "))
            };
            self.add(path.into(), say(here), say(there));
            return;
        }
        for (field, other) in here.iter().zip(there) {
            let layout = |schema: &Schema, id| schema.get(id).map(|ty| (ty.size, ty.align));
            if layout(self.here, field.ty) != layout(self.there, other.ty) {
                // It and those behind it lie where they do because of this one.
                return;
            }
            if field.offset != other.offset {
                let say = |field: &Field| format!("at offset {}", field.offset);
                self.add(at(field), say(field), say(other));
                return;
            }
        }
    }

    fn variants(&mut self, path: &str, here: &[Variant], there: &[Variant]) {
        let at = |variant: &Variant| format!("{path}::{}", variant.name);
        let say = |variant: &Variant| format!("tag {}", variant.tag);
        for variant in here {
            let Some(other) = there.iter().find(|other| other.name == variant.name) else {
                self.add(at(variant), say(variant), "missing");
                continue;
            };
            if variant.tag != other.tag {
                self.add(at(variant), say(variant), say(other));
            }
            self.forms(&at(variant), variant.form, other.form);
            self.fields(&at(variant), &variant.fields, &other.fields);
        }
        for other in there {
            if !here.iter().any(|variant| variant.name == other.name) {
                self.add(at(other), "missing", say(other));
            }
        }
        let tags =
            |variants: &[Variant]| variants.iter().map(|v| v.name.clone()).collect::<Vec<_>>();
        let (mine, theirs) = (tags(here), tags(there));
        if mine.len() == theirs.len() && mine != theirs && mine.iter().all(|m| theirs.contains(m)) {
            let say = |names: Vec<String>| format!("variants in the order {}", names.join(", "));
            self.add(path.into(), say(mine), say(theirs));
        }
    }
}

fn find<'a>(fields: &'a [Field], name: &str) -> Option<&'a Field> {
    fields.iter().find(|field| field.name == name)
}

fn kind_name(ty: &TypeDef) -> &'static str {
    match ty.kind {
        Kind::Struct { .. } => "struct",
        Kind::Enum { .. } => "enum",
        Kind::Opaque { .. } => "opaque",
        _ => "type",
    }
}

/// Returns how a type is written in Rust, without paths.
pub fn type_name(schema: &Schema, id: TypeId) -> String {
    let mut name = String::new();
    // Writing to a string does not fail.
    let _ = write_name(&mut name, schema, id, 0);
    name
}

fn write_name(out: &mut String, schema: &Schema, id: TypeId, depth: usize) -> fmt::Result {
    let Some(ty) = schema.get(id).filter(|_| depth < MAX_NESTING) else {
        return out.write_str("…");
    };
    let inside = |out: &mut String, before: &str, id: TypeId| {
        out.write_str(before)?;
        write_name(out, schema, id, depth + 1)
    };
    match &ty.kind {
        Kind::Primitive { primitive } => return write!(out, "{primitive}"),
        Kind::NonZero { primitive } => return write!(out, "NonZero<{primitive}>"),
        Kind::String => return out.write_str("String"),
        Kind::BoxedStr => return out.write_str("Box<str>"),
        Kind::Struct { name, .. } | Kind::Enum { name, .. } | Kind::Opaque { name } => {
            return out.write_str(name);
        }
        Kind::Vec { item } => inside(out, "Vec<", *item)?,
        Kind::Box { item } => inside(out, "Box<", *item)?,
        Kind::Option { item } => inside(out, "Option<", *item)?,
        Kind::Pinned { item } => inside(out, "Pinned<", *item)?,
        Kind::HashSet { key } => inside(out, "HashSet<", *key)?,
        Kind::BTreeSet { key } => inside(out, "BTreeSet<", *key)?,
        Kind::BoxedSlice { item } => {
            inside(out, "Box<[", *item)?;
            out.write_char(']')?;
        }
        Kind::HashMap { key, value } => {
            inside(out, "HashMap<", *key)?;
            inside(out, ", ", *value)?;
        }
        Kind::BTreeMap { key, value } => {
            inside(out, "BTreeMap<", *key)?;
            inside(out, ", ", *value)?;
        }
        Kind::Array { item, len } => {
            inside(out, "[", *item)?;
            return write!(out, "; {len}]");
        }
        Kind::Tuple { fields } => {
            for (index, field) in fields.iter().take(16).enumerate() {
                inside(out, if index == 0 { "(" } else { ", " }, field.ty)?;
            }
            return out.write_str(if fields.len() == 1 { ",)" } else { ")" });
        }
    }
    out.write_char('>')
}
