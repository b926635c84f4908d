//! The whole of it from outside: real `kontiki` processes on loopback, data on disk, and an
//! unchanged etcd client.

#![expect(clippy::unwrap_used, reason = "a test fails where it is surprised")]
#![expect(clippy::print_stderr, reason = "what the servers logged belongs to a failure")]

mod chaos;
mod chaos_damage;
mod chaos_disk;
mod chaos_links;
mod chaos_members;
mod chaos_store;
mod cluster;
mod commands;
mod dev;
mod failing_disk;
mod flags;
mod load;
mod members;
mod proxy;
mod rebuild;
mod servers;
mod worlds;
