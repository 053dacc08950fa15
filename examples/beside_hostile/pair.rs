//! The honest pair: a server, and a client that times its calls.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use shmbus::{Bus, Client, Config, ShmMessage, Wait};

/// As the small message of the benches: five fields, one of them a text.
#[derive(ShmMessage)]
#[shm(service = "query", reply = Answer)]
pub(crate) struct Query {
    id: u64,
    line: u32,
    column: u32,
    kind: u8,
    text: String,
}

#[derive(ShmMessage)]
pub(crate) struct Answer {
    id: u64,
    line: u32,
    column: u32,
    kind: u8,
    text: String,
}

impl Query {
    pub(crate) fn new(id: u64) -> Query {
        Query {
            id,
            line: 120,
            column: 7,
            kind: 3,
            text: "a text of 24 bytes, all!".to_owned(),
        }
    }
}

/// What was measured: nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// One call in ten thousand takes longer: who takes the processor away is seen here.
    pub(crate) p9999: f64,
    /// Of all the time that passed, what one call had.
    pub(crate) mean: f64,
}

fn open(bus: &str, wait: Wait) -> Result<Bus> {
    let config = Config {
        wait,
        ..Config::default()
    };
    config.open(bus).context("the bus does not open")
}

/// Serves until its input ends; says how many faults were blamed on whom, when it is asked.
pub(crate) fn serve(bus: &str, wait: Wait) -> Result<()> {
    let bus = open(bus, wait)?;
    let mut server = bus.server::<Query>()?;
    let blamed = Arc::new(Blamed::default());
    let serving = std::thread::spawn(move || -> Result<()> {
        while let Some(query) = server.next()? {
            let answer = Answer {
                id: query.id.to_native(),
                line: query.line.to_native(),
                column: query.column.to_native(),
                kind: query.kind,
                text: query.text.as_str().to_owned(),
            };
            // An offender does not have what it asked for.
            let _ = query.reply(&answer);
        }
        Ok(())
    });
    println!("ready");
    let looking = std::thread::spawn({
        let (bus, blamed) = (bus.clone(), blamed.clone());
        move || blamed.count(&bus)
    });
    for line in std::io::stdin().lock().lines() {
        ensure!(line? == "incidents", "no such order");
        println!("{}", blamed.told());
        std::io::stdout().flush()?;
    }
    // Relaxed: only how long it looks.
    blamed.is_over.store(true, Ordering::Relaxed);
    bus.close();
    looking.join().expect("it does not panic");
    serving.join().expect("it does not panic")
}

/// The incidents of a bus, which are kept only until they are too many.
#[derive(Default)]
struct Blamed {
    count: AtomicU64,
    pid: AtomicU64,
    others: AtomicU64,
    is_over: AtomicBool,
}

impl Blamed {
    fn count(&self, bus: &Bus) {
        // Relaxed: counts, and a number that is told when all is over.
        while !self.is_over.load(Ordering::Relaxed) {
            for incident in bus.take_incidents() {
                let pid = u64::from(incident.pid);
                let first = self
                    .pid
                    .compare_exchange(0, pid, Ordering::Relaxed, Ordering::Relaxed);
                if first.is_err_and(|first| first != pid) {
                    self.others.fetch_add(1, Ordering::Relaxed);
                }
                self.count.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn told(&self) -> String {
        let [count, pid, others] = [&self.count, &self.pid, &self.others].map(|n| {
            // Relaxed: as above.
            n.load(Ordering::Relaxed)
        });
        format!("{count} of process {pid} ({others} of others)")
    }
}

/// The client.
pub(crate) struct Caller {
    client: Client<Query>,
    _bus: Bus,
}

impl Caller {
    pub(crate) fn connect(bus: &str, wait: Wait) -> Result<Caller> {
        let bus = open(bus, wait)?;
        let client = bus.client_timeout::<Query>(Duration::from_secs(10))?;
        Ok(Caller { client, _bus: bus })
    }

    /// Times calls, one after the other, for so long; each reply is checked.
    pub(crate) fn measure(&self, duration: Duration) -> Result<Figures> {
        let mut times = Histogram::<u64>::new(3)?;
        let start = Instant::now();
        let mut now = start;
        while now - start < duration {
            let query = Query::new(times.len());
            let begin = Instant::now();
            let answer = self.client.call(&query)?;
            let is_right = answer.id == query.id && answer.text.as_str() == query.text;
            drop(answer);
            now = Instant::now();
            times.record((now - begin).as_nanos() as u64)?;
            ensure!(is_right, "a reply to another call");
        }
        Ok(Figures {
            p50: times.value_at_quantile(0.5) as f64,
            p99: times.value_at_quantile(0.99) as f64,
            p9999: times.value_at_quantile(0.9999) as f64,
            mean: (now - start).as_nanos() as f64 / times.len() as f64,
        })
    }
}
