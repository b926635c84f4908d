//! The search for an order, for any model: that of Wing and Gong with the memory of Lowe.
//!
//! Calls and returns stand in a doubly linked list in the order of time. What could come first
//! is lifted out of it, and put back if it leads nowhere. The same set of operations done with
//! the same state is never looked at twice. Because an operation that was answered before
//! another was called is done before it, that set differs from "all that was called so far" only
//! within the window of what overlaps, and only that window is kept in the memory: a point at
//! which nothing is open costs nothing, and a long history is as cheap as its pieces.
//!
//! An operation without an answer may take effect at any time after its call, or never.

use std::collections::{BTreeMap, BTreeSet};

/// What the system under test should have done.
pub trait Model {
    /// What it is in. The memory compares whole states, so nothing hides behind a hash.
    type State: Clone + Ord;
    /// A request with its answer, or without one.
    type Action;
    /// What makes actions depend on each other: a key.
    type Part: Clone + Ord;

    /// The state before the history.
    fn initial(&self) -> Self::State;

    /// The state after the action. `None` if its answer would be wrong here.
    fn step(&self, state: &Self::State, action: &Self::Action) -> Option<Self::State>;

    /// Whether the action, with its answer, leaves every state as it is in which it fits.
    fn is_read(&self, action: &Self::Action) -> bool;

    /// The parts that an action touches. Actions that share one, directly or through others, are
    /// checked together and all others apart, which is exact: linearizability is local.
    fn parts(&self, action: &Self::Action) -> Vec<Self::Part>;
}

/// An operation of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "callers build histories of it")]
pub struct Call<A> {
    /// What was asked, and what was answered.
    pub action: A,
    /// When it was asked, on any one clock.
    pub start: u64,
    /// When the answer was there. `None` if the outcome is unknown.
    pub end: Option<u64>,
}

/// What the search found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "nothing else can come of it")]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none.
    NotLinearizable(Stuck),
    /// The search was given up. Never to be taken for a yes.
    Undecided,
}

/// Where the search got furthest. Operations are given by their place in the history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stuck {
    /// The longest order that was found.
    pub ordered: Vec<usize>,
    /// The operation that has to come next, because its answer was there, and cannot.
    pub at: usize,
    /// What had been called by then, could come before it, and does not help.
    pub open: Vec<usize>,
}

/// Looks for an order of a history that keeps to real time and in which every answer is right.
///
/// `steps_max` bounds how many operations are tried, over all parts.
#[must_use]
pub fn search<M: Model>(model: &M, history: &[Call<M::Action>], steps_max: u64) -> Verdict {
    let mut steps_left = steps_max;
    for component in components(model, history) {
        let calls: Vec<&Call<M::Action>> = component.iter().map(|&at| &history[at]).collect();
        let found = Search::new(model, &calls).run(&mut steps_left);
        match found {
            Verdict::Linearizable => {}
            Verdict::NotLinearizable(Stuck { ordered, at, open }) => {
                let places = |ats: Vec<usize>| ats.into_iter().map(|at| component[at]).collect();
                return Verdict::NotLinearizable(Stuck {
                    ordered: places(ordered),
                    at: component[at],
                    open: places(open),
                });
            }
            Verdict::Undecided => return Verdict::Undecided,
        }
    }
    Verdict::Linearizable
}

