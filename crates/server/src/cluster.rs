//! The service `Cluster`: who the members are.

use crate::{grpc::Received, proto::etcdserverpb as pb, service::Service, status::Failure};

/// `Cluster.MemberList`. The revision of its header is unset, as in etcd.
pub(crate) async fn member_list(
    service: &Service,
    call: Received<pb::MemberListRequest>,
) -> Result<pb::MemberListResponse, Failure> {
    if call.message.linearizable {
        service.raft.read_barrier().await?;
    }
    let header = Some(service.header(0));
    Ok(pb::MemberListResponse { header, members: service.roster.list() })
}
