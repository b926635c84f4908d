//! Raft to embed: a replicated, durable, fault-tolerant state in fifty lines.
