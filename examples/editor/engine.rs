//! The engine: an index of the identifiers of all documents, and what completes a prefix.
//!
//! *Occurrence*: an identifier in the text. *Sighting*: all its occurrences in one document. It
//! knows no bus: text in, candidates out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Identifiers shorter than this (in bytes) are not indexed.
const SHORTEST: usize = 2;
/// Lines over which nearness fades.
const NEAR: f32 = 50.0;

/// All documents' identifiers.
#[derive(Debug, Default)]
pub struct Engine {
    /// Invariant: holds exactly the words that some document has.
    words: BTreeMap<Key, Word>,
    documents: HashMap<Arc<str>, Document>,
    /// Uses of the most used word that was ever seen: what frequency is measured against.
    most_uses: u32,
}

/// Where the cursor is, and what stands before it.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The document; it need not be known.
    pub path: &'a str,
    /// The line, from 1.
    pub line: u32,
    /// What was typed of the identifier.
    pub prefix: &'a str,
}

/// An identifier that completes a prefix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate<'a> {
    /// The identifier.
    pub label: &'a str,
    /// What it is.
    pub kind: Kind,
    /// 0 to 1: from 0.5 where the prefix begins the identifier, below where it only abbreviates it.
    pub score: f32,
    /// How often it occurs in all documents.
    pub uses: u32,
    /// Its definition's document, or else the nearest one that names it.
    pub path: &'a str,
    /// The line there, from 1.
    pub line: u32,
}

/// What an identifier is, by the word before it or by its spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Follows `fn`, `def` and the like.
    Function,
    /// Follows `struct`, `enum`, `class` and the like, or is spelled `LikeThis`.
    Type,
    /// Follows `mod`, `crate` and the like.
    Module,
    /// Follows `const` or `static`, or is spelled `LIKE_THIS`.
    Constant,
    /// Follows `let` and the like.
    Variable,
    /// Anything else.
    Word,
}

/// Sorted without regard to case, so that a prefix of any case finds a range.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    folded: Arc<str>,
    label: Arc<str>,
}

#[derive(Debug, Default)]
struct Word {
    uses: u32,
    sightings: Vec<Sighting>,
}

#[derive(Debug)]
struct Sighting {
    path: Arc<str>,
    uses: u32,
    /// The definition's line where there is one, else the first.
    line: u32,
    defined: Option<Kind>,
}

#[derive(Debug)]
struct Document {
    words: Vec<Key>,
}

impl Engine {
    /// Indexes a document in place of what was known of `path`. Returns how many different
    /// identifiers it has.
    pub fn open(&mut self, path: &str, text: &str) -> usize {
        self.close(path);
        let path: Arc<str> = path.into();
        let mut seen: HashMap<&str, Sighting> = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let (mut before, mut end) = ("", 0);
            for (at, label) in identifiers(line) {
                let defined = Kind::defined_by(before, &line[end..at], label);
                end = at + label.len();
                // `let mut name` defines the name.
                if label != "mut" {
                    before = label;
                }
                if label.len() < SHORTEST {
                    continue;
                }
                let line = number as u32 + 1;
                let sighting = seen.entry(label).or_insert_with(|| Sighting {
                    path: path.clone(),
                    uses: 0,
                    line,
                    defined: None,
                });
                sighting.uses += 1;
                if sighting.defined.is_none() && defined.is_some() {
                    sighting.defined = defined;
                    sighting.line = line;
                }
            }
        }
        let mut words = Vec::with_capacity(seen.len());
        for (label, sighting) in seen {
            let key = Key::new(label);
            let word = self.words.entry(key.clone()).or_default();
            word.uses += sighting.uses;
            word.sightings.push(sighting);
            self.most_uses = self.most_uses.max(word.uses);
            words.push(key);
        }
        let count = words.len();
        self.documents.insert(path, Document { words });
        count
    }

    /// Forgets a document.
    pub fn close(&mut self, path: &str) {
        let Some(document) = self.documents.remove(path) else {
            return;
        };
        for key in document.words {
            let Some(word) = self.words.get_mut(&key) else {
                continue;
            };
            word.sightings.retain(|sighting| &*sighting.path != path);
            word.uses = word.sightings.iter().map(|sighting| sighting.uses).sum();
            if word.sightings.is_empty() {
                self.words.remove(&key);
            }
        }
    }

    /// The `limit` best candidates, best first, and how many there were.
    ///
    /// Those that begin with the prefix (in any case) come before those that it abbreviates, such
    /// as `tn` or `toN` for `to_native`, which are looked for only where the first are too few.
    pub fn complete(&self, place: Place<'_>, limit: usize) -> (Vec<Candidate<'_>>, usize) {
        let folded = place.prefix.to_lowercase();
        let mut found: Vec<Candidate<'_>> = self
            .starting_with(&folded)
            .filter(|(key, _)| &*key.label != place.prefix)
            .map(|(key, word)| self.rate(place, key, word, 0.5))
            .collect();
        let too_few = found.len() < limit;
        if let Some(first) = folded.chars().next().filter(|_| too_few) {
            let abbreviated = self
                .starting_with(first.encode_utf8(&mut [0; 4]))
                .filter(|(key, _)| !key.folded.starts_with(&folded))
                .filter(|(key, _)| abbreviates(&folded, &key.label))
                .map(|(key, word)| self.rate(place, key, word, 0.0));
            found.extend(abbreviated);
        }
        let matched = found.len();
        let better = |a: &Candidate<'_>, b: &Candidate<'_>| {
            b.score
                .total_cmp(&a.score)
                .then_with(|| a.label.cmp(b.label))
        };
        if limit < matched {
            found.select_nth_unstable_by(limit, better);
            found.truncate(limit);
        }
        found.sort_unstable_by(better);
        (found, matched)
    }

    fn starting_with<'a>(
        &'a self,
        folded: &str,
    ) -> impl Iterator<Item = (&'a Key, &'a Word)> + use<'a> {
        let folded: Arc<str> = folded.into();
        let from = Key {
            folded: folded.clone(),
            label: "".into(),
        };
        self.words
            .range(from..)
            .take_while(move |(key, _)| key.folded.starts_with(&*folded))
    }

    /// A candidate whose score lies in the half that starts with `tier`.
    fn rate<'a>(&self, place: Place<'_>, key: &'a Key, word: &'a Word, tier: f32) -> Candidate<'a> {
        let here = |sighting: &&Sighting| &*sighting.path == place.path;
        let same_document = word.sightings.iter().find(here);
        let told = (word.sightings.iter())
            .find(|sighting| sighting.defined.is_some())
            .or(same_document)
            .or(word.sightings.first());
        let (path, line) = told.map_or(("", 0), |sighting| (&*sighting.path, sighting.line));

        let typed = place.prefix.len() as f32 / key.label.len() as f32;
        let frequency = (1.0 + word.uses as f32).ln() / (1.0 + self.most_uses as f32).ln();
        let near = same_document.map_or(0.0, |sighting| {
            let away = sighting.line.abs_diff(place.line) as f32;
            0.5 + 0.5 / (1.0 + away / NEAR)
        });
        let case = f32::from(u8::from(key.label.starts_with(place.prefix)));
        let quality = 0.35 * typed.min(1.0) + 0.3 * frequency.min(1.0) + 0.25 * near + 0.1 * case;
        Candidate {
            label: &key.label,
            kind: told
                .and_then(|sighting| sighting.defined)
                .unwrap_or_else(|| Kind::spelled(&key.label)),
            score: tier + quality / 2.0,
            uses: word.uses,
            path,
            line,
        }
    }
}

