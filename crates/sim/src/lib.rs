//! The false world in which Kontiki is tested: network, disk, clock, faults; the checkers; the
//! labs.
//!
//! A [`World`] runs whole clusters of real [`Replica`](kontiki::Replica)s with real logs under
//! one loop, from one seed, in virtual time: the same seed gives the same run, bit for bit.
//! After every event the invariants of the protocol are checked, from the state of the nodes
//! and from what their disks have acknowledged.

mod command;
mod dice;
pub mod disk;
mod host;
mod kv;
pub mod labs;
mod ledger;
pub mod linear;
mod machine;
mod network;
mod node;
mod requests;
pub mod scenario;
mod stopwatch;
pub mod swarm;
mod trace;
mod truth;
mod view;
mod witness;
mod world;

pub use command::{Action, Stamp, number};
pub use dice::{Dice, Draws, Stream};
pub use disk::SimDisk;
pub use machine::MachineKind;
pub use network::NetworkSettings;
pub use node::{Counts, NodeStatus};
pub use requests::{Ask, Outcome, Request};
pub use trace::{Failure, Recorder};
pub use world::{Setup, World};
