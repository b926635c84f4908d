//! Nodes as their users run them: real sockets, real disks, real threads.

mod cluster;
mod common;
