//! etcd's gRPC services on top of a replicated store.
//!
//! [`Server::start`] takes the settings of one server, named as etcd's flags are, and serves
//! etcd's clients until [`RunningServer::shutdown`]. Three of them in three processes are a
//! cluster; one is enough to try it:
//!
//! ```
//! use kontiki_server::{Server, ServerConfig};
//! use std::time::Duration;
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let dir = tempfile::tempdir()?;
//!     let config = ServerConfig {
//!         data_dir: dir.path().join("data"),
//!         listen_client_urls: vec!["http://127.0.0.1:0".into()], // any free port
//!         listen_peer_urls: vec!["http://127.0.0.1:0".into()],
//!         heartbeat_interval: Duration::from_millis(10),
//!         election_timeout: Duration::from_millis(50),
//!         ..ServerConfig::default()
//!     };
//!     let server = Server::start(config).await?;
//!     assert!(server.ready().await);
//!
//!     let endpoint = server.client_addresses()[0].to_string();
//!     let mut client = etcd_client::Client::connect([endpoint], None).await?;
//!     client.put("hello", "world", None).await?;
//!     let answer = client.get("hello", None).await?;
//!     assert_eq!(answer.kvs()[0].value(), b"world");
//!
//!     server.shutdown().await?;
//!     Ok(())
//! }
//! ```
//!
//! Inside: `listener` owns the sockets, `service` knows which method is answered where, `grpc`
//! turns bytes into messages and back, `kv`, `cluster`, `maintenance` and `health` answer, `http`
//! and `metrics` what is not gRPC,
//! `from_wire` and `to_wire` translate, `machine` applies what was committed, `repair` moves a damaged
//! store aside and `alarms` tells of it. Only [`status`]
//! knows etcd's error texts.

mod alarms;
mod cluster;
mod config;
mod from_wire;
mod grpc;
mod health;
mod http;
mod kv;
mod listener;
mod machine;
mod maintenance;
mod members;
mod memory;
pub mod metrics;
pub mod proto;
mod rebuild;
mod repair;
mod server;
mod service;
pub mod status;
mod to_wire;

pub use config::{ConfigError, ServerConfig};
pub use maintenance::API_VERSION;
pub use rebuild::{Rebuild, RebuildError, Rebuilt, Survivor};
pub use repair::RepairError;
pub use server::{RecoverError, RunningServer, Server, ServerFault, ShutdownError, StartError};
