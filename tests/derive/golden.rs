//! The bytes of messages and schemas, pinned: a change here is a change of the format.
//!
//! Each message has two files in `tests/golden`: its bytes in hexadecimal, and its schema with the
//! fingerprint. After a change that is meant, run the tests once with `SHMBUS_BLESS=1`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use shmbus::__private::{access, to_bytes};
use shmbus::{ShmMessage, schema_of};

use super::shapes::{Everything, Generic, Mixed, Named, Node, Numbered, Tuple, Unit, everything};

#[track_caller]
fn pinned<T: ShmMessage>(name: &str, value: T) {
    let bytes = to_bytes(&value).unwrap();
    access::<T>(&bytes).unwrap();
    let hex = |line: &[u8]| {
        line.iter()
            .map(|byte| format!("{byte:02x} "))
            .collect::<String>()
    };
    let lines: Vec<_> = bytes
        .chunks(16)
        .map(|line| hex(line).trim_end().to_owned())
        .collect();
    same(&format!("{name}.hex"), &(lines.join("\n") + "\n"));
    same(
        &format!("{name}.json"),
        &(schema_of::<T>().to_json() + "\n"),
    );
}

#[track_caller]
fn same(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(file);
    if env::var_os("SHMBUS_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let pinned = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text, pinned,
        "{file} differs; if that is meant, run with SHMBUS_BLESS=1"
    );
}

#[test]
fn structs_and_enums() {
    let text = "longer than eight bytes".to_owned();
    pinned(
        "named",
        Named {
            text,
            number: 7,
            small: 8,
            flag: true,
            ..Named::default()
        },
    );
    pinned("tuple", Tuple(1, "short".into(), (2, 3)));
    pinned("unit", Unit);
    pinned(
        "enum",
        Mixed::Named {
            left: vec![1, 2, 3],
            right: Some("right".into()),
        },
    );
    pinned("tags", Numbered::Next);
    pinned(
        "generic",
        Generic {
            item: 1_u8,
            items: vec![2, 3],
        },
    );
}

#[test]
fn recursion() {
    let leaf = || Node {
        name: "leaf".into(),
        next: None,
        children: vec![],
    };
    pinned(
        "recursive",
        Node {
            name: "root".into(),
            next: Some(Box::new(leaf())),
            children: vec![leaf()],
        },
    );
}

#[test]
fn every_type_at_once() {
    // Maps and sets with one entry, since the order of more is not the same in each run.
    pinned(
        "everything",
        Everything {
            map: HashMap::from([("key".into(), 1)]),
            set: HashSet::from([9]),
            tree: BTreeMap::from([(1, "one".into())]),
            sorted: BTreeSet::from([-1, 1]),
            time: Duration::new(1, 2),
            ..everything()
        },
    );
}

/// A B-tree with inner nodes.
#[test]
fn a_large_tree() {
    #[derive(ShmMessage)]
    struct Large {
        tree: BTreeMap<u16, u8>,
    }
    pinned(
        "btree",
        Large {
            tree: (0..20).map(|n| (n, n as u8)).collect(),
        },
    );
}
