//! Somebody types, and at each keystroke a suggestion is asked for, which supersedes the last one.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use hdrhistogram::Histogram;
use shmbus::{AsyncClient, Bus, CallError, Pending};
use tokio::time::timeout;

use crate::corpus::Place;
use crate::messages::{ArchivedSuggestion, Suggest};

/// Between two keystrokes: less than the engine thinks.
const KEYSTROKE: Duration = Duration::from_millis(2);
/// A shorter identifier is typed before anything could be suggested.
const SHORTEST: usize = 4;

/// What came of it.
pub struct Typed {
    /// Requests that were made, one a keystroke.
    pub keystrokes: u64,
    /// Those that a newer one superseded.
    pub superseded: u64,
    /// Those that were answered.
    pub answered: u64,
    /// Those of the superseded that the engine had begun with. The rest it never saw.
    pub given_up: u64,
    /// Of each request, the longest time in nanoseconds that the bus took the thread of the user
    /// interface: to send it, or to look for its answer.
    pub waits: Histogram<u64>,
}

/// Types identifiers of the documents, so many.
pub fn simulate(bus: &Bus, places: &[Place], words: usize) -> Result<Typed> {
    let client = bus.async_client::<Suggest>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let mut typed = Typed {
        keystrokes: 0,
        superseded: 0,
        answered: 0,
        given_up: 0,
        waits: Histogram::new(3)?,
    };
    let long: Vec<_> = places
        .iter()
        .filter(|p| p.label.len() >= SHORTEST)
        .collect();
    for index in 0..words.min(long.len()) {
        let place = long[index.wrapping_mul(7919) % long.len()];
        runtime.block_on(type_word(&client, place, &mut typed))?;
    }
    ensure!(
        typed.keystrokes == typed.superseded + typed.answered,
        "some requests had no end"
    );
    Ok(typed)
}

async fn type_word(client: &AsyncClient<Suggest>, place: &Place, typed: &mut Typed) -> Result<()> {
    // Behind each of its characters but the last: then there is nothing left to suggest.
    let ends = place.label.char_indices().map(|(at, _)| at).skip(1);
    let requests: Vec<_> = ends
        .map(|end| Suggest {
            path: place.path.clone(),
            line: place.line,
            prefix: place.label[..end].to_owned(),
        })
        .collect();
    let mut shown: Option<Timed<'_>> = None;
    for request in &requests {
        let start = Instant::now();
        let pending = client.call(request);
        let longest = start.elapsed();
        typed.keystrokes += 1;
        if let Some(mut older) = shown.replace(Timed {
            request,
            pending,
            longest,
        }) {
            let answer = (&mut older).await;
            typed.ended(&older, answer.as_deref())?;
        }
        // Until the next keystroke: what has come by then is shown.
        if let Some(newest) = &mut shown {
            if let Ok(answer) = timeout(KEYSTROKE, &mut *newest).await {
                typed.ended(newest, answer.as_deref())?;
                shown = None;
            }
        }
    }
    if let Some(mut last) = shown {
        let answer = (&mut last).await;
        typed.ended(&last, answer.as_deref())?;
    }
    Ok(())
}

impl Typed {
    fn ended(
        &mut self,
        call: &Timed<'_>,
        answer: Result<&ArchivedSuggestion, &Error>,
    ) -> Result<()> {
        self.waits.record(call.longest.as_nanos() as u64)?;
        match answer {
            Ok(suggestion) => {
                let label = suggestion.label.to_lowercase();
                let prefix = call.request.prefix.to_lowercase();
                ensure!(
                    label.starts_with(&prefix),
                    "{label} does not complete {prefix}"
                );
                self.answered += 1;
                self.given_up = suggestion.given_up.to_native();
            }
            Err(CallError::Superseded) => self.superseded += 1,
            Err(error) => bail!("no suggestion for {}: {error}", call.request.prefix),
        }
        Ok(())
    }
}

type Error = CallError<crate::messages::GivenUp>;

/// A call, and the longest that anything about it took the thread that polls it.
struct Timed<'a> {
    request: &'a Suggest,
    pending: Pending<'a, Suggest>,
    longest: Duration,
}

impl<'a> Future for Timed<'a> {
    type Output = <Pending<'a, Suggest> as Future>::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let start = Instant::now();
        let polled = Pin::new(&mut self.pending).poll(cx);
        self.longest = self.longest.max(start.elapsed());
        polled
    }
}
