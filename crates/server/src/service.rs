//! What all services of one server share, and which method is answered where.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    cluster,
    grpc::{self, Received, Request, Response},
    health::Health,
    kv,
    machine::KvMachine,
    maintenance,
    members::Roster,
    proto::etcdserverpb as pb,
    status::{self, Failure, Refusal},
};
use kontiki::{Raft, SoftState};
use kontiki_store::Store;
use prost::Message;
use tokio::sync::{Semaphore, watch};
use tonic::Status;

/// All services and methods of the API, sorted: `(service, [method, …])`.
const API: &[(&str, &[&str])] = include!(concat!(env!("OUT_DIR"), "/services.rs"));

/// What a message may have beside the request in it, as in etcd.
const OVERHEAD_BYTES_MAX: usize = 512 * 1024;

/// Large reads that run at once, each on a thread of its own. Two cores are kept busy by as
/// many; the rest cover reads that wait for the disk.
const LARGE_READS_MAX: usize = 8;

/// The bounds of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) request_bytes_max: usize,
    pub(crate) txn_ops_max: usize,
    pub(crate) request_timeout: Duration,
}

/// One server, as its services see it.
pub(crate) struct Service {
    pub(crate) raft: Raft<KvMachine>,
    soft_state: watch::Receiver<SoftState>,
    pub(crate) store: Arc<Store>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) limits: Limits,
    pub(crate) health: Health,
    /// A read that waits for a place costs no more than its request.
    large_reads: Arc<Semaphore>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("member", &self.roster.me).finish_non_exhaustive()
    }
}

impl Service {
    pub(crate) fn new(
        raft: Raft<KvMachine>,
        store: Arc<Store>,
        roster: Arc<Roster>,
        limits: Limits,
        health: Health,
    ) -> Self {
        let large_reads = Arc::new(Semaphore::new(LARGE_READS_MAX));
        let soft_state = raft.watch();
        Self { raft, soft_state, store, roster, limits, health, large_reads }
    }

    /// Role, term and leader, as this server knows them.
    pub(crate) fn soft_state(&self) -> SoftState {
        *self.soft_state.borrow()
    }

    /// The header of an answer.
    pub(crate) fn header(&self, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.roster.cluster_id,
            member_id: self.roster.me.id,
            revision,
            raft_term: self.soft_state().term.get(),
        }
    }

    /// Runs a read that takes its time beside the network thread, which has heartbeats to send.
    pub(crate) async fn beside<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let _place = self.large_reads.acquire().await.map_err(|_| Refusal::Stopped)?;
        let service = Arc::clone(self);
        let answer = tokio::task::spawn_blocking(move || read(&service)).await;
        answer.unwrap_or_else(|_| Err(Refusal::Stopped.into()))
    }
}

/// Answers one call.
pub(crate) async fn answer(service: &Arc<Service>, call: Request) -> Response {
    let is_grpc = call.headers().get(http::header::CONTENT_TYPE);
    if !is_grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return grpc::not_grpc(http::StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    let answer = match check_metadata(service, call.headers()) {
        Ok(()) => dispatch(service, call).await,
        Err(failure) => Err(failure),
    };
    answer.unwrap_or_else(|Failure(status)| grpc::refuse(&status))
}

/// What etcd's clients can ask for beside the request itself.
fn check_metadata(service: &Service, headers: &http::HeaderMap) -> Result<(), Failure> {
    if let Some(version) = headers.get("client-api-version")
        && str::from_utf8(version.as_bytes()).is_err()
    {
        return Err(Refusal::InvalidClientApiVersion.into());
    }
    let needs_leader = headers.get("hasleader").is_some_and(|value| value == "true");
    if needs_leader && service.soft_state().leader.is_none() {
        return Err(Refusal::NoLeader.into());
    }
    Ok(())
}

async fn dispatch(service: &Arc<Service>, call: Request) -> Result<Response, Failure> {
    macro_rules! unary {
        ($method:path) => {
            $method(service, receive(service, call).await?).await.map(|answer| grpc::reply(&answer))
        };
    }
    match call.uri().path() {
        "/etcdserverpb.KV/Range" => kv::range(service, receive(service, call).await?).await,
        "/etcdserverpb.KV/Put" => unary!(kv::put),
        "/etcdserverpb.KV/DeleteRange" => unary!(kv::delete_range),
        "/etcdserverpb.KV/Txn" => kv::txn(service, receive(service, call).await?).await,
        "/etcdserverpb.KV/Compact" => unary!(kv::compact),
        "/etcdserverpb.Cluster/MemberList" => unary!(cluster::member_list),
        "/etcdserverpb.Maintenance/Alarm" => unary!(maintenance::alarm),
        "/etcdserverpb.Maintenance/Status" => unary!(maintenance::status),
        path if path.starts_with("/grpc.health.v1.Health/") => {
            Ok(service.health.answer(call).await)
        }
        path => Err(not_there(path).into()),
    }
}

async fn receive<M: Message + Default>(
    service: &Service,
    call: Request,
) -> Result<Received<M>, Failure> {
    let bytes_max = service.limits.request_bytes_max + OVERHEAD_BYTES_MAX;
    grpc::receive(call.into_body(), bytes_max).await
}

/// The answer to a method that does not exist, in grpc-go's words, or not here yet, in ours.
fn not_there(path: &str) -> Status {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.rsplit_once('/'))
    else {
        return Status::unimplemented(format!("malformed method name: {path:?}"));
    };
    match API.iter().find(|(name, _)| *name == service) {
        Some((_, methods)) if methods.contains(&method) => status::not_yet(service, method),
        Some(_) => Status::unimplemented(format!("unknown method {method} for service {service}")),
        None => Status::unimplemented(format!("unknown service {service}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_that_is_not_there_is_named() {
        let cases = [
            ("/etcdserverpb.Watch/Watch", "etcdserver: Watch.Watch is not implemented yet"),
            ("/v3lockpb.Lock/Lock", "etcdserver: Lock.Lock is not implemented yet"),
            ("/etcdserverpb.KV/Get", "unknown method Get for service etcdserverpb.KV"),
            ("/etcdserverpb.Kv/Put", "unknown service etcdserverpb.Kv"),
            ("/a/b/c", "unknown service a/b"),
            ("/a", "malformed method name: \"/a\""),
            ("", "malformed method name: \"\""),
        ];
        for (path, message) in cases {
            let status = not_there(path);
            assert_eq!((status.code(), status.message()), (tonic::Code::Unimplemented, message));
        }
    }

    #[test]
    fn the_api_is_all_of_etcds() {
        let count: usize = API.iter().map(|(_, methods)| methods.len()).sum();
        assert_eq!((API.len(), count), (8, 49));
    }
}
