//! Opening a lane pair to a port of another process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::contract::Contract;
use crate::error::{ConnectError, OpenError};
use crate::lane::{Board, Form, Inbox, Near, Outbox, complete, offer_end};
use crate::link::node::{Node, Reach};
use crate::link::wire::{Control, Refusal};
use crate::link::{Answer, HANDSHAKE, LaneId, Line, Link};
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

/// Opens lanes to the port `name`, waiting for it to appear until the deadline, if there is one.
pub(crate) fn connect(
    node: &Arc<Node>,
    name: &str,
    contract: &Contract,
    waiter: Waiter,
    deadline: Option<Instant>,
) -> Result<Connected, ConnectError> {
    node.check_fork()?;
    crate::link::place::check_name(name)?;
    let mut pause = Duration::from_micros(200);
    loop {
        let result = try_connect(node, name, contract, waiter);
        let retry = result.as_ref().is_err_and(|error| may_come(node, error));
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        match left {
            Some(left) if retry && !left.is_zero() => {
                wait_for_server(node, name, pause.min(left));
                pause = (pause * 2).min(Duration::from_millis(5));
            }
            _ => return result,
        }
    }
}

/// Whether somebody may offer later what nobody could be connected to for this.
pub(super) fn may_come(node: &Node, error: &ConnectError) -> bool {
    // Nobody yet; or a server that ends right now, as its lock will show.
    let is_for_now = matches!(
        error,
        ConnectError::NoServer { .. }
            | ConnectError::Lost { .. }
            | ConnectError::Open(OpenError::System { .. })
    );
    // An inherited link does not come back.
    is_for_now && !node.is_cut_off()
}

fn wait_for_server(node: &Node, name: &str, pause: Duration) {
    match (node.reach(), node.all_links().first()) {
        (Reach::Inherited, Some(link)) => {
            link.wait_serving(name, Instant::now() + pause);
        }
        _ => std::thread::sleep(pause),
    }
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

fn try_connect(
    node: &Arc<Node>,
    name: &str,
    contract: &Contract,
    waiter: Waiter,
) -> Result<Connected, ConnectError> {
    let link = match node.reach() {
        Reach::Name { place, .. } => {
            let owner = place.find(name)?.ok_or_else(|| no_server(node, name))?;
            node.link_to(&owner)?
        }
        Reach::Inherited => {
            let link = node.all_links().into_iter().next();
            link.ok_or_else(|| node.cut_off_by().unwrap_or_else(|| no_server(node, name)))?
        }
    };
    if !link.wait_hello() {
        return Err(ConnectError::Lost {
            pid: link.pid(),
            fault: link.fault(),
            ended: link.ended(),
        });
    }
    let sleeper = node.new_sleeper(waiter)?;
    open_lane(node, &link, name, contract, sleeper)
}

fn open_lane(
    node: &Arc<Node>,
    link: &Arc<Link>,
    name: &str,
    contract: &Contract,
    sleeper: Arc<Sleeper>,
) -> Result<Connected, ConnectError> {
    let line = Line::new(sleeper.clone());
    let ends = (sleeper, line);
    let (opening, open) = Opening::begin(node, link, (name, None), contract, ends, None)?;
    link.say(&open).map_err(|_| lost(link))?;
    let answer = link.wait_answer(opening.id, Instant::now() + HANDSHAKE);
    opening.end(node, contract, answer)
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
}

impl Opening {
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
