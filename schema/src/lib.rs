//! The archived layout of a message as data.
