//! What the editor and its engine say to each other.

use shmbus::{Bytes, ShmMessage};

/// A whole document, new or changed. The engine forgets what it knew of the path.
#[derive(ShmMessage)]
#[shm(service = "open", reply = Opened)]
pub struct Open {
    /// Its name in both processes.
    pub path: String,
    /// Counts the states of this document.
    pub revision: u64,
    /// UTF-8, read from disk straight into shared memory.
    pub content: Bytes,
}

/// The document is indexed.
#[derive(ShmMessage)]
pub struct Opened {
    /// The revision that is indexed now.
    pub revision: u64,
    /// Bytes that came.
    pub bytes: u64,
    /// [`checksum`] of those bytes.
    pub checksum: u64,
    /// Different identifiers in the document.
    pub identifiers: u32,
    /// Nanoseconds that the engine worked.
    pub engine_ns: u64,
}

/// What could be meant here?
#[derive(ShmMessage)]
#[shm(service = "complete", reply = Completions)]
pub struct Complete {
    /// The document.
    pub path: String,
    /// Line of the cursor, from 1.
    pub line: u32,
    /// Column of the cursor in characters, from 1: just behind the prefix.
    pub column: u32,
    /// What was typed of the identifier.
    pub prefix: String,
    /// How many items are wanted.
    pub limit: u32,
}

/// The best items, best first.
#[derive(ShmMessage)]
pub struct Completions {
    /// The column where an item's text would start, from 1.
    pub from: u32,
    /// Identifiers that matched, of which these are the best.
    pub matched: u32,
    /// The items.
    pub items: Vec<Item>,
    /// Nanoseconds that the engine worked.
    pub engine_ns: u64,
}

/// One identifier.
#[derive(ShmMessage)]
pub struct Item {
    /// The identifier.
    pub label: String,
    /// What it is, as far as that can be told: `fn`, `type`, `const`, …
    pub kind: String,
    /// 0 to 1.
    pub score: f32,
    /// How often it occurs in all documents.
    pub uses: u32,
    /// The document that defines it, or else one that names it.
    pub path: String,
    /// The line there, from 1.
    pub line: u32,
}

/// How would the engine go on? Asked at each keystroke, and worth nothing after the next one.
#[derive(ShmMessage)]
#[shm(service = "suggest", reply = Suggestion, error = GivenUp, supersedes = "path")]
pub struct Suggest {
    /// The document.
    pub path: String,
    /// Line of the cursor, from 1.
    pub line: u32,
    /// What was typed of the identifier.
    pub prefix: String,
}

/// The best guess.
#[derive(ShmMessage)]
pub struct Suggestion {
    /// The identifier, or nothing.
    pub label: String,
    /// How many requests the engine has given up so far, in the middle of thinking.
    pub given_up: u64,
}

/// Nobody waits for the answer any more.
#[derive(ShmMessage, Debug)]
pub struct GivenUp;

/// What the engine finds wrong in a document, for all windows.
#[derive(ShmMessage)]
#[shm(topic = "diagnostics")]
pub struct Diagnostics {
    /// The document.
    pub path: String,
    /// The revision that was looked at.
    pub revision: u64,
    /// What was found.
    pub warnings: Vec<Warning>,
}

/// Something that a person may want to change.
#[derive(ShmMessage)]
pub struct Warning {
    /// The line, from 1.
    pub line: u32,
    /// What is wrong there.
    pub text: String,
}

/// How far the engine is, for all windows.
#[derive(ShmMessage)]
#[shm(topic = "progress")]
pub struct Progress {
    /// Documents that are indexed.
    pub documents: u32,
    /// Identifiers in the last one.
    pub identifiers: u32,
}

/// What a person asks about the documents.
#[derive(ShmMessage)]
#[shm(service = "chat", stream = Token, reply = Told, error = Unclear)]
pub struct Prompt {
    /// In words.
    pub text: String,
    /// How long a token takes, in milliseconds: as long as a language model would.
    pub token_ms: u32,
}

/// A piece of the answer, with the white space behind it.
#[derive(ShmMessage)]
pub struct Token {
    /// Its text.
    pub text: String,
}

/// The answer is whole.
#[derive(ShmMessage)]
pub struct Told {
    /// How many tokens it had.
    pub tokens: u64,
    /// How many answers nobody wanted to the end, so far.
    pub cancelled: u64,
}

/// There is nothing to say.
#[derive(ShmMessage, Debug)]
pub struct Unclear {
    /// Why.
    pub why: String,
}

/// A sum that shows that bytes came whole and in order: a few bytes a cycle, not for security.
pub fn checksum(bytes: &[u8]) -> u64 {
    let mix = |sum: u64, word: u64| {
        (sum ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    };
    let words = bytes.chunks_exact(8);
    let rest = words.remainder();
    let sum = words.fold(bytes.len() as u64, |sum, word| {
        let word = word
            .iter()
            .rev()
            .fold(0, |word, &byte| word << 8 | u64::from(byte));
        mix(sum, word)
    });
    rest.iter().fold(sum, |sum, &byte| mix(sum, byte.into()))
}
