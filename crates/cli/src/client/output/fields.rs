//! `-w fields`: one `"Name" : value` a line.

use std::io::{self, Write};

use etcd_client::{
    AlarmResponse, DeleteResponse, GetResponse, KeyValue, MemberListResponse, PutResponse,
    ResponseHeader, StatusResponse, TxnOpResponse, TxnResponse,
};

use super::text::{self, quoted};

pub(super) fn put(out: &mut dyn Write, answer: &PutResponse) -> io::Result<()> {
    header(out, answer.header())?;
    answer.prev_key().map_or(Ok(()), |pair| key_value(out, "Prev", pair))
}

pub(super) fn get(out: &mut dyn Write, answer: &GetResponse) -> io::Result<()> {
    header(out, answer.header())?;
    answer.kvs().iter().try_for_each(|pair| key_value(out, "", pair))?;
    writeln!(out, "\"More\" : {}", answer.more())?;
    writeln!(out, "\"Count\" : {}", answer.count())
}

pub(super) fn del(out: &mut dyn Write, answer: &DeleteResponse) -> io::Result<()> {
    header(out, answer.header())?;
    writeln!(out, "\"Deleted\" : {}", answer.deleted())?;
    answer.prev_kvs().iter().try_for_each(|pair| key_value(out, "Prev", pair))
}

pub(super) fn txn(out: &mut dyn Write, answer: &TxnResponse) -> io::Result<()> {
    header(out, answer.header())?;
    writeln!(out, "\"Succeeded\" : {}", answer.succeeded())?;
    for response in answer.op_responses() {
        match response {
            TxnOpResponse::Put(answer) => put(out, &answer)?,
            TxnOpResponse::Get(answer) => get(out, &answer)?,
            TxnOpResponse::Delete(answer) => del(out, &answer)?,
            TxnOpResponse::Txn(answer) => txn(out, &answer)?,
        }
    }
    Ok(())
}

pub(super) fn status(out: &mut dyn Write, rows: &[(String, StatusResponse)]) -> io::Result<()> {
    for (endpoint, status) in rows {
        header(out, status.header())?;
        writeln!(out, "\"Version\" : {}", quoted(status.version().as_bytes()))?;
        writeln!(out, "\"DBSize\" : {}", status.db_size())?;
        writeln!(out, "\"Leader\" : {}", status.leader())?;
        writeln!(out, "\"IsLearner\" : {}", status.is_learner())?;
        writeln!(out, "\"RaftIndex\" : {}", status.raft_index())?;
        writeln!(out, "\"RaftTerm\" : {}", status.raft_term())?;
        writeln!(out, "\"RaftAppliedIndex\" : {}", status.raft_applied_index())?;
        writeln!(out, "\"Errors\" : [{}]", status.errors().join(" "))?;
        writeln!(out, "\"Endpoint\" : {}\n", quoted(endpoint.as_bytes()))?;
    }
    Ok(())
}

pub(super) fn members(out: &mut dyn Write, answer: &MemberListResponse) -> io::Result<()> {
    header(out, answer.header())?;
    for member in answer.members() {
        writeln!(out, "\"ID\" : {}", member.id())?;
        writeln!(out, "\"Name\" : {}", quoted(member.name().as_bytes()))?;
        for url in member.peer_urls() {
            writeln!(out, "\"PeerURL\" : {}", quoted(url.as_bytes()))?;
        }
        for url in member.client_urls() {
            writeln!(out, "\"ClientURL\" : {}", quoted(url.as_bytes()))?;
        }
        writeln!(out, "\"IsLearner\" : {}\n", member.is_learner())?;
    }
    Ok(())
}

pub(super) fn alarms(out: &mut dyn Write, answer: &AlarmResponse) -> io::Result<()> {
    header(out, answer.header())?;
    for alarm in answer.alarms() {
        writeln!(out, "\"MemberID\" : {}", alarm.member_id())?;
        writeln!(out, "\"AlarmType\" : {}\n", quoted(text::alarm_name(alarm.alarm()).as_bytes()))?;
    }
    Ok(())
}

fn header(out: &mut dyn Write, header: Option<&ResponseHeader>) -> io::Result<()> {
    let Some(header) = header else { return Ok(()) };
    writeln!(out, "\"ClusterID\" : {}", header.cluster_id())?;
    writeln!(out, "\"MemberID\" : {}", header.member_id())?;
    writeln!(out, "\"Revision\" : {}", header.revision())?;
    writeln!(out, "\"RaftTerm\" : {}", header.raft_term())
}

fn key_value(out: &mut dyn Write, prefix: &str, pair: &KeyValue) -> io::Result<()> {
    writeln!(out, "\"{prefix}Key\" : {}", quoted(pair.key()))?;
    writeln!(out, "\"{prefix}CreateRevision\" : {}", pair.create_revision())?;
    writeln!(out, "\"{prefix}ModRevision\" : {}", pair.mod_revision())?;
    writeln!(out, "\"{prefix}Version\" : {}", pair.version())?;
    writeln!(out, "\"{prefix}Value\" : {}", quoted(pair.value()))?;
    writeln!(out, "\"{prefix}Lease\" : {}", pair.lease())
}
