//! Finds what a type mentions.
//!
//! A derive sees one type. It recognizes the type's own name in a field, which is enough for a list
//! or a tree; a cycle through several types it cannot see.

use syn::visit::{self, Visit};
use syn::{Ident, Macro, Path, Type};

/// Tells whether `ty` contains the type called `name`.
pub fn contains(ty: &Type, name: &Ident) -> bool {
    let mut search = Containing { name, found: false };
    search.visit_type(ty);
    search.found
}

struct Containing<'a> {
    name: &'a Ident,
    found: bool,
}

impl<'ast> Visit<'ast> for Containing<'_> {
    fn visit_path(&mut self, path: &'ast Path) {
        self.found |= path
            .segments
            .last()
            .is_some_and(|last| last.ident == *self.name);
        visit::visit_path(self, path);
    }
}

/// Tells whether one of the names may stand anywhere in `ty`.
pub fn any_of(ty: &Type, names: &[Ident]) -> bool {
    let mut search = Anywhere {
        names,
        found: false,
    };
    search.visit_type(ty);
    search.found
}

struct Anywhere<'a> {
    names: &'a [Ident],
    found: bool,
}

impl<'ast> Visit<'ast> for Anywhere<'_> {
    fn visit_ident(&mut self, ident: &'ast Ident) {
        self.found |= self.names.contains(ident);
    }

    /// What a macro will say is not known.
    fn visit_macro(&mut self, _: &'ast Macro) {
        self.found = true;
    }
}
