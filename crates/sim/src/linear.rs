//! Whether a history of what clients saw is linearizable: whether there is one order of all
//! operations that keeps to real time and makes every answer right. The servers are not asked.
//!
//! - [`check`]: reads and writes of registers, each register alone.
//! - [`store`]: a store with etcd's revisions, where transactions and ranges couple keys. The
//!   revisions in the answers give the order away, so that only outcomes that nobody knows are
//!   searched for.
//! - [`search`]: any other model.
//!
//! An operation whose outcome is unknown may have happened at any time after its start, or
//! never. One that certainly did not happen is to be left out of the history.

mod search;
pub mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

pub use search::{Call, Model, Stuck, Verdict, search};

/// How many operations are tried before a search is given up. Honest histories need about one
/// try for each operation; a thousand clients that hang for ever need more than there is time.
const STEPS_MAX: u64 = 50_000_000;

/// How many operations before the one that cannot follow are shown.
const SHOWN: usize = 6;

/// One operation on one register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<K, V> {
    /// Which register.
    pub key: K,
    /// What was done.
    pub action: Action<V>,
    /// When it was asked for, on any one clock.
    pub start: u64,
    /// When its answer was there. `None` if its outcome is unknown.
    pub end: Option<u64>,
}

/// What is done to a register. `None` stands for a register without a value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a register can do nothing else")]
pub enum Action<V> {
    /// It was given this value.
    Write(Option<V>),
    /// It had this value.
    Read(Option<V>),
}

/// There is no such order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotLinearizable<K, V> {
    /// Of this register.
    pub key: K,
    /// How many operations can be put in order before the search is stuck.
    pub ordered: usize,
    /// The last of them.
    pub before: Vec<Operation<K, V>>,
    /// What the search is stuck at: the operation that has to come next and cannot.
    pub stuck: Operation<K, V>,
    /// What could come before it and does not help.
    pub around: Vec<Operation<K, V>>,
    /// False if there were too many orders to try them all. Never to be taken for a yes.
    pub is_decided: bool,
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Display for NotLinearizable<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_decided {
            return writeln!(f, "register {:?}: too many orders to try them all", self.key);
        }
        writeln!(
            f,
            "register {:?} is not linearizable: after {} operations, this one cannot follow",
            self.key, self.ordered
        )?;
        for operation in &self.before {
            writeln!(f, "  after  {operation:?}")?;
        }
        writeln!(f, "  stuck  {:?}", self.stuck)?;
        for operation in &self.around {
            writeln!(f, "  beside {operation:?}")?;
        }
        Ok(())
    }
}

impl<K: fmt::Debug, V: fmt::Debug> std::error::Error for NotLinearizable<K, V> {}

/// Checks a history of registers.
///
/// # Errors
///
/// The first register whose history is not linearizable, or of which it cannot be said.
pub fn check<K, V>(history: &[Operation<K, V>]) -> Result<(), Box<NotLinearizable<K, V>>>
where
    K: Clone + Ord,
    V: Clone + Ord,
{
    let mut registers: BTreeMap<&K, Vec<&Operation<K, V>>> = BTreeMap::new();
    for operation in history {
        registers.entry(&operation.key).or_default().push(operation);
    }
    registers.into_values().try_for_each(check_register)
}

fn check_register<K, V>(
    mut operations: Vec<&Operation<K, V>>,
) -> Result<(), Box<NotLinearizable<K, V>>>
where
    K: Clone + Ord,
    V: Clone + Ord,
{
    // A write that may never have happened, and that nobody has seen, has not happened.
    let seen: BTreeSet<Option<V>> = operations
        .iter()
        .filter_map(|operation| match &operation.action {
            Action::Read(value) if operation.end.is_some() => Some(value.clone()),
            Action::Read(_) | Action::Write(_) => None,
        })
        .collect();
    operations.retain(|operation| match &operation.action {
        Action::Read(_) => operation.end.is_some(),
        Action::Write(value) => operation.end.is_some() || seen.contains(value),
    });

    // Values become numbers; zero is the register without a value.
    let mut numbers: BTreeMap<&V, usize> = BTreeMap::new();
    let calls: Vec<Call<Step>> = operations
        .iter()
        .map(|operation| {
            let (Action::Read(value) | Action::Write(value)) = &operation.action;
            let next = numbers.len() + 1;
            let step = Step {
                is_write: matches!(operation.action, Action::Write(_)),
                value: value.as_ref().map_or(0, |value| *numbers.entry(value).or_insert(next)),
            };
            Call { action: step, start: operation.start, end: operation.end }
        })
        .collect();

    let (stuck, is_decided) = match search(&Register, &calls, STEPS_MAX) {
        Verdict::Linearizable => return Ok(()),
        Verdict::NotLinearizable(stuck) => (stuck, true),
        Verdict::Undecided => (Stuck::default(), false),
    };
    let those = |ats: &[usize]| ats.iter().map(|&at| operations[at].clone()).collect();
    Err(Box::new(NotLinearizable {
        key: operations[stuck.at].key.clone(),
        ordered: stuck.ordered.len(),
        before: those(&stuck.ordered[stuck.ordered.len().saturating_sub(SHOWN)..]),
        stuck: operations[stuck.at].clone(),
        around: those(&stuck.open),
        is_decided,
    }))
}

