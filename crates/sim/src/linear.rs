//! Whether a history of reads and writes of registers is linearizable: whether there is one
//! order of all operations that keeps to real time and makes every read right.
//!
//! The search is that of Wing and Gong with the memory of Lowe: try what could come first, take
//! it back if it leads nowhere, and never look twice at the same set of operations done with
//! the same value in the register. Registers are independent, so each key is checked alone.
//!
//! An operation whose outcome is unknown may have happened at any time after its start, or
//! never. One that certainly did not happen is to be left out of the history.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

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
pub struct NotLinearizable<K, V> {
    /// Of this register.
    pub key: K,
    /// How many operations can be put in order before the search is stuck.
    pub ordered: usize,
    /// What the search is stuck at: the operation that has to come next and cannot.
    pub stuck: Operation<K, V>,
    /// What could come before it and does not help.
    pub around: Vec<Operation<K, V>>,
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Display for NotLinearizable<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "register {:?} is not linearizable: after {} operations, this one cannot follow",
            self.key, self.ordered
        )?;
        writeln!(f, "  {:?}", self.stuck)?;
        for operation in &self.around {
            writeln!(f, "  beside {operation:?}")?;
        }
        Ok(())
    }
}

impl<K: fmt::Debug, V: fmt::Debug> std::error::Error for NotLinearizable<K, V> {}

/// Checks a history, register by register.
///
/// # Errors
///
/// The first register whose history is not linearizable.
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
    let steps: Vec<Step> = operations
        .iter()
        .map(|operation| {
            let (Action::Read(value) | Action::Write(value)) = &operation.action;
            let next = numbers.len() + 1;
            Step {
                is_write: matches!(operation.action, Action::Write(_)),
                value: value.as_ref().map_or(0, |value| *numbers.entry(value).or_insert(next)),
            }
        })
        .collect();
    let times: Vec<(u64, Option<u64>)> =
        operations.iter().map(|operation| (operation.start, operation.end)).collect();

    let Err(stuck) = Search::new(&steps, &times).run() else { return Ok(()) };
    let around = stuck.open.iter().filter(|&&at| at != stuck.at);
    Err(Box::new(NotLinearizable {
        key: operations[stuck.at].key.clone(),
        ordered: stuck.ordered,
        stuck: operations[stuck.at].clone(),
        around: around.map(|&at| operations[at].clone()).collect(),
    }))
}

/// An operation with a number for its value.
#[derive(Clone, Copy, Debug)]
struct Step {
    is_write: bool,
    value: usize,
}

/// An operation that was put in order.
#[derive(Clone, Copy, Debug)]
struct Taken {
    at: usize,
    /// What the register held before.
    former: usize,
    /// Something else could have come in its place.
    is_choice: bool,
}

/// Where the search got furthest.
#[derive(Clone, Debug, Default)]
struct Stuck {
    ordered: usize,
    /// The operation whose answer was there before it could be put in order.
    at: usize,
    /// Operations that had begun by then and were not in order.
    open: Vec<usize>,
}

/// A doubly linked list of calls and returns in the order of time, from which operations are
/// lifted as they are put in order, and into which they are put back.
struct Search<'a> {
    steps: &'a [Step],
    /// Which operation each link belongs to. Link 0 is the head.
    operation: Vec<usize>,
    is_return: Vec<bool>,
    next: Vec<usize>,
    prev: Vec<usize>,
    /// The links of the call and of the return of each operation; 0 if there is no return.
    links: Vec<(usize, usize)>,
}

impl<'a> Search<'a> {
    fn new(steps: &'a [Step], times: &[(u64, Option<u64>)]) -> Self {
        // At the same instant calls come first: what touches may overlap.
        let mut events: Vec<(u64, bool, usize)> = Vec::new();
        for (at, &(start, end)) in times.iter().enumerate() {
            events.push((start, false, at));
            events.extend(end.map(|end| (end.max(start), true, at)));
        }
        events.sort_unstable();
        let count = events.len() + 1;
        let mut search = Self {
            steps,
            operation: vec![usize::MAX; count],
            is_return: vec![false; count],
            next: (1..=count).map(|link| link % count).collect(),
            prev: (0..count).map(|link| (link + count - 1) % count).collect(),
            links: vec![(0, 0); times.len()],
        };
        for (link, &(_, is_return, at)) in (1..).zip(&events) {
            search.operation[link] = at;
            search.is_return[link] = is_return;
            if is_return {
                search.links[at].1 = link;
            } else {
                search.links[at].0 = link;
            }
        }
        search
    }

