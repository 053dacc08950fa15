//! The documents: files of the given folders, or this repository's own and a generated one; and
//! the places in them where someone might ask for a completion.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::engine::identifiers;

/// Of folders only files with one of these endings are taken.
const TEXT: [&str; 18] = [
    "c", "cc", "cpp", "go", "h", "hpp", "java", "js", "json", "kt", "md", "py", "rs", "sh", "toml",
    "ts", "txt", "yml",
];
/// Of folders only files up to this size are taken; a file that is named is taken as it is.
const LARGEST: u64 = 512 * 1024;
/// Bytes of the generated document.
const GENERATED: usize = 512 * 1024;
/// Places of one document.
const PLACES: usize = 2000;
/// Characters of the longest prefix.
const PREFIX: usize = 4;
/// What the identifiers of the generated document are made of.
const PARTS: [&str; 24] = [
    "arena", "bell", "block", "bus", "call", "cursor", "frame", "guard", "hand", "index", "lane",
    "link", "loan", "map", "page", "peer", "reply", "ring", "seal", "slab", "slot", "stamp",
    "view", "wait",
];

/// A document that can be read.
pub struct Source {
    /// Its name for people and for the engine.
    pub name: String,
    /// Its size in bytes.
    pub bytes: usize,
    /// Where its text comes from; the generated one has no file.
    file: Option<PathBuf>,
}

/// A place where an identifier was being typed.
pub struct Place {
    /// The document's name.
    pub path: String,
    /// Line of the cursor, from 1.
    pub line: u32,
    /// Column of the cursor in characters, from 1.
    pub column: u32,
    /// The part before the cursor.
    pub prefix: String,
    /// The whole identifier.
    pub label: String,
}

/// The documents of `paths`; of none, this repository's and a generated one.
///
/// # Errors
/// When a path cannot be read, or no text is found.
pub fn collect(paths: &[PathBuf]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    if paths.is_empty() {
        let home = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| ".".into());
        let home = PathBuf::from(home);
        walk(&home, &home, &mut sources)?;
        sources.push(Source {
            name: "generated.rs".to_owned(),
            bytes: GENERATED,
            file: None,
        });
    }
    for path in paths {
        let about =
            fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if about.is_dir() {
            walk(path, Path::new(""), &mut sources)?;
        } else if about.is_file() {
            ensure!(about.len() > 0, "{} is empty", path.display());
            add(path.clone(), Path::new(""), about.len(), &mut sources);
        } else {
            bail!("{} is neither a file nor a folder", path.display());
        }
    }
    ensure!(
        !sources.is_empty(),
        "no text was found in the given folders"
    );
    Ok(sources)
}

/// The places of a document, evenly chosen, with prefixes of one to four characters.
pub fn places(name: &str, text: &str) -> Vec<Place> {
    let all: Vec<(usize, &str, usize, &str)> = text
        .lines()
        .enumerate()
        .flat_map(|(number, line)| {
            identifiers(line).map(move |(at, label)| (number, line, at, label))
        })
        .filter(|(.., label)| label.chars().count() > 2)
        .collect();
    let step = all.len().div_ceil(PLACES).max(1);
    all.into_iter()
        .step_by(step)
        .enumerate()
        .map(|(index, (number, line, at, label))| {
            let most = PREFIX.min(label.chars().count() - 1);
            let prefix: String = label.chars().take(1 + index % most).collect();
            let before = line[..at].chars().count() + prefix.chars().count();
            Place {
                path: name.to_owned(),
                line: number as u32 + 1,
                column: before as u32 + 1,
                prefix,
                label: label.to_owned(),
            }
        })
        .collect()
}

impl Source {
    /// Fills `memory`, of exactly [`bytes`](Self::bytes), with the text: from disk to where it is
    /// sent from, with no buffer between.
    ///
    /// # Errors
    /// When the file cannot be read or has become shorter.
    pub fn read(&self, memory: &mut [u8]) -> Result<()> {
        let Some(path) = &self.file else {
            generate(memory);
            return Ok(());
        };
        let mut file =
            File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        file.read_exact(memory)
            .with_context(|| format!("cannot read {}", path.display()))
    }
}

/// Adds the text files of a folder and its folders. Links are not followed.
fn walk(folder: &Path, home: &Path, sources: &mut Vec<Source>) -> Result<()> {
    let cannot = || format!("cannot read the folder {}", folder.display());
    let mut entries = fs::read_dir(folder)
        .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
        .with_context(cannot)?;
    entries.sort_by_key(|entry| entry.file_name());
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let about = entry.metadata().with_context(cannot)?;
        let path = entry.path();
        if about.is_dir() && !name.starts_with('.') && !["target", "node_modules"].contains(&&*name)
        {
            walk(&path, home, sources)?;
        } else if about.is_file() && is_text(&path) && (1..=LARGEST).contains(&about.len()) {
            add(path, home, about.len(), sources);
        }
    }
    Ok(())
}

fn add(path: PathBuf, home: &Path, len: u64, sources: &mut Vec<Source>) {
    let name = path.strip_prefix(home).unwrap_or(&path);
    sources.push(Source {
        name: name.display().to_string(),
        bytes: len as usize,
        file: Some(path),
    });
}

fn is_text(path: &Path) -> bool {
    path.extension()
        .and_then(|ending| ending.to_str())
        .is_some_and(|ending| TEXT.contains(&ending))
}

/// Writes what looks like source, the same every time.
fn generate(memory: &mut [u8]) {
    let mut state = 1u64;
    let mut pick = |of: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % of
    };
    let mut name = || {
        let (first, second) = (PARTS[pick(PARTS.len())], PARTS[pick(PARTS.len())]);
        match pick(4) {
            0 => format!("{first}_{second}_{}", pick(200)),
            _ => format!("{first}_{second}"),
        }
    };
    let mut rest = memory;
    while !rest.is_empty() {
        let (function, variable, called) = (name(), name(), name());
        let line = format!(
            "fn {function}({variable}: u32) {{\n    let {called} = {variable} + {};\n}}\n",
            name()
        );
        let len = line.len().min(rest.len());
        let (now, later) = rest.split_at_mut(len);
        now.copy_from_slice(&line.as_bytes()[..len]);
        rest = later;
    }
}
