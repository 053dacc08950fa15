//! Why a call has no reply: one byte and a few words, from a server to its client.

use crate::error::CallError;

/// Why a server has no reply, as it travels in one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Dropped = 1,
    TooLarge = 2,
    Encode = 3,
    Memory = 4,
    Cancelled = 5,
    Expired = 6,
    Panicked = 7,
    Stopping = 8,
    Unannounced = 9,
}

impl Failure {
    /// Why a call that is dropped without an answer has none.
    pub(super) fn of_drop(is_cancelled: bool, has_passed: bool) -> Failure {
        if is_cancelled {
            Failure::Cancelled
        } else if has_passed {
            Failure::Expired
        } else if std::thread::panicking() {
            Failure::Panicked
        } else {
            Failure::Dropped
        }
    }

    /// What it is called where it happened.
    pub(super) fn name(self) -> &'static str {
        match self {
            Failure::Dropped => "dropped",
            Failure::TooLarge => "too large",
            Failure::Encode => "not archived",
            Failure::Memory => "no memory",
            Failure::Cancelled => "cancelled",
            Failure::Expired => "expired",
            Failure::Panicked => "panicked",
            Failure::Stopping => "stopping",
            Failure::Unannounced => "not announced",
        }
    }

    /// What a byte that a peer wrote is called.
    #[cfg(feature = "json")]
    pub(crate) fn name_of(byte: u8) -> &'static str {
        Failure::from_byte(byte).map_or("unknown", Failure::name)
    }

    /// Reads it from a byte that a peer wrote.
    pub(crate) fn from_byte(byte: u8) -> Option<Failure> {
        Some(match byte {
            1 => Failure::Dropped,
            2 => Failure::TooLarge,
            3 => Failure::Encode,
            4 => Failure::Memory,
            5 => Failure::Cancelled,
            6 => Failure::Expired,
            7 => Failure::Panicked,
            8 => Failure::Stopping,
            9 => Failure::Unannounced,
            _ => return None,
        })
    }
}

/// What a client says of a failure.
#[cold]
pub(super) fn unanswered<E>(pid: u32, why: u8, text: String) -> CallError<E> {
    let what = match Failure::from_byte(why) {
        Some(Failure::TooLarge) => "it is larger than the server's bus allows",
        Some(Failure::Encode) => "it cannot be archived",
        Some(Failure::Memory) => "the server has no memory for it",
        Some(Failure::Unannounced) => "this process did not read its socket: was it stopped?",
        Some(Failure::Expired) => return CallError::TimedOut,
        Some(Failure::Stopping) => return CallError::Stopping { pid },
        Some(Failure::Panicked) => return CallError::Panicked { pid, what: text },
        Some(Failure::Dropped | Failure::Cancelled) | None => {
            return CallError::Unanswered { pid };
        }
    };
    CallError::Failed { pid, what }
}

/// An error of the service's own that was validated, but that its own type does not take back.
#[cold]
pub(super) fn unreadable<E>(pid: u32) -> CallError<E> {
    let what = "its error cannot be read back";
    CallError::Failed { pid, what }
}
