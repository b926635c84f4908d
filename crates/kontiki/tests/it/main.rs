//! Nodes as their users run them: real sockets, real disks, real threads.

mod cluster;
mod codec;
mod common;
mod replica;
mod world;
