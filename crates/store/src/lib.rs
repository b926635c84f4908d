//! etcd's data model as a deterministic state machine: revisions, ranges, transactions.
