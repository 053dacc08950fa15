//! The hidden mirror of a type, which carries rkyv's derives in their remote mode.
//!
//! It stands beside the type and not inside of a constant, since rkyv writes the archived type next
//! to it, and users need the name of that one.

use proc_macro2::TokenStream;
use quote::{ToTokens, format_ident, quote};
use syn::Member;

use super::{Names, bounds};
use crate::ast::{Body, Field, Fields, Form, Input, Variant};

/// Writes the mirror.
pub fn item(input: &Input, names: &Names) -> TokenStream {
    let Names {
        rkyv,
        mirror,
        archived,
        resolver,
        this,
        ..
    } = names;
    let (vis, passed) = (&input.vis, &input.rkyv);
    let recursive = input.recursive.then(|| {
        let serialize = bounds::serialize_recursive(input, names);
        let deserialize = bounds::deserialize_recursive(input, names);
        quote! {
            #[rkyv(
                serialize_bounds(#(#serialize),*),
                deserialize_bounds(#(#deserialize),*),
                bytecheck(bounds(
                    __C: #rkyv::validation::ArchiveContext,
                    <__C as #rkyv::rancor::Fallible>::Error: #rkyv::rancor::Source
                )),
            )]
        }
    });
    let (params, where_clause) = (&input.generics, &input.generics.where_clause);
    let item = match &input.data {
        Body::Struct(fields) => {
            let list = fields.list.iter().map(field);
            match fields.form {
                Form::Named => quote!(struct #mirror #params #where_clause { #(#list,)* }),
                Form::Tuple => quote!(struct #mirror #params (#(#list,)*) #where_clause;),
                Form::Unit => quote!(struct #mirror #params #where_clause;),
            }
        }
        Body::Enum(variants) => {
            let variants = variants.iter().map(variant);
            quote!(enum #mirror #params #where_clause { #(#variants,)* })
        }
    };
    // Discriminants of variants with fields are only legal with a representation.
    let repr = matches!(input.data, Body::Enum(_)).then(|| quote!(#[repr(u8)]));
    quote! {
        #[doc(hidden)]
        #[allow(dead_code, missing_docs, clippy::all)]
        #[derive(#rkyv::Archive, #rkyv::Serialize, #rkyv::Deserialize)]
        #[rkyv(crate = #rkyv, remote = #this, archived = #archived, resolver = #resolver)]
        #recursive
        #(#passed)*
        #repr
        #vis #item
    }
}

fn variant(
    Variant {
        ident,
        discriminant,
        fields,
    }: &Variant,
) -> TokenStream {
    let list = fields.list.iter().map(field);
    let discriminant = discriminant.as_ref().map(|expr| quote!(= #expr));
    match fields.form {
        Form::Named => quote!(#ident { #(#list,)* } #discriminant),
        Form::Tuple => quote!(#ident(#(#list,)*) #discriminant),
        Form::Unit => quote!(#ident #discriminant),
    }
}

fn field(
    Field {
        vis,
        member,
        ty,
        rkyv,
        unbounded,
        ..
    }: &Field,
) -> TokenStream {
    let attrs = &rkyv.attrs;
    let omit_bounds = (*unbounded && !rkyv.omit_bounds).then(|| quote!(#[rkyv(omit_bounds)]));
    let name = match member {
        Member::Named(name) => Some(quote!(#name:)),
        Member::Unnamed(_) => None,
    };
    quote!(#(#attrs)* #omit_bounds #vis #name #ty)
}

/// Writes the conversion from the mirror, with which rkyv ends its reading.
pub fn into_type(input: &Input, names: &Names) -> TokenStream {
    let Names {
        mirror,
        this,
        mirror_ty,
        ..
    } = names;
    let ident = &input.ident;
    let body = match &input.data {
        Body::Struct(fields) => {
            let (from, to) = (construction(mirror, fields), construction(ident, fields));
            quote!(let #from = mirror; #to)
        }
        Body::Enum(variants) => {
            let arms = variants.iter().map(
                |Variant {
                     ident: variant,
                     fields,
                     ..
                 }| {
                    let from = construction(quote!(#mirror::#variant), fields);
                    let to = construction(quote!(#ident::#variant), fields);
                    quote!(#from => #to)
                },
            );
            quote!(match mirror { #(#arms,)* })
        }
    };
    let (impl_generics, _, where_clause) = input.generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #impl_generics ::core::convert::From<#mirror_ty> for #this #where_clause {
            #[inline]
            fn from(mirror: #mirror_ty) -> Self { #body }
        }
    }
}

/// Writes `path { a: field_0, b: field_1 }`: an expression as well as a pattern, for any form.
fn construction(path: impl ToTokens, fields: &Fields) -> TokenStream {
    let members = fields.list.iter().map(|field| &field.member);
    let bindings = (0..fields.list.len()).map(|index| format_ident!("field_{index}"));
    quote!(#path { #(#members: #bindings,)* })
}
