//! The store, tested from outside: etcd's rules one by one, and against a naive model.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

mod bit_flips;
mod codec;
mod compact;
mod crash;
mod damage;
mod differential;
mod faults;
mod full;
mod put_delete;
mod range;
mod rot;
mod snapshot;
mod support;
mod threads;
mod tombstones;
mod txn;
mod validate;
