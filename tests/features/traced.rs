//! One trace over two processes: there, and back into the first.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use shmbus::{Bus, CallError, ShmMessage};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::support::{Child, Watchdog, alone, name, open, tell, told};
use crate::{Count, Number, Sum};

/// Asks a process that asks back.
#[derive(ShmMessage)]
#[shm(service = "relay", reply = Sum, error = Number)]
struct Relay {
    to: u32,
}

/// The fields of a span, its own name under "".
type Fields = BTreeMap<String, String>;

static ENDED: Mutex<Vec<Fields>> = Mutex::new(Vec::new());

/// Writes down each span of ours when it ends.
struct Collect;

struct Visit<'a>(&'a mut Fields);

impl tracing::field::Visit for Visit<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        let mut text = String::new();
        write!(text, "{value:?}").expect("a string takes all");
        let text = text.trim_matches('"').to_owned();
        self.0.insert(field.name().to_owned(), text);
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Collect {
    fn on_new_span(
        &self,
        attributes: &tracing::span::Attributes<'_>,
        id: &tracing::Id,
        context: Context<'_, S>,
    ) {
        let span = context.span(id).expect("it was just made");
        let mut fields = Fields::from([(String::new(), span.name().to_owned())]);
        attributes.record(&mut Visit(&mut fields));
        span.extensions_mut().insert(fields);
    }

    fn on_record(
        &self,
        id: &tracing::Id,
        values: &tracing::span::Record<'_>,
        context: Context<'_, S>,
    ) {
        let span = context.span(id).expect("it is open");
        let mut extensions = span.extensions_mut();
        let fields = extensions.get_mut::<Fields>().expect("it has fields");
        values.record(&mut Visit(fields));
    }

    fn on_close(&self, id: tracing::Id, context: Context<'_, S>) {
        let span = context.span(&id).expect("it is closing");
        let fields = span.extensions_mut().remove::<Fields>();
        let mut ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner);
        ended.extend(fields.filter(|fields| fields.contains_key("service")));
    }
}

fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let all = tracing_subscriber::registry().with(Collect);
        tracing::subscriber::set_global_default(all).expect("nobody else did");
    });
}

/// Waits for the end of a span of this process, which comes right after the answer.
fn ended(span: &str, service: &str) -> Fields {
    loop {
        let mut ended = ENDED.lock().unwrap_or_else(PoisonError::into_inner);
        let found = ended
            .iter()
            .position(|fields| fields[""] == span && fields["service"] == service);
        if let Some(at) = found {
            return ended.remove(at);
        }
        drop(ended);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A part: answers by asking its parent, and tells its spans.
pub(crate) fn relays() {
    collect();
    let bus = Bus::from_parent().expect("a bus started this");
    let long = Duration::from_secs(60);
    let back = bus.async_client_timeout::<Count>(long);
    let back = back.expect("the parent serves");
    let serving = bus.serve::<Relay, _>(1, move |call| {
        assert!(call.published().is_some_and(|at| at.elapsed() < long));
        let to = call.to.to_native();
        let sum = back.call(&Count { to }).wait();
        let value = sum.map_err(|_| Number { value: to })?.value.to_native();
        Ok(Sum { value })
    });
    let _serving = serving.expect("nobody else serves");
    while let Some(line) = told() {
        let (span, service) = line.split_once(' ').expect("two words");
        let fields = ended(span, service);
        let fields: Vec<String> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
        tell(&fields.join(";"));
    }
}

/// The fields of a span of the other process.
fn ended_there(child: &mut Child, span: &str, service: &str) -> Fields {
    child.say(&format!("{span} {service}"));
    let fields = child.hear();
    fields
        .split(';')
        .filter_map(|field| field.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn a_call_is_one_trace_over_both_processes() {
    let _alone = alone();
    collect();
    let (bus, child) = Bus::spawn(Child::command("relays", &[])).expect("it starts");
    let mut child = Child::adopt(child);
    let counting = bus.serve::<Count, _>(1, |call| {
        let value = call.to.to_native();
        assert!(value < 8, "too many");
        Ok(Sum { value })
    });
    let counting = counting.expect("nobody else serves");
    let client = bus.client_timeout::<Relay>(Duration::from_secs(60));
    let client = client.expect("the child serves");
    let mut traces = Vec::new();
    for to in [7, 8] {
        match client
            .call(&Relay { to })
            .map(|reply| reply.value.to_native())
        {
            Ok(value) => assert_eq!((to, value), (7, 7)),
            Err(error) => assert!(matches!(error, CallError::Service(_)) && to == 8),
        }
        let there = [
            ended("call", "relay"),
            ended_there(&mut child, "answer", "relay"),
            ended_there(&mut child, "call", "count"),
            ended("answer", "count"),
        ];
        let [first, taken, second, last] = &there;
        for span in &there {
            assert_eq!(span["trace"], first["trace"], "{there:?}");
        }
        assert_eq!(
            (&taken["parent"], &last["parent"]),
            (&first["span"], &second["span"])
        );
        assert_ne!(first["span"], second["span"]);
        assert!(
            taken["waited_ns"]
                .parse::<u64>()
                .is_ok_and(|waited| waited > 0)
        );
        assert_eq!(first["server"], child.pid().to_string());
        assert_eq!(taken["client"], std::process::id().to_string());
        let errors = there
            .iter()
            .map(|span| span.get("error").map(String::as_str));
        let errors: Vec<_> = errors.collect();
        match to {
            7 => assert_eq!(errors, [None; 4]),
            _ => {
                let service = Some("of the service");
                let panicked = Some("panicked");
                assert_eq!(errors, [service, service, panicked, panicked]);
            }
        }
        traces.push(first["trace"].clone());
    }
    assert_ne!(traces[0], traces[1], "each call of nobody's begins a trace");
    drop((client, counting, bus));
    assert!(child.end().success());
}

#[test]
fn a_stream_is_a_span_to_its_end() {
    let _alone = alone();
    let _watch = Watchdog::start("a traced stream");
    collect();
    let name = name("traced-stream");
    let (here, there) = (open(&name), open(&name));
    let serving = here.serve::<Relay, _>(1, |_| Err(Number { value: 1 }));
    let serving = serving.expect("nobody else serves");
    let client = there.client::<Relay>().expect("a server is there");
    let mut items = client.stream(&Relay { to: 1 }).expect("there is room");
    assert!(matches!(items.next(), Some(Err(CallError::Service(_)))));
    drop(items);
    let (asked, answered) = (ended("call", "relay"), ended("answer", "relay"));
    assert_eq!(
        (&asked["trace"], &asked["span"]),
        (&answered["trace"], &answered["parent"])
    );
    assert_eq!(
        (&*asked["error"], &*answered["error"]),
        ("of the service", "of the service")
    );
    pollster::block_on(async {
        let client = there.async_client::<Relay>().expect("a server is there");
        let mut items = client
            .stream(&Relay { to: 1 })
            .await
            .expect("there is room");
        assert!(matches!(
            items.next().await,
            Some(Err(CallError::Service(_)))
        ));
    });
    let (asked, answered) = (ended("call", "relay"), ended("answer", "relay"));
    assert_eq!(
        (&asked["trace"], &asked["span"]),
        (&answered["trace"], &answered["parent"])
    );
    assert_eq!(&*asked["error"], "of the service");
    drop(serving);
}
