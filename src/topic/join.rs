//! How those begin who take part in a topic, or in newest values: see *Who finds whom*.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::core::Core;
use super::publisher::Delivery;
use crate::error::ConnectError;
use crate::lane::{Board, Form};
use crate::link::member::Part;
use crate::link::node::Node;
use crate::link::offer::{Offer, Port};
use crate::link::topics::Follow;
use crate::service::contract::Contract;
use crate::service::port::HubPort;
use crate::wait::Waiter;

/// How long one who begins waits for those of the other part that are there: a process that is stopped holds
/// up nobody for longer.
const SETTLES: Duration = Duration::from_secs(1);

/// Who publishes under such a contract, and who receives that.
fn parts(contract: &Contract) -> (Part, Part) {
    match contract.form() {
        Form::Latest => (Part::Writer, Part::Reader),
        Form::Call | Form::OneWay | Form::Topic => (Part::Publisher, Part::Subscriber),
    }
}

/// Makes the lanes of a publisher, and waits until they reach those who are there. It delivers so, keeps so many
/// messages for those who come, and has such a board.
pub(super) fn publish(
    node: &Arc<Node>,
    topic: &str,
    contract: Contract,
    keeps: (Delivery, usize),
    board: Option<Arc<Board>>,
) -> Result<(Arc<Core>, Offer), ConnectError> {
    node.check_fork()?;
    let (ours, sought) = parts(&contract);
    let sleeper = node.new_sleeper(Waiter::Tasks)?;
    let (member, presence) = node.join_topic(topic, ours, None)?;
    let core = Core::new(node, member.number, contract, sleeper.clone(), keeps, board);
    sleeper.attach(Arc::downgrade(&core) as Weak<_>, node.due().clone());
    node.follow(topic, sought, Arc::downgrade(&core) as Weak<_>);
    for member in node.members(topic, sought)? {
        core.clone().found(node, &member);
    }
    core.settle(SETTLES);
    Ok((core, presence))
}

/// Makes a port to which publishers open lanes, and waits until those that are there have done so. To be dropped
/// before the port: its name, so that nobody is accepted who is not looked at.
pub(super) fn subscribe(
    node: &Arc<Node>,
    topic: &str,
    contract: Contract,
    waiter: Waiter,
) -> Result<(Arc<HubPort>, Offer), ConnectError> {
    node.check_fork()?;
    let (sought, ours) = parts(&contract);
    let port = HubPort::new(node, topic, contract, waiter)?;
    let offered = port.clone() as Arc<dyn Port>;
    let (_, presence) = node.join_topic(topic, ours, Some(offered))?;
    port.wait_for_publishers(SETTLES, || {
        let members = node.members(topic, sought)?;
        Ok(members.iter().map(|member| member.number).collect())
    })?;
    Ok((port, presence))
}
