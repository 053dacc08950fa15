//! Opening a lane pair to a port of another process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::contract::Contract;
use crate::error::{ConnectError, OpenError};
use crate::lane::{Board, Form, Inbox, Near, Outbox, complete, offer_end};
use crate::link::node::{Node, Reach};
use crate::link::wire::{Control, Refusal};
use crate::link::{Answer, HANDSHAKE, LaneId, Line, Link, Until};
use crate::wait::{Sleeper, Waiter};

/// A lane pair that is open.
pub(crate) struct Connected {
    pub(crate) outbox: Outbox,
    pub(crate) inbox: Option<Inbox>,
    pub(crate) closer: Closer,
    pub(crate) sleeper: Arc<Sleeper>,
}

impl Connected {
    /// Of a lane pair that goes both ways.
    pub(super) fn both(self) -> Result<(Outbox, Inbox, Closer, Arc<Sleeper>), ConnectError> {
        let inbox = self.inbox.ok_or_else(|| lost(self.outbox.link()))?;
        Ok((self.outbox, inbox, self.closer, self.sleeper))
    }
}

/// Ends a lane when dropped.
pub(crate) struct Closer {
    link: Arc<Link>,
    id: LaneId,
}

impl Closer {
    /// The lane's number on its link.
    pub(crate) fn number(&self) -> u32 {
        self.id.number
    }

    pub(crate) fn new(link: Arc<Link>, id: LaneId) -> Closer {
        Closer { link, id }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.link.close_lane(self.id);
    }
}

/// How long tasks that were refused, and wait on, take another's refusal for what they would be answered, too.
const LATELY: Duration = Duration::from_millis(50);

/// A port that a process is asked for.
pub(crate) struct Wanted<'a> {
    pub(crate) node: &'a Arc<Node>,
    pub(crate) name: &'a str,
    pub(crate) contract: &'a Contract,
    pub(crate) waiter: Waiter,
}

/// A connection that is being made. Where its user's time is up first, the next attempt goes on with it: so somebody
/// connects also in turns that are shorter than connecting takes.
#[derive(Default)]
pub(crate) struct Connecting {
    opening: Option<Opening>,
    /// When the peer is late, where it is waited for.
    due: Option<Instant>,
    /// The last attempt that a peer refused.
    refused: Option<Refused>,
    /// Whether the last attempt failed as a peer refused it.
    is_refused: bool,
    /// How many attempts there were.
    count: u64,
}

struct Refused {
    number: u64,
    link: u64,
    at: Instant,
}

/// The number of the attempt that somebody waits for, or had begun and will look at again: what comes of that is
/// believed. What came of any other says nothing of who has the port by now.
pub(crate) type Joined = Option<u64>;
/// In place of that number, for whoever was refused.
const NONE: u64 = 0;

impl Connecting {
    /// When the peer is late, where an attempt failed only as its user's time was up.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the peer refused the port in the last attempt, whoever the directory says has it.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Remembers an attempt that was refused, for others who wait; false where it was not.
    fn note(&mut self, opening: &Opening, answer: Option<&Answer>) -> bool {
        let is_refused = matches!(answer, Some(Err(Refusal::NoServer | Refusal::NoMemory)));
        if is_refused {
            self.refused = Some(Refused {
                number: opening.number,
                link: opening.closer.link.token(),
                at: Instant::now(),
            });
        }
        is_refused
    }

    /// Whether somebody was asked, and has not answered when that was looked at.
    #[cfg(test)]
    pub(super) fn has_asked(&self) -> bool {
        self.opening.is_some()
    }

    /// Whether what was asked for came to nothing meanwhile.
    #[cfg(test)]
    pub(super) fn is_in_vain(&self) -> bool {
        let opening = self.opening.as_ref();
        opening.is_some_and(|o| o.line.is_closed() || o.closer.link.has_refused(o.id))
    }
}

