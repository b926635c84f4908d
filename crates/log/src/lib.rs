//! The durable Raft log on segment files.
