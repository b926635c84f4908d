//! The service `KV`: ranges, puts, deletions, transactions and compaction.
//!
//! A request is checked for what is wrong with it whatever the state, in etcd's order. A write
//! is then proposed, on whichever server it arrived, and answered when it is applied here; a read
//! waits until this server has applied all that was committed when it asked, and is answered from
//! the store without a log entry.

use std::sync::Arc;

use kontiki_store::{RangeRequest, Request, RequestOp, Response, TxnRequest};

use crate::{
    from_wire,
    grpc::{self, Received},
    machine::Reply,
    proto::etcdserverpb as pb,
    service::Service,
    status::{Failure, Refusal},
    to_wire,
};

/// `KV.Range`.
pub(crate) async fn range(
    service: &Arc<Service>,
    call: Received<pb::RangeRequest>,
) -> Result<grpc::Response, Failure> {
    let request = from_wire::range(call.message);
    request.validate()?;
    if !request.serializable {
        if service.roster.is_learner() {
            return Err(Refusal::NotForLearners.into());
        }
        service.read_barrier().await?;
    } else {
        service.check_local()?;
    }
    if is_small(&request) {
        return answer_range(service, &request);
    }
    service.beside(move |service| answer_range(service, &request)).await
}

fn answer_range(service: &Service, request: &RangeRequest) -> Result<grpc::Response, Failure> {
    let answer = service.noted(service.store.range(request))?;
    let header = service.header(answer.revision);
    Ok(grpc::reply(&to_wire::range(answer, header)))
}

/// Whether a range looks at one key, so that it may be answered on the network thread. To take
/// up another thread and come back costs about 50 µs; but how many keys a span has is known
/// only when they are counted, and heartbeats do not wait.
fn is_small(range: &RangeRequest) -> bool {
    range.range_end.is_empty()
}

/// Whether nothing in a transaction that only reads looks at more than one key.
fn is_small_txn(txn: &TxnRequest) -> bool {
    let mut ops = txn.success.iter().chain(&txn.failure);
    txn.compare.iter().all(|guard| guard.range_end.is_empty())
        && ops.all(|op| matches!(op, RequestOp::Range(range) if is_small(range)))
}

/// `KV.Put`.
pub(crate) async fn put(
    service: &Service,
    call: Received<pb::PutRequest>,
) -> Result<pb::PutResponse, Failure> {
    let request = Request::Put(from_wire::put(call.message));
    match write(service, request, call.bytes).await? {
        Response::Put(answer) => {
            let header = service.header(answer.revision);
            Ok(to_wire::put(answer, header))
        }
        other => unreachable!("a put was answered by {other:?}"),
    }
}

/// `KV.DeleteRange`.
pub(crate) async fn delete_range(
    service: &Service,
    call: Received<pb::DeleteRangeRequest>,
) -> Result<pb::DeleteRangeResponse, Failure> {
    let request = Request::DeleteRange(from_wire::delete_range(call.message));
    match write(service, request, call.bytes).await? {
        Response::DeleteRange(answer) => {
            let header = service.header(answer.revision);
            Ok(to_wire::delete_range(answer, header))
        }
        other => unreachable!("a deletion was answered by {other:?}"),
    }
}

/// `KV.Txn`.
pub(crate) async fn txn(
    service: &Arc<Service>,
    call: Received<pb::TxnRequest>,
) -> Result<grpc::Response, Failure> {
    let request = from_wire::txn(call.message);
    if request.is_read_only() {
        request.validate(service.limits.txn_ops_max)?;
        if !request.is_serializable() {
            service.read_barrier().await?;
        } else {
            service.check_local()?;
        }
        if is_small_txn(&request) {
            return answer_txn(service, &request);
        }
        return service.beside(move |service| answer_txn(service, &request)).await;
    }
    match write(service, Request::Txn(request), call.bytes).await? {
        Response::Txn(answer) => {
            let header = service.header(answer.revision);
            Ok(grpc::reply(&to_wire::txn(answer, header)))
        }
        other => unreachable!("a transaction was answered by {other:?}"),
    }
}

fn answer_txn(service: &Service, request: &TxnRequest) -> Result<grpc::Response, Failure> {
    let answer = service.noted(service.store.txn_read(request))?;
    let header = service.header(answer.revision);
    Ok(grpc::reply(&to_wire::txn(answer, header)))
}

/// `KV.Compact`. With `physical` the answer waits until the space is free, as long as a request
/// may take.
pub(crate) async fn compact(
    service: &Arc<Service>,
    call: Received<pb::CompactionRequest>,
) -> Result<pb::CompactionResponse, Failure> {
    let request = from_wire::compact(call.message);
    let (revision, is_physical) = (request.revision, request.physical);
    let Response::Compact(answer) = write(service, Request::Compact(request), call.bytes).await?
    else {
        unreachable!("a compaction is answered by a compaction")
    };
    if is_physical {
        let timeout = service.limits.request_timeout;
        let is_done = service
            .beside(move |service| Ok(service.store.wait_compacted(revision, timeout)))
            .await?;
        if !is_done {
            return Err(Refusal::TimedOut.into());
        }
    }
    Ok(pb::CompactionResponse { header: Some(service.header(answer.revision)) })
}

/// Replicates a command, and waits until it is applied here.
async fn write(service: &Service, request: Request, bytes: usize) -> Result<Response, Failure> {
    kontiki_store::validate(&request, service.limits.txn_ops_max)?;
    if service.limits.request_bytes_max < bytes {
        return Err(Refusal::RequestTooLarge.into());
    }
    let pending = service.meters.proposal();
    let proposed = service.raft.propose(request.encode()).await;
    drop(pending);
    let applied = proposed.inspect_err(|_| service.meters.proposal_failed())?;
    match applied.response {
        Reply::Store(answer) => answer.map_err(Failure::from),
        Reply::Announced => unreachable!("a command of the store is no announcement"),
    }
}