/// An operation with a number for its value.
#[derive(Clone, Copy, Debug)]
struct Step {
    is_write: bool,
    value: usize,
}

/// One register, whose state is a number.
struct Register;

impl Model for Register {
    type State = usize;
    type Action = Step;
    type Part = ();

    fn initial(&self) -> usize {
        0
    }

    fn step(&self, &state: &usize, action: &Step) -> Option<usize> {
        (action.is_write || action.value == state).then_some(action.value)
    }

    fn is_read(&self, action: &Step) -> bool {
        !action.is_write
    }

    fn parts(&self, _: &Step) -> Vec<()> {
        vec![()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::{Dice, Draws, Stream};

    type Op = Operation<u8, u64>;

    fn write(value: u64, start: u64, end: impl Into<Option<u64>>) -> Op {
        Operation { key: 0, action: Action::Write(Some(value)), start, end: end.into() }
    }

    fn read(value: impl Into<Option<u64>>, start: u64, end: u64) -> Op {
        Operation { key: 0, action: Action::Read(value.into()), start, end: Some(end) }
    }

    #[test]
    fn a_read_during_a_write_may_see_either_value() {
        for seen in [1, 2] {
            check(&[write(1, 0, 1), write(2, 2, 8), read(seen, 3, 4)]).unwrap();
        }
        assert!(check(&[write(1, 0, 1), write(2, 2, 8), read(None, 3, 4)]).is_err());
    }

    #[test]
    fn a_value_once_seen_does_not_go_back() {
        let history = [write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6)];
        let error = check(&history).unwrap_err();
        assert_eq!(error.stuck, read(1, 5, 6));
        assert!(error.to_string().contains("register 0 is not linearizable"), "{error}");
    }

    #[test]
    fn a_write_of_unknown_outcome_may_happen_late_or_never() {
        check(&[write(1, 0, 1), write(2, 2, None), read(1, 3, 4), read(2, 90, 91)]).unwrap();
        check(&[write(1, 0, 1), write(2, 2, None), read(1, 90, 91)]).unwrap();
        let early = [write(1, 0, 1), read(2, 3, 4), write(2, 5, None)];
        assert!(check(&early).is_err(), "not before it was asked for");
        let back = [write(1, 0, 1), write(2, 2, None), read(2, 3, 4), read(1, 5, 6)];
        assert!(check(&back).is_err(), "and only once");
    }

    #[test]
    fn registers_are_independent() {
        let mut other = read(None, 5, 6);
        other.key = 1;
        check(&[write(1, 0, 1), other]).unwrap();
    }

    /// All orders, tried one after the other.
    fn brute_force(history: &[Op]) -> bool {
        fn go(left: &[&Op], value: Option<u64>) -> bool {
            if left.iter().all(|op| op.end.is_none()) {
                return true;
            }
            let first_end = left.iter().filter_map(|op| op.end).min().unwrap_or(u64::MAX);
            (0..left.len()).any(|at| {
                let op = left[at];
                if first_end < op.start {
                    return false;
                }
                let mut rest = left.to_vec();
                rest.remove(at);
                match op.action {
                    Action::Write(next) => go(&rest, next),
                    Action::Read(seen) => seen == value && go(&rest, value),
                }
            })
        }
        let relevant = |op: &&Op| op.end.is_some() || matches!(op.action, Action::Write(_));
        go(&history.iter().filter(relevant).collect::<Vec<_>>(), None)
    }

    #[test]
    fn the_search_agrees_with_brute_force() {
        let mut draws = Draws::new(Dice::new(11), Stream::Client, 0);
        let mut verdicts = [0_u32; 2];
        for _ in 0..20_000 {
            let count = draws.within(1..=6);
            let history: Vec<Op> = (0..count)
                .map(|_| {
                    let start = draws.below(12);
                    let value = Some(draws.below(3)).filter(|&value| value != 0);
                    let is_known = draws.percent(80);
                    let end = start + draws.below(6);
                    let action =
                        if draws.percent(50) { Action::Write(value) } else { Action::Read(value) };
                    Operation { key: 0, action, start, end: is_known.then_some(end) }
                })
                .collect();
            let is_linearizable = check(&history).is_ok();
            assert_eq!(is_linearizable, brute_force(&history), "{history:?}");
            verdicts[usize::from(is_linearizable)] += 1;
        }
        assert!(verdicts.iter().all(|&count| 3_000 < count), "one-sided: {verdicts:?}");
    }

    /// A history made by a real register is accepted, and is not once a read is falsified.
    #[test]
    fn long_histories_are_judged_in_time() {
        let mut draws = Draws::new(Dice::new(12), Stream::Client, 0);
        let mut register = None;
        let mut history = Vec::new();
        for at in 0..1_000 {
            // Operations take effect at `at * 10`, and overlap with some sixteen others.
            let (start, end) =
                ((at * 10_u64).saturating_sub(draws.below(80)), at * 10 + draws.below(80));
            if draws.percent(50) {
                register = Some(at);
                history.push(write(at, start, Some(end).filter(|_| at % 50 != 0)));
            } else {
                history.push(read(register, start, end));
            }
        }
        check(&history).unwrap();
        let last = history.len() - 1;
        history.push(read(0, 1_000_000, 1_000_001));
        history[last] = write(1, 500_000, 500_001);
        assert!(check(&history).is_err());
    }
}
