//! What was written, in the form in which the other stages use it.

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{
    Data, DeriveInput, Error, Expr, GenericParam, Generics, Ident, LitStr, Member, Path,
    PathArguments, QSelf, Result, Type, Visibility, parse_quote,
};

use crate::attr::{self, FieldRkyv, Shm};
use crate::mention;

/// A type with the derive.
pub struct Input {
    pub shm: Shm,
    /// `#[rkyv(…)]` attributes that go to the mirror as they are.
    pub rkyv: Vec<syn::Attribute>,
    pub vis: Visibility,
    pub ident: Ident,
    pub generics: Generics,
    pub data: Body,
    pub has_type_params: bool,
    /// A field's bounds are left out, since it contains the type itself.
    pub recursive: bool,
}

pub enum Body {
    Struct(Fields),
    Enum(Vec<Variant>),
}

pub struct Variant {
    pub ident: Ident,
    pub discriminant: Option<Expr>,
    pub fields: Fields,
}

pub struct Fields {
    pub form: Form,
    pub list: Vec<Field>,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Form {
    Unit,
    Tuple,
    Named,
}

pub struct Field {
    pub vis: Visibility,
    pub member: Member,
    /// The type, with `Self` written out.
    pub ty: Type,
    /// Where the type stands.
    pub span: Span,
    pub rkyv: FieldRkyv,
    /// Without bounds in the impls: it contains the type itself, or the user says so.
    pub unbounded: bool,
}

impl Input {
    pub fn from_syn(input: &DeriveInput) -> Result<Self> {
        let mut generics = input.generics.clone();
        let (_, ty_generics, _) = input.generics.split_for_impl();
        let ident = &input.ident;
        let mut written_out = SelfWrittenOut(parse_quote!(#ident #ty_generics));
        written_out.visit_generics_mut(&mut generics);

        let mut fields = |fields: &syn::Fields| Fields::from_syn(fields, ident, &mut written_out);
        let data = match &input.data {
            Data::Struct(data) => Body::Struct(fields(&data.fields)?),
            Data::Enum(data) => {
                let variant = |variant: &syn::Variant| {
                    attr::refuse_shm(&variant.attrs)?;
                    Ok(Variant {
                        ident: variant.ident.clone(),
                        discriminant: variant.discriminant.as_ref().map(|(_, expr)| expr.clone()),
                        fields: fields(&variant.fields)?,
                    })
                };
                Body::Enum(data.variants.iter().map(variant).collect::<Result<_>>()?)
            }
            Data::Union(data) => {
                return Err(Error::new(
                    data.union_token.span,
                    "a union cannot be a message, since its bytes do not say what they are; \
                     use an enum",
                ));
            }
        };
        let mut message = Self {
            shm: Shm::parse(&input.attrs)?,
            rkyv: attr::container_rkyv(&input.attrs)?,
            vis: input.vis.clone(),
            ident: ident.clone(),
            has_type_params: generics.type_params().next().is_some(),
            generics,
            data,
            recursive: false,
        };
        let recursive = message.fields().any(|field| field.unbounded);
        message.recursive = recursive;
        Ok(message)
    }

    /// Returns all fields, those of the variants of an enum one after the other.
    pub fn fields(&self) -> impl Iterator<Item = &Field> {
        let (one, many): (Option<&Fields>, &[Variant]) = match &self.data {
            Body::Struct(fields) => (Some(fields), &[]),
            Body::Enum(variants) => (None, variants),
        };
        one.into_iter()
            .chain(many.iter().map(|variant| &variant.fields))
            .flat_map(|f| &f.list)
    }

    /// The field of a struct that an attribute names.
    pub fn named(&self, name: Option<&LitStr>) -> Option<&Field> {
        let Body::Struct(fields) = &self.data else {
            return None;
        };
        let name = name?.value();
        let is_meant = |field: &&Field| match &field.member {
            Member::Named(ident) => ident == &name,
            Member::Unnamed(index) => index.index.to_string() == name,
        };
        fields.list.iter().find(is_meant)
    }

    /// Returns all fields, to change them.
    pub fn fields_mut(&mut self) -> impl Iterator<Item = &mut Field> {
        let (one, many): (Option<&mut Fields>, &mut [Variant]) = match &mut self.data {
            Body::Struct(fields) => (Some(fields), &mut []),
            Body::Enum(variants) => (None, variants),
        };
        one.into_iter()
            .chain(many.iter_mut().map(|variant| &mut variant.fields))
            .flat_map(|f| &mut f.list)
    }

    /// Returns the names of the generic types and constants.
    pub fn params(&self) -> impl Iterator<Item = &Ident> {
        self.generics.params.iter().filter_map(|param| match param {
            GenericParam::Type(param) => Some(&param.ident),
            GenericParam::Const(param) => Some(&param.ident),
            GenericParam::Lifetime(_) => None,
        })
    }

    /// Returns the name in the schema: as chosen, or else as in Rust.
    pub fn name(&self) -> LitStr {
        let default = || LitStr::new(&self.ident.unraw().to_string(), self.ident.span());
        self.shm.name.clone().unwrap_or_else(default)
    }
}

impl Fields {
    fn from_syn(fields: &syn::Fields, of: &Ident, self_ty: &mut SelfWrittenOut) -> Result<Self> {
        let form = match fields {
            syn::Fields::Named(_) => Form::Named,
            syn::Fields::Unnamed(_) => Form::Tuple,
            syn::Fields::Unit => Form::Unit,
        };
        let field = |(field, member): (&syn::Field, Member)| {
            let mut ty = field.ty.clone();
            self_ty.visit_type_mut(&mut ty);
            let mut rkyv = FieldRkyv::parse(&field.attrs)?;
            if let Some(with) = &mut rkyv.with {
                self_ty.visit_type_mut(with);
            }
            let unbounded = rkyv.omit_bounds || mention::contains(&ty, of);
            Ok(Field {
                vis: field.vis.clone(),
                member,
                span: field.ty.span(),
                ty,
                rkyv,
                unbounded,
            })
        };
        let list = fields
            .iter()
            .zip(fields.members())
            .map(field)
            .collect::<Result<_>>()?;
        Ok(Self { form, list })
    }
}

impl Field {
    /// Returns the field's name in the schema: without `r#`, or the position.
    pub fn name(&self) -> LitStr {
        match &self.member {
            Member::Named(ident) => LitStr::new(&ident.unraw().to_string(), ident.span()),
            Member::Unnamed(index) => LitStr::new(&index.index.to_string(), Span::call_site()),
        }
    }
}

/// Replaces `Self`, which in the mirror would mean the mirror.
struct SelfWrittenOut(Type);

impl VisitMut for SelfWrittenOut {
    fn visit_type_mut(&mut self, ty: &mut Type) {
        match ty {
            Type::Path(path) if path.qself.is_none() && path.path.is_ident("Self") => {
                *ty = self.0.clone();
            }
            Type::Path(path) if path.qself.is_none() && starts_with_self(&path.path) => {
                // `Self::Item` becomes `<Foo>::Item`.
                let tail = path.path.segments.iter().skip(1).cloned().collect();
                path.qself = Some(QSelf {
                    lt_token: Default::default(),
                    ty: Box::new(self.0.clone()),
                    position: 0,
                    as_token: None,
                    gt_token: Default::default(),
                });
                path.path = Path {
                    leading_colon: Some(Default::default()),
                    segments: tail,
                };
                visit_mut::visit_type_mut(self, ty);
            }
            _ => visit_mut::visit_type_mut(self, ty),
        }
    }

    fn visit_expr_path_mut(&mut self, expr: &mut syn::ExprPath) {
        // `[u8; Self::LEN]` becomes `[u8; <Foo>::LEN]`.
        if expr.qself.is_none() && starts_with_self(&expr.path) && expr.path.segments.len() > 1 {
            let (ty, tail) = (&self.0, expr.path.segments.iter().skip(1));
            *expr = parse_quote!(<#ty>::#(#tail)::*);
        }
        visit_mut::visit_expr_path_mut(self, expr);
    }
}

fn starts_with_self(path: &Path) -> bool {
    let first = path.segments.first();
    first.is_some_and(|first| first.ident == "Self" && first.arguments == PathArguments::None)
}
