//! What all services of one server share, and which method is answered where.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    cluster,
    grpc::{self, Received, Request, Response},
    health::Health,
    http, kv,
    machine::{Cues, KvMachine},
    maintenance,
    members::Roster,
    metrics::Meters,
    proto::etcdserverpb as pb,
    status::{self, Failure, Refusal},
};
use ::http::{HeaderMap, header::CONTENT_TYPE, uri::PathAndQuery};
use kontiki::{Raft, ReadMode, SoftState};
use kontiki_store::{Store, StoreError};
use prost::Message;
use tokio::sync::{Semaphore, watch};
use tonic::{Code, Status};

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
    pub(crate) election_timeout: Duration,
    /// How it is shown that a read is current.
    pub(crate) read_mode: ReadMode,
}

/// One server, as its services see it.
pub(crate) struct Service {
    pub(crate) raft: Raft<KvMachine>,
    soft_state: watch::Receiver<SoftState>,
    pub(crate) store: Arc<Store>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) limits: Limits,
    pub(crate) health: Health,
    pub(crate) meters: Meters,
    pub(crate) cues: Arc<Cues>,
    /// A read that waits for a place costs no more than its request.
    large_reads: Arc<Semaphore>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("member", &self.roster.me()).finish_non_exhaustive()
    }
}

impl Service {
    pub(crate) fn new(
        raft: Raft<KvMachine>,
        store: Arc<Store>,
        roster: Arc<Roster>,
        limits: Limits,
        health: Health,
        cues: Arc<Cues>,
    ) -> Self {
        let large_reads = Arc::new(Semaphore::new(LARGE_READS_MAX));
        let soft_state = raft.watch();
        let meters = Meters::new(API);
        Self { raft, soft_state, store, roster, limits, health, meters, cues, large_reads }
    }

    /// Returns when what is read from the store is linearizable.
    pub(crate) async fn read_barrier(&self) -> Result<(), Failure> {
        let barrier = self.raft.read_barrier_with(self.limits.read_mode).await;
        barrier.map(drop).map_err(|error| {
            self.meters.read_failed();
            error.into()
        })
    }

    /// Refuses a read that would be served by this server alone, if what it has is a beginning of
    /// what it had.
    pub(crate) fn check_local(&self) -> Result<(), Failure> {
        if self.roster.own_alarms().corrupt { Err(status::refetching().into()) } else { Ok(()) }
    }

    /// Takes note of a read that met damage: nobody else hears of it.
    pub(crate) fn noted<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Fatal(fatal)) = &answer {
            self.cues.store_fault.send_replace(Some(fatal.clone()));
        }
        answer
    }

    /// Role, term and leader, as this server knows them.
    pub(crate) fn soft_state(&self) -> SoftState {
        *self.soft_state.borrow()
    }

    /// The header of an answer.
    pub(crate) fn header(&self, revision: i64) -> pb::ResponseHeader {
        let (cluster_id, member_id) = self.roster.ids();
        let raft_term = self.soft_state().term.get();
        pb::ResponseHeader { cluster_id, member_id, revision, raft_term }
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
    let is_grpc = call.headers().get(CONTENT_TYPE);
    if !is_grpc.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        return http::answer(service, call).await;
    }
    let path = call.uri().path_and_query().cloned();
    let path = path.as_ref().map_or("", PathAndQuery::path);
    service.meters.call_started(path);
    let answer = match check_metadata(service, call.headers()) {
        Ok(()) => dispatch(service, call).await,
        Err(failure) => Err(failure),
    };
    match answer {
        Ok(answer) => {
            service.meters.call_handled(path, Code::Ok);
            answer
        }
        Err(Failure(status)) => {
            service.meters.call_handled(path, status.code());
            grpc::refuse(&status)
        }
    }
}

/// What etcd's clients can ask for beside the request itself.
fn check_metadata(service: &Service, headers: &HeaderMap) -> Result<(), Failure> {
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
    if service.roster.is_learner() && !is_for_learners(call.uri().path()) {
        return Err(Refusal::NotForLearners.into());
    }
    match call.uri().path() {
        "/etcdserverpb.KV/Range" => kv::range(service, receive(service, call).await?).await,
        "/etcdserverpb.KV/Put" => unary!(kv::put),
        "/etcdserverpb.KV/DeleteRange" => unary!(kv::delete_range),
        "/etcdserverpb.KV/Txn" => kv::txn(service, receive(service, call).await?).await,
        "/etcdserverpb.KV/Compact" => unary!(kv::compact),
        "/etcdserverpb.Cluster/MemberAdd" => unary!(cluster::member_add),
        "/etcdserverpb.Cluster/MemberList" => unary!(cluster::member_list),
        "/etcdserverpb.Cluster/MemberPromote" => unary!(cluster::member_promote),
        "/etcdserverpb.Cluster/MemberRemove" => unary!(cluster::member_remove),
        "/etcdserverpb.Cluster/MemberUpdate" => unary!(cluster::member_update),
        "/kontikipb.Cluster/MemberReplace" => unary!(cluster::member_replace),
        "/etcdserverpb.Maintenance/Alarm" => unary!(maintenance::alarm),
        "/etcdserverpb.Maintenance/MoveLeader" => unary!(maintenance::move_leader),
        "/etcdserverpb.Maintenance/Status" => unary!(maintenance::status),
        path if path.starts_with("/grpc.health.v1.Health/") => {
            Ok(service.health.answer(call).await)
        }
        path => Err(not_there(path).into()),
    }
}

/// What a learner answers: how it is, and reads that need nobody else. Whether a range is one of
/// them is known when it has been read.
fn is_for_learners(path: &str) -> bool {
    matches!(path, "/etcdserverpb.KV/Range" | "/etcdserverpb.Maintenance/Status")
        || path.starts_with("/grpc.health.v1.Health/")
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
            assert_eq!((status.code(), status.message()), (Code::Unimplemented, message));
        }
    }

    #[test]
    fn the_api_is_all_of_etcds() {
        let count: usize = API.iter().map(|(_, methods)| methods.len()).sum();
        assert_eq!((API.len(), count), (8, 49));
    }
}
