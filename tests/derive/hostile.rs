//! Bytes and schemas from someone who means no good: an error, and nothing worse.

use shmbus::__private::{access, to_bytes, to_owned};
use shmbus::schema::{Limits, Schema, decode, decode_at, diff};
use shmbus::{ShmMessage, rkyv, schema_of};

use super::shapes::{Everything, Mixed, Named, Node, everything};

/// Numbers without a pattern, and the same in each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Changes bytes in ways that get past the first checks: single bits, small numbers, the ends of
    /// ranges, copies of other parts.
    fn spoil(&mut self, bytes: &mut [u8]) {
        for _ in 0..1 + self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.below(8) as u8,
                2 => bytes[at] = [0x00, 0x7F, 0x80, 0xFF][self.below(4)],
                3 => bytes[at] = self.next() as u8,
                _ => {
                    let from = self.below(bytes.len());
                    let len = (1 + self.below(8)).min(bytes.len() - at.max(from));
                    bytes.copy_within(from..from + len, at);
                }
            }
        }
    }
}

fn limits() -> Limits {
    Limits {
        values: 100_000,
        text: 1 << 20,
        ..Limits::default()
    }
}

/// Returns how many of the spoiled messages are valid all the same.
fn spoiled<T: ShmMessage>(value: &T, rounds: u64) -> u64 {
    let good = to_bytes(value).unwrap();
    let schema = schema_of::<T>();
    let root = good.len() - schema.root().size as usize;
    let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
    let mut valid = 0;
    let mut bytes = rkyv::util::AlignedVec::<64>::new();
    for _ in 0..rounds {
        bytes.clear();
        bytes.extend_from_slice(&good);
        numbers.spoil(&mut bytes);
        let cut = if numbers.below(8) == 0 {
            numbers.below(good.len())
        } else {
            0
        };
        let bytes = &bytes[..good.len() - cut];
        let decoded = decode_at(schema, bytes, root, limits());
        if let Ok(archived) = access::<T>(bytes) {
            valid += 1;
            // A hash table or a tree can be valid without being in order; to copy it out must still
            // end, and the decoder must not see less than rkyv.
            let _ = to_owned::<T>(archived);
            if cut == 0 {
                decoded.unwrap();
            }
        }
    }
    valid
}

#[test]
fn spoiled_messages() {
    let named = Named {
        text: "longer than eight bytes".into(),
        ..Named::default()
    };
    assert!(spoiled(&named, 5_000) > 0);
    assert!(
        spoiled(
            &Mixed::Named {
                left: vec![1, 2],
                right: Some("r".into())
            },
            5_000
        ) > 0
    );
    let leaf = || Node {
        name: "leaf".into(),
        next: None,
        children: vec![],
    };
    let node = Node {
        name: "n".into(),
        next: Some(Box::new(leaf())),
        children: vec![leaf()],
    };
    assert!(spoiled(&node, 5_000) > 0);
    assert!(spoiled::<Everything>(&everything(), 5_000) > 0);
}

#[test]
fn spoiled_schemas() {
    let good = schema_of::<Everything>().to_bytes();
    let message = to_bytes(&everything()).unwrap();
    let mut numbers = Numbers(0xD1B5_4A32_D192_ED03);
    let mut valid = 0;
    for _ in 0..10_000 {
        let mut bytes = good.clone();
        // Past the version, so that there is something left to go wrong.
        numbers.spoil(&mut bytes[15..]);
        bytes.truncate(
            good.len()
                - if numbers.below(8) == 0 {
                    numbers.below(64)
                } else {
                    0
                },
        );
        let Ok(schema) = Schema::from_bytes(&bytes) else {
            continue;
        };
        valid += 1;
        assert_eq!(schema.to_bytes(), bytes);
        let _ = decode_at(&schema, &message, numbers.below(message.len()), limits());
        let _ = decode(&schema, &message);
        assert!(diff(schema_of::<Everything>(), &schema).len() <= 64);
        assert!(schema.max_align() >= 1);
        let _ = schema.is_recursive();
    }
    assert!(valid > 100, "{valid} of the spoiled schemas were read");
}

