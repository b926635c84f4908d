//! Transactions: guards first, then the checks that need the state, then the operations.
//!
//! Guards of nested transactions are evaluated on the state before the outermost one, and so
//! is everything that can refuse the transaction. So when the first operation runs, nothing
//! but a failing disk can stop the rest, and a refused transaction has changed nothing.

use std::cmp::Ordering;

use crate::{
    error::{Fatal, StoreError},
    index::KeyEntry,
    range_end::Span,
    read::readable_in_txn,
    request::{Compare, CompareResult, CompareTarget, PutRequest, RequestOp, TxnRequest},
    response::{ResponseOp, TxnResponse},
    state::{State, Write, check_lease, complete},
};

/// The way that a transaction takes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) succeeded: bool,
    /// The plans of the nested transactions in the branch that is taken, in order.
    nested: Vec<Self>,
}

impl Plan {
    /// The operations that will run.
    pub(crate) fn branch<'a>(&self, txn: &'a TxnRequest) -> &'a [RequestOp] {
        if self.succeeded { &txn.success } else { &txn.failure }
    }
}

impl State {
    /// Evaluates the guards and checks what will run.
    pub(crate) fn plan(&self, txn: &TxnRequest) -> Result<Plan, StoreError> {
        let plan = self.evaluate(txn)?;
        let path = Self::path(txn, &plan);
        // etcd checks all puts before all ranges, and the first error is the answer.
        for (position, op) in path.iter().enumerate() {
            match op {
                RequestOp::Put(put) => self.check_put(put, &path[..position])?,
                RequestOp::Empty => return Err(StoreError::KeyNotFound),
                RequestOp::Range(_) | RequestOp::DeleteRange(_) | RequestOp::Txn(_) => {}
            }
        }
        for op in &path {
            if let RequestOp::Range(range) = op {
                readable_in_txn(range.revision, &self.position)?;
            }
        }
        Ok(plan)
    }

    /// The operations of a planned transaction that will run, nested ones in place.
    pub(crate) fn path<'a>(txn: &'a TxnRequest, plan: &Plan) -> Vec<&'a RequestOp> {
        let mut path = Vec::new();
        flatten(txn, plan, &mut path);
        path
    }

    fn evaluate(&self, txn: &TxnRequest) -> Result<Plan, Fatal> {
        let mut plan = Plan { succeeded: true, nested: Vec::new() };
        for guard in &txn.compare {
            if !self.holds(guard)? {
                plan.succeeded = false;
                break;
            }
        }
        for op in plan.branch(txn) {
            if let RequestOp::Txn(nested) = op {
                plan.nested.push(self.evaluate(nested)?);
            }
        }
        Ok(plan)
    }

    fn holds(&self, guard: &Compare) -> Result<bool, Fatal> {
        let mut is_empty = true;
        for (key, entry) in self.index.span(Span::new(&guard.key, &guard.range_end)) {
            if entry.live().is_none() {
                continue;
            }
            is_empty = false;
            if !self.holds_for(guard, key, entry)? {
                return Ok(false);
            }
        }
        if !is_empty {
            return Ok(true);
        }
        // One missing key: its numbers are zero, and its value compares with nothing.
        Ok(match &guard.target {
            CompareTarget::Version(operand)
            | CompareTarget::Create(operand)
            | CompareTarget::Mod(operand)
            | CompareTarget::Lease(operand) => is_related(guard.result, 0.cmp(operand)),
            CompareTarget::Value(_) => false,
            CompareTarget::Unknown => is_related(guard.result, Ordering::Equal),
        })
    }

    fn holds_for(&self, guard: &Compare, key: &[u8], entry: &KeyEntry) -> Result<bool, Fatal> {
        let Some(hit) = entry.at(self.position.revision) else { return Ok(true) };
        let version = hit.newest.expect("at the current revision it is the newest");
        let order = match &guard.target {
            CompareTarget::Version(operand) => version.version.cmp(operand),
            CompareTarget::Create(operand) => version.create_revision.cmp(operand),
            CompareTarget::Mod(operand) => version.at.main.cmp(operand),
            CompareTarget::Lease(operand) => version.lease.cmp(operand),
            CompareTarget::Value(operand) => {
                complete(&self.tail, &self.segments, key, hit)?.value.cmp(operand)
            }
            CompareTarget::Unknown => Ordering::Equal,
        };
        Ok(is_related(guard.result, order))
    }

    /// Checks a put; `before` is what runs before it.
    fn check_put(&self, put: &PutRequest, before: &[&RequestOp]) -> Result<(), StoreError> {
        if put.ignore_value || put.ignore_lease {
            // A deletion with the range end `\0` may come before a put of the same key. etcd
            // panics there; here the put finds no key.
            let earlier = before.iter().rev().find_map(|op| match op {
                RequestOp::Put(earlier) => (earlier.key == put.key).then_some(true),
                RequestOp::DeleteRange(delete) => {
                    let span = Span::new(&delete.key, &delete.range_end);
                    span.contains(&put.key).then_some(false)
                }
                RequestOp::Range(_) | RequestOp::Txn(_) | RequestOp::Empty => None,
            });
            let is_alive = || self.index.get(&put.key).is_some_and(|key| key.live().is_some());
            if !earlier.unwrap_or_else(is_alive) {
                return Err(StoreError::KeyNotFound);
            }
        }
        check_lease(put)
    }
}

/// Adds the operations that will run to `path`, in order, nested ones in place.
fn flatten<'a>(txn: &'a TxnRequest, plan: &Plan, path: &mut Vec<&'a RequestOp>) {
    let mut nested = plan.nested.iter();
    for op in plan.branch(txn) {
        match (op, op_plan(op, &mut nested)) {
            (RequestOp::Txn(txn), Some(plan)) => flatten(txn, plan, path),
            _ => path.push(op),
        }
    }
}

/// The plan that belongs to `op`, if it is a transaction.
fn op_plan<'a>(op: &RequestOp, plans: &mut std::slice::Iter<'a, Plan>) -> Option<&'a Plan> {
    if matches!(op, RequestOp::Txn(_)) { plans.next() } else { None }
}

fn is_related(result: CompareResult, order: Ordering) -> bool {
    match result {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
        CompareResult::NotEqual => order != Ordering::Equal,
        CompareResult::Unknown => true,
    }
}

impl Write<'_> {
    /// Runs the operations of a transaction that has been planned.
    pub(crate) fn txn(&mut self, txn: &TxnRequest, plan: &Plan) -> Result<TxnResponse, Fatal> {
        let mut nested = plan.nested.iter();
        let mut responses = Vec::new();
        for op in plan.branch(txn) {
            let plan = op_plan(op, &mut nested);
            responses.push(match (op, plan) {
                (RequestOp::Range(range), _) => ResponseOp::Range(self.range(range)?),
                (RequestOp::Put(put), _) => ResponseOp::Put(self.put(put)?),
                (RequestOp::DeleteRange(delete), _) => {
                    ResponseOp::DeleteRange(self.delete_range(delete)?)
                }
                (RequestOp::Txn(txn), Some(plan)) => ResponseOp::Txn(self.txn(txn, plan)?),
                (RequestOp::Txn(_) | RequestOp::Empty, _) => {
                    unreachable!("refused, or planned: see State::plan")
                }
            });
        }
        Ok(TxnResponse { revision: 0, succeeded: plan.succeeded, responses })
    }
}
