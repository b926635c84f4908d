//! The stage of the scripts: a cluster of cores, moved by hand, that says what happens.
//!
//! Nothing here knows the protocol. It carries out effects as a host would, shows each, and
//! fails when a rule of Figure 3 is broken, or when something is promised before it is durable.

mod checks;
mod cluster;
mod command;
mod disk;
mod network;
mod print;
mod runner;
mod snapshot;

pub(crate) use runner::run;
