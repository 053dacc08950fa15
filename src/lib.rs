//! A zero-copy typed message bus.
pub mod message;
