//! The naive model: the whole state after each revision, and etcd's rules word for word.
//!
//! Shares no code with the store, and no cleverness: every answer is a walk over a map.

use std::{borrow::Cow, collections::BTreeMap};

use kontiki_store::{
    Bytes, CompactResponse, Compare, CompareResult, CompareTarget, DeleteRangeResponse, KeyValue,
    PutRequest, PutResponse, RangeRequest, RangeResponse, Request, RequestOp, Response, ResponseOp,
    SortOrder, SortTarget, TxnRequest, TxnResponse,
};

/// All keys that are alive, at one revision.
pub(crate) type Keys = BTreeMap<Bytes, KeyValue>;

/// A refusal, by the name of the variant of `StoreError`.
pub(crate) type Refusal = &'static str;

/// Where the rules find the state of every revision.
pub(crate) trait Past {
    /// The current revision, and the compact revision.
    fn revisions(&self) -> (i64, i64);

    /// All keys at a revision that can be read.
    fn keys(&self, revision: i64) -> Cow<'_, Keys>;

    /// Answers a range.
    fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        let (revision, compact_revision) = self.revisions();
        let at = if request.revision <= 0 { revision } else { request.revision };
        if at > revision {
            return Err("FutureRevision");
        }
        if at < compact_revision {
            return Err("Compacted");
        }
        Ok(select(&self.keys(at), request, revision))
    }
}

/// The whole state after each revision.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    history: BTreeMap<i64, Keys>,
}

impl Past for Model {
    fn revisions(&self) -> (i64, i64) {
        (self.revision, self.compact_revision)
    }

    fn keys(&self, revision: i64) -> Cow<'_, Keys> {
        Cow::Borrowed(&self.history[&revision])
    }
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { revision: 1, compact_revision: -1, history: BTreeMap::from([(1, Keys::new())]) }
    }

    pub(crate) fn apply(&mut self, request: &Request) -> Result<Response, Refusal> {
        let Applied { response, keys, changes } = apply(self, request)?;
        if let Request::Compact(compact) = request {
            self.compact_revision = compact.revision;
        }
        if !changes.is_empty() {
            self.revision += 1;
            self.history.insert(self.revision, keys);
        }
        Ok(response)
    }

    pub(crate) fn txn_read(&self, txn: &TxnRequest) -> Result<TxnResponse, Refusal> {
        match apply(self, &Request::Txn(txn.clone()))?.response {
            Response::Txn(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }
}

/// What a command answers and does.
#[derive(Debug)]
pub(crate) struct Applied {
    pub(crate) response: Response,
    /// All keys after it.
    keys: Keys,
    /// What it wrote, in order: nothing where it deleted.
    pub(crate) changes: Vec<(Bytes, Option<KeyValue>)>,
}

/// Runs a command, and changes nothing.
pub(crate) fn apply(past: &dyn Past, request: &Request) -> Result<Applied, Refusal> {
    let (revision, compact_revision) = past.revisions();
    let keys = past.keys(revision).into_owned();
    let mut run = Run { keys, begin: revision, changes: Vec::new() };
    let response = match request {
        Request::Put(put) => {
            if put.lease != 0 {
                return Err("LeaseNotFound");
            }
            if (put.ignore_value || put.ignore_lease) && !run.keys.contains_key(&put.key) {
                return Err("KeyNotFound");
            }
            Response::Put(run.put(put))
        }
        Request::DeleteRange(delete) => {
            Response::DeleteRange(run.delete(&delete.key, &delete.range_end, delete.prev_kv))
        }
        Request::Txn(txn) => {
            let (before, mut ops) = (run.keys.clone(), Vec::new());
            let tree = choose(&before, txn, &mut ops);
            check(past, &before, &ops)?;
            let mut response = run.txn(past, &before, txn, &tree);
            response.revision = run.revision();
            Response::Txn(response)
        }
        Request::Compact(compact) => {
            if compact.revision <= compact_revision {
                return Err("Compacted");
            }
            if compact.revision > revision {
                return Err("FutureRevision");
            }
            Response::Compact(CompactResponse { revision })
        }
    };
    Ok(Applied { response, keys: run.keys, changes: run.changes })
}

/// Which branches are taken, in the order of a walk; adds the operations that will run.
fn choose<'a>(before: &Keys, txn: &'a TxnRequest, ops: &mut Vec<&'a RequestOp>) -> Vec<bool> {
    let succeeded = txn.compare.iter().all(|guard| holds(before, guard));
    let mut tree = vec![succeeded];
    for op in if succeeded { &txn.success } else { &txn.failure } {
        match op {
            RequestOp::Txn(nested) => tree.extend(choose(before, nested, ops)),
            _ => ops.push(op),
        }
    }
    tree
}

fn check(past: &dyn Past, before: &Keys, ops: &[&RequestOp]) -> Result<(), Refusal> {
    let (revision, compact_revision) = past.revisions();
    let mut alive: Vec<Bytes> = before.keys().cloned().collect();
    for op in ops {
        match op {
            RequestOp::Put(put) => {
                if (put.ignore_value || put.ignore_lease) && !alive.contains(&put.key) {
                    return Err("KeyNotFound");
                }
                if put.lease != 0 {
                    return Err("LeaseNotFound");
                }
                alive.push(put.key.clone());
            }
            RequestOp::DeleteRange(delete) => {
                alive.retain(|key| !is_in(key, &delete.key, &delete.range_end));
            }
            _ => {}
        }
    }
    for op in ops {
        if let RequestOp::Range(range) = op
            && range.revision != 0
        {
            if range.revision > revision {
                return Err("FutureRevision");
            }
            if range.revision < compact_revision {
                return Err("Compacted");
            }
        }
    }
    Ok(())
}

