//! The honest process that is attacked, and the innocent that goes on beside it.
//!
//! The victim has every kind of port. It looks at all that it receives, to the last byte, and minds no error:
//! what it must not do is panic, hang, or keep anything of a peer whose link is over.

use std::hint::black_box;
use std::io::Write;
use std::thread::JoinHandle;
use std::time::Duration;

use shmbus::{
    AsyncCall, AsyncServer, Bus, CallError, Change, Config, Delivery, Latest, Publishing, Receiver,
    SendError, Server, Subscriber, Trust, Wait,
};

use crate::messages::{
    Board, Feed, Flow, Later, News, Number, Plain, Prey, PreyLater, Refer, Refused, State, Sum,
};
use crate::support::{self, Ask, answer, check_call, tell, told};

/// How long the victim waits for a peer that may never answer.
const BRIEF: Duration = Duration::from_millis(3);

/// The victim waits by sleeping: others need the processors, too.
const CONFIG: Config = Config {
    max_message: 1 << 20,
    memory_limit: 64 << 20,
    wait: Wait::Park,
    timestamps: false,
    trust: Trust::SameUser,
    flight_recorder: 16,
};

/// The part of the victim.
pub(crate) fn victim(name: &str) {
    abort_with_panics();
    obey(CONFIG.open(name).expect("the bus opens"));
}

/// The same, with a link that it inherited.
pub(crate) fn heir() {
    abort_with_panics();
    obey(CONFIG.from_parent().expect("it was inherited"));
}

fn abort_with_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let mut out = std::io::stderr();
        let _ = writeln!(out, "the victim panicked: {panic}");
        std::process::abort();
    }));
}

/// Does what it is told.
fn obey(bus: Bus) {
    let threads = ports(&bus);
    let mut publishers = Publishers::new(&bus);
    tell("ready");
    while let Some(line) = told() {
        match line.as_str() {
            "memory" => tell(&bus.memory().1.to_string()),
            "incidents" => {
                for incident in bus.take_incidents() {
                    tell(&format!("{} {:?}", incident.pid, incident.what));
                }
                tell("");
            }
            "call" => tell(call(&bus)),
            "call-later" => tell(call_later(&bus)),
            "send" => tell(send(&bus)),
            "publish" => {
                publishers.publish();
                tell("done");
            }
            other => panic!("no such order: {other}"),
        }
    }
    drop(publishers);
    bus.close();
    for thread in threads {
        thread.join().expect("it went well");
    }
    drop(bus);
}

fn ports(bus: &Bus) -> Vec<JoinHandle<()>> {
    let ask = bus.server::<Ask>().expect("nobody else serves");
    let flow = bus.server::<Flow>().expect("nobody else serves");
    let later = bus.async_server::<Later>().expect("nobody else serves");
    let plain = bus.receiver::<Plain>("plain").expect("nobody else does");
    let refer = bus.receiver::<Refer>("refer").expect("nobody else does");
    let news = bus.subscriber::<News>().expect("it joins");
    let state = bus.latest::<State>().expect("it joins");
    vec![
        std::thread::spawn(move || answer(ask)),
        std::thread::spawn(move || flows(flow)),
        std::thread::spawn(move || flows_later(later)),
        std::thread::spawn(move || receives(plain)),
        std::thread::spawn(move || opens(refer)),
        std::thread::spawn(move || subscribes(news)),
        std::thread::spawn(move || reads(state)),
    ]
}

fn flows(mut server: Server<Flow>) {
    while let Some(call) = server.next().expect("not forked") {
        let (id, count) = (call.id.to_native(), call.count.to_native() % 100);
        let padding = call.padding.to_vec();
        black_box((call.deadline(), call.published(), call.caller_pid()));
        if count == 99 {
            let _ = call.fail(&Refused { id });
            continue;
        }
        // Nobody may take them: what is sent to a stranger is only tried.
        for number in 0..count {
            let _ = call.try_send(&Number { number });
        }
        let (sum, padding) = (padding.iter().map(|&b| u64::from(b)).sum(), padding);
        let _ = call.reply(&Sum { id, sum, padding });
    }
}

/// Answers those first that came last, and some never. Nothing is held while it waits.
fn flows_later(server: AsyncServer<Later>) {
    let mut held: Vec<AsyncCall<Later>> = Vec::new();
    while let Some(call) = server.next().wait().expect("not forked") {
        held.push(call);
        while held.len() < 8 {
            match server.try_next().expect("not forked") {
                Some(call) => held.push(call),
                None => break,
            }
        }
        while let Some(call) = held.pop() {
            black_box((call.deadline(), call.is_cancelled(), call.behind()));
            let (id, padding) = (call.id.to_native(), call.padding.to_vec());
            for number in 0..call.count.to_native() % 10 {
                let _ = call.try_send(&Number { number });
            }
            if id % 7 != 3 {
                let sum = padding.iter().map(|&b| u64::from(b)).sum();
                let _ = call.reply(&Sum { id, sum, padding });
            }
        }
    }
}

fn receives(mut receiver: Receiver<Plain>) {
    while let Some(view) = receiver.next().expect("not forked") {
        let mut sum = view.number.to_native();
        for number in view.many.iter() {
            sum = sum.wrapping_add(number.to_native());
        }
        black_box((sum, view.share.to_native().to_bits(), view.sequence()));
        black_box((view.published(), view.to_value().is_ok()));
    }
}

fn opens(mut receiver: Receiver<Refer>) {
    let mut turn = 0;
    while let Some(view) = receiver.next().expect("not forked") {
        turn += 1;
        if turn % 2 == 0 {
            let kept = view.keep();
            if let Ok(document) = kept.document.open(&kept) {
                black_box(document.text.bytes().map(u64::from).sum::<u64>());
            }
        } else if let Ok(document) = view.document.open(&view) {
            black_box(document.text.bytes().map(u64::from).sum::<u64>());
        }
    }
}

