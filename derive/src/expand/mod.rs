//! Writes the code. Cannot fail: what could was refused before.

mod bounds;
mod checked;
mod describe;
mod mirror;

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::{Generics, Ident, Path, Type, WherePredicate, parse_quote};

use crate::ast::{Body, Field, Input};

/// Writes the mirror and the impls that delegate to it.
pub fn expand(mut input: Input) -> TokenStream {
    let names = Names::of(&input);
    let proof = checked::look_up(&mut input, &names);
    let input = &input;
    let parts = [
        mirror::item(input, &names),
        mirror::into_type(input, &names),
        archive(input, &names),
        serialize(input, &names),
        deserialize(input, &names),
        describe::archived(input, &names),
        message(input, &names),
    ];
    let roles = [
        request(input, &names),
        topic(input, &names),
        latest(input, &names),
    ];
    let (roles, assertions) = (roles.into_iter().flatten(), assertions(input, &names));
    quote!(#proof #(#parts)* #(#roles)* #assertions)
}

/// Paths and types that the parts share.
struct Names {
    krate: Path,
    /// rkyv, as the user reaches it.
    rkyv: Path,
    mirror: Ident,
    /// The constant that there is only for fields of right types.
    proof: Ident,
    archived: Ident,
    resolver: Ident,
    /// The type itself, with its generic arguments.
    this: Type,
    mirror_ty: Type,
    archived_ty: Type,
    resolver_ty: Type,
}

impl Names {
    fn of(input: &Input) -> Self {
        let krate = input.shm.krate();
        let (ident, base) = (&input.ident, input.ident.unraw());
        let (mirror, archived, resolver) = (
            format_ident!("__{base}ShmMirror"),
            format_ident!("Archived{base}", span = ident.span()),
            format_ident!("{base}Resolver"),
        );
        let (_, generics, _) = input.generics.split_for_impl();
        Self {
            rkyv: parse_quote!(#krate::__private::rkyv),
            this: parse_quote!(#ident #generics),
            mirror_ty: parse_quote!(#mirror #generics),
            archived_ty: parse_quote!(#archived #generics),
            resolver_ty: parse_quote!(#resolver #generics),
            krate,
            proof: format_ident!("__{base}ShmFields"),
            mirror,
            archived,
            resolver,
        }
    }

    /// Returns the archived type of a field.
    fn archived(&self, field: &Field) -> Type {
        let (rkyv, ty) = (&self.rkyv, &field.ty);
        match &field.rkyv.with {
            Some(with) => parse_quote!(<#with as #rkyv::with::ArchiveWith<#ty>>::Archived),
            None => parse_quote!(<#ty as #rkyv::Archive>::Archived),
        }
    }
}

/// Returns the generics of the type with more predicates.
fn with_bounds(input: &Input, predicates: impl IntoIterator<Item = WherePredicate>) -> Generics {
    let mut generics = input.generics.clone();
    generics.make_where_clause().predicates.extend(predicates);
    generics
}

fn archive(input: &Input, names: &Names) -> TokenStream {
    let Names {
        rkyv,
        this,
        mirror_ty,
        archived_ty,
        resolver_ty,
        ..
    } = names;
    let copy_optimization = copy_optimization(input, names);
    let generics = with_bounds(input, bounds::archive(input, names));
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #impl_generics #rkyv::Archive for #this #where_clause {
            type Archived = #archived_ty;
            type Resolver = #resolver_ty;

            #copy_optimization

            #[inline]
            #[allow(clippy::unit_arg)]
            fn resolve(&self, resolver: Self::Resolver, out: #rkyv::Place<Self::Archived>) {
                <#mirror_ty as #rkyv::with::ArchiveWith<#this>>::resolve_with(self, resolver, out)
            }
        }
    }
}

/// Lets a vector of plain structs be archived as one copy, by the test that rkyv's derive makes.
fn copy_optimization(input: &Input, names: &Names) -> Option<TokenStream> {
    let Body::Struct(fields) = &input.data else {
        return None;
    };
    let copied = |field: &Field| field.rkyv.with.is_none() && !field.rkyv.niche;
    if !input.generics.params.is_empty() || !fields.list.iter().all(copied) {
        return None;
    }
    let Names {
        rkyv,
        this,
        archived_ty,
        ..
    } = names;
    let types = fields.list.iter().map(|field| &field.ty);
    let checks = fields.list.iter().map(|Field { ty, member, .. }| {
        quote! {
            && <#ty as #rkyv::Archive>::COPY_OPTIMIZATION.is_enabled()
            && ::core::mem::offset_of!(#this, #member)
                == ::core::mem::offset_of!(#archived_ty, #member)
        }
    });
    // Sound: there is no padding, as the sizes of the fields add up to that of the struct; and each
    // field lies where its archived form does and may itself be copied.
    Some(quote! {
        const COPY_OPTIMIZATION: #rkyv::traits::CopyOptimization<Self> = unsafe {
            #rkyv::traits::CopyOptimization::enable_if(
                0 #(+ ::core::mem::size_of::<#types>())* == ::core::mem::size_of::<#this>()
                #(#checks)*
            )
        };
    })
}

fn serialize(input: &Input, names: &Names) -> TokenStream {
    let Names {
        rkyv,
        this,
        mirror_ty,
        ..
    } = names;
    let archive = bounds::archive(input, names);
    let mut generics = with_bounds(input, archive);
    generics
        .params
        .push(parse_quote!(__S: #rkyv::rancor::Fallible + ?Sized));
    generics
        .make_where_clause()
        .predicates
        .extend(bounds::serialize(input, names));
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    let body = serialize_fields(input, names).unwrap_or_else(|| {
        quote! {
            <#mirror_ty as #rkyv::with::SerializeWith<#this, __S>>::serialize_with(self, serializer)
        }
    });
    quote! {
        #[automatically_derived]
        impl #impl_generics #rkyv::Serialize<__S> for #this #where_clause {
            #[inline(always)]
            fn serialize(
                &self,
                serializer: &mut __S,
            ) -> ::core::result::Result<
                Self::Resolver,
                <__S as #rkyv::rancor::Fallible>::Error,
            > {
                #body
            }
        }
    }
}

/// Writes what the mirror would do for a plain struct, where the caller can inline it: resolvers of a
/// vector's elements then stay in registers until they are kept.
fn serialize_fields(input: &Input, names: &Names) -> Option<TokenStream> {
    let Body::Struct(fields) = &input.data else {
        return None;
    };
    let Names { rkyv, resolver, .. } = names;
    let plain = |field: &Field| field.rkyv.with.is_none() && !field.rkyv.niche;
    if !fields.list.iter().all(plain) {
        return None;
    }
    let list = fields.list.iter().map(|Field { member, ty, .. }| {
        quote! {
            #member: <#ty as #rkyv::Serialize<__S>>::serialize(&self.#member, serializer)?
        }
    });
    Some(quote!(::core::result::Result::Ok(#resolver { #(#list,)* })))
}

fn deserialize(input: &Input, names: &Names) -> TokenStream {
    let Names {
        rkyv,
        this,
        mirror_ty,
        archived_ty,
        ..
    } = names;
    let mut generics = with_bounds(input, bounds::archive(input, names));
    generics
        .params
        .push(parse_quote!(__D: #rkyv::rancor::Fallible + ?Sized));
    generics
        .make_where_clause()
        .predicates
        .extend(bounds::deserialize(input, names));
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #impl_generics #rkyv::Deserialize<#this, __D> for #archived_ty #where_clause {
            #[inline]
            fn deserialize(
                &self,
                deserializer: &mut __D,
            ) -> ::core::result::Result<#this, <__D as #rkyv::rancor::Fallible>::Error> {
                <#mirror_ty as #rkyv::with::DeserializeWith<#archived_ty, #this, __D>>
                    ::deserialize_with(self, deserializer)
            }
        }
    }
}

fn message(input: &Input, names: &Names) -> TokenStream {
    let Names { krate, this, .. } = names;
    let name = input.name();
    let generics = with_bounds(input, bounds::message(input, names));
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #impl_generics #krate::__private::ShmMessage for #this #where_clause {
            const NAME: &'static str = #name;

            #[inline]
            fn layouts() -> &'static #krate::__private::Layouts {
                static LAYOUTS: #krate::__private::Layouts = #krate::__private::Layouts::new();
                &LAYOUTS
            }
        }
    }
}

fn request(input: &Input, names: &Names) -> Option<TokenStream> {
    let (service, reply) = (input.shm.service.as_ref()?, input.shm.reply.as_ref()?);
    let Names { krate, this, .. } = names;
    let none = quote!(#krate::__private::Nothing);
    let item = input
        .shm
        .stream
        .as_ref()
        .map_or(none.clone(), |ty| quote!(#ty));
    let error = input.shm.error.as_ref().map_or(none, |ty| quote!(#ty));
    let (key, supersedes) = match input.named(input.shm.supersedes.as_ref()) {
        Some(Field {
            ty, member, span, ..
        }) => (
            quote_spanned!(*span=> #ty),
            Some(quote! {
                #[inline]
                fn supersedes(&self) -> ::core::option::Option<&Self::Key> {
                    ::core::option::Option::Some(&self.#member)
                }
            }),
        ),
        None => (quote!(()), None),
    };
    let idempotent = input.shm.idempotent.is_some();
    let generics = with_bounds(input, bounds::message(input, names));
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    Some(quote! {
        #[automatically_derived]
        impl #impl_generics #krate::__private::ShmRequest for #this #where_clause {
            type Reply = #reply;
            type Item = #item;
            type Error = #error;
            type Key = #key;
            const SERVICE: &'static str = #service;
            const IDEMPOTENT: bool = #idempotent;

            #supersedes
        }
    })
}

fn topic(input: &Input, names: &Names) -> Option<TokenStream> {
    let topic = input.shm.topic.as_ref()?;
    let Names { krate, this, .. } = names;
    let generics = with_bounds(input, bounds::message(input, names));
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    Some(quote! {
        #[automatically_derived]
        impl #impl_generics #krate::__private::ShmTopic for #this #where_clause {
            const TOPIC: &'static str = #topic;
        }
    })
}

fn latest(input: &Input, names: &Names) -> Option<TokenStream> {
    let latest = input.shm.latest.as_ref()?;
    let Names { krate, this, .. } = names;
    let rkyv = quote!(#krate::__private::rkyv);
    let (ty, key, archived) = match input.named(input.shm.key.as_ref()) {
        Some(Field {
            ty, member, span, ..
        }) => (
            quote_spanned!(*span=> #ty),
            quote!(&self.#member),
            quote!(&archived.#member),
        ),
        None => (
            quote!(()),
            quote!(&()),
            quote!({
                let _ = archived;
                &()
            }),
        ),
    };
    let generics = with_bounds(input, bounds::message(input, names));
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    Some(quote! {
        #[automatically_derived]
        impl #impl_generics #krate::__private::ShmLatest for #this #where_clause {
            type Key = #ty;
            const LATEST: &'static str = #latest;

            #[inline]
            fn key(&self) -> &Self::Key {
                #key
            }

            #[inline]
            fn archived_key(
                archived: &<Self as #rkyv::Archive>::Archived,
            ) -> &<Self::Key as #rkyv::Archive>::Archived {
                #archived
            }
        }
    })
}

/// One plain error for a field of a wrong type, where the field stands.
fn assertions(input: &Input, names: &Names) -> Option<TokenStream> {
    if input.has_type_params {
        // The same is asked of the fields where the type is used as a message.
        return None;
    }
    let krate = &names.krate;
    let asserted = input.fields().filter(|field| field.rkyv.with.is_none());
    let calls = asserted.map(
        |Field { ty, span, .. }| quote_spanned!(*span=> #krate::__private::assert_field::<#ty>();),
    );
    let (impl_generics, _, where_clause) = input.generics.split_for_impl();
    Some(quote! {
        const _: () = {
            #[allow(dead_code)]
            fn assert_fields #impl_generics () #where_clause { #(#calls)* }
        };
    })
}
