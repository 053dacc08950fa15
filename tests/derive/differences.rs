//! What is said of two versions of a message.

use std::collections::HashMap;

use shmbus::schema::{MAX_DIFFERENCES, Schema, diff};
use shmbus::{ShmMessage, schema_of};

fn lines(here: &Schema, there: &Schema) -> Vec<String> {
    diff(here, there).iter().map(ToString::to_string).collect()
}

/// Two versions of one set of types, and what is said of them.
macro_rules! versions {
    ($test:ident, { $($here:item)* }, { $($there:item)* }, $root:ident, [$($line:expr),* $(,)?]) => {
        #[test]
        fn $test() {
            mod here {
                #[allow(unused_imports)]
                use super::*;
                $($here)*
            }
            mod there {
                #[allow(unused_imports)]
                use super::*;
                $($there)*
            }
            let (here, there) = (schema_of::<here::$root>(), schema_of::<there::$root>());
            let expected: Vec<&str> = vec![$($line),*];
            assert_eq!(lines(here, there), expected);
            assert_eq!(here.fingerprint() == there.fingerprint(), expected.is_empty());
            assert_eq!(lines(there, here).is_empty(), expected.is_empty());
        }
    };
}

versions! {
    a_field_of_another_type,
    {
        #[derive(ShmMessage)] pub struct CompletionReply { pub items: Vec<Item> }
        #[derive(ShmMessage)] pub struct Item { pub label: String, pub detail: u64, pub score: f32 }
    },
    {
        #[derive(ShmMessage)] pub struct CompletionReply { pub items: Vec<Item> }
        #[derive(ShmMessage)] pub struct Item { pub label: String, pub detail: u64, pub score: f64 }
    },
    CompletionReply,
    ["CompletionReply.items[].score: f32 here, f64 there (offset 16, 16)"]
}

versions! {
    text_where_a_number_was,
    { #[derive(ShmMessage)] pub struct Message { pub a: u64, pub b: u64, pub c: u8 } },
    { #[derive(ShmMessage)] pub struct Message { pub a: u64, pub b: String, pub c: u8 } },
    Message,
    ["Message.b: u64 here, String there (offset 8, 8)"]
}

versions! {
    modules_do_not_matter,
    { #[derive(ShmMessage)] pub struct Same { pub a: u64 } },
    {
        mod elsewhere {
            use shmbus::ShmMessage;
            #[derive(ShmMessage)] pub struct Same { pub a: u64 }
        }
        pub use elsewhere::Same;
    },
    Same,
    []
}

versions! {
    fields_missing_on_either_side,
    { #[derive(ShmMessage)] pub struct Message { pub a: u8, pub old: Option<Vec<u16>> } },
    { #[derive(ShmMessage)] pub struct Message { pub new: HashMap<String, u8>, pub a: u8 } },
    Message,
    [
        "Message.old: Option<Vec<u16>> here, missing there",
        "Message.new: missing here, HashMap<String, u8> there",
    ]
}

versions! {
    another_order_of_fields,
    { #[derive(ShmMessage)] pub struct Size { pub width: u32, pub height: u32 } },
    { #[derive(ShmMessage)] pub struct Size { pub height: u32, pub width: u32 } },
    Size,
    ["Size: fields in the order width, height here, fields in the order height, width there"]
}

versions! {
    variants,
    {
        #[derive(ShmMessage)]
        #[allow(dead_code)]
        pub enum State { Idle, Busy(u8), Done { at: u32 }, Old }
    },
    {
        #[derive(ShmMessage)]
        #[allow(dead_code)]
        pub enum State { Idle, New, Busy(u16), Done { at: u32 } }
    },
    State,
    [
        "State::Busy: tag 1 here, tag 2 there",
        "State::Done: tag 2 here, tag 3 there",
        "State::Old: tag 3 here, missing there",
        "State::New: missing here, tag 1 there",
        "State::Busy.0: u8 here, u16 there (offset 1, 2)",
    ]
}

versions! {
    names_and_forms,
    {
        #[derive(ShmMessage)] #[shm(name = "open.v1")] pub struct Open { pub what: What }
        #[derive(ShmMessage)] pub struct What(pub u8);
    },
    {
        #[derive(ShmMessage)] #[shm(name = "open.v2")] pub struct Open { pub what: What }
        #[derive(ShmMessage)] #[shm(name = "Which")] pub struct What { pub id: u8 }
    },
    Open,
    [
        "message: open.v1 here, open.v2 there",
        "open.v1: struct open.v1 here, struct open.v2 there",
        "open.v1.what: struct What here, struct Which there",
        "open.v1.what: fields without names here, fields with names there",
        "open.v1.what.0: u8 here, missing there",
        "open.v1.what.id: missing here, u8 there",
    ]
}

versions! {
    recursion,
    {
        #[derive(ShmMessage)]
        pub struct Node { pub next: Option<Box<Node>>, pub map: HashMap<u8, Vec<Node>>, pub id: [u8; 4] }
    },
    {
        #[derive(ShmMessage)]
        pub struct Node { pub next: Option<Box<Node>>, pub map: HashMap<u8, Vec<Node>>, pub id: [u8; 5] }
    },
    Node,
    ["Node.id: [u8; 4] here, [u8; 5] there (offset 20, 20)"]
}

versions! {
    an_unrolled_recursion_is_the_same,
    {
        #[derive(ShmMessage)]
        pub struct Node { pub next: Option<Box<Node>> }
    },
    {
        #[derive(ShmMessage)]
        pub struct Node { pub next: Option<Box<inner::Node>> }
        mod inner {
            use shmbus::ShmMessage;
            #[derive(ShmMessage)]
            pub struct Node { pub next: Option<Box<Node>> }
        }
    },
    Node,
    []
}

versions! {
    keys_and_values,
    { #[derive(ShmMessage)] pub struct Maps { pub map: HashMap<u8, u32> } },
    { #[derive(ShmMessage)] pub struct Maps { pub map: HashMap<i8, f32> } },
    Maps,
    ["Maps.map{key}: u8 here, i8 there", "Maps.map{value}: u32 here, f32 there"]
}

#[test]
fn the_list_ends() {
    let schema = |name: &str| {
        let field = |n| format!(r#"{{"name":"{name}{n}","offset":0,"type":1}}"#);
        let fields: Vec<_> = (0..5 * MAX_DIFFERENCES).map(field).collect();
        let json = format!(
            r#"{{"name":"M","format":"rkyv-0.8 little-endian aligned pointer-32","types":[
                {{"size":1,"align":1,"kind":"struct","name":"M","form":"named","fields":[{}]}},
                {{"size":1,"align":1,"kind":"primitive","primitive":"u8"}}]}}"#,
            fields.join(",")
        );
        Schema::from_json(&json).unwrap()
    };
    assert_eq!(diff(&schema("a"), &schema("b")).len(), MAX_DIFFERENCES);
}
