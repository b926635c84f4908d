//! What can be refused without looking at the state: done before a command is proposed.
//!
//! The order of the checks is etcd's, because the first one that fails decides the answer.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    error::RequestError,
    range_end::Span,
    request::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, Request, RequestOp, SortOrder,
        SortTarget, TxnRequest,
    },
};

/// How many guards or operations a list of a transaction may hold; etcd's default of
/// `--max-txn-ops`.
pub const TXN_OPS_MAX: usize = 128;

/// Whether `request` may be proposed. Of a transaction each list may hold at most
/// `txn_ops_max` items, and a nested one has what the longest list of its parent leaves.
///
/// # Errors
///
/// The first [`RequestError`] in etcd's order of checks.
pub fn validate(request: &Request, txn_ops_max: usize) -> Result<(), RequestError> {
    match request {
        Request::Put(put) => put.validate(),
        Request::DeleteRange(delete) => delete.validate(),
        Request::Txn(txn) => txn.validate(txn_ops_max),
        Request::Compact(_) => Ok(()),
    }
}

impl RangeRequest {
    /// Whether the range makes sense by itself.
    ///
    /// # Errors
    ///
    /// [`RequestError::EmptyKey`] or [`RequestError::InvalidSortOption`].
    pub fn validate(&self) -> Result<(), RequestError> {
        check_key(&self.key)?;
        let is_known =
            self.sort_order != SortOrder::Unknown && self.sort_target != SortTarget::Unknown;
        if is_known { Ok(()) } else { Err(RequestError::InvalidSortOption) }
    }
}

impl PutRequest {
    fn validate(&self) -> Result<(), RequestError> {
        check_key(&self.key)?;
        if self.ignore_value && !self.value.is_empty() {
            return Err(RequestError::ValueProvided);
        }
        if self.ignore_lease && self.lease != 0 {
            return Err(RequestError::LeaseProvided);
        }
        Ok(())
    }
}

impl DeleteRangeRequest {
    fn validate(&self) -> Result<(), RequestError> {
        check_key(&self.key)
    }
}

impl TxnRequest {
    /// Whether the transaction makes sense by itself; see [`validate`].
    ///
    /// # Errors
    ///
    /// The first [`RequestError`] in etcd's order of checks.
    pub fn validate(&self, txn_ops_max: usize) -> Result<(), RequestError> {
        self.check_ops(txn_ops_max)?;
        check_writes(&self.success)?;
        check_writes(&self.failure)?;
        Ok(())
    }

    fn check_ops(&self, budget: usize) -> Result<(), RequestError> {
        let longest = self.compare.len().max(self.success.len()).max(self.failure.len());
        let nested_budget = budget.checked_sub(longest).ok_or(RequestError::TooManyOperations)?;
        for Compare { key, .. } in &self.compare {
            check_key(key)?;
        }
        for op in self.success.iter().chain(&self.failure) {
            match op {
                RequestOp::Range(range) => range.validate()?,
                RequestOp::Put(put) => put.validate()?,
                RequestOp::DeleteRange(delete) => delete.validate()?,
                RequestOp::Txn(txn) => txn.check_ops(nested_budget)?,
                RequestOp::Empty => return Err(RequestError::EmptyOperation),
            }
        }
        Ok(())
    }
}

fn check_key(key: &[u8]) -> Result<(), RequestError> {
    if key.is_empty() { Err(RequestError::EmptyKey) } else { Ok(()) }
}

/// What a branch may write: the keys it puts and the spans it deletes.
type Writes<'a> = (BTreeSet<&'a [u8]>, Deleted<'a>);

/// Refuses a branch that puts a key twice, or puts a key that it also deletes.
///
/// These are etcd's rules with their two gaps, on which clients may rely: a put in one nested
/// transaction and its deletion in a *later* one pass, and so does a deletion with the range
/// end `\0`, whatever is put. The store gives each write its own sub revision, so both are
/// well defined.
fn check_writes(ops: &[RequestOp]) -> Result<Writes<'_>, RequestError> {
    let mut puts = BTreeSet::new();
    let mut deleted = Deleted::default();
    for op in ops {
        if let RequestOp::DeleteRange(delete) = op {
            deleted.insert_range(delete);
        }
    }
    for op in ops {
        let RequestOp::Txn(txn) = op else { continue };
        let (then_puts, then_deleted) = check_writes(&txn.success)?;
        let (else_puts, else_deleted) = check_writes(&txn.failure)?;
        let is_repeated = |key| puts.contains(key) || deleted.contains(key);
        // Only one of the two branches is taken, so both may put the same key.
        if then_puts.iter().chain(&else_puts).copied().any(is_repeated) {
            return Err(RequestError::DuplicateKey);
        }
        puts.extend(then_puts);
        puts.extend(else_puts);
        deleted.extend(then_deleted);
        deleted.extend(else_deleted);
    }
    for op in ops {
        let RequestOp::Put(put) = op else { continue };
        if deleted.contains(&put.key) || !puts.insert(&put.key) {
            return Err(RequestError::DuplicateKey);
        }
    }
    Ok((puts, deleted))
}

/// The keys that a branch deletes, as disjoint spans: start to end.
///
/// Joined when they touch, so that a request full of overlapping deletions costs n log n.
#[derive(Default)]
struct Deleted<'a>(BTreeMap<&'a [u8], End<'a>>);

/// Where a span ends. The order is by position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End<'a> {
    /// Just before this key.
    Before(&'a [u8]),
    /// Just after this key, which is before every other key that is greater.
    After(&'a [u8]),
}

impl<'a> Deleted<'a> {
    fn insert_range(&mut self, delete: &'a DeleteRangeRequest) {
        match Span::new(&delete.key, &delete.range_end) {
            Span::One(key) => self.insert(key, End::After(key)),
            Span::Until(key, end) => self.insert(key, End::Before(end)),
            // One of the gaps of etcd that `check_writes` keeps.
            Span::From(_) | Span::Empty => {}
        }
    }

    fn insert(&mut self, mut start: &'a [u8], mut end: End<'a>) {
        if let Some((&earlier, &earlier_end)) = self.0.range(..=start).next_back()
            && reaches(earlier_end, start)
        {
            start = earlier;
            end = later(earlier_end, end);
        }
        while let Some((&next, &next_end)) = self.0.range(start..).next()
            && reaches(end, next)
        {
            end = later(end, next_end);
            self.0.remove(next);
        }
        self.0.insert(start, end);
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.0.range(..=key).next_back().is_some_and(|(_, end)| reaches(*end, key))
    }

    fn extend(&mut self, other: Self) {
        for (start, end) in other.0 {
            self.insert(start, end);
        }
    }
}

/// Whether a span that starts at or before `key` and ends at `end` contains `key`.
fn reaches(end: End<'_>, key: &[u8]) -> bool {
    match end {
        End::Before(end) => key < end,
        End::After(last) => key <= last,
    }
}

fn later<'a>(a: End<'a>, b: End<'a>) -> End<'a> {
    let order = |end| match end {
        End::Before(key) => (key, false),
        End::After(key) => (key, true),
    };
    if order(a) < order(b) { b } else { a }
}