/// What has two fields of one name would be another schema for each who reads it.
#[test]
fn names_and_tags_that_come_twice_are_refused() {
    let good = schema_of::<Mixed>().to_json();
    let print = good.find("\"fingerprint\"").unwrap();
    let line = print + good[print..].find('\n').unwrap();
    let good = format!("{}{}", &good[..print], &good[line + 1..]);
    Schema::from_json(&good).unwrap();
    for (is, becomes) in [
        ("\"name\": \"left\"", "\"name\": \"right\""),
        ("\"name\": \"number\"", "\"name\": \"small\""),
        ("\"name\": \"1\"", "\"name\": \"0\""),
        ("\"name\": \"One\"", "\"name\": \"Two\""),
        ("\"tag\": 1", "\"tag\": 2"),
    ] {
        assert!(good.contains(is), "{is} in {good}");
        let error = Schema::from_json(&good.replacen(is, becomes, 1)).unwrap_err();
        assert!(
            error.to_string().contains("the same name or tag"),
            "{error}"
        );
    }
}

#[test]
fn a_schema_of_another_form_says_what_is_wrong() {
    let good = schema_of::<Mixed>().to_json();
    let print = format!("{:032x}", schema_of::<Mixed>().fingerprint());
    for (json, wrong) in [
        (good.replace("pointer-32", "pointer-64"), "its format is `"),
        (
            good.replace(&print, &"0".repeat(32)),
            "its fingerprint is not that",
        ),
        (good[..good.len() / 2].to_owned(), "EOF"),
        (format!("{good}{}", " ".repeat(32 << 20)), "bytes of JSON"),
    ] {
        let error = Schema::from_json(&json).unwrap_err().to_string();
        assert!(error.contains(wrong), "{error}");
    }
}

#[test]
fn noise() {
    let mut numbers = Numbers(7);
    for _ in 0..2_000 {
        let mut bytes = vec![0; numbers.below(300)];
        bytes
            .iter_mut()
            .for_each(|byte| *byte = numbers.next() as u8);
        let _ = decode(schema_of::<Everything>(), &bytes);
        let _ = access::<Everything>(&bytes);
        let _ = Schema::from_bytes(&bytes);
    }
}

#[derive(ShmMessage, Debug)]
enum List {
    Nil,
    Cons(Box<List>),
}

/// Builds the bytes of a list: `len` links, each of which points to the one before it.
fn links(len: usize) -> rkyv::util::AlignedVec<64> {
    let mut bytes = rkyv::util::AlignedVec::new();
    bytes.extend_from_slice(&[0; 8]);
    for _ in 0..len {
        bytes.extend_from_slice(&[1, 0, 0, 0]);
        // From the pointer, 4 bytes into its link, to the start of the link before.
        bytes.extend_from_slice(&(-12_i32).to_le_bytes());
    }
    bytes
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    assert!(access::<List>(&links(100)).is_ok());
    let error = access::<List>(&links(40_000)).err().unwrap().to_string();
    assert!(error.contains("nested deeper than 128"), "{error}");
    let error = decode(schema_of::<List>(), &links(40_000))
        .unwrap_err()
        .to_string();
    assert!(error.contains("levels"), "{error}");
}

#[test]
fn too_deep_a_message_is_refused_by_its_sender() {
    let list = |len| (0..len).fold(List::Nil, |list, _| List::Cons(Box::new(list)));
    let deepest = (0..200)
        .rev()
        .find(|len| to_bytes(&list(*len)).is_ok())
        .unwrap();
    assert_eq!(deepest, 128);
    access::<List>(&to_bytes(&list(deepest)).unwrap()).unwrap();
    let error = to_bytes(&list(deepest + 1)).err().unwrap().to_string();
    assert!(error.contains("nested deeper than 128"), "{error}");
}

/// What a check of the bytes cannot see, the fingerprint does.
#[test]
fn another_type_can_be_valid_but_has_another_fingerprint() {
    #[derive(ShmMessage)]
    struct Text(u64, String, u8);
    #[derive(ShmMessage)]
    struct Number(#[allow(dead_code)] u64, u64, #[allow(dead_code)] u8);

    let bytes = to_bytes(&Text(1, "text".into(), 2)).unwrap();
    let read = access::<Number>(&bytes).unwrap();
    assert_ne!(read.1.to_native(), 0);
    assert_ne!(
        schema_of::<Text>().fingerprint(),
        schema_of::<Number>().fingerprint()
    );
}

#[test]
fn unaligned_and_short_bytes() {
    let good = to_bytes(&Named::default()).unwrap();
    let mut shifted = rkyv::util::AlignedVec::<64>::new();
    shifted.extend_from_slice(&[0; 4]);
    shifted.extend_from_slice(&good);
    let error = access::<Named>(&shifted[4..]).err().unwrap().to_string();
    assert!(error.contains("unaligned"), "{error}");
    for len in 0..good.len() {
        let _ = access::<Named>(&good[..len]);
    }
    assert!(access::<Named>(&[]).is_err());
}
