//! Schemas as JSON from anyone: what is one is compared, written again, and read by.
#![no_main]

#[allow(dead_code)] // made by others
mod shapes;

use libfuzzer_sys::fuzz_target;
use shapes::{Everything, Mixed};
use shmbus::schema::{Limits, Schema, decode_at, diff};
use shmbus::schema_of;

fuzz_target!(|data: &[u8]| {
    // Behind a zero byte, what is read by it.
    let end = data.iter().position(|b| *b == 0).unwrap_or(data.len());
    let (json, message) = data.split_at(end);
    let Ok(json) = std::str::from_utf8(json) else {
        return;
    };
    let Ok(schema) = Schema::from_json(json) else {
        return;
    };
    let again = Schema::from_json(&schema.to_json()).expect("it was just written");
    assert_eq!(again, schema);
    let sent = Schema::from_bytes(&schema.to_bytes()).expect("it was just written");
    assert_eq!((&sent, sent.fingerprint()), (&schema, schema.fingerprint()));
    assert!(diff(&schema, &again).is_empty());
    for known in [schema_of::<Everything>(), schema_of::<Mixed>()] {
        for difference in diff(known, &schema).iter().chain(&diff(&schema, known)) {
            assert!(!difference.to_string().is_empty());
        }
    }
    assert!(schema.max_align() >= 1);
    let limits = Limits {
        values: 20_000,
        text: 1 << 20,
        ..Limits::default()
    };
    let root = message.len().saturating_sub(schema.root().size as usize);
    for at in [root, 0, 1] {
        let _ = decode_at(&schema, message, at, limits);
    }
    let _ = schema.is_recursive();
});
