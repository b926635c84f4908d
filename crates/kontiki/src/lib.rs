//! Raft to embed: a replicated, durable, fault-tolerant state.

pub mod codec;
mod replica;
mod requests;

pub use replica::{Action, Answer, Event, Replica, RequestId};