impl Wanted<'_> {
    /// Opens lanes to the port. With a deadline, waits so long for it to appear.
    pub(crate) fn connect_by(
        &self,
        deadline: Option<Instant>,
        connecting: &mut Connecting,
        until: Until<'_>,
    ) -> Result<Connected, ConnectError> {
        let mut pause = Duration::from_micros(200);
        let mut joined = None;
        loop {
            let result = self.connect(connecting, &mut joined, until);
            let retry = result.as_ref().is_err_and(|e| may_come(self.node, e));
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            match left {
                Some(left) if retry && !left.is_zero() => {
                    self.wait_for_owner(pause.min(left));
                    pause = (pause * 2).min(Duration::from_millis(5));
                }
                _ => return result,
            }
        }
    }

    /// As [`connect_by`](Self::connect_by), as long as its owner may take to answer.
    pub(crate) fn connect_first(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Connected, ConnectError> {
        self.connect_by(deadline, &mut Connecting::default(), Until::Overdue)
    }

    /// Opens lanes to the port, if somebody has it. [`ConnectError::NoAnswer`] also where the time is up first:
    /// [`Connecting::due`] tells.
    pub(super) fn connect(
        &self,
        connecting: &mut Connecting,
        joined: &mut Joined,
        until: Until<'_>,
    ) -> Result<Connected, ConnectError> {
        (connecting.due, connecting.is_refused) = (None, false);
        self.node.check_fork()?;
        crate::link::place::check_name(self.name)?;
        let waited = joined.take();
        if let Some(opening) = connecting.opening.take() {
            let answer = opening.wait(until);
            if opening.is_awaited(answer.as_ref()) {
                return Err(self.go_on_later(connecting, joined, opening));
            }
            // Attempts come one behind the other: whoever waited for any finds none that began before that.
            let is_news = waited.is_some();
            if opening.is_open(answer.as_ref()) || is_news && self.has_port(&opening.closer.link)? {
                return self.end(connecting, joined, opening, answer);
            }
            // This one asks anew, and those who wait need not.
            connecting.note(&opening, answer.as_ref());
        } else if self.is_refused_again(connecting, waited, until)? {
            connecting.is_refused = true;
            *joined = Some(NONE);
            return Err(no_server(self.node, self.name));
        }
        let link = self.link()?;
        let due = Instant::now() + HANDSHAKE;
        if !link.wait_hello(due, until) {
            return Err(self.ungreeted(connecting, &link, due));
        }
        connecting.count += 1;
        let opening = self.ask(&link, connecting.count)?;
        let answer = opening.wait(until);
        match opening.is_awaited(answer.as_ref()) {
            true => Err(self.go_on_later(connecting, joined, opening)),
            false => self.end(connecting, joined, opening, answer),
        }
    }

    /// Whether this is who has the port now.
    fn has_port(&self, link: &Arc<Link>) -> Result<bool, ConnectError> {
        Ok(self.link()?.token() == link.token())
    }

    /// Whether whoever has the port has refused it to somebody who asked together with this one.
    fn is_refused_again(
        &self,
        connecting: &Connecting,
        waited: Joined,
        until: Until<'_>,
    ) -> Result<bool, ConnectError> {
        let Some(refused) = &connecting.refused else {
            return Ok(false);
        };
        let is_lately = || matches!(until, Until::Woken(_)) && refused.at.elapsed() < LATELY;
        let is_past = |waited| waited != NONE && waited <= refused.number;
        let is_news = waited.is_some_and(|waited| is_past(waited) || is_lately());
        Ok(is_news && self.link()?.token() == refused.link)
    }

    fn end(
        &self,
        connecting: &mut Connecting,
        joined: &mut Joined,
        opening: Opening,
        answer: Option<Answer>,
    ) -> Result<Connected, ConnectError> {
        if connecting.note(&opening, answer.as_ref()) {
            connecting.is_refused = true;
            *joined = Some(NONE);
        }
        opening.end(self.node, self.contract, answer)
    }

    fn go_on_later(
        &self,
        connecting: &mut Connecting,
        joined: &mut Joined,
        opening: Opening,
    ) -> ConnectError {
        *joined = Some(opening.number);
        let error = self.no_answer(&opening.closer.link);
        connecting.due = Some(opening.due);
        connecting.opening = Some(opening);
        error
    }

    /// The link to whoever has the port, over which perhaps nothing was said yet.
    fn link(&self) -> Result<Arc<Link>, ConnectError> {
        let Wanted { node, name, .. } = self;
        match node.reach() {
            Reach::Name { place, .. } => {
                let owner = place.find(name)?.ok_or_else(|| no_server(node, name))?;
                node.link_to(&owner)
            }
            Reach::Inherited => {
                let link = node.all_links().into_iter().next();
                link.ok_or_else(|| node.cut_off_by().unwrap_or_else(|| no_server(node, name)))
            }
        }
    }

    /// The other side has not said hello.
    fn ungreeted(&self, connecting: &mut Connecting, link: &Link, due: Instant) -> ConnectError {
        if !link.is_dead() && Instant::now() < due {
            connecting.due = Some(due);
            return self.no_answer(link);
        }
        if matches!(self.node.reach(), Reach::Name { .. }) {
            link.die(None);
        }
        lost(link)
    }

    fn no_answer(&self, link: &Link) -> ConnectError {
        ConnectError::NoAnswer {
            service: self.name.to_owned(),
            pid: link.pid(),
        }
    }

    /// Asks for the port.
    fn ask(&self, link: &Arc<Link>, number: u64) -> Result<Opening, ConnectError> {
        let sleeper = self.node.new_sleeper(self.waiter)?;
        let ends = (sleeper.clone(), Line::new(sleeper));
        let name = (self.name, None);
        let begun = Opening::begin(self.node, link, name, self.contract, ends, None);
        let (opening, open) = begun?;
        link.say(&open).map_err(|_| lost(link))?;
        Ok(Opening { number, ..opening })
    }

    fn wait_for_owner(&self, pause: Duration) {
        match (self.node.reach(), self.node.all_links().first()) {
            // One that is said to serve, and refuses, says nothing more.
            (Reach::Inherited, Some(link)) if !link.is_serving(self.name) => {
                link.wait_serving(self.name, Instant::now() + pause);
            }
            _ => std::thread::sleep(pause),
        }
    }
}

