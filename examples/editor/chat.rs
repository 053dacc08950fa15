//! Talks with the engine about the documents. Ctrl-C cancels an answer, and not the program.

use std::future::Future;
use std::io::{IsTerminal, Write, stdin, stdout};

use anyhow::{Context, Result, bail, ensure};
use shmbus::{AsyncClient, Bus, CallError};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::ctrl_c;

use crate::corpus::Place;
use crate::messages::Prompt;

/// How long a token takes where a person reads along.
const TOKEN_MS: u32 = 25;
/// Where nobody does, so many tokens of the long answer are read before it is cancelled.
const READ: u64 = 12;
/// Identifiers that the long answer is about: more than the lane has room for.
const LONG: usize = 60;

/// Asks what a person types, or, without a terminal, two questions of its own.
pub fn run(bus: &Bus, places: &[Place]) -> Result<()> {
    let client = bus.async_client::<Prompt>()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if stdin().is_terminal() && stdout().is_terminal() {
        runtime.block_on(converse(&client))?;
        // A thread of the runtime may still wait for a line.
        runtime.shutdown_background();
        Ok(())
    } else {
        runtime.block_on(demonstrate(&client, places))
    }
}

/// How an answer ended.
enum End {
    Told { tokens: u64, cancelled: u64 },
    Cancelled { tokens: u64 },
    Unclear(String),
}

async fn converse(client: &AsyncClient<Prompt>) -> Result<()> {
    println!("\nAsk about identifiers of the documents, such as: where is main?");
    println!("Ctrl-C cancels an answer; an empty line or Ctrl-D ends.\n");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        print!("> ");
        stdout().flush()?;
        let line = tokio::select! {
            line = lines.next_line() => line?,
            _ = ctrl_c() => None,
        };
        let Some(text) = line.filter(|line| !line.trim().is_empty()) else {
            println!();
            return Ok(());
        };
        let prompt = Prompt {
            text,
            token_ms: TOKEN_MS,
        };
        let interrupted = async { ctrl_c().await.unwrap_or(()) };
        match answer(client, &prompt, u64::MAX, interrupted).await? {
            End::Told { .. } => {}
            End::Cancelled { tokens } => println!("\n(cancelled after {tokens} tokens)"),
            End::Unclear(why) => println!("({why})"),
        }
    }
}

/// Prints the answer as it comes: until its end, until `interrupted`, or until `most` tokens were read.
async fn answer(
    client: &AsyncClient<Prompt>,
    prompt: &Prompt,
    most: u64,
    interrupted: impl Future<Output = ()>,
) -> Result<End> {
    let mut tokens = client.stream(prompt).await?;
    let mut interrupted = std::pin::pin!(interrupted);
    let mut read = 0;
    while read < most {
        let token = tokio::select! {
            token = tokens.next() => token,
            () = &mut interrupted => return Ok(End::Cancelled { tokens: read }),
        };
        match token {
            Some(Ok(token)) => print!("{}", token.text),
            Some(Err(CallError::Service(unclear))) => return Ok(End::Unclear(unclear.why)),
            Some(Err(error)) => return Err(error).context("the answer broke off"),
            None => {
                let told = tokens.finish().await?;
                let (tokens, cancelled) = (told.tokens.to_native(), told.cancelled.to_native());
                ensure!(tokens == read, "{read} of {tokens} tokens came");
                return Ok(End::Told { tokens, cancelled });
            }
        }
        stdout().flush()?;
        read += 1;
    }
    // Dropped here, the stream cancels the call.
    Ok(End::Cancelled { tokens: read })
}

/// A question with its answer, one that is cancelled, and one that nothing can be said to.
async fn demonstrate(client: &AsyncClient<Prompt>, places: &[Place]) -> Result<()> {
    let Some(place) = places.first() else {
        return Ok(());
    };
    let ask = |text: String| Prompt { text, token_ms: 0 };
    let never = std::future::pending::<()>;
    let long: Vec<_> = places.iter().take(LONG).map(|p| p.label.as_str()).collect();
    println!("\n> What of the first {} identifiers?", long.len());
    let cut = answer(client, &ask(long.join(" ")), READ, never()).await?;
    ensure!(
        matches!(cut, End::Cancelled { .. }),
        "it was to be cut short"
    );
    println!("… (cancelled after {READ} tokens)");
    let question = format!("Where is {}?", place.label);
    println!("\n> {question}");
    let question = ask(question);
    let End::Told { tokens, cancelled } = answer(client, &question, u64::MAX, never()).await?
    else {
        bail!("no answer to a plain question");
    };
    // A shorter one was all sent before it was cancelled.
    ensure!(
        cancelled == 1 || long.len() < LONG,
        "the engine went on with an answer that was cancelled"
    );
    println!("({tokens} tokens; answers that the engine gave up: {cancelled})");
    match answer(client, &ask("…".to_owned()), u64::MAX, never()).await? {
        End::Unclear(_) => Ok(()),
        _ => bail!("an answer to no question"),
    }
}
