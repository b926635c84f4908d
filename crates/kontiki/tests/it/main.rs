//! Nodes as their users run them: real sockets, real disks, real threads.

#![expect(clippy::unwrap_used, reason = "in the helpers of tests, too, a panic is the verdict")]

mod cluster;
mod codec;
mod common;
mod exactly_once;
mod examples;
mod faults;
mod lifecycle;
mod members;
mod numbered;
mod replica;
mod replica_members;
mod sessions;
mod snapshots;
mod swapped;
mod trouble;
mod world;
