//! How answers are printed: byte for byte as etcdctl does for `simple`, `json` and `fields`.
//! `table` also works for keys, where etcdctl has none.

mod fields;
mod json;
mod simple;
mod table;
mod text;

use std::io;

use clap::ValueEnum;
use etcd_client::{
    AlarmResponse, DeleteResponse, GetResponse, MemberListResponse, PutResponse, StatusResponse,
    TxnResponse,
};

/// The shape of the output. The variants have no docs, so that clap's help stays short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Simple,
    Json,
    Table,
    Fields,
}

/// Where and how a command prints its answer.
pub(super) struct Output<'a> {
    pub(super) stdout: &'a mut dyn io::Write,
    pub(super) format: Format,
    pub(super) hex: bool,
}

impl Output<'_> {
    pub(super) fn put(&mut self, answer: &PutResponse) -> io::Result<()> {
        match self.format {
            Format::Simple => simple::put(self.stdout, answer, self.hex),
            Format::Json => json::line(self.stdout, &json::Put::from(answer)),
            Format::Table => table::put(self.stdout, answer),
            Format::Fields => fields::put(self.stdout, answer),
        }
    }

    pub(super) fn get(&mut self, answer: &GetResponse) -> io::Result<()> {
        match self.format {
            Format::Simple => simple::get(self.stdout, answer, self.hex),
            Format::Json => json::line(self.stdout, &json::Range::from(answer)),
            Format::Table => table::get(self.stdout, answer),
            Format::Fields => fields::get(self.stdout, answer),
        }
    }

    /// For `--count-only`, which etcdctl prints in no shape but `fields`.
    pub(super) fn count(&mut self, answer: &GetResponse) -> io::Result<()> {
        if self.format == Format::Simple {
            writeln!(self.stdout, "{}", answer.count())
        } else {
            self.get(answer)
        }
    }

    /// For `--print-value-only`.
    pub(super) fn values(&mut self, answer: &GetResponse) -> io::Result<()> {
        if self.format == Format::Simple {
            simple::values(self.stdout, answer, self.hex)
        } else {
            self.get(answer)
        }
    }

    pub(super) fn del(&mut self, answer: &DeleteResponse) -> io::Result<()> {
        match self.format {
            Format::Simple => simple::del(self.stdout, answer, self.hex),
            Format::Json => json::line(self.stdout, &json::Delete::from(answer)),
            Format::Table => table::del(self.stdout, answer),
            Format::Fields => fields::del(self.stdout, answer),
        }
    }

    pub(super) fn txn(&mut self, answer: &TxnResponse) -> io::Result<()> {
        match self.format {
            Format::Simple => simple::txn(self.stdout, answer, self.hex),
            Format::Json => json::line(self.stdout, &json::Txn::from(answer)),
            Format::Table => table::txn(self.stdout, answer),
            Format::Fields => fields::txn(self.stdout, answer),
        }
    }

    /// The answers of the endpoints that answered.
    pub(super) fn status(&mut self, rows: &[(String, StatusResponse)]) -> io::Result<()> {
        match self.format {
            Format::Simple => simple::status(self.stdout, rows),
            Format::Json => {
                let rows: Vec<json::Status<'_>> = rows.iter().map(json::Status::from).collect();
                json::line(self.stdout, &rows)
            }
            Format::Table => table::status(self.stdout, rows),
            Format::Fields => fields::status(self.stdout, rows),
        }
    }

    /// `table` has no shape of its own here, in etcdctl neither.
    pub(super) fn alarms(&mut self, answer: &AlarmResponse) -> io::Result<()> {
        match self.format {
            Format::Simple | Format::Table => simple::alarms(self.stdout, answer),
            Format::Json => json::line(self.stdout, &json::Alarms::from(answer)),
            Format::Fields => fields::alarms(self.stdout, answer),
        }
    }

    pub(super) fn members(&mut self, answer: &MemberListResponse) -> io::Result<()> {
        match self.format {
            Format::Simple => simple::members(self.stdout, answer),
            Format::Json => json::line(self.stdout, &json::Members::from(answer)),
            Format::Table => table::members(self.stdout, answer),
            Format::Fields => fields::members(self.stdout, answer),
        }
    }
}
