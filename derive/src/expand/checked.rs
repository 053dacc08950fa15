//! Types of fields, written such that one which cannot be in a message is one error and not twenty.
//!
//! What rkyv's derive and ours write asks a dozen things of every field, and the compiler would
//! report each of them. It reports nothing about a type that it already knows to be wrong, though.
//! So a type that it has yet to look up is written as `Checked<Item, { FIELDS }>`, which is `Item`
//! itself, if the constant can be had. The constant asserts that the types in all fields are
//! messages. If one is not, that is the error, on its name; and what depends on the constant is wrong
//! without a word.
//!
//! # Why the constant of a type never needs itself
//!
//! The constant asks whether other types are archived. For one without arguments, the answer is that
//! an impl is there: it has no bounds. For one with arguments it has, on the fields that mention
//! them, and these may need the constants of further types. That ends where looking for the impls
//! ends, so it does not for types that could not be archived in any case; fields without bounds,
//! where a cycle of types is broken, do not take part.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{GenericArgument, Ident, PathArguments, Type, TypePath};

use super::Names;
use crate::ast::Input;
use crate::mention;

/// Types that are archived whatever else holds, so that nothing needs to be looked up.
const PRIMITIVES: [&str; 14] = [
    "bool", "char", "i8", "i16", "i32", "i64", "i128", "str", "u8", "u16", "u32", "u64", "u128",
    "String",
];

/// The same, but no keys.
const FLOATS: [&str; 2] = ["f32", "f64"];

/// Types that are archived if their first arguments are, and what these are in them.
///
/// Only so that the error is on the argument: another type with arguments is looked up as a whole.
const CONTAINERS: [(&str, &[Role]); 8] = [
    ("BTreeMap", &[Role::TreeKey, Role::Part]),
    ("BTreeSet", &[Role::TreeKey]),
    ("Box", &[Role::Part]),
    ("HashMap", &[Role::HashKey, Role::Part]),
    ("HashSet", &[Role::HashKey]),
    ("Option", &[Role::Part]),
    ("Result", &[Role::Part, Role::Part]),
    ("Vec", &[Role::Part]),
];

/// What a type is in the field, and so what it must be able to do.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    /// No more than what it is a part of.
    Part,
    HashKey,
    TreeKey,
}

/// Has the types of all fields looked up, but for those of fields with a wrapper or with generic
/// parameters: of these a constant in a type may not speak.
///
/// Returns the constant that does so.
pub fn look_up(input: &mut Input, names: &Names) -> Option<TokenStream> {
    let params: Vec<_> = input.params().cloned().collect();
    let this = input.ident.clone();
    let mut calls = Vec::new();
    for field in input.fields_mut().filter(|f| f.rkyv.with.is_none()) {
        if !mention::any_of(&field.ty, &params) {
            let mut parts = Parts {
                names,
                this: &this,
                bounded: !field.unbounded,
                role: Role::Part,
                calls: &mut calls,
            };
            parts.visit_type_mut(&mut field.ty);
        }
    }
    let proof = &names.proof;
    (!calls.is_empty()).then(|| {
        quote! {
            #[doc(hidden)]
            #[allow(non_upper_case_globals)]
            const #proof: bool = { #(#calls)* true };
        }
    })
}

/// Goes through arrays, tuples and containers to the types that they are made of.
struct Parts<'a> {
    names: &'a Names,
    /// The type with the derive itself, which is a message.
    this: &'a Ident,
    bounded: bool,
    role: Role,
    calls: &'a mut Vec<TokenStream>,
}

impl VisitMut for Parts<'_> {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        match ty {
            Type::Array(array) => self.visit_type_mut(&mut array.elem),
            Type::Slice(_) | Type::Tuple(_) | Type::Paren(_) | Type::Group(_) => {
                visit_mut::visit_type_mut(self, ty);
            }
            Type::Path(path) if self.is_primitive(path) => {}
            Type::Path(path) => match container(path) {
                Some(roles) => self.visit_arguments(path, roles),
                None => *ty = self.looked_up(path),
            },
            _ => {}
        }
    }
}

impl Parts<'_> {
    fn is_primitive(&self, path: &TypePath) -> bool {
        let is = |name: &&str| path.path.is_ident(name);
        path.qself.is_none()
            && (PRIMITIVES.iter().any(is) || self.role == Role::Part && FLOATS.iter().any(is))
    }

    fn visit_arguments(&mut self, path: &mut TypePath, roles: &[Role]) {
        let outer = self.role;
        for (argument, role) in arguments(path).zip(roles) {
            self.role = if *role == Role::Part { outer } else { *role };
            self.visit_type_mut(argument);
        }
        self.role = outer;
    }

    fn looked_up(&mut self, path: &TypePath) -> Type {
        let Names { krate, proof, .. } = self.names;
        let unchanged = Type::Path(path.clone());
        let mut segments = path.path.segments.iter();
        let generic = segments.any(|segment| !segment.arguments.is_none());
        let assertion = match (generic, self.role) {
            _ if mention::contains(&unchanged, self.this) => return unchanged,
            (true, _) if !self.bounded => return unchanged,
            (true, _) => quote!(assert_generic),
            (false, Role::Part) => quote!(assert_part),
            (false, Role::HashKey) => quote!(assert_hash_key),
            (false, Role::TreeKey) => quote!(assert_tree_key),
        };
        let call = quote_spanned!(path.span()=> #krate::__private::#assertion::<#path>(););
        self.calls.push(call);
        Type::Verbatim(quote!(#krate::__private::Checked<#path, { #proof }>))
    }
}

fn container(path: &TypePath) -> Option<&'static [Role]> {
    let last = path
        .path
        .segments
        .last()
        .filter(|last| !last.arguments.is_none())?;
    let found = CONTAINERS.iter().find(|(name, _)| last.ident == name);
    found.map(|(_, roles)| *roles)
}

fn arguments(path: &mut TypePath) -> impl Iterator<Item = &mut Type> {
    let last = path.path.segments.last_mut();
    let arguments = last.and_then(|last| match &mut last.arguments {
        PathArguments::AngleBracketed(arguments) => Some(arguments.args.iter_mut()),
        _ => None,
    });
    arguments
        .into_iter()
        .flatten()
        .filter_map(|argument| match argument {
            GenericArgument::Type(ty) => Some(ty),
            _ => None,
        })
}