impl Key {
    fn new(label: &str) -> Self {
        let label: Arc<str> = label.into();
        let folded = match label.chars().any(char::is_uppercase) {
            true => label.to_lowercase().into(),
            false => label.clone(),
        };
        Key { folded, label }
    }
}

impl Kind {
    /// As a person reads it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Function => "fn",
            Kind::Type => "type",
            Kind::Module => "mod",
            Kind::Constant => "const",
            Kind::Variable => "let",
            Kind::Word => "word",
        }
    }

    /// What `label` is defined as by the word before it, with `gap` between the two.
    fn defined_by(word: &str, gap: &str, label: &str) -> Option<Self> {
        if !gap.trim_start_matches('!').trim().is_empty() {
            return None;
        }
        match word {
            "fn" | "def" | "func" | "function" | "macro_rules" => Some(Kind::Function),
            "struct" | "enum" | "trait" | "type" | "union" | "class" | "interface" => {
                Some(Kind::Type)
            }
            "mod" | "crate" | "package" | "namespace" => Some(Kind::Module),
            "const" | "static" => Some(Kind::Constant),
            // `let Some(…)` takes apart what is defined elsewhere.
            "let" | "var" if !label.starts_with(char::is_uppercase) => Some(Kind::Variable),
            _ => None,
        }
    }

    fn spelled(label: &str) -> Self {
        let upper = label.starts_with(char::is_uppercase);
        match (upper, label.chars().any(char::is_lowercase)) {
            (true, true) => Kind::Type,
            (true, false) => Kind::Constant,
            (false, _) => Kind::Word,
        }
    }
}

/// The identifiers of a line, each with its first byte's offset.
pub fn identifiers(line: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = line;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start_matches(|c: char| !is_part(c));
            let end = rest.find(|c: char| !is_part(c)).unwrap_or(rest.len());
            let (run, after) = rest.split_at(end);
            let start = line.len() - rest.len();
            rest = after;
            match run.chars().next() {
                None => return None,
                // A number, perhaps with a suffix.
                Some(first) if first.is_numeric() => {}
                Some(_) => return Some((start, run)),
            }
        }
    })
}

/// Whether each character of `typed` (in lower case) goes on in the same part of `label` as the
/// one before it, or begins a later part. Parts begin after `_` and at capitals.
fn abbreviates(typed: &str, label: &str) -> bool {
    let mut parts = Vec::new();
    let mut before = '_';
    for (at, c) in label.char_indices() {
        if c != '_' && (before == '_' || c.is_uppercase() && !before.is_uppercase()) {
            parts.push(at);
        }
        before = c;
    }
    go_on(typed, label, &parts)
}

fn go_on(typed: &str, label: &str, parts: &[usize]) -> bool {
    if typed.is_empty() {
        return true;
    }
    parts.iter().enumerate().any(|(index, &start)| {
        let after = &parts[index + 1..];
        let part = &label[start..after.first().copied().unwrap_or(label.len())];
        let alike = typed
            .char_indices()
            .zip(part.chars())
            .take_while(|((_, a), b)| b.to_lowercase().eq([*a]))
            .map(|((at, a), _)| at + a.len_utf8());
        alike
            .into_iter()
            .any(|end| go_on(&typed[end..], label, after))
    })
}

fn is_part(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

#[cfg(test)]
mod tests;
