//! etcd's gRPC services on top of a replicated store.

mod cluster;
mod config;
mod from_wire;
mod grpc;
mod health;
mod kv;
mod listener;
mod machine;
mod maintenance;
mod members;
pub mod proto;
mod server;
mod service;
pub mod status;
mod to_wire;

pub use config::{ConfigError, ServerConfig};
pub use maintenance::API_VERSION;
pub use server::{RunningServer, Server, ShutdownError, StartError};
