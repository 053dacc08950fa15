//! What the engine takes its time for: suggestions and chat. Both stop as soon as nobody waits for them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use shmbus::{AsyncCall, Bus, Serving};

use crate::engine::{Engine, Place};
use crate::messages::{GivenUp, Prompt, Suggest, Suggestion, Token, Told, Unclear};

/// How long a model would think about a suggestion.
const THINK: Duration = Duration::from_millis(5);
/// How long it thinks between two looks at whether anybody waits.
const SLICE: Duration = Duration::from_micros(100);
/// Names that are like the one that was asked for.
const ALIKE: usize = 4;

/// Answers what is asked at each keystroke.
pub fn serve_suggestions(bus: &Bus, engine: Arc<RwLock<Engine>>) -> Result<Serving> {
    let given_up = AtomicU64::new(0);
    let suggest = move |call: &AsyncCall<Suggest>| {
        let start = Instant::now();
        while start.elapsed() < THINK {
            if call.is_cancelled() {
                given_up.fetch_add(1, Ordering::Relaxed);
                return Err(GivenUp);
            }
            thread::sleep(SLICE);
        }
        let engine = engine.read().unwrap_or_else(PoisonError::into_inner);
        let place = Place {
            path: call.path.as_str(),
            line: call.line.to_native(),
            prefix: call.prefix.as_str(),
        };
        let (found, _) = engine.complete(place, 1);
        let label = found.first().map_or("", |best| best.label).to_owned();
        let given_up = given_up.load(Ordering::Relaxed);
        Ok(Suggestion { label, given_up })
    };
    Ok(bus.serve(1, suggest)?)
}

/// Answers questions, token by token.
pub fn serve_chat(bus: &Bus, engine: Arc<RwLock<Engine>>) -> Result<Serving> {
    let cancelled = AtomicU64::new(0);
    let chat = move |call: &AsyncCall<Prompt>| {
        let text = {
            let engine = engine.read().unwrap_or_else(PoisonError::into_inner);
            tell(&engine, call.text.as_str())
        };
        if text.is_empty() {
            let why = "none of these words is an identifier of the documents".to_owned();
            return Err(Unclear { why });
        }
        let mut tokens = 0;
        for text in text.split_inclusive(char::is_whitespace) {
            thread::sleep(Duration::from_millis(call.token_ms.to_native().into()));
            let text = text.to_owned();
            if call.send(&Token { text }).wait().is_err() {
                cancelled.fetch_add(1, Ordering::Relaxed);
                break;
            }
            tokens += 1;
        }
        let cancelled = cancelled.load(Ordering::Relaxed);
        Ok(Told { tokens, cancelled })
    };
    Ok(bus.serve(1, chat)?)
}

/// What is known of the identifiers in a text.
fn tell(engine: &Engine, text: &str) -> String {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let words = text.split(|c| !is_part(c)).filter(|word| !word.is_empty());
    words.filter_map(|word| tell_of(engine, word)).collect()
}

fn tell_of(engine: &Engine, word: &str) -> Option<String> {
    // What completes all of it but its end: the word itself, and others.
    let (end, _) = word.char_indices().next_back()?;
    let place = Place {
        path: "",
        line: 1,
        prefix: &word[..end],
    };
    let (found, _) = engine.complete(place, usize::MAX);
    let same = found.iter().find(|candidate| candidate.label == word)?;
    let (kind, uses) = (same.kind.name(), same.uses);
    let mut said = format!("{word} ({kind}) is at {}:{}, ", same.path, same.line);
    said += &format!("and occurs {uses} times in all.");
    let alike = found.iter().map(|candidate| candidate.label);
    let alike = alike.filter(|label| *label != word).take(ALIKE);
    let alike: Vec<_> = alike.collect();
    if !alike.is_empty() {
        said += &format!(" Names like it: {}.", alike.join(", "));
    }
    Some(said + "\n")
}
