//! A call, and servers that follow each other: in every order of what either side does.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};
use std::thread;

use shmbus::{AsyncClient, Bus, CallError, Kept, Pending, Server, ShmMessage, ShmRequest};

use crate::support::{Child, Counting, name, open, poll, tell, together, told};

#[derive(ShmMessage)]
#[shm(service = "twice", reply = Told, idempotent)]
struct Twice {
    text: String,
}

#[derive(ShmMessage)]
#[shm(service = "once", reply = Told)]
struct Once {
    text: String,
}

/// Says which server it was.
#[derive(ShmMessage)]
struct Told {
    server: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The first server takes the call, if there is one, and answers it or never will.
    Take,
    /// It goes, and with it what it has taken.
    Go,
    /// The second one offers the service.
    Offer,
    /// The client makes the call.
    Call,
    /// It looks whether it is answered.
    Look,
}

/// All ways in which two lists can follow each other, each in its own order.
fn merged(here: &[Step], there: &[Step]) -> Vec<Vec<Step>> {
    let with = |step: Step, rest: Vec<Vec<Step>>| {
        let longer = rest.into_iter().map(move |mut steps| {
            steps.insert(0, step);
            steps
        });
        longer.collect::<Vec<_>>()
    };
    match (here, there) {
        ([], rest) | (rest, []) => vec![rest.to_vec()],
        ([a, here_left @ ..], [b, there_left @ ..]) => {
            let mut all = with(*a, merged(here_left, there));
            all.extend(with(*b, merged(here, there_left)));
            all
        }
    }
}

type Answer<R> = Result<Kept<Told>, CallError<<R as ShmRequest>::Error>>;

/// One order of steps, as it goes.
struct Handover<'a, R: ShmRequest<Reply = Told>> {
    name: String,
    first: Option<(Bus, Server<R>)>,
    second: Option<(Bus, Server<R>)>,
    client: &'a AsyncClient<R>,
    request: &'a R,
    pending: Option<Pending<'a, R>>,
    answer: Option<Answer<R>>,
    woken: Arc<Counting>,
    waker: Waker,
    answered: bool,
}

fn serve<R: ShmRequest>(name: &str) -> (Bus, Server<R>) {
    let bus = open(name);
    let server = bus.server::<R>().expect("nobody else serves");
    (bus, server)
}

impl<R: ShmRequest<Reply = Told>> Handover<'_, R> {
    fn take_step(&mut self, step: Step, answers: bool) {
        match step {
            Step::Take => {
                let (_, server) = self.first.as_mut().expect("it has not gone");
                if let Some(call) = server.try_next().expect("not forked") {
                    match answers {
                        true => call.reply(&Told { server: 1 }).expect("it lives"),
                        false => std::mem::forget(call),
                    }
                    self.answered = answers;
                }
            }
            Step::Go => drop(self.first.take()),
            Step::Offer => self.second = Some(serve(&self.name)),
            Step::Call => self.pending = Some(self.client.call(self.request)),
            Step::Look => self.look(),
        }
    }

    fn look(&mut self) {
        let Some(pending) = self.pending.as_mut() else {
            return;
        };
        if let Poll::Ready(answer) = poll(pending, &self.waker) {
            self.answer = Some(answer);
            self.pending = None;
        }
    }

    /// Has the second server answer, until the call has ended; how many requests that server had.
    fn finish(&mut self) -> usize {
        let mut taken = 0;
        while self.answer.is_none() {
            let woken = self.woken.0.load(Ordering::Relaxed);
            self.look();
            // It looks again only when it is woken: who is not, waits for ever.
            while self.answer.is_none() && self.woken.0.load(Ordering::Relaxed) == woken {
                taken += self.answer_all();
                thread::yield_now();
            }
        }
        taken + self.answer_all()
    }

    fn answer_all(&mut self) -> usize {
        let mut taken = 0;
        let (_, server) = self.second.as_mut().expect("it has come");
        while let Some(call) = server.try_next().expect("not forked") {
            taken += 1;
            call.reply(&Told { server: 2 }).expect("its caller lives");
        }
        taken
    }
}

/// Goes through all orders; `check` says what may come of one.
fn go_through<R: ShmRequest<Reply = Told>>(
    request: impl Fn(String) -> R,
    check: impl Fn(&[Step], bool, &Answer<R>, usize),
) {
    let mut orders = 0;
    for (before, answers) in [
        (&[][..], false),
        (&[Step::Take], false),
        (&[Step::Take], true),
    ] {
        let server: Vec<_> = [before, &[Step::Go, Step::Offer]].concat();
        for steps in merged(&server, &[Step::Call, Step::Look, Step::Look]) {
            for len in [10, 20_000] {
                orders += 1;
                let name = name(&format!("handover-{}-{orders}", R::SERVICE));
                let first = serve(&name);
                let calling = open(&name);
                let client = calling.async_client::<R>().expect("it is served");
                let request = request("x".repeat(len));
                let woken = Arc::new(Counting::default());
                let mut handover = Handover {
                    name,
                    first: Some(first),
                    second: None,
                    client: &client,
                    request: &request,
                    pending: None,
                    answer: None,
                    waker: Waker::from(woken.clone()),
                    woken,
                    answered: false,
                };
                for step in &steps {
                    handover.take_step(*step, answers);
                }
                let taken = handover.finish();
                let answer = handover.answer.take().expect("it has ended");
                check(&steps, handover.answered, &answer, taken);
            }
        }
    }
    assert_eq!(orders, 2 * (10 + 20 + 20));
}

