//! Bytes read by a schema: of a known type, or one that came with them.
#![no_main]

#[allow(dead_code)] // made by others
mod shapes;

use libfuzzer_sys::fuzz_target;
use shapes::{Everything, Exact, Maps, Mixed, Named, Node, Payloads, Pins, Tree};
use shmbus::schema::{Limits, Schema, decode, decode_at, diff};
use shmbus::schema_of;

fn limits() -> Limits {
    Limits {
        values: 20_000,
        text: 1 << 20,
        ..Limits::default()
    }
}

fn read(schema: &Schema, bytes: &[u8]) {
    let exact = Exact::new(bytes);
    let bytes = exact.bytes(bytes.len());
    let root = bytes.len().saturating_sub(schema.root().size as usize);
    let found = decode_at(schema, bytes, root, limits());
    if let (Ok(here), Ok(there)) = (&found, decode(schema, bytes)) {
        assert_eq!(
            *here, there,
            "a limit that was not reached changed something"
        );
    }
    let at = bytes.first().copied().unwrap_or(0).into();
    let _ = decode_at(schema, bytes, at, limits());
}

fuzz_target!(|data: &[u8]| {
    let Some((&which, bytes)) = data.split_first() else {
        return;
    };
    let schema = match which % 9 {
        0 => schema_of::<Named>(),
        1 => schema_of::<Mixed>(),
        2 => schema_of::<Node>(),
        3 => schema_of::<Tree>(),
        4 => schema_of::<Maps>(),
        5 => schema_of::<Everything>(),
        6 => schema_of::<Payloads>(),
        7 => schema_of::<Pins>(),
        _ => {
            // The schema's own bytes, their length before them; what follows is the message.
            let Some((len, rest)) = bytes.split_first_chunk::<2>() else {
                return;
            };
            let (schema, message) = rest.split_at(rest.len().min(u16::from_le_bytes(*len).into()));
            let Ok(read_schema) = Schema::from_bytes(schema) else {
                return;
            };
            assert_eq!(
                read_schema.to_bytes(),
                schema,
                "two ways to write one schema"
            );
            assert!(diff(&read_schema, &read_schema).is_empty());
            let _ = diff(schema_of::<Everything>(), &read_schema);
            read(&read_schema, message);
            return;
        }
    };
    read(schema, bytes);
});
