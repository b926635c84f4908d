//! etcd's gRPC services on top of a replicated store.
