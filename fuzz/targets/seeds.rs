//! Writes valid inputs of the targets whose inputs are plain bytes: `seeds DIRECTORY`.

mod shapes;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use shapes::{Everything, Maps, Mixed, Named, Node, Payloads, Pins, Tree};
use shmbus::__private::to_bytes;
use shmbus::{ShmMessage, schema_of};

fn named() -> Named {
    Named {
        text: "longer than eight bytes".into(),
        letter: 'ß',
        extra: Some(1.5),
        ..Named::default()
    }
}

fn mixed() -> Vec<Mixed> {
    vec![
        Mixed::Nothing,
        Mixed::One(u64::MAX),
        Mixed::Two(2, "two".into()),
        Mixed::Named {
            left: vec![1, 2, 3],
            right: Some("right".into()),
        },
        Mixed::Nested(named()),
        Mixed::Boxed(Box::new(Some(Err("in a box in a box".into())))),
    ]
}

fn node() -> Node {
    let leaf = |name: &str| Node {
        name: name.into(),
        next: None,
        children: vec![],
    };
    Node {
        name: "root".into(),
        next: Some(Box::new(leaf("a leaf with a long name"))),
        children: vec![leaf("one"), leaf("two")],
    }
}

fn tree() -> Tree {
    Tree::Branch {
        left: Box::new(Tree::Text("a text behind a box".into())),
        right: Box::new(Tree::Branch {
            left: Box::new(Tree::Leaf(1)),
            right: Box::new(Tree::Leaf(2)),
        }),
    }
}

fn maps(len: u32) -> Maps {
    Maps {
        hash: (0..len).map(|n| (format!("key {n}"), n)).collect(),
        set: (0..len).map(u64::from).collect::<HashSet<_>>(),
        tree: (0..len).map(|n| (n, format!("the value of {n}"))).collect(),
        sorted: (0..len as i16).collect::<BTreeSet<_>>(),
        nested: HashMap::from([(7, BTreeMap::from([("x".to_owned(), vec![1, 2, 3])]))]),
    }
}

fn everything() -> Everything {
    Everything {
        a: (1, 2, 3, 4, 5),
        b: (-1, -2, -3, -4, -5),
        c: (0.5, -0.25, true, 'x', ()),
        id: *b"0123456789abcdef",
        strings: ["".into(), "short".into(), "a longer text".into()],
        list: vec![vec![Some(1), None], vec![]],
        flags: vec![true, false],
        boxed: Box::new(6),
        slice: Box::new([7, 8]),
        text: "a text of its own".into(),
        time: Duration::from_millis(1500),
        non_zero: 9.try_into().expect("it is not zero"),
        maybe: None,
        result: Err("no".into()),
        mixed: mixed(),
        maps: Box::new(maps(3)),
    }
}

fn payloads() -> Payloads {
    Payloads {
        bytes: vec![1, 2, 3].into(),
        samples: vec![0.5, -1.0].into(),
        more: vec![vec![].into(), vec![9; 70].into()],
        text: Some("some text".into()),
    }
}

struct Seeds(PathBuf);

impl Seeds {
    fn write(&self, target: &str, name: &str, bytes: &[u8]) {
        let directory = self.0.join(target);
        std::fs::create_dir_all(&directory).expect("it can be made");
        std::fs::write(directory.join(name), bytes).expect("it can be written");
    }

    fn schema<T: ShmMessage>(&self, number: u8, message: &[u8]) {
        let name = format!("valid-{number}");
        let schema = schema_of::<T>();
        let mut by_name = vec![number];
        by_name.extend_from_slice(message);
        self.write("archived_by_schema", &name, &by_name);
        let own = schema.to_bytes();
        let mut by_own = vec![8];
        by_own.extend((own.len() as u16).to_le_bytes());
        by_own.extend(&own);
        by_own.extend_from_slice(message);
        self.write("archived_by_schema", &format!("own-{number}"), &by_own);
        // As short as it can be, without its fingerprint: so that what is changed in it is looked at.
        let json = serde_json::from_str(&schema.to_json());
        let mut json: serde_json::Value = json.expect("it was just written");
        if let Some(fields) = json.as_object_mut() {
            fields.remove("fingerprint");
        }
        let mut text = json.to_string().into_bytes();
        text.push(0);
        text.extend_from_slice(message);
        self.write("schema_json", &name, &text);
    }

    fn message<T: ShmMessage>(&self, number: u8, values: &[T]) {
        for (index, value) in values.iter().enumerate() {
            let message = to_bytes(value).expect("it can be archived");
            let mut bytes = vec![number];
            bytes.extend_from_slice(&message);
            self.write(
                "archived_by_type",
                &format!("valid-{number}-{index}"),
                &bytes,
            );
            if index == 0 {
                self.schema::<T>(number, &message);
            }
        }
    }
}

fn main() {
    let directory = std::env::args_os().nth(1).expect("usage: seeds DIRECTORY");
    let seeds = Seeds(directory.into());
    seeds.message(0, &[named(), Named::default()]);
    seeds.message(1, &mixed());
    seeds.message(2, &[node()]);
    seeds.message(3, &[tree()]);
    seeds.message(4, &[maps(3), maps(0), maps(60)]);
    seeds.message(5, &[everything()]);
    seeds.message(6, &[payloads()]);
    // Handles are made by a bus: four words each, and any words are.
    let pins = [[7u8; 32].as_slice(), &[0; 8]].concat();
    seeds.write("archived_by_type", "valid-7-0", &[&[7], &pins[..]].concat());
    seeds.schema::<Pins>(7, &pins);
}
