//! The service `Maintenance`: what one server tells about itself.

use kontiki::Role;

use crate::{
    alarms,
    grpc::Received,
    machine,
    proto::etcdserverpb::{self as pb, alarm_request::AlarmAction},
    service::Service,
    status::{self, Failure, Refusal},
};

/// The version of the API that is spoken. kube-apiserver wants at least 3.5.13 before it asks
/// for the progress of watches, and 3.6 has the semantics that are implemented.
pub const API_VERSION: &str = "3.6.0";

/// `Maintenance.Status`.
pub(crate) async fn status(
    service: &Service,
    _: Received<pb::StatusRequest>,
) -> Result<pb::StatusResponse, Failure> {
    let status = service.raft.status().await?;
    let leader = service.roster.id_of(status.soft_state.leader);
    let mut errors = Vec::new();
    if leader == 0 {
        errors.push(Refusal::NoLeader.message().to_owned());
    }
    if let Some(damaged) = &status.damaged {
        errors.push(format!(
            "kontiki: entries {} to {} of the log are damaged; they come back from the other \
             servers, and until then this one does not vote",
            damaged.start(),
            damaged.end()
        ));
    }
    if status.needs_snapshot.is_some() {
        errors.push(
            "kontiki: the store was lost, and is being fetched from another server".to_owned(),
        );
    }
    if status.is_storage_full {
        errors.push("kontiki: the disk is full".to_owned());
    }
    errors.extend(service.roster.alarms().iter().map(alarms::text));
    Ok(pb::StatusResponse {
        header: Some(service.header(service.store.revision())),
        version: API_VERSION.to_owned(),
        db_size: signed(service.store.size_bytes()),
        db_size_in_use: signed(service.store.size_in_use_bytes()),
        leader,
        raft_index: status.commit_index.get(),
        raft_term: status.soft_state.term.get(),
        raft_applied_index: status.applied_index.get(),
        errors,
        is_learner: service.roster.is_learner(),
        storage_version: API_VERSION.to_owned(),
        // None: the store has no wall at 2 GiB.
        db_size_quota: 0,
        downgrade_info: Some(pb::DowngradeInfo::default()),
    })
}

/// `Maintenance.MoveLeader`. Its answer has no header, as in etcd.
pub(crate) async fn move_leader(
    service: &Service,
    call: Received<pb::MoveLeaderRequest>,
) -> Result<pb::MoveLeaderResponse, Failure> {
    let target = call.message.target_id;
    if service.soft_state().role != Role::Leader {
        return Err(Refusal::NotLeader.into());
    }
    if target != service.roster.me().id {
        let member = service.roster.member(target).filter(|member| !member.is_learner);
        let member = member.ok_or(Refusal::BadLeaderTransferee)?;
        let transferred = service.raft.transfer_leadership(Some(member.node)).await;
        transferred.map_err(|error| status::of_transfer(&error))?;
    }
    Ok(pb::MoveLeaderResponse { header: None })
}

/// `Maintenance.Alarm`. An alarm says what is, so none is raised by hand, and one that is
/// disarmed while it is true comes back.
pub(crate) async fn alarm(
    service: &Service,
    call: Received<pb::AlarmRequest>,
) -> Result<pb::AlarmResponse, Failure> {
    let pb::AlarmRequest { action, member_id, alarm: kind } = call.message;
    let is_of_kind = |alarm: &pb::AlarmMember| kind == 0 || alarm.alarm == kind;
    let is_meant = |alarm: &pb::AlarmMember| is_of_kind(alarm) && alarm.member_id == member_id;
    let mut alarms = service.roster.alarms();
    if action == i32::from(AlarmAction::Get) {
        service.raft.read_barrier().await?;
        alarms = service.roster.alarms();
        alarms.retain(is_of_kind); // of whichever member, as in etcd
    } else {
        alarms.retain(is_meant);
        if action == i32::from(AlarmAction::Activate) && alarms.is_empty() {
            return Err(status::no_alarm_by_hand().into());
        }
        if action == i32::from(AlarmAction::Deactivate) {
            for alarm in &alarms {
                service.raft.propose(machine::disarming(alarm)).await?;
            }
        }
    }
    let header = Some(service.header(service.store.revision()));
    Ok(pb::AlarmResponse { header, alarms })
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
