//! The bounds that rkyv's own derive puts on its impls, which ours must repeat.
//!
//! They are written field by field: a bound on the mirror as a whole would send the trait solver in
//! circles on a recursive type.

use syn::{WherePredicate, parse_quote};

use super::Names;
use crate::ast::{Field, Input};
use crate::mention;

fn bounded(input: &Input) -> impl Iterator<Item = &Field> {
    input.fields().filter(|field| !field.unbounded)
}

/// Those fields whose types are not known here. The others are what they are, and so that they are
/// archived is no bound.
fn generic(input: &Input) -> impl Iterator<Item = &Field> {
    let params: Vec<_> = input.params().cloned().collect();
    bounded(input).filter(move |field| {
        let mut types = field.rkyv.with.iter().chain([&field.ty]);
        types.any(|ty| mention::any_of(ty, &params))
    })
}

pub fn archive(input: &Input, names: &Names) -> Vec<WherePredicate> {
    let rkyv = &names.rkyv;
    let bound = |field: &Field| -> WherePredicate {
        let ty = &field.ty;
        match &field.rkyv.with {
            Some(with) => parse_quote!(#with: #rkyv::with::ArchiveWith<#ty>),
            None => parse_quote!(#ty: #rkyv::Archive),
        }
    };
    generic(input).map(bound).collect()
}

pub fn serialize(input: &Input, names: &Names) -> Vec<WherePredicate> {
    let rkyv = &names.rkyv;
    let bound = |field: &Field| -> WherePredicate {
        let ty = &field.ty;
        match &field.rkyv.with {
            Some(with) => parse_quote!(#with: #rkyv::with::SerializeWith<#ty, __S>),
            None => parse_quote!(#ty: #rkyv::Serialize<__S>),
        }
    };
    bounded(input)
        .map(bound)
        .chain(serialize_recursive(input, names))
        .collect()
}

pub fn deserialize(input: &Input, names: &Names) -> Vec<WherePredicate> {
    let rkyv = &names.rkyv;
    let bound = |field: &Field| -> WherePredicate {
        let (ty, archived) = (&field.ty, names.archived(field));
        match &field.rkyv.with {
            Some(with) => parse_quote!(#with: #rkyv::with::DeserializeWith<#archived, #ty, __D>),
            None => parse_quote!(#archived: #rkyv::Deserialize<#ty, __D>),
        }
    };
    bounded(input)
        .map(bound)
        .chain(deserialize_recursive(input, names))
        .collect()
}

/// What a field that contains the type itself needs of a serializer, instead of bounds.
pub fn serialize_recursive(input: &Input, names: &Names) -> Vec<WherePredicate> {
    let rkyv = &names.rkyv;
    match input.recursive {
        true => vec![
            parse_quote!(__S: #rkyv::ser::Writer + #rkyv::ser::Allocator),
            parse_quote!(<__S as #rkyv::rancor::Fallible>::Error: #rkyv::rancor::Source),
        ],
        false => Vec::new(),
    }
}

/// The same of a deserializer.
pub fn deserialize_recursive(input: &Input, names: &Names) -> Vec<WherePredicate> {
    let rkyv = &names.rkyv;
    match input.recursive {
        true => {
            vec![parse_quote!(<__D as #rkyv::rancor::Fallible>::Error: #rkyv::rancor::Source)]
        }
        false => Vec::new(),
    }
}

/// What the bus needs of the fields of a generic type, to make it a message.
pub fn message(input: &Input, names: &Names) -> Vec<WherePredicate> {
    if !input.has_type_params {
        return Vec::new();
    }
    let (rkyv, private) = (&names.rkyv, &names.krate);
    let mut bounds: Vec<_> = input
        .generics
        .type_params()
        .map(|param| -> WherePredicate {
            let ident = &param.ident;
            parse_quote!(#ident: 'static)
        })
        .collect();
    for field in generic(input) {
        let (ty, archived) = (&field.ty, names.archived(field));
        match &field.rkyv.with {
            Some(with) => bounds.extend::<[WherePredicate; 4]>([
                parse_quote!(#with: #rkyv::with::ArchiveWith<#ty>),
                parse_quote!(#with: #rkyv::with::SerializeWith<#ty, #private::__private::Encoder>),
                parse_quote!(#with: #rkyv::with::DeserializeWith<
                    #archived, #ty, #private::__private::Decoder,
                >),
                parse_quote!(#archived: #private::__private::Describe
                    + for<'__a> #rkyv::bytecheck::CheckBytes<#private::__private::Checker<'__a>>),
            ]),
            None => bounds.push(parse_quote!(#ty: #private::__private::Field)),
        }
    }
    bounds
}

/// What is needed to name the archived layout of a generic type.
pub fn describe(input: &Input, names: &Names) -> Vec<WherePredicate> {
    if !input.has_type_params {
        return Vec::new();
    }
    let private = &names.krate;
    let params = input.generics.type_params().map(|param| -> WherePredicate {
        let ident = &param.ident;
        parse_quote!(#ident: 'static)
    });
    let fields = generic(input).map(|field| -> WherePredicate {
        let archived = names.archived(field);
        parse_quote!(#archived: #private::__private::Describe)
    });
    archive(input, names)
        .into_iter()
        .chain(params)
        .chain(fields)
        .collect()
}