/// Groups a history by the parts that its actions share.
fn components<M: Model>(model: &M, history: &[Call<M::Action>]) -> Vec<Vec<usize>> {
    fn root(parents: &mut [usize], mut at: usize) -> usize {
        while parents[at] != at {
            parents[at] = parents[parents[at]];
            at = parents[at];
        }
        at
    }
    let mut parents: Vec<usize> = (0..history.len()).collect();
    let mut first_of: BTreeMap<M::Part, usize> = BTreeMap::new();
    for (at, call) in history.iter().enumerate() {
        for part in model.parts(&call.action) {
            let other = *first_of.entry(part).or_insert(at);
            let (one, other) = (root(&mut parents, at), root(&mut parents, other));
            parents[one.max(other)] = one.min(other);
        }
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in 0..history.len() {
        groups.entry(root(&mut parents, at)).or_default().push(at);
    }
    groups.into_values().collect()
}

/// An operation that was put in order.
struct Taken<S> {
    at: usize,
    /// The state before.
    former: S,
    /// Something else could have come in its place.
    is_choice: bool,
}

struct Search<'a, M: Model> {
    model: &'a M,
    calls: &'a [&'a Call<M::Action>],
    /// Operations are numbered anew: first the answered ones by their start, then the others.
    place: Vec<usize>,
    answered: usize,
    /// The starts of the answered operations, in order.
    starts: Vec<u64>,
    /// Which operation each link belongs to. Link 0 is the head.
    operation: Vec<usize>,
    is_return: Vec<bool>,
    next: Vec<usize>,
    prev: Vec<usize>,
    /// The links of the call and of the return of each operation; 0 if there is no return.
    links: Vec<(usize, usize)>,
    /// One bit for each operation that is in order.
    done: Vec<u64>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, calls: &'a [&'a Call<M::Action>]) -> Self {
        let mut place: Vec<usize> = (0..calls.len()).collect();
        place.sort_by_key(|&at| (calls[at].end.is_none(), calls[at].start, at));
        let answered = calls.iter().filter(|call| call.end.is_some()).count();
        // At the same instant calls come first: what touches may overlap.
        let mut events: Vec<(u64, bool, usize)> = Vec::new();
        for (number, &at) in place.iter().enumerate() {
            let Call { start, end, .. } = *calls[at];
            events.push((start, false, number));
            events.extend(end.map(|end| (end.max(start), true, number)));
        }
        events.sort_unstable();
        let count = events.len() + 1;
        let mut links = vec![(0, 0); place.len()];
        let (mut operation, mut is_return) = (vec![usize::MAX], vec![false]);
        for (link, &(_, is_end, number)) in (1..).zip(&events) {
            operation.push(number);
            is_return.push(is_end);
            if is_end {
                links[number].1 = link;
            } else {
                links[number].0 = link;
            }
        }
        Self {
            model,
            calls,
            starts: place[..answered].iter().map(|&at| calls[at].start).collect(),
            done: vec![0; place.len().div_ceil(64)],
            place,
            answered,
            operation,
            is_return,
            next: (1..=count).map(|link| link % count).collect(),
            prev: (0..count).map(|link| (link + count - 1) % count).collect(),
            links,
        }
    }

    fn call(&self, number: usize) -> &Call<M::Action> {
        self.calls[self.place[number]]
    }

    fn lift(&mut self, number: usize) {
        let (call, back) = self.links[number];
        for link in [call, back] {
            if link != 0 {
                let (prev, next) = (self.prev[link], self.next[link]);
                self.next[prev] = next;
                self.prev[next] = prev;
            }
        }
        self.done[number / 64] |= 1 << (number % 64);
    }

    /// The reverse of [`lift`](Self::lift), in reverse order.
    fn unlift(&mut self, number: usize) {
        let (call, back) = self.links[number];
        for link in [back, call] {
            if link != 0 {
                let (prev, next) = (self.prev[link], self.next[link]);
                self.next[prev] = link;
                self.prev[next] = link;
            }
        }
        self.done[number / 64] &= !(1 << (number % 64));
    }

    fn run(&mut self, steps_left: &mut u64) -> Verdict {
        let mut state = self.model.initial();
        let mut visited: BTreeSet<(Vec<u64>, M::State)> = BTreeSet::new();
        let mut stack: Vec<Taken<M::State>> = Vec::new();
        let mut left = self.answered;
        let mut furthest: Option<Stuck> = None;
        let mut link = self.next[0];
        while 0 < left {
            let Some(fewer) = steps_left.checked_sub(1) else { return Verdict::Undecided };
            *steps_left = fewer;
            if let Some((number, after, is_choice)) = self.candidate(&mut link, &state) {
                self.lift(number);
                if is_choice && !visited.insert((self.window(), after.clone())) {
                    self.unlift(number);
                    link = self.next[link];
                    continue;
                }
                left -= usize::from(number < self.answered);
                stack.push(Taken { at: number, former: state, is_choice });
                state = after;
                link = self.next[0];
                continue;
            }
            // The answer of an operation that is not in order was there: a dead end.
            if furthest.as_ref().is_none_or(|stuck| stuck.ordered.len() <= stack.len()) {
                furthest = Some(self.stuck(link, &stack));
            }
            loop {
                let Some(Taken { at, former, is_choice }) = stack.pop() else {
                    return Verdict::NotLinearizable(furthest.unwrap_or_default());
                };
                state = former;
                self.unlift(at);
                left += usize::from(at < self.answered);
                if is_choice {
                    link = self.next[self.links[at].0];
                    break;
                }
            }
        }
        Verdict::Linearizable
    }

    /// What may come now, from `link` on; `link` is left at it, or where the choices end.
    ///
    /// A read that fits may as well come now: it is no worse for the others. So only what can
    /// change something is a choice, and what has no answer only where it does.
    fn candidate(&self, link: &mut usize, state: &M::State) -> Option<(usize, M::State, bool)> {
        let is_read = |number: usize| self.model.is_read(&self.call(number).action);
        let after = |number: usize| self.model.step(state, &self.call(number).action);
        let mut at = self.next[0];
        while *link == self.next[0] && at != 0 && !self.is_return[at] {
            let number = self.operation[at];
            if number < self.answered && is_read(number) && after(number).is_some() {
                return Some((number, state.clone(), false));
            }
            at = self.next[at];
        }
        while *link != 0 && !self.is_return[*link] {
            let number = self.operation[*link];
            let is_choice =
                |after: &M::State| !is_read(number) && (number < self.answered || after != state);
            if let Some(after) = after(number).filter(is_choice) {
                return Some((number, after, true));
            }
            *link = self.next[*link];
        }
        None
    }

    /// The set of operations in order, without those that are in it by need: the number of the
    /// first answered operation that is not, the bits from there on, and those of operations
    /// without an answer.
    fn window(&self) -> Vec<u64> {
        let mut first = self.next[0];
        while first != 0 && self.answered <= self.operation[first] {
            first = self.next[first];
        }
        // A return cannot be the first, for its call is before it.
        let number = if first == 0 { self.answered } else { self.operation[first] };
        let mut window = vec![u64::try_from(number).unwrap_or(u64::MAX)];
        if number < self.answered {
            let end = self.call(number).end.unwrap_or(u64::MAX).max(self.call(number).start);
            let last = self.starts.partition_point(|&start| start <= end);
            window.extend(&self.done[number / 64..last.div_ceil(64)]);
            window[1] &= !0 << (number % 64);
        }
        window.extend(&self.done[self.answered / 64..]);
        window
    }

    fn stuck(&self, link: usize, stack: &[Taken<M::State>]) -> Stuck {
        let mut open = Vec::new();
        let at = self.operation.get(link).copied().filter(|_| link != 0);
        let mut called = self.next[0];
        while called != link && called != 0 {
            open.push(self.operation[called]);
            called = self.next[called];
        }
        let at = at.or_else(|| open.first().copied()).unwrap_or_default();
        open.retain(|&other| other != at);
        Stuck {
            ordered: stack.iter().map(|taken| self.place[taken.at]).collect(),
            at: self.place[at],
            open: open.into_iter().map(|number| self.place[number]).collect(),
        }
    }
}
