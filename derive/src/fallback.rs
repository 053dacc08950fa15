//! After an error: impls that say nothing, so that the error is the only one.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::ext::IdentExt;
use syn::{DeriveInput, Error};

use crate::attr::Shm;

/// Writes the error, and for the type an archived form of no bytes.
pub fn expand(input: &DeriveInput, error: Error) -> TokenStream {
    let error = error.into_compile_error();
    if input.generics.lifetimes().next().is_some() {
        // No impl that a message needs can be written for it.
        return error;
    }
    let krate = Shm::parse(&input.attrs).unwrap_or_default().krate();
    let (vis, ident) = (&input.vis, &input.ident);
    let archived = format_ident!("Archived{}", ident.unraw());
    let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
    let params = input.generics.params.iter();
    let codec_generics =
        quote!(<#(#params,)* __C: #krate::__private::rkyv::rancor::Fallible + ?Sized>);
    let static_params = input.generics.type_params().map(|param| &param.ident);
    let predicates = where_clause
        .map(|clause| clause.predicates.iter())
        .into_iter()
        .flatten();
    quote! {
        #error
        #[doc(hidden)]
        #[allow(dead_code)]
        #vis type #archived = ();
        const _: () = {
            use #krate::__private::rkyv;
            impl #impl_generics rkyv::Archive for #ident #ty_generics #where_clause {
                type Archived = ();
                type Resolver = ();
                fn resolve(&self, _: (), _: rkyv::Place<()>) {}
            }
            impl #codec_generics rkyv::Serialize<__C> for #ident #ty_generics #where_clause {
                fn serialize(&self, _: &mut __C) -> ::core::result::Result<(), __C::Error> {
                    ::core::unreachable!("the type did not compile")
                }
            }
            impl #codec_generics rkyv::Deserialize<#ident #ty_generics, __C> for () #where_clause {
                fn deserialize(
                    &self,
                    _: &mut __C,
                ) -> ::core::result::Result<#ident #ty_generics, __C::Error> {
                    ::core::unreachable!("the type did not compile")
                }
            }
            impl #impl_generics #krate::__private::ShmMessage for #ident #ty_generics
            where
                #(#static_params: 'static,)*
                #(#predicates,)*
            {
                const NAME: &'static str = "";
                fn layouts() -> &'static #krate::__private::Layouts {
                    ::core::unreachable!("the type did not compile")
                }
            }
        };
    }
}