/// Whether somebody may offer later what nobody could be connected to for this.
pub(super) fn may_come(node: &Node, error: &ConnectError) -> bool {
    // Nobody yet; or a server that ends right now, as its lock will show; or one that is stopped.
    let is_for_now = matches!(
        error,
        ConnectError::NoServer { .. }
            | ConnectError::NoAnswer { .. }
            | ConnectError::Lost { .. }
            | ConnectError::Open(OpenError::System { .. })
    );
    // An inherited link does not come back.
    is_for_now && !node.is_cut_off()
}

fn no_server(node: &Node, name: &str) -> ConnectError {
    let place = match node.reach() {
        Reach::Name { place, .. } => place.port_path(name).display().to_string(),
        Reach::Inherited => match node.all_links().first() {
            Some(link) => format!("the link to process {}", link.pid()),
            None => "a link that has ended".to_owned(),
        },
    };
    ConnectError::NoServer {
        bus: node.name().to_owned(),
        service: name.to_owned(),
        place,
    }
}

/// Opens a lane to the port of this name as the publisher `from`, of what has changed on its board if it has one,
/// and gives it to `then` once it is open, by whoever reads control messages. Never waits. Where the link ends
/// first, the line is closed, or this fails.
pub(crate) fn open_lane_later(
    node: &Arc<Node>,
    link: &Arc<Link>,
    (name, from): (&str, u32),
    contract: &Contract,
    ends: (Arc<Sleeper>, Arc<Line>),
    board: Option<&Arc<Board>>,
    then: impl FnOnce(Result<Connected, ConnectError>) + Send + 'static,
) -> Result<(), ConnectError> {
    let name = (name, Some(from));
    let (opening, open) = Opening::begin(node, link, name, contract, ends, board)?;
    let id = opening.id;
    let (node, contract) = (Arc::downgrade(node), contract.clone());
    let then = move |answer: Answer| {
        if let Some(node) = node.upgrade() {
            then(opening.end(&node, &contract, Some(answer)));
        }
    };
    link.answer_later(id, Box::new(then));
    let said = link.say(&open);
    // Where it was about to end already, nobody closes the line.
    match said.is_err() || link.is_dead() {
        true => Err(lost(link)),
        false => Ok(()),
    }
}

fn lost(link: &Link) -> ConnectError {
    ConnectError::Lost {
        pid: link.pid(),
        fault: link.fault(),
        ended: link.ended(),
    }
}

