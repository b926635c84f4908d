//! `-w simple`: raw keys and values on lines of their own.

use std::io::{self, Write};

use etcd_client::{
    AlarmResponse, DeleteResponse, GetResponse, KeyValue, MemberListResponse, PutResponse,
    StatusResponse, TxnOpResponse, TxnResponse,
};

use super::text;

pub(super) fn put(out: &mut dyn Write, answer: &PutResponse, hex: bool) -> io::Result<()> {
    writeln!(out, "OK")?;
    answer.prev_key().map_or(Ok(()), |pair| key_value(out, pair, hex))
}

pub(super) fn get(out: &mut dyn Write, answer: &GetResponse, hex: bool) -> io::Result<()> {
    answer.kvs().iter().try_for_each(|pair| key_value(out, pair, hex))
}

pub(super) fn values(out: &mut dyn Write, answer: &GetResponse, hex: bool) -> io::Result<()> {
    answer.kvs().iter().try_for_each(|pair| line(out, pair.value(), hex))
}

pub(super) fn del(out: &mut dyn Write, answer: &DeleteResponse, hex: bool) -> io::Result<()> {
    writeln!(out, "{}", answer.deleted())?;
    answer.prev_kvs().iter().try_for_each(|pair| key_value(out, pair, hex))
}

pub(super) fn txn(out: &mut dyn Write, answer: &TxnResponse, hex: bool) -> io::Result<()> {
    writeln!(out, "{}", if answer.succeeded() { "SUCCESS" } else { "FAILURE" })?;
    for response in answer.op_responses() {
        writeln!(out)?;
        match response {
            TxnOpResponse::Put(answer) => put(out, &answer, hex)?,
            TxnOpResponse::Get(answer) => get(out, &answer, hex)?,
            TxnOpResponse::Delete(answer) => del(out, &answer, hex)?,
            TxnOpResponse::Txn(answer) => txn(out, &answer, hex)?,
        }
    }
    Ok(())
}

pub(super) fn status(out: &mut dyn Write, rows: &[(String, StatusResponse)]) -> io::Result<()> {
    rows.iter().try_for_each(|(endpoint, status)| {
        writeln!(out, "{}", text::status_cells(endpoint, status).join(", "))
    })
}

pub(super) fn members(out: &mut dyn Write, answer: &MemberListResponse) -> io::Result<()> {
    answer
        .members()
        .iter()
        .try_for_each(|member| writeln!(out, "{}", text::member_cells(member).join(", ")))
}

/// A space at the end, as Go prints a message.
pub(super) fn alarms(out: &mut dyn Write, answer: &AlarmResponse) -> io::Result<()> {
    answer.alarms().iter().try_for_each(|alarm| {
        writeln!(out, "memberID:{} alarm:{} ", alarm.member_id(), text::alarm_name(alarm.alarm()))
    })
}

fn key_value(out: &mut dyn Write, pair: &KeyValue, hex: bool) -> io::Result<()> {
    line(out, pair.key(), hex)?;
    line(out, pair.value(), hex)
}

fn line(out: &mut dyn Write, bytes: &[u8], hex: bool) -> io::Result<()> {
    if hex {
        bytes.iter().try_for_each(|byte| write!(out, "\\x{byte:02x}"))?;
    } else {
        out.write_all(bytes)?;
    }
    writeln!(out)
}
