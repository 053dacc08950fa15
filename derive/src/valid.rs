//! Every rejection. What passes here can be expanded.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Error, GenericArgument, Ident, LitStr, PathArguments, Result, Type, TypePath};

use crate::ast::{Body, Input};

/// Refuses what cannot be a message, with one error on the offending token.
pub fn check(input: &Input) -> Result<()> {
    check_request(input)?;
    if let Some(topic) = &input.shm.topic {
        check_port(topic, "a topic")?;
    }
    check_latest(input)?;
    check_name(input)?;
    check_generics(input)?;
    check_variants(input)?;
    input
        .fields()
        .filter(|field| field.rkyv.with.is_none())
        .try_for_each(|field| {
            let mut types = FieldType { input, error: None };
            types.visit_type(&field.ty);
            types.error.map_or(Ok(()), Err)
        })
}

fn check_request(input: &Input) -> Result<()> {
    if let (None, Some(ty)) = (
        &input.shm.reply,
        input.shm.stream.as_ref().or(input.shm.error.as_ref()),
    ) {
        return Err(Error::new(
            ty.span(),
            "a stream and an error are those of a service: add `service = \"name\"` and `reply = Type`",
        ));
    }
    if let Some(field) = &input.shm.supersedes {
        let wrong = if input.shm.service.is_none() {
            "a request supersedes another: add `service = \"name\"` and `reply = Type`"
        } else {
            "there is no such field: what a request supersedes is said by a field of a struct"
        };
        if input.shm.service.is_none() || input.named(Some(field)).is_none() {
            return Err(Error::new(field.span(), wrong));
        }
    }
    if let Some(key) = &input.shm.idempotent {
        let wrong = match input.shm.stream {
            _ if input.shm.service.is_none() => {
                Some("a request is idempotent: add `service = \"name\"` and `reply = Type`")
            }
            Some(_) => {
                Some("a stream is not asked for again, since items of it may have been taken")
            }
            None => None,
        };
        if let Some(wrong) = wrong {
            return Err(Error::new_spanned(key, wrong));
        }
    }
    match (&input.shm.service, &input.shm.reply) {
        (None, None) => Ok(()),
        (Some(service), None) => Err(Error::new(
            service.span(),
            "a service has a reply: add `reply = Type`",
        )),
        (None, Some(reply)) => Err(Error::new(
            reply.span(),
            "a reply is that of a service: add `service = \"name\"`",
        )),
        (Some(service), Some(_)) => check_port(service, "a service"),
    }
}

fn check_latest(input: &Input) -> Result<()> {
    if let Some(latest) = &input.shm.latest {
        check_port(latest, "newest values")?;
    }
    let Some(key) = &input.shm.key else {
        return Ok(());
    };
    let wrong = match input.named(Some(key)) {
        _ if input.shm.latest.is_none() => {
            "newest values are told apart by a key: add `latest = \"name\"`"
        }
        None => "there is no such field: newest values are told apart by a field of a struct",
        Some(field) if field.rkyv.with.is_some() => {
            "a key is archived as itself: it cannot have `#[rkyv(with = …)]`"
        }
        Some(_) => return Ok(()),
    };
    Err(Error::new(key.span(), wrong))
}

/// Checks the name of what is offered on a bus: files are named after it.
fn check_port(given: &LitStr, of: &str) -> Result<()> {
    let name = given.value();
    let wrong = match name.len() {
        0 => "cannot be empty",
        101.. => "has at most 100 bytes",
        _ if name.contains('/') => "cannot contain `/`",
        _ if name.contains('\0') => "cannot contain NUL",
        _ if name == "." || name == ".." => "cannot be `.` or `..`",
        _ => return Ok(()),
    };
    Err(Error::new(
        given.span(),
        format!("the name of {of} {wrong}"),
    ))
}

fn check_name(input: &Input) -> Result<()> {
    match &input.shm.name {
        Some(name) if !(1..=100).contains(&name.value().len()) => Err(Error::new(
            name.span(),
            "the name of a message has 1 to 100 bytes",
        )),
        _ => Ok(()),
    }
}

fn check_generics(input: &Input) -> Result<()> {
    match input.generics.lifetimes().next() {
        Some(lifetime) => Err(Error::new(
            lifetime.span(),
            "a message owns what it says, since it outlives the sender's call: \
             use `String` for `&str` and `Vec<T>` for `&[T]`",
        )),
        None => Ok(()),
    }
}

fn check_variants(input: &Input) -> Result<()> {
    match &input.data {
        Body::Enum(variants) if variants.is_empty() => Err(Error::new(
            input.ident.span(),
            "an enum without variants has no values to send",
        )),
        Body::Enum(variants) if variants.len() > 256 => Err(Error::new(
            variants[256].ident.span(),
            "the tag of an archived enum is one byte: use at most 256 variants",
        )),
        _ => Ok(()),
    }
}

/// Looks through a field's type for what has no meaning in another process.
struct FieldType<'a> {
    input: &'a Input,
    error: Option<Error>,
}

impl FieldType<'_> {
    fn refuse(&mut self, what: &impl Spanned, why: &str) {
        self.error
            .get_or_insert_with(|| Error::new(what.span(), why));
    }

    fn is_type_param(&self, path: &TypePath) -> bool {
        let is = |ident: &Ident| self.input.generics.type_params().any(|p| p.ident == *ident);
        path.path.get_ident().is_some_and(is)
    }
}

impl<'ast> Visit<'ast> for FieldType<'_> {
    fn visit_type(&mut self, ty: &'ast Type) {
        match ty {
            Type::Reference(reference) => self.refuse(
                &reference.and_token,
                "a reference has no meaning in another process: \
                 use `String` for `&str`, `Vec<T>` for `&[T]` and `Box<T>` for `&T`",
            ),
            Type::Ptr(pointer) => self.refuse(
                &pointer.star_token,
                "a pointer has no meaning in another process",
            ),
            Type::FnPtr(function) => self.refuse(
                &function.fn_token,
                "a function has no meaning in another process",
            ),
            Type::TraitObject(object) => self.refuse(
                object,
                "a trait object has no layout that another process knows: use an enum",
            ),
            _ => visit::visit_type(self, ty),
        }
    }

    fn visit_type_path(&mut self, path: &'ast TypePath) {
        if self.is_type_param(path) {
            return;
        }
        if let Some(last) = path.path.segments.last().filter(|_| path.qself.is_none()) {
            let has_one_argument = matches!(&last.arguments, PathArguments::AngleBracketed(args)
                if matches!(args.args.first(), Some(GenericArgument::Type(_))));
            match last.ident.to_string().as_str() {
                "usize" if last.arguments.is_none() => self.refuse(
                    &last.ident,
                    "`usize` is not equally wide in every process: use `u64`",
                ),
                "isize" if last.arguments.is_none() => self.refuse(
                    &last.ident,
                    "`isize` is not equally wide in every process: use `i64`",
                ),
                name @ ("Rc" | "Arc" | "Weak") if has_one_argument => {
                    let why = format!(
                        "`{name}` has no meaning in another process: use `Box`, or the value itself"
                    );
                    self.refuse(&last.ident, &why);
                }
                "PathBuf" | "OsString" if last.arguments.is_none() => self.refuse(
                    &last.ident,
                    "not every path is text: use `String`, or \
                     `#[rkyv(with = shmbus::rkyv::with::AsString)]`, which refuses those that are not",
                ),
                _ => {}
            }
        }
        visit::visit_type_path(self, path);
    }
}
