//! The naive model: the whole state after each revision, and etcd's rules word for word.
//!
//! Shares no code with the store, and no cleverness: every answer is a walk over a map.

use std::collections::BTreeMap;

use kontiki_store::{
    Bytes, CompactResponse, Compare, CompareResult, CompareTarget, DeleteRangeResponse, KeyValue,
    PutRequest, PutResponse, RangeRequest, RangeResponse, Request, RequestOp, Response, ResponseOp,
    SortOrder, SortTarget, TxnRequest, TxnResponse,
};

type Keys = BTreeMap<Bytes, KeyValue>;

/// A refusal, by the name of the variant of `StoreError`.
pub(crate) type Refusal = &'static str;

#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    history: BTreeMap<i64, Keys>,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { revision: 1, compact_revision: -1, history: BTreeMap::from([(1, Keys::new())]) }
    }

    fn current(&self) -> &Keys {
        &self.history[&self.revision]
    }

    pub(crate) fn apply(&mut self, request: &Request) -> Result<Response, Refusal> {
        let mut run = Run { keys: self.current().clone(), begin: self.revision, changed: false };
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
                let mut ops = Vec::new();
                let tree = self.choose(txn, &mut ops);
                self.check(&ops)?;
                let mut response = run.txn(self, txn, &tree);
                response.revision = run.revision();
                Response::Txn(response)
            }
            Request::Compact(compact) => {
                if compact.revision <= self.compact_revision {
                    return Err("Compacted");
                }
                if compact.revision > self.revision {
                    return Err("FutureRevision");
                }
                self.compact_revision = compact.revision;
                Response::Compact(CompactResponse { revision: self.revision })
            }
        };
        if run.changed {
            self.revision += 1;
            self.history.insert(self.revision, run.keys);
        }
        Ok(response)
    }

    pub(crate) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        let at = if request.revision <= 0 { self.revision } else { request.revision };
        if at > self.revision {
            return Err("FutureRevision");
        }
        if at < self.compact_revision {
            return Err("Compacted");
        }
        Ok(select(&self.history[&at], request, self.revision))
    }

    pub(crate) fn txn_read(&self, txn: &TxnRequest) -> Result<TxnResponse, Refusal> {
        match self.clone().apply(&Request::Txn(txn.clone()))? {
            Response::Txn(response) => Ok(response),
            other => panic!("{other:?}"),
        }
    }

    /// Which branches are taken, in the order of a walk; adds the operations that will run.
    fn choose<'a>(&self, txn: &'a TxnRequest, ops: &mut Vec<&'a RequestOp>) -> Vec<bool> {
        let succeeded = txn.compare.iter().all(|guard| holds(self.current(), guard));
        let mut tree = vec![succeeded];
        for op in if succeeded { &txn.success } else { &txn.failure } {
            match op {
                RequestOp::Txn(nested) => tree.extend(self.choose(nested, ops)),
                _ => ops.push(op),
            }
        }
        tree
    }

    fn check(&self, ops: &[&RequestOp]) -> Result<(), Refusal> {
        let mut alive: Vec<Bytes> = self.current().keys().cloned().collect();
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
                if range.revision > self.revision {
                    return Err("FutureRevision");
                }
                if range.revision < self.compact_revision {
                    return Err("Compacted");
                }
            }
        }
        Ok(())
    }
}

/// A command that is being run.
struct Run {
    keys: Keys,
    begin: i64,
    changed: bool,
}

impl Run {
    fn revision(&self) -> i64 {
        self.begin + i64::from(self.changed)
    }

    fn put(&mut self, put: &PutRequest) -> PutResponse {
        self.changed = true;
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
        self.keys.insert(put.key.clone(), kv);
        PutResponse { revision: self.revision(), prev_kv: prev.filter(|_| put.prev_kv) }
    }

    fn delete(&mut self, key: &Bytes, range_end: &Bytes, prev_kv: bool) -> DeleteRangeResponse {
        let gone: Vec<KeyValue> =
            self.keys.values().filter(|kv| is_in(&kv.key, key, range_end)).cloned().collect();
        for kv in &gone {
            self.keys.remove(&kv.key);
            self.changed = true;
        }
        DeleteRangeResponse {
            revision: self.revision(),
            deleted: i64::try_from(gone.len()).unwrap(),
            prev_kvs: if prev_kv { gone } else { Vec::new() },
        }
    }

    fn txn(&mut self, model: &Model, txn: &TxnRequest, tree: &[bool]) -> TxnResponse {
        let mut rest = &tree[1..];
        let mut responses = Vec::new();
        for op in if tree[0] { &txn.success } else { &txn.failure } {
            responses.push(match op {
                RequestOp::Range(range) => {
                    let keys = if range.revision <= 0 {
                        &self.keys
                    } else {
                        &model.history[&range.revision]
                    };
                    ResponseOp::Range(select(keys, range, self.revision()))
                }
                RequestOp::Put(put) => ResponseOp::Put(self.put(put)),
                RequestOp::DeleteRange(delete) => ResponseOp::DeleteRange(self.delete(
                    &delete.key,
                    &delete.range_end,
                    delete.prev_kv,
                )),
                RequestOp::Txn(nested) => {
                    let taken = model.choose(nested, &mut Vec::new()).len();
                    let response = self.txn(model, nested, &rest[..taken]);
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