fn server_of<E>(answer: &Result<Kept<Told>, CallError<E>>) -> Option<u8> {
    answer.as_ref().ok().map(|told| told.server)
}

fn position(steps: &[Step], step: Step) -> Option<usize> {
    steps.iter().position(|other| *other == step)
}

/// It is answered once, by the one server or by the other.
#[test]
fn what_may_be_handled_twice_is_answered_whatever_comes_first() {
    let _together = together();
    let request = |text| Twice { text };
    go_through(request, |steps, answered, answer, taken| {
        let server = server_of(answer);
        // What was published before its server went still arrives, and is not asked for again.
        let expected = if answered { (Some(1), 0) } else { (Some(2), 1) };
        assert_eq!(
            (server, taken),
            expected,
            "{steps:?} {:?}",
            answer.as_ref().err()
        );
    });
}

/// It is never handled twice; and lost only where the server went with it.
#[test]
fn what_may_not_be_handled_twice_is_not() {
    let _together = together();
    let request = |text| Once { text };
    go_through(request, |steps, answered, answer, taken| {
        let is_late = position(steps, Step::Call) > position(steps, Step::Go);
        match answer {
            Ok(told) if told.server == 1 => assert!(answered && taken == 0, "{steps:?}"),
            Ok(_) => assert!(is_late && taken == 1, "{steps:?}"),
            Err(CallError::Lost { fault: None, .. } | CallError::Connect(_)) => {
                assert!(!answered && taken == 0, "{steps:?}");
            }
            Err(error) => panic!("{steps:?}: {error}"),
        }
    });
}

/// They need more than one pair of lanes, of each server.
#[test]
fn more_calls_than_a_pair_of_lanes_has_go_over_together() {
    let _together = together();
    let name = name("many-go-over");
    let first = serve::<Twice>(&name);
    let calling = open(&name);
    let client = calling.async_client::<Twice>().expect("it is served");
    let requests: Vec<_> = (0..1_000)
        .map(|id| Twice {
            text: id.to_string(),
        })
        .collect();
    let mut pending: Vec<_> = requests.iter().map(|r| client.call(r)).collect();
    let woken = Arc::new(Counting::default());
    let waker = Waker::from(woken);
    let look = |pending: &mut Vec<Pending<'_, Twice>>| {
        pending.retain_mut(|pending| match poll(pending, &waker) {
            Poll::Ready(told) => {
                assert_eq!(told.expect("it is answered").server, 2);
                false
            }
            Poll::Pending => true,
        });
    };
    look(&mut pending);
    drop(first);
    look(&mut pending);
    let (_bus, mut server) = serve::<Twice>(&name);
    let mut taken = HashSet::new();
    while !pending.is_empty() {
        while let Some(call) = server.try_next().expect("not forked") {
            let text = call.text.as_str().to_owned();
            assert!(taken.insert(text), "one came twice");
            call.reply(&Told { server: 2 }).expect("its caller lives");
        }
        look(&mut pending);
    }
    assert_eq!(taken.len(), requests.len());
}

/// Serves its parent, drops that, and then ends.
pub(crate) fn serves_for_a_while() {
    let bus = Bus::from_parent().expect("a parent is there");
    let server = bus.server::<Twice>().expect("nobody else serves");
    tell("serves");
    told();
    drop(server);
    tell("dropped");
    told();
}

/// Its server has gone, and then its link: nobody will ever come.
#[test]
fn a_task_waits_for_nobody_behind_the_end_of_an_inherited_link() {
    let _together = together();
    let command = Child::command("serves-for-a-while", &[]);
    let (bus, child) = Bus::spawn(command).expect("it starts");
    let mut child = Child::adopt(child);
    assert_eq!(child.hear(), "serves");
    let client = bus.async_client::<Twice>().expect("it serves");
    let text = String::new();
    let request = Twice { text };
    let mut call = client.call(&request);
    let woken = Arc::new(Counting::default());
    let waker = Waker::from(woken.clone());
    assert!(poll(&mut call, &waker).is_pending());
    child.say("drop it");
    assert_eq!(child.hear(), "dropped");
    // It has learnt that, and waits for another server.
    while woken.0.load(Ordering::Relaxed) == 0 {
        thread::yield_now();
    }
    assert!(poll(&mut call, &waker).is_pending());
    let before = woken.0.load(Ordering::Relaxed);
    assert!(child.end().success());
    while woken.0.load(Ordering::Relaxed) == before {
        thread::yield_now();
    }
    assert!(matches!(poll(&mut call, &waker), Poll::Ready(Err(_))));
}