    fn lift(&mut self, at: usize) {
        let (call, back) = self.links[at];
        for link in [call, back] {
            if link != 0 {
                let (prev, next) = (self.prev[link], self.next[link]);
                self.next[prev] = next;
                self.prev[next] = prev;
            }
        }
    }

    /// The reverse of [`lift`](Self::lift), in reverse order.
    fn unlift(&mut self, at: usize) {
        let (call, back) = self.links[at];
        for link in [back, call] {
            if link != 0 {
                let (prev, next) = (self.prev[link], self.next[link]);
                self.next[prev] = link;
                self.prev[next] = link;
            }
        }
    }

    fn run(&mut self) -> Result<(), Stuck> {
        let mut done = vec![0_u64; self.steps.len().div_ceil(64)];
        let mut value = 0;
        let mut visited: BTreeSet<(Vec<u64>, usize)> = BTreeSet::new();
        let mut stack: Vec<Taken> = Vec::new();
        let mut answered = self.links.iter().filter(|(_, back)| *back != 0).count();
        let mut furthest = Stuck::default();
        let mut link = self.next[0];
        while 0 < answered {
            // A read that fits may as well come now: it changes nothing for the others. So only
            // writes are choices.
            let taken = match self.fitting_read(value) {
                Some(at) => Some(Taken { at, former: value, is_choice: false }),
                None => self.next_write(&mut link, value),
            };
            if let Some(taken) = taken {
                let step = self.steps[taken.at];
                done[taken.at / 64] |= 1 << (taken.at % 64);
                if !taken.is_choice || visited.insert((done.clone(), step.value)) {
                    value = step.value;
                    self.lift(taken.at);
                    answered -= usize::from(self.links[taken.at].1 != 0);
                    stack.push(taken);
                    link = self.next[0];
                } else {
                    done[taken.at / 64] &= !(1 << (taken.at % 64));
                    link = self.next[link];
                }
                continue;
            }
            // The answer of an operation that is not in order was there: a dead end.
            if link != 0 && furthest.ordered <= stack.len() {
                let (at, open) = (self.operation[link], self.before(link));
                furthest = Stuck { ordered: stack.len(), at, open };
            }
            loop {
                let Some(Taken { at, former, is_choice }) = stack.pop() else {
                    return Err(furthest);
                };
                value = former;
                done[at / 64] &= !(1 << (at % 64));
                self.unlift(at);
                answered += usize::from(self.links[at].1 != 0);
                if is_choice {
                    link = self.next[self.links[at].0];
                    break;
                }
            }
        }
        Ok(())
    }

    /// A read that has been called and finds this value.
    fn fitting_read(&self, value: usize) -> Option<usize> {
        let mut link = self.next[0];
        while link != 0 && !self.is_return[link] {
            let at = self.operation[link];
            if !self.steps[at].is_write && self.steps[at].value == value {
                return Some(at);
            }
            link = self.next[link];
        }
        None
    }

    /// The first write from `link` on that has been called; `link` is left at it, or where the
    /// choices end.
    fn next_write(&self, link: &mut usize, value: usize) -> Option<Taken> {
        while *link != 0 && !self.is_return[*link] {
            let at = self.operation[*link];
            if self.steps[at].is_write {
                return Some(Taken { at, former: value, is_choice: true });
            }
            *link = self.next[*link];
        }
        None
    }

    /// The operations that were called before this link and are not in order.
    fn before(&self, link: usize) -> Vec<usize> {
        let mut open = Vec::new();
        let mut at = self.next[0];
        while at != link && at != 0 {
            open.push(self.operation[at]);
            at = self.next[at];
        }
        open
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
