//! The archived layout as a constant.

use proc_macro2::TokenStream;
use quote::quote;

use super::{Names, bounds, with_bounds};
use crate::ast::{Body, Field, Fields, Form, Input, Variant};

/// Writes the description of the archived type.
pub fn archived(input: &Input, names: &Names) -> TokenStream {
    let Names {
        krate, archived_ty, ..
    } = names;
    let schema = quote!(#krate::__private::schema);
    let name = input.name();
    let shape = match &input.data {
        Body::Struct(fields) => {
            let form = form(fields.form, &schema);
            let list = fields.list.iter().map(|field| {
                let member = &field.member;
                let offset = quote!(::core::mem::offset_of!(#archived_ty, #member));
                description(field, offset, names)
            });
            quote!(Struct { name: #name, form: #form, fields: &[#(#list),*] })
        }
        Body::Enum(variants) => {
            let tags = tags(variants);
            let list = variants.iter().zip(tags).map(|(variant, tag)| {
                let name = variant_name(variant);
                let form = form(variant.fields.form, &schema);
                let fields = variant_fields(&variant.fields, names);
                quote! {
                    #schema::VariantDescription {
                        name: #name,
                        tag: #tag,
                        form: #form,
                        fields: &[#(#fields),*],
                    }
                }
            });
            quote!(Enum { name: #name, tag_size: 1, variants: &[#(#list),*] })
        }
    };
    let generics = with_bounds(input, bounds::describe(input, names));
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #impl_generics #krate::__private::Describe for #archived_ty #where_clause {
            const SHAPE: #schema::Shape = #schema::Shape::#shape;
        }
    }
}

fn form(form: Form, schema: &TokenStream) -> TokenStream {
    match form {
        Form::Unit => quote!(#schema::Form::Unit),
        Form::Tuple => quote!(#schema::Form::Tuple),
        Form::Named => quote!(#schema::Form::Named),
    }
}

fn description(field: &Field, offset: TokenStream, names: &Names) -> TokenStream {
    let (krate, name, archived) = (&names.krate, field.name(), names.archived(field));
    quote! {
        #krate::__private::schema::FieldDescription {
            name: #name,
            offset: #offset,
            child: #krate::__private::describe::<#archived>,
        }
    }
}

fn variant_name(variant: &Variant) -> String {
    use syn::ext::IdentExt;
    variant.ident.unraw().to_string()
}

/// Writes the fields of a variant, which in the archive is a C struct of the tag and the fields.
fn variant_fields(fields: &Fields, names: &Names) -> Vec<TokenStream> {
    let krate = &names.krate;
    let layouts: Vec<_> = fields
        .list
        .iter()
        .map(|field| {
            let archived = names.archived(field);
            quote!((::core::mem::size_of::<#archived>(), ::core::mem::align_of::<#archived>()))
        })
        .collect();
    let field = |(index, field): (usize, &Field)| {
        let before = &layouts[..=index];
        let offset = quote!(#krate::__private::variant_offset(&[#(#before),*]));
        description(field, offset, names)
    };
    fields.list.iter().enumerate().map(field).collect()
}

/// Writes the tag of each variant: what it says, or one more than that of the variant before.
fn tags(variants: &[Variant]) -> Vec<TokenStream> {
    let mut base = quote!(0u8);
    let mut above = 0u64;
    let tag = |variant: &Variant| {
        if let Some(expr) = &variant.discriminant {
            base = quote!({ const TAG: u8 = #expr; TAG });
            above = 0;
        }
        let tag = quote!((#base as u64 + #above));
        above += 1;
        tag
    };
    variants.iter().map(tag).collect()
}