/// A command that is being run.
struct Run {
    keys: Keys,
    begin: i64,
    changes: Vec<(Bytes, Option<KeyValue>)>,
}

impl Run {
    fn revision(&self) -> i64 {
        self.begin + i64::from(!self.changes.is_empty())
    }

    fn put(&mut self, put: &PutRequest) -> PutResponse {
        let prev = self.keys.get(&put.key).cloned();
        let old = prev.clone().unwrap_or_default();
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: if prev.is_some() { old.create_revision } else { self.begin + 1 },
            mod_revision: self.begin + 1,
            version: old.version + 1,
            value: if put.ignore_value { old.value } else { put.value.clone() },
            lease: if put.ignore_lease { old.lease } else { put.lease },
        };
        self.changes.push((put.key.clone(), Some(kv.clone())));
        self.keys.insert(put.key.clone(), kv);
        PutResponse { revision: self.revision(), prev_kv: prev.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, key: &Bytes, range_end: &Bytes, prev_kv: bool) -> DeleteRangeResponse {
        let gone: Vec<KeyValue> =
            self.keys.values().filter(|kv| is_in(&kv.key, key, range_end)).cloned().collect();
        for kv in &gone {
            self.keys.remove(&kv.key);
            self.changes.push((kv.key.clone(), None));
        }
        DeleteRangeResponse {
            revision: self.revision(),
            deleted: i64::try_from(gone.len()).unwrap(),
            prev_kvs: if prev_kv { gone } else { Vec::new() },
        }
    }

    fn txn(
        &mut self,
        past: &dyn Past,
        before: &Keys,
        txn: &TxnRequest,
        tree: &[bool],
    ) -> TxnResponse {
        let mut rest = &tree[1..];
        let mut responses = Vec::new();
        for op in if tree[0] { &txn.success } else { &txn.failure } {
            responses.push(match op {
                RequestOp::Range(range) => {
                    let keys = if range.revision <= 0 {
                        Cow::Borrowed(&self.keys)
                    } else {
                        past.keys(range.revision)
                    };
                    ResponseOp::Range(select(&keys, range, self.revision()))
                }
                RequestOp::Put(put) => ResponseOp::Put(self.put(put)),
                RequestOp::DeleteRange(delete) => ResponseOp::DeleteRange(self.delete(
                    &delete.key,
                    &delete.range_end,
                    delete.prev_kv,
                )),
                RequestOp::Txn(nested) => {
                    let taken = choose(before, nested, &mut Vec::new()).len();
                    let response = self.txn(past, before, nested, &rest[..taken]);
                    rest = &rest[taken..];
                    ResponseOp::Txn(response)
                }
                RequestOp::Empty => panic!("never generated"),
            });
        }
        TxnResponse { revision: 0, succeeded: tree[0], responses }
    }
}

fn is_in(key: &Bytes, first: &Bytes, end: &Bytes) -> bool {
    match &end[..] {
        b"" => key == first,
        b"\0" => key >= first,
        _ => key >= first && key < end,
    }
}

fn holds(keys: &Keys, guard: &Compare) -> bool {
    let mut found: Vec<KeyValue> =
        keys.values().filter(|kv| is_in(&kv.key, &guard.key, &guard.range_end)).cloned().collect();
    if found.is_empty() {
        if matches!(guard.target, CompareTarget::Value(_)) {
            return false;
        }
        found.push(KeyValue::default());
    }
    found.iter().all(|kv| {
        let order = match &guard.target {
            CompareTarget::Version(n) => kv.version.cmp(n),
            CompareTarget::Create(n) => kv.create_revision.cmp(n),
            CompareTarget::Mod(n) => kv.mod_revision.cmp(n),
            CompareTarget::Lease(n) => kv.lease.cmp(n),
            CompareTarget::Value(value) => kv.value.cmp(value),
            CompareTarget::Unknown => std::cmp::Ordering::Equal,
        };
        match guard.result {
            CompareResult::Equal => order.is_eq(),
            CompareResult::NotEqual => order.is_ne(),
            CompareResult::Greater => order.is_gt(),
            CompareResult::Less => order.is_lt(),
            CompareResult::Unknown => true,
        }
    })
}

fn select(keys: &Keys, request: &RangeRequest, revision: i64) -> RangeResponse {
    let mut kvs: Vec<KeyValue> = keys
        .values()
        .filter(|kv| is_in(&kv.key, &request.key, &request.range_end))
        .cloned()
        .collect();
    let count = i64::try_from(kvs.len()).unwrap();
    if request.count_only {
        return RangeResponse { revision, kvs: Vec::new(), more: false, count };
    }
    kvs.retain(|kv| {
        let (min_mod, max_mod) = (request.min_mod_revision, request.max_mod_revision);
        let (min_create, max_create) = (request.min_create_revision, request.max_create_revision);
        (min_mod == 0 || kv.mod_revision >= min_mod)
            && (max_mod == 0 || kv.mod_revision <= max_mod)
            && (min_create == 0 || kv.create_revision >= min_create)
            && (max_create == 0 || kv.create_revision <= max_create)
    });
    kvs.sort_by(|a, b| {
        let order = match request.sort_target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
            SortTarget::Unknown => panic!("never generated"),
        };
        if request.sort_order == SortOrder::Descend { order.reverse() } else { order }
    });
    let mut more = false;
    if let Ok(limit @ 1..) = usize::try_from(request.limit) {
        more = limit < kvs.len();
        kvs.truncate(limit);
    }
    if request.keys_only {
        for kv in &mut kvs {
            kv.value = Bytes::new();
        }
    }
    RangeResponse { revision, kvs, more, count }
}