/// A lane that the other side has been asked for.
struct Opening {
    id: LaneId,
    name: String,
    near: Near,
    line: Arc<Line>,
    closer: Closer,
    sleeper: Arc<Sleeper>,
    unjoined: Unjoined,
    /// Which attempt this is.
    number: u64,
    /// When its answer is late.
    due: Instant,
}

/// A lane that was not joined: nothing that came on it was looked at, and nothing will be.
struct Unjoined(Option<(Arc<Link>, LaneId)>);

impl Drop for Unjoined {
    fn drop(&mut self) {
        if let Some((link, id)) = &self.0 {
            link.release_lane(*id);
        }
    }
}

impl Opening {
    fn wait(&self, until: Until<'_>) -> Option<Answer> {
        self.closer.link.wait_answer(self.id, self.due, until)
    }

    /// Whether the answer may come still.
    fn is_awaited(&self, answer: Option<&Answer>) -> bool {
        answer.is_none() && !self.closer.link.is_dead() && Instant::now() < self.due
    }

    /// Whether it was opened, and stands.
    fn is_open(&self, answer: Option<&Answer>) -> bool {
        matches!(answer, Some(Ok(_))) && !self.line.is_closed()
    }

    /// Makes our side of a lane, and what is to be said for it to be opened.
    fn begin(
        node: &Arc<Node>,
        link: &Arc<Link>,
        (name, from): (&str, Option<u32>),
        contract: &Contract,
        (sleeper, line): (Arc<Sleeper>, Arc<Line>),
        board: Option<&Arc<Board>>,
    ) -> Result<(Opening, Control), ConnectError> {
        let ends = (contract.form(), true, contract.replies());
        let offered = offer_end(node, link, &sleeper, ends, Some(name), board)?;
        let id = link.new_lane(line.clone(), offered.estate);
        let closer = Closer::new(link.clone(), id);
        let open = Control::Open {
            lane: id.number,
            name: name.to_owned(),
            from,
            types: contract.types(),
            end: offered.end,
        };
        let opening = Opening {
            id,
            name: name.to_owned(),
            near: offered.near,
            line,
            closer,
            sleeper,
            unjoined: Unjoined(Some((link.clone(), id))),
            number: 0,
            due: Instant::now() + HANDSHAKE,
        };
        Ok((opening, open))
    }

    /// Joins it with the other side, or says why there is none.
    fn end(
        self,
        node: &Arc<Node>,
        contract: &Contract,
        answer: Option<Answer>,
    ) -> Result<Connected, ConnectError> {
        let Opening {
            id,
            name,
            near,
            line,
            closer,
            sleeper,
            mut unjoined,
            number: _,
            due: _,
        } = self;
        let link = closer.link.clone();
        let pid = link.pid();
        let theirs = match answer {
            Some(Ok(end)) => end,
            Some(Err(Refusal::NoServer)) => return Err(no_server(node, &name)),
            Some(Err(Refusal::Layout(schemas))) => {
                let _ = link.say(&Control::Differs {
                    name: name.clone(),
                    schemas: contract.schemas(),
                });
                let differences = contract.differences(&schemas);
                return Err(ConnectError::Layout {
                    service: name,
                    pid,
                    differences,
                });
            }
            None if link.is_dead() => return Err(lost(&link)),
            Some(Err(Refusal::NoMemory)) | None => {
                return Err(ConnectError::NoAnswer { service: name, pid });
            }
        };
        #[cfg(feature = "json")]
        link.note_port(node, id, &name, contract.carried());
        let aligns = contract.aligns();
        unjoined.0 = None;
        let joined = complete(node, &link, (&line, id), near, &theirs, aligns, false);
        let (outbox, mut inbox) = joined.map_err(|fault| {
            link.die(Some(fault));
            lost(&link)
        })?;
        if let Some(inbox) = &mut inbox {
            inbox.set_prompt(contract.holds_pins().1);
        }
        let mut outbox = outbox.ok_or_else(|| lost(&link))?;
        outbox.set_elastic(contract.form() == Form::Call && contract.holds_pins().0);
        Ok(Connected {
            outbox,
            inbox,
            closer,
            sleeper,
        })
    }
}
