//! `-w json`: etcd's protobuf messages as Go's encoder writes them: its field names in its
//! order, fields with the zero value left out, bytes in base64.

use std::io::{self, Write};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use etcd_client::{
    AlarmMember, AlarmResponse, DeleteResponse, GetResponse, KeyValue, Member, MemberListResponse,
    PutResponse, ResponseHeader, StatusResponse, TxnOpResponse, TxnResponse,
};
use serde::Serialize;

/// Writes `value` and a newline.
pub(super) fn line(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[derive(Serialize)]
struct Header {
    #[serde(skip_serializing_if = "is_zero")]
    cluster_id: u64,
    #[serde(skip_serializing_if = "is_zero")]
    member_id: u64,
    #[serde(skip_serializing_if = "is_zero")]
    revision: i64,
    #[serde(skip_serializing_if = "is_zero")]
    raft_term: u64,
}

impl Header {
    fn of(header: Option<&ResponseHeader>) -> Option<Self> {
        header.map(|header| Self {
            cluster_id: header.cluster_id(),
            member_id: header.member_id(),
            revision: header.revision(),
            raft_term: header.raft_term(),
        })
    }
}

#[derive(Serialize)]
struct Pair {
    #[serde(skip_serializing_if = "String::is_empty")]
    key: String,
    #[serde(skip_serializing_if = "is_zero")]
    create_revision: i64,
    #[serde(skip_serializing_if = "is_zero")]
    mod_revision: i64,
    #[serde(skip_serializing_if = "is_zero")]
    version: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    value: String,
    #[serde(skip_serializing_if = "is_zero")]
    lease: i64,
}

impl From<&KeyValue> for Pair {
    fn from(pair: &KeyValue) -> Self {
        Self {
            key: STANDARD.encode(pair.key()),
            create_revision: pair.create_revision(),
            mod_revision: pair.mod_revision(),
            version: pair.version(),
            value: STANDARD.encode(pair.value()),
            lease: pair.lease(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Put {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Header>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_kv: Option<Pair>,
}

impl From<&PutResponse> for Put {
    fn from(answer: &PutResponse) -> Self {
        Self { header: Header::of(answer.header()), prev_kv: answer.prev_key().map(Pair::from) }
    }
}

#[derive(Serialize)]
pub(super) struct Range {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Header>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kvs: Vec<Pair>,
    #[serde(skip_serializing_if = "is_zero")]
    more: bool,
    #[serde(skip_serializing_if = "is_zero")]
    count: i64,
}

impl From<&GetResponse> for Range {
    fn from(answer: &GetResponse) -> Self {
        Self {
            header: Header::of(answer.header()),
            kvs: answer.kvs().iter().map(Pair::from).collect(),
            more: answer.more(),
            count: answer.count(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Delete {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Header>,
    #[serde(skip_serializing_if = "is_zero")]
    deleted: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    prev_kvs: Vec<Pair>,
}

impl From<&DeleteResponse> for Delete {
    fn from(answer: &DeleteResponse) -> Self {
        Self {
            header: Header::of(answer.header()),
            deleted: answer.deleted(),
            prev_kvs: answer.prev_kvs().iter().map(Pair::from).collect(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Txn {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Header>,
    #[serde(skip_serializing_if = "is_zero")]
    succeeded: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    responses: Vec<TxnResponseOp>,
}

/// Go's encoder shows the wrapper that protobuf's `oneof` becomes there.
#[derive(Serialize)]
struct TxnResponseOp {
    #[serde(rename = "Response")]
    response: OneResponse,
}

#[derive(Serialize)]
enum OneResponse {
    #[serde(rename = "response_range")]
    Range(Range),
    #[serde(rename = "response_put")]
    Put(Put),
    #[serde(rename = "response_delete_range")]
    Delete(Delete),
    #[serde(rename = "response_txn")]
    Txn(Txn),
}

impl From<&TxnResponse> for Txn {
    fn from(answer: &TxnResponse) -> Self {
        let responses = answer.op_responses();
        let responses = responses.iter().map(|response| TxnResponseOp {
            response: match response {
                TxnOpResponse::Put(answer) => OneResponse::Put(answer.into()),
                TxnOpResponse::Get(answer) => OneResponse::Range(answer.into()),
                TxnOpResponse::Delete(answer) => OneResponse::Delete(answer.into()),
                TxnOpResponse::Txn(answer) => OneResponse::Txn(answer.into()),
            },
        });
        Self {
            header: Header::of(answer.header()),
            succeeded: answer.succeeded(),
            responses: responses.collect(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Status<'a> {
    endpoint: &'a str,
    status: StatusBody<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Header>,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    db_size: i64,
    #[serde(skip_serializing_if = "is_zero")]
    leader: u64,
    #[serde(skip_serializing_if = "is_zero")]
    raft_index: u64,
    #[serde(skip_serializing_if = "is_zero")]
    raft_term: u64,
    #[serde(skip_serializing_if = "is_zero")]
    raft_applied_index: u64,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    errors: &'a [String],
    #[serde(skip_serializing_if = "is_zero")]
    db_size_in_use: i64,
    #[serde(skip_serializing_if = "is_zero")]
    is_learner: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    storage_version: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    db_size_quota: i64,
}

impl<'a> From<&'a (String, StatusResponse)> for Status<'a> {
    fn from((endpoint, status): &'a (String, StatusResponse)) -> Self {
        Self {
            endpoint,
            status: StatusBody {
                header: Header::of(status.header()),
                version: status.version(),
                db_size: status.db_size(),
                leader: status.leader(),
                raft_index: status.raft_index(),
                raft_term: status.raft_term(),
                raft_applied_index: status.raft_applied_index(),
                errors: status.errors(),
                db_size_in_use: status.raft_used_db_size(),
                is_learner: status.is_learner(),
                storage_version: status.storage_version(),
                db_size_quota: status.db_size_quota(),
            },
        }
    }
}

#[derive(Serialize)]
pub(super) struct Members<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Header>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    members: Vec<OneMember<'a>>,
}

#[derive(Serialize)]
struct OneMember<'a> {
    #[serde(rename = "ID", skip_serializing_if = "is_zero")]
    id: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(rename = "peerURLs", skip_serializing_if = "<[String]>::is_empty")]
    peer_urls: &'a [String],
    #[serde(rename = "clientURLs", skip_serializing_if = "<[String]>::is_empty")]
    client_urls: &'a [String],
    #[serde(rename = "isLearner", skip_serializing_if = "is_zero")]
    is_learner: bool,
}

impl<'a> From<&'a MemberListResponse> for Members<'a> {
    fn from(answer: &'a MemberListResponse) -> Self {
        let members = answer.members().iter().map(|member: &Member| OneMember {
            id: member.id(),
            name: member.name(),
            peer_urls: member.peer_urls(),
            client_urls: member.client_urls(),
            is_learner: member.is_learner(),
        });
        Self { header: Header::of(answer.header()), members: members.collect() }
    }
}

#[derive(Serialize)]
pub(super) struct Alarms {
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<Header>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    alarms: Vec<OneAlarm>,
}

#[derive(Serialize)]
struct OneAlarm {
    #[serde(rename = "memberID", skip_serializing_if = "is_zero")]
    member_id: u64,
    #[serde(skip_serializing_if = "is_zero")]
    alarm: i32,
}

impl From<&AlarmResponse> for Alarms {
    fn from(answer: &AlarmResponse) -> Self {
        let one = |alarm: &AlarmMember| OneAlarm {
            member_id: alarm.member_id(),
            alarm: alarm.alarm().into(),
        };
        let alarms = answer.alarms().iter().map(one).collect();
        Self { header: Header::of(answer.header()), alarms }
    }
}
