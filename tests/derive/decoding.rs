//! A message read by its schema is what serde makes of the value.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::{Value, json};
use shmbus::__private::to_bytes;
use shmbus::schema::{DecodeError, Limits, Schema, decode, decode_at};
use shmbus::{ShmMessage, schema_of};

use super::shapes::{Generic, Mixed, Named, Node, Numbered, Tree, Tuple, Unit, everything};

#[track_caller]
fn same_as_serde<T: ShmMessage + Serialize>(value: T) {
    let bytes = to_bytes(&value).unwrap();
    let schema = schema_of::<T>();
    let expected = serde_json::to_value(&value).unwrap();
    assert_eq!(decode(schema, &bytes).unwrap(), expected);
    // The same through the forms in which a schema travels.
    let sent = Schema::from_bytes(&schema.to_bytes()).unwrap();
    assert_eq!((&sent, sent.fingerprint()), (schema, schema.fingerprint()));
    let read = Schema::from_json(&schema.to_json()).unwrap();
    assert_eq!(&read, schema);
    assert_eq!(decode(&read, &bytes).unwrap(), expected);
}

#[test]
fn structs_and_enums() {
    same_as_serde(Named {
        text: "a text that is long".into(),
        number: 7,
        ..Named::default()
    });
    same_as_serde(Tuple(1, "x".into(), (2, 3)));
    same_as_serde(Unit);
    same_as_serde(Mixed::Nothing);
    same_as_serde(Mixed::One(u64::MAX));
    same_as_serde(Mixed::Two(2, "two".into()));
    same_as_serde(Mixed::Named {
        left: vec![1, 2, 3],
        right: Some("right".into()),
    });
    same_as_serde(Mixed::Nested(Named::default()));
    same_as_serde(Numbered::High);
    same_as_serde(Generic {
        item: "one".to_owned(),
        items: vec!["twelve bytes".into()],
    });
}

#[test]
fn text_of_every_length() {
    for len in 0..200 {
        same_as_serde(Tuple(0, "ä".repeat(len), (0, 0)));
    }
}

#[test]
fn recursion() {
    let leaf = |name: &str| Node {
        name: name.into(),
        next: None,
        children: vec![],
    };
    same_as_serde(Node {
        name: "root".into(),
        next: Some(Box::new(leaf("a leaf with a long name"))),
        children: vec![leaf("one"), leaf("two")],
    });
    same_as_serde(Tree::Branch {
        left: Box::new(Tree::Leaf(1)),
        right: Box::new(Tree::Leaf(2)),
    });
}

#[test]
fn every_type_at_once() {
    let mut value = everything();
    let bytes = to_bytes(&value).unwrap();
    let decoded = decode(schema_of::<super::shapes::Everything>(), &bytes).unwrap();
    (value.a.4, value.b.4) = (0, 0);
    let mut expected = serde_json::to_value(&value).unwrap();
    // 128 bits are text here, and sets have no order.
    expected["a"][4] = json!((u128::MAX - 5).to_string());
    expected["b"][4] = json!((i128::MIN + 5).to_string());
    let sorted = |mut value: Value| {
        let set = value["set"].as_array_mut().unwrap();
        set.sort_by_key(|item| item.as_u64());
        value
    };
    assert_eq!(sorted(decoded), sorted(expected));
}

#[derive(ShmMessage, Serialize)]
struct Maps {
    hash: HashMap<u16, String>,
    tree: BTreeMap<String, u64>,
    pairs: BTreeMap<u8, [u32; 3]>,
}

#[test]
fn maps_of_every_size() {
    for len in (0..60).chain([215, 216, 217, 1_000]) {
        same_as_serde(Maps {
            hash: (0..len).map(|n| (n, format!("the value of {n}"))).collect(),
            tree: (0..len)
                .map(|n| (format!("key {n:05}"), n.into()))
                .collect(),
            pairs: (0..len.min(200))
                .map(|n| (n as u8, [n.into(); 3]))
                .collect(),
        });
    }
}

#[test]
fn keys_that_are_no_text_make_pairs() {
    #[derive(ShmMessage)]
    struct Grid {
        cells: BTreeMap<(u8, u8), bool>,
    }
    let grid = Grid {
        cells: BTreeMap::from([((1, 2), true)]),
    };
    let decoded = decode(schema_of::<Grid>(), &to_bytes(&grid).unwrap()).unwrap();
    assert_eq!(decoded, json!({ "cells": [[[1, 2], true]] }));
}

#[test]
fn numbers_that_json_has_not_are_text() {
    #[derive(ShmMessage)]
    struct Floats(f32, f64);
    let bytes = to_bytes(&Floats(f32::NAN, f64::NEG_INFINITY)).unwrap();
    assert_eq!(
        decode(schema_of::<Floats>(), &bytes).unwrap(),
        json!(["NaN", "-inf"])
    );
}

#[test]
fn the_root_may_be_elsewhere_and_limits_hold() {
    let bytes = to_bytes(&Tuple(1, "a text that is elsewhere".into(), (2, 3))).unwrap();
    let schema = schema_of::<Tuple>();
    let at = bytes.len() - schema.root().size as usize;
    let mut longer = bytes.to_vec();
    longer.extend([0; 64]);
    let read = |limits| decode_at(schema, &longer, at, limits);
    assert_eq!(
        read(Limits::default()).unwrap(),
        decode(schema, &bytes).unwrap()
    );
    for limits in [
        Limits {
            depth: 1,
            ..Limits::default()
        },
        Limits {
            values: 5,
            ..Limits::default()
        },
        Limits {
            text: 10,
            ..Limits::default()
        },
    ] {
        assert!(matches!(read(limits), Err(DecodeError::Limit { .. })));
    }
}
