//! What the engine promises, without a bus.

use super::*;

fn engine(documents: &[(&str, &str)]) -> Engine {
    let mut engine = Engine::default();
    for (path, text) in documents {
        engine.open(path, text);
    }
    engine
}

fn labels<'a>(engine: &'a Engine, path: &str, prefix: &str) -> Vec<&'a str> {
    let place = Place {
        path,
        line: 1,
        prefix,
    };
    let (found, _) = engine.complete(place, 10);
    found.iter().map(|candidate| candidate.label).collect()
}

#[test]
fn identifiers_are_runs_of_letters_digits_and_underscores() {
    let found: Vec<_> = identifiers("let größe_2 = 0x1f + f(a1, 3u8);").collect();
    assert_eq!(found, [(0, "let"), (4, "größe_2"), (23, "f"), (25, "a1")]);
}

#[test]
fn identifiers_of_nothing_are_none() {
    assert_eq!(identifiers("").count(), 0);
    assert_eq!(identifiers(" 12 +-").count(), 0);
}

#[test]
fn opening_counts_different_identifiers() {
    let mut engine = Engine::default();
    assert_eq!(engine.open("a", "one two one x"), 2, "x is too short");
}

#[test]
fn a_prefix_matches_in_any_case_and_the_same_case_first() {
    let engine = engine(&[("a", "Sender sending Other")]);
    assert_eq!(labels(&engine, "a", "Se"), ["Sender", "sending"]);
}

#[test]
fn what_was_typed_does_not_complete_itself() {
    let engine = engine(&[("a", "send sender")]);
    assert_eq!(labels(&engine, "a", "send"), ["sender"]);
}

#[test]
fn frequent_words_come_first() {
    let engine = engine(&[("a", "gate_a gate_b gate_b gate_b gate_b")]);
    assert_eq!(labels(&engine, "elsewhere", "ga"), ["gate_b", "gate_a"]);
}

#[test]
fn the_same_document_comes_first() {
    let engine = engine(&[("a", "value_a"), ("b", "value_b")]);
    assert_eq!(labels(&engine, "b", "val"), ["value_b", "value_a"]);
    assert_eq!(labels(&engine, "a", "val"), ["value_a", "value_b"]);
}

#[test]
fn abbreviations_come_after_prefixes() {
    let engine = engine(&[("a", "to_native toNative tn_wide nothing TakeNext")]);
    let found = labels(&engine, "a", "tn");
    assert_eq!(found[0], "tn_wide");
    assert_eq!(found.len(), 4);
    assert!(!found.contains(&"nothing"));
}

#[test]
fn an_abbreviation_follows_the_parts_in_order() {
    assert!(abbreviates("tona", "to_native"));
    assert!(abbreviates("ton", "toNative"));
    assert!(abbreviates("gsl", "get_some_long_name"));
    assert!(abbreviates("gesl", "get_some_long_name"));
    assert!(!abbreviates("gls", "get_some_long_name"));
    assert!(!abbreviates("gx", "get_some_long_name"));
    assert!(abbreviates("hp", "HTTPServerPool"));
}

#[test]
fn definitions_tell_the_kind_and_the_place() {
    let engine = engine(&[
        ("use", "\ncall_me()"),
        ("def", "\n\ncall_me();\npub fn call_me() {}"),
    ]);
    let place = Place {
        path: "use",
        line: 1,
        prefix: "cal",
    };
    let (found, matched) = engine.complete(place, 1);
    assert_eq!(matched, 1);
    assert_eq!(found[0].kind, Kind::Function);
    assert_eq!((found[0].path, found[0].line), ("def", 4));
    assert_eq!(found[0].uses, 3);
}

#[test]
fn spelling_tells_the_kind_where_no_definition_does() {
    assert_eq!(Kind::spelled("MAX_LEN"), Kind::Constant);
    assert_eq!(Kind::spelled("HashMap"), Kind::Type);
    assert_eq!(Kind::spelled("hash_map"), Kind::Word);
}

#[test]
fn a_definition_is_the_word_right_after_its_keyword() {
    let kind = |line: &str| {
        let engine = engine(&[("a", line)]);
        let place = Place {
            path: "a",
            line: 1,
            prefix: "na",
        };
        engine.complete(place, 1).0[0].kind
    };
    assert_eq!(kind("let mut name = 1;"), Kind::Variable);
    assert_eq!(kind("macro_rules! name {"), Kind::Function);
    assert_eq!(kind("call: fn(&name)"), Kind::Word);
    assert_eq!(kind("let Name(x) = y;"), Kind::Type);
    assert_eq!(kind("fn\nname"), Kind::Word);
}

#[test]
fn replacing_a_document_forgets_its_old_words() {
    let mut engine = engine(&[("a", "old_word shared_word"), ("b", "shared_word")]);
    engine.open("a", "new_word");
    assert_eq!(labels(&engine, "a", "old"), [""; 0]);
    assert_eq!(labels(&engine, "a", "new"), ["new_word"]);
    let place = Place {
        path: "a",
        line: 1,
        prefix: "sha",
    };
    let (found, _) = engine.complete(place, 1);
    assert_eq!((found[0].uses, found[0].path), (1, "b"));
}

#[test]
fn closing_every_document_leaves_nothing() {
    let mut engine = engine(&[("a", "one two"), ("b", "two three")]);
    engine.close("a");
    engine.close("b");
    engine.close("never opened");
    assert!(engine.words.is_empty() && engine.documents.is_empty());
}

#[test]
fn the_limit_keeps_the_best() {
    let engine = engine(&[("a", "xa_one xa_two xa_two xa_three xa_three xa_three")]);
    let place = Place {
        path: "none",
        line: 1,
        prefix: "xa",
    };
    let (all, _) = engine.complete(place, 10);
    let (best, matched) = engine.complete(place, 2);
    assert_eq!(matched, 3);
    assert_eq!(best, all[..2]);
    assert!(all.is_sorted_by(|a, b| a.score >= b.score));
    assert!(
        all.iter()
            .all(|candidate| (0.5..=1.0).contains(&candidate.score))
    );
}