fn subscribes(mut subscriber: Subscriber<News>) {
    loop {
        match subscriber.next() {
            Ok(Some(news)) => {
                black_box(news.text.bytes().map(u64::from).sum::<u64>());
                black_box(news.published());
                black_box(news.keep().text.len());
            }
            Ok(None) => return,
            Err(error) => {
                black_box(error.to_string());
            }
        }
    }
}

fn reads(mut latest: Latest<State>) {
    while latest.changed().wait().expect("not forked") {
        // A stranger may change its values without end.
        for _ in 0..1_000 {
            match latest.try_next().expect("not forked") {
                None => break,
                Some(Change::Removed(path)) => drop(black_box(path)),
                Some(Change::Value(state)) => {
                    black_box(state.text.bytes().map(u64::from).sum::<u64>());
                    black_box((state.published(), state.to_value().is_ok()));
                }
            }
        }
        for path in ["a", "b", ""] {
            if let Some(state) = latest.get(path).expect("not forked") {
                black_box(state.text.len());
            }
        }
    }
}

/// What the victim publishes, when it is told to.
struct Publishers {
    reliable: shmbus::Publisher<Feed>,
    lossy: shmbus::Publisher<Feed>,
    board: shmbus::LatestPublisher<Board>,
    turn: u64,
}

impl Publishers {
    fn new(bus: &Bus) -> Publishers {
        let lossy = Publishing {
            delivery: Delivery::Lossy,
            history: 4,
        };
        Publishers {
            reliable: bus.publisher().expect("it joins"),
            lossy: bus.publisher_as(lossy).expect("it joins"),
            board: bus.latest_publisher().expect("it joins"),
            turn: 0,
        }
    }

    fn publish(&mut self) {
        for step in 0..600 {
            self.turn += 1;
            let number = self.turn;
            let text = "x".repeat([0, 30, 300, 5_000][number as usize % 4]);
            let feed = Feed { number, text };
            let _ = self.lossy.publish_timeout(&feed, BRIEF);
            if step % 8 == 0 {
                let _ = self.reliable.try_publish(&feed);
                let (version, text) = (number, feed.text);
                let path = ["a", "b", "c"][number as usize % 3].to_owned();
                let _ = self.board.publish(&Board {
                    path,
                    version,
                    text,
                });
            }
        }
    }
}

/// Calls whoever serves, until the link ends or there were enough.
fn call(bus: &Bus) -> &'static str {
    let Ok(client) = bus.client::<Prey>() else {
        return "refused";
    };
    for id in 0..100 {
        let text = "x".repeat([3, 30, 300, 20_000][id as usize % 4]);
        let prey = Prey { id, text };
        let is_lost = if id % 3 == 2 {
            let Ok(items) = client.stream_timeout(&prey, BRIEF) else {
                continue;
            };
            let mut is_lost = false;
            for item in items.take(200) {
                match item {
                    Ok(number) => drop(black_box(number.to_value())),
                    Err(error) => is_lost |= is_end(&error),
                }
            }
            is_lost
        } else {
            match client.call_timeout(&prey, BRIEF) {
                Ok(sum) => black_box(sum.to_value().is_err()),
                Err(error) => is_end(&error),
            }
        };
        if is_lost {
            return "lost";
        }
    }
    "done"
}

fn call_later(bus: &Bus) -> &'static str {
    let Ok(client) = bus.async_client::<PreyLater>() else {
        return "refused";
    };
    for id in 0..60 {
        let text = "x".repeat([3, 30, 300, 20_000][id as usize % 4]);
        let prey = PreyLater { id, text };
        match client.call_timeout(&prey, BRIEF).wait() {
            Ok(sum) => drop(black_box(sum.to_value())),
            Err(error) if is_end(&error) => return "lost",
            Err(_) => {}
        }
    }
    "done"
}

/// Whether a call went wrong because its link has ended.
fn is_end(error: &CallError<Refused>) -> bool {
    black_box(error.to_string());
    matches!(error, CallError::Lost { .. } | CallError::Connect(_))
}

fn send(bus: &Bus) -> &'static str {
    let Ok(mut sender) = bus.sender::<News>("drain") else {
        return "refused";
    };
    for number in 0..3_000 {
        let text = "x".repeat([3, 30, 300, 20_000][number as usize % 4]);
        let news = News { number, text };
        match sender.send_timeout(&news, BRIEF) {
            Ok(()) => {}
            Err(SendError::Closed { .. }) => return "lost",
            Err(SendError::Full) if number > 1_000 => return "full",
            Err(error) => drop(black_box(error.to_string())),
        }
    }
    "done"
}

/// The part of an innocent: it calls, and checks what it gets.
pub(crate) fn innocent(name: &str) {
    let bus = support::open(name);
    let minute = Duration::from_secs(60);
    let client = bus.client_timeout::<Ask>(minute).expect("it is served");
    tell("ready");
    let mut id = 0;
    while let Some(line) = told() {
        match line.as_str() {
            "call" => {
                for len in [3, 2_000, 20_000] {
                    id += 1;
                    check_call(&client, id, len);
                }
            }
            // Somebody who comes only now is served, too.
            "connect" => {
                let bus = support::open(name);
                let client = bus.client_timeout::<Ask>(minute).expect("it is served");
                check_call(&client, 1, 100);
            }
            other => panic!("no such order: {other}"),
        }
        assert_eq!(bus.take_incidents(), []);
        tell("ok");
    }
}
