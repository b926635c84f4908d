//! The operations of a benchmark.

use std::cell::Cell;

use etcd_client::{Compare, CompareOp, GetOptions, KvClient, Txn, TxnOp, TxnOpResponse};

use super::{BenchArgs, Work};
use crate::{client::describe, failure::Failure};

/// Before each key, if there is room for it.
const PREFIX: &str = "bench/";

/// What a successful operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// As intended.
    Plainly,
    /// A compare-and-swap that lost against another client.
    AfterConflict,
}

/// Keys, values and what to do with them.
pub(super) struct Workload {
    work: Work,
    keys: Vec<Vec<u8>>,
    value: Vec<u8>,
    /// Of each key the newest revision that was heard of, for compare-and-swap.
    revisions: Vec<Cell<i64>>,
    range_limit: usize,
    reads_percent: u8,
    is_serializable: bool,
}

impl Workload {
    pub(super) fn new(args: &BenchArgs) -> Result<Self, Failure> {
        let digits = args.keys.to_string().len();
        if args.key_size < digits {
            return Err(Failure::usage(format!(
                "--key-size {}: {} different keys need at least {digits} bytes",
                args.key_size, args.keys
            )));
        }
        let prefix = if PREFIX.len() + digits <= args.key_size { PREFIX } else { "" };
        let width = args.key_size - prefix.len();
        let keys = (0..args.keys).map(|index| format!("{prefix}{index:0width$}").into_bytes());
        let range_limit = args.limit.min(args.keys);
        if args.work == Work::Range && range_limit == 0 {
            return Err(Failure::usage("--limit must not be 0"));
        }
        Ok(Self {
            work: args.work,
            keys: keys.collect(),
            value: (0..args.val_size).map(|_| fastrand::u8(..)).collect(),
            revisions: vec![Cell::new(0); args.keys],
            range_limit,
            reads_percent: args.reads,
            is_serializable: args.serializable,
        })
    }

    pub(super) fn key_count(&self) -> usize {
        self.keys.len()
    }

    /// Does one operation on a random key. The error is the server's text, or what is wrong
    /// with its answer.
    pub(super) async fn operate(&self, kv: &mut KvClient) -> Result<Done, String> {
        let index = fastrand::usize(..self.keys.len());
        match self.work {
            Work::Put => self.put(kv, index).await.map(|()| Done::Plainly),
            Work::Get => self.get(kv, index).await,
            Work::Mixed if fastrand::u8(..100) < self.reads_percent => self.get(kv, index).await,
            Work::Mixed => self.put(kv, index).await.map(|()| Done::Plainly),
            Work::Txn => self.swap(kv, index).await,
            Work::Range => self.range(kv).await,
        }
    }

    pub(super) async fn put(&self, kv: &mut KvClient, index: usize) -> Result<(), String> {
        let answer = kv
            .put(self.key(index), self.value.clone(), None)
            .await
            .map_err(|error| describe(&error))?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        if revision <= 0 {
            return Err("bad answer: no revision".to_owned());
        }
        self.learn(index, revision);
        Ok(())
    }

    async fn get(&self, kv: &mut KvClient, index: usize) -> Result<Done, String> {
        let answer = kv
            .get(self.key(index), Some(self.read_options()))
            .await
            .map_err(|error| describe(&error))?;
        match answer.kvs() {
            [pair] if pair.value().len() == self.value.len() => Ok(Done::Plainly),
            // A server that lags behind may not have the newest keys yet.
            [] if self.is_serializable => Ok(Done::Plainly),
            _ => Err("bad answer: not the value that was put".to_owned()),
        }
    }

    async fn range(&self, kv: &mut KvClient) -> Result<Done, String> {
        let first = fastrand::usize(..=self.keys.len() - self.range_limit);
        let limit = i64::try_from(self.range_limit).unwrap_or(i64::MAX);
        let options = self.read_options().with_from_key().with_limit(limit);
        let answer =
            kv.get(self.key(first), Some(options)).await.map_err(|error| describe(&error))?;
        if answer.kvs().len() == self.range_limit || self.is_serializable {
            Ok(Done::Plainly)
        } else {
            Err("bad answer: too few keys".to_owned())
        }
    }

    /// Puts the key if nobody has since we last heard of it; otherwise learns who did.
    async fn swap(&self, kv: &mut KvClient, index: usize) -> Result<Done, String> {
        let known = self.revisions.get(index).map_or(0, Cell::get);
        let key = self.key(index);
        let txn = Txn::new()
            .when([Compare::mod_revision(key.clone(), CompareOp::Equal, known)])
            .and_then([TxnOp::put(key.clone(), self.value.clone(), None)])
            .or_else([TxnOp::get(key, Some(GetOptions::new().with_keys_only()))]);
        let answer = kv.txn(txn).await.map_err(|error| describe(&error))?;
        if answer.succeeded() {
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            self.learn(index, revision);
            return Ok(Done::Plainly);
        }
        match answer.op_responses().first() {
            Some(TxnOpResponse::Get(now)) => {
                self.learn(index, now.kvs().first().map_or(0, |pair| pair.mod_revision()));
                Ok(Done::AfterConflict)
            }
            _ => Err("bad answer: no key in the transaction's failure".to_owned()),
        }
    }

    fn key(&self, index: usize) -> Vec<u8> {
        self.keys.get(index).cloned().unwrap_or_default()
    }

    fn learn(&self, index: usize, revision: i64) {
        if let Some(known) = self.revisions.get(index) {
            known.set(known.get().max(revision));
        }
    }

    fn read_options(&self) -> GetOptions {
        if self.is_serializable { GetOptions::new().with_serializable() } else { GetOptions::new() }
    }
}
