//! Reads `#[shm(…)]` and `#[rkyv(…)]`.

use proc_macro_crate::{FoundCrate, crate_name};
use proc_macro2::{Span, TokenStream, TokenTree};
use syn::meta::ParseNestedMeta;
use syn::{Attribute, Error, Ident, LitStr, Path, Result, Token, Type, parse_quote};

/// What `#[shm(…)]` on the type says.
#[derive(Default)]
pub struct Shm {
    pub krate: Option<Path>,
    pub name: Option<LitStr>,
    pub service: Option<LitStr>,
    pub reply: Option<Type>,
    pub stream: Option<Type>,
    pub error: Option<Type>,
    /// The field by which a newer request supersedes an older one.
    pub supersedes: Option<LitStr>,
    /// Whether a request may be handled twice.
    pub idempotent: Option<Path>,
    /// The topic on which the type is published.
    pub topic: Option<LitStr>,
    /// The name under which newest values of the type are published, and the field by which they are told apart.
    pub latest: Option<LitStr>,
    pub key: Option<LitStr>,
}

impl Shm {
    pub fn parse(attrs: &[Attribute]) -> Result<Self> {
        let mut shm = Self::default();
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("shm")) {
            attr.parse_nested_meta(|meta| shm.read(&meta))?;
        }
        Ok(shm)
    }

    fn read(&mut self, meta: &ParseNestedMeta) -> Result<()> {
        if meta.path.is_ident("crate") {
            set(&mut self.krate, meta, Path::parse_mod_style)
        } else if meta.path.is_ident("name") {
            set(&mut self.name, meta, |input| input.parse())
        } else if meta.path.is_ident("service") {
            set(&mut self.service, meta, |input| input.parse())
        } else if meta.path.is_ident("reply") {
            set(&mut self.reply, meta, |input| input.parse())
        } else if meta.path.is_ident("stream") {
            set(&mut self.stream, meta, |input| input.parse())
        } else if meta.path.is_ident("error") {
            set(&mut self.error, meta, |input| input.parse())
        } else if meta.path.is_ident("supersedes") {
            set(&mut self.supersedes, meta, |input| input.parse())
        } else if meta.path.is_ident("idempotent") {
            match self.idempotent.replace(meta.path.clone()) {
                None => Ok(()),
                Some(_) => Err(meta.error(TWICE)),
            }
        } else if meta.path.is_ident("topic") {
            set(&mut self.topic, meta, |input| input.parse())
        } else if meta.path.is_ident("latest") {
            set(&mut self.latest, meta, |input| input.parse())
        } else if meta.path.is_ident("key") {
            set(&mut self.key, meta, |input| input.parse())
        } else {
            Err(meta.error(
                "unknown key; those known are `service`, `reply`, `stream`, `error`, `supersedes`, \
                 `idempotent`, `topic`, `latest`, `key`, `name` and `crate`",
            ))
        }
    }

    /// Returns the path of shmbus: as told, or else as `Cargo.toml` calls it.
    pub fn krate(&self) -> Path {
        self.krate
            .clone()
            .unwrap_or_else(|| match crate_name("shmbus") {
                Ok(FoundCrate::Name(name)) => {
                    let name = Ident::new(&name, Span::call_site());
                    parse_quote!(::#name)
                }
                // The crate calls itself `shmbus`, so that its own tests need no other path.
                Ok(FoundCrate::Itself) | Err(_) => parse_quote!(::shmbus),
            })
    }
}

const TWICE: &str = "given twice; keep one of them";

fn set<T>(
    place: &mut Option<T>,
    meta: &ParseNestedMeta,
    parse: impl FnOnce(syn::parse::ParseStream) -> Result<T>,
) -> Result<()> {
    if place.is_some() {
        return Err(meta.error(TWICE));
    }
    *place = Some(parse(meta.value()?)?);
    Ok(())
}

/// Refuses `#[shm(…)]` where it has no meaning.
pub fn refuse_shm(attrs: &[Attribute]) -> Result<()> {
    match attrs.iter().find(|attr| attr.path().is_ident("shm")) {
        Some(attr) => Err(Error::new_spanned(
            attr,
            "`#[shm(…)]` stands on the type; for a field there is `#[rkyv(with = …)]`",
        )),
        None => Ok(()),
    }
}

/// Returns the `#[rkyv(…)]` attributes of the type that are passed on.
pub fn container_rkyv(attrs: &[Attribute]) -> Result<Vec<Attribute>> {
    let rkyv: Vec<_> = attrs
        .iter()
        .filter(|attr| attr.path().is_ident("rkyv"))
        .cloned()
        .collect();
    for attr in &rkyv {
        attr.parse_nested_meta(|meta| {
            if meta.path.is_ident("derive") || meta.path.is_ident("attr") {
                return skip_value(&meta);
            }
            Err(meta.error(
                "not possible here, since `ShmMessage` chooses the archived type; \
                 `derive(…)` and `attr(…)` are passed on to it",
            ))
        })?;
    }
    Ok(rkyv)
}

/// What `#[rkyv(…)]` on a field says, and the attributes themselves.
#[derive(Default)]
pub struct FieldRkyv {
    pub attrs: Vec<Attribute>,
    pub with: Option<Type>,
    pub omit_bounds: bool,
    /// There is a niche: the archived form is not a copy of the field.
    pub niche: bool,
}

impl FieldRkyv {
    pub fn parse(attrs: &[Attribute]) -> Result<Self> {
        refuse_shm(attrs)?;
        let mut field = Self::default();
        for attr in attrs.iter().filter(|attr| attr.path().is_ident("rkyv")) {
            attr.parse_nested_meta(|meta| field.key(&meta))?;
            field.attrs.push(attr.clone());
        }
        Ok(field)
    }

    fn key(&mut self, meta: &ParseNestedMeta) -> Result<()> {
        if meta.path.is_ident("with") {
            set(&mut self.with, meta, |input| input.parse())
        } else if meta.path.is_ident("omit_bounds") {
            self.omit_bounds = true;
            Ok(())
        } else if meta.path.is_ident("niche") {
            self.niche = true;
            if meta.input.peek(Token![=]) {
                meta.value()?.parse::<Type>()?;
            }
            Ok(())
        } else if meta.path.is_ident("attr") {
            skip_value(meta)
        } else {
            Err(meta.error(
                "unknown key; on a field, `with`, `omit_bounds`, `niche` and `attr` are known",
            ))
        }
    }
}

/// Goes over a group in parentheses.
fn skip_value(meta: &ParseNestedMeta) -> Result<()> {
    meta.input.step(|cursor| match cursor.token_tree() {
        Some((TokenTree::Group(group), rest)) => Ok((drop::<TokenStream>(group.stream()), rest)),
        _ => Err(cursor.error("expected parentheses")),
    })
}
