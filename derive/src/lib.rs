//! The derive macro of shmbus.
//!
//! Use it as `shmbus::ShmMessage`; this crate is not meant to be depended on alone.
//!
//! # How it works
//!
//! The derive goes in stages: `attr` reads attributes, `ast` gathers what was written, `valid`
//! rejects what cannot be a message, and `expand`, which cannot fail, writes the code. After an
//! error, `fallback` writes empty impls, so that the error is the only one.
//!
//! The archived layout is rkyv's own work. What is emitted is a hidden *mirror* of the type with
//! rkyv's derives in their remote mode, and impls on the type itself that delegate to the mirror.
#![forbid(unsafe_code)]

mod ast;
mod attr;
mod expand;
mod fallback;
mod mention;
mod valid;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Makes a struct or an enum a message that can be sent over the bus.
///
/// One derive gives the archived form `ArchivedFoo` with the same fields, writing it, checking it,
/// borrowing it, copying it out, and its layout as data, which both sides compare before they talk.
///
/// # Examples
///
/// ```
/// use shmbus::ShmMessage;
///
/// #[derive(ShmMessage)]
/// #[shm(service = "complete", reply = CompletionReply)]
/// struct CompletionRequest { path: String, line: u32, column: u32, prefix: String }
///
/// #[derive(ShmMessage)]
/// struct CompletionReply { items: Vec<Item> }
///
/// #[derive(ShmMessage)]
/// struct Item { label: String, detail: Option<String>, score: f32 }
/// ```
///
/// # What can be in a message
///
/// Numbers except `usize` and `isize`, `bool`, `char`, `String`, `Vec`, `Option`, `Box` (and
/// through it recursion), `Box<str>`, `Box<[T]>`, `Result`, `Duration`, arrays, tuples, hash and
/// B-tree maps and sets, `NonZero` numbers, other messages, and handles on pinned ones (`Pinned`). Types may be
/// generic:
///
/// ```
/// use std::collections::HashMap;
/// use shmbus::ShmMessage;
///
/// #[derive(ShmMessage)]
/// enum Tree<T> {
///     Leaf(T),
///     Node { children: Vec<Tree<T>>, names: HashMap<String, u32> },
/// }
///
/// #[derive(ShmMessage)]
/// struct Forest { trees: Vec<Tree<[u8; 16]>> }
/// ```
///
/// Refused are `Rc`, `Arc`, `Weak`, references and raw pointers, which mean nothing in another
/// process, and `usize` and `isize`, which are 32 bits wide in the archive: use `u64` or `i64`.
///
/// # `#[shm(…)]` on the type
///
/// - `service = "name", reply = Type`: the type is a request, see `ShmRequest`. The name has 1 to 100
///   bytes, without `/` and NUL. With them, `stream = Type` is what is sent before the reply, item by
///   item, and `error = Type` what is answered instead of it. With `supersedes = "field"`, older requests
///   of the same client and the same value of that field are cancelled when a new one is made. With
///   `idempotent`, a request that has no stream is sent again where its server dies before it answered.
/// - `topic = "name"`: the type is published and subscribed to, see `ShmTopic`. The name is as that of a
///   service.
/// - `latest = "name"`: only the newest value counts, see `ShmLatest`; with `key = "field"`, the newest of each
///   value of that field, which is text or a number. The name is as that of a service.
/// - `name = "Name"`: how the schema calls the type; by default, as Rust does. Both sides must agree.
/// - `crate = path`: where shmbus is. It is found without, also when it was renamed in `Cargo.toml`;
///   needed when it is only reached through another crate.
///
/// # `#[rkyv(…)]`
///
/// On a field, `with = Wrapper` archives it in another form; `omit_bounds` is needed on one field of a
/// cycle of *several* types that contain each other (a type that contains itself needs nothing). On
/// the type, `derive(…)` and `attr(…)` are for the archived type:
///
/// ```
/// use std::path::PathBuf;
/// use shmbus::{ShmMessage, rkyv};
///
/// #[derive(ShmMessage)]
/// #[shm(name = "open.v2")]
/// #[rkyv(derive(Debug))]
/// struct Open {
///     #[rkyv(with = rkyv::with::AsString)]
///     path: PathBuf,
/// }
/// ```
///
/// The derive writes the impls of rkyv's `Archive`, `Serialize` and `Deserialize`: do not derive them
/// as well.
#[proc_macro_derive(ShmMessage, attributes(shm, rkyv))]
pub fn derive_message(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    let expanded = ast::Input::from_syn(&input).and_then(|message| {
        valid::check(&message)?;
        Ok(expand::expand(message))
    });
    expanded
        .unwrap_or_else(|error| fallback::expand(&input, error))
        .into()
}
