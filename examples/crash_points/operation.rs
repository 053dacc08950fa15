//! The operations at whose instructions children are killed.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The bus on which each child meets its survivor, in a directory of the worker's own.
pub const BUS: &str = "crash-points";

/// What a child is killed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Sends a message of one cell.
    Slot,
    /// Sends a message through the slab.
    Slab,
    /// Sends a message that needs a new segment.
    Grow,
    /// Sends a message that needs more cells than its lane has.
    Extend,
    /// Waits for room in a full lane, and sends.
    Room,
    /// Receives a message of one cell.
    Receive,
    /// Receives a message that lies in the slab.
    ReceiveSlab,
    /// Hands a message in the slab back.
    HandBack,
    /// Sends a message to a receiver that sleeps.
    Wake,
    /// Goes to sleep until a message comes.
    Sleep,
    /// Connects to a port, over a new link.
    Connect,
    /// Is connected to: the instructions of the quiet thread.
    Accept,
    /// Offers a port.
    Offer,
    /// Drops a sender and its bus.
    Leave,
    /// Publishes a message of one cell to two subscribers.
    Publish,
    /// Publishes a message in the slab to two subscribers.
    PublishSlab,
    /// Publishes to a subscriber that has no room.
    Lossy,
    /// Subscribes to a topic.
    Subscribe,
    /// Drops a stream that it has called for.
    Cancel,
    /// Answers a call.
    Reply,
    /// Replaces a newest value.
    Put,
    /// Reads a newest value, and holds it.
    Look,
    /// Pins a document, and sends a message that refers to it.
    Pin,
}

impl Operation {
    /// As it is named on the command line.
    pub fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it has by far more instructions than others.
    pub fn is_long(self) -> bool {
        matches!(
            self,
            Operation::Subscribe | Operation::Offer | Operation::Connect
        )
    }

    /// Whether it is the child's quiet thread that does it.
    pub fn is_of_quiet_thread(self) -> bool {
        self == Operation::Accept
    }
}
