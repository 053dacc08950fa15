//! Finds fields that contain the type they are in.
//!
//! A derive sees one type. It recognizes the type's own name in a field, which is enough for a list
//! or a tree; a cycle through several types it cannot see.

use syn::visit::{self, Visit};
use syn::{Ident, Path, Type};

/// Tells whether `ty` mentions the type called `name`.
pub fn mentions(ty: &Type, name: &Ident) -> bool {
    let mut search = Search { name, found: false };
    search.visit_type(ty);
    search.found
}

struct Search<'a> {
    name: &'a Ident,
    found: bool,
}

impl<'ast> Visit<'ast> for Search<'_> {
    fn visit_path(&mut self, path: &'ast Path) {
        self.found |= path
            .segments
            .last()
            .is_some_and(|last| last.ident == *self.name);
        visit::visit_path(self, path);
    }
}
