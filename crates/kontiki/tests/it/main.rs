//! Nodes as their users run them: real sockets, real disks, real threads.

mod cluster;
mod codec;
mod common;
mod examples;
mod faults;
mod lifecycle;
mod replica;
mod world;
