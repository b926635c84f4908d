//! Histories of a store with etcd's revisions, judged by the revisions in its answers.
//!
//! Every change takes the next revision, and every answer carries the revision of the store at
//! that moment. So the order is given: changes by revision, and after each change the reads that
//! carry its revision. It is the only order that can explain the history, and it is checked in
//! one pass: against real time, and by doing it all again on a map.
//!
//! Only a change whose answer was lost has no revision. It fills a revision that nobody else
//! claims, or did not happen; the pass tries those that fit, and comes back when one of them
//! leads nowhere.
//!
//! [`Store`] is the same store for the [`search`](super::search), which does not trust the
//! revisions to give the order. It is slower, and the oracle of this one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{Call, Model};

/// How many revisions are told before the search for lost answers is given up. A history that
/// can be explained needs about one step for each revision.
const STEPS_MAX: u64 = 1_000_000;

/// What is asked of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a checker that overlooks a kind must not compile")]
pub enum Request {
    /// A key is given a value.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A key is deleted. Nothing changes if it is not there.
    Delete {
        /// The key.
        key: String,
    },
    /// If `guard` was last changed at the revision `unchanged_since` (0: it is not there), all
    /// of `puts` are done at one revision. Otherwise nothing changes.
    PutIf {
        /// The key that is compared.
        guard: String,
        /// Its `mod_revision`.
        unchanged_since: u64,
        /// Keys and values. Never empty, no key twice.
        puts: Vec<(String, String)>,
    },
    /// All keys of `from..to`, or `from` alone, as they are at this moment.
    Range {
        /// The first key.
        from: String,
        /// The first key that is not in it.
        to: Option<String>,
    },
}

impl Request {
    /// A read of one key.
    #[must_use]
    pub fn get(key: &str) -> Self {
        Self::Range { from: key.to_owned(), to: None }
    }
}

/// A key that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::exhaustive_structs, reason = "callers build histories of it")]
pub struct Found {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// The revision of its last change.
    pub mod_revision: u64,
}

/// What the store answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "callers build histories of it")]
pub struct Answer {
    /// The revision in the header: of the change, or of the store when nothing was changed.
    pub revision: u64,
    /// Something was changed.
    pub is_changed: bool,
    /// What a range found, by key.
    pub found: Vec<Found>,
}

/// A request with its answer, if there was one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "callers build histories of it")]
pub struct Exchange {
    /// What was asked.
    pub request: Request,
    /// What was answered. `None` exactly if the call has no end.
    pub answer: Option<Answer>,
}

/// What is known of a key: its value and the revision of its last change.
type Keys = BTreeMap<String, (String, u64)>;

/// The store before the history, and a model for the [`search`](super::search).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Store {
    revision: u64,
    keys: Keys,
}

impl Store {
    /// An empty store. etcd's first change has revision 2, so its empty store has revision 1.
    #[must_use]
    pub const fn empty() -> Self {
        Self { revision: 1, keys: BTreeMap::new() }
    }

    /// A store that has seen changes, none of them to keys of the history.
    #[must_use]
    pub const fn at(revision: u64) -> Self {
        Self { revision, keys: BTreeMap::new() }
    }

    /// Does what is asked, and returns what has to be answered.
    pub fn apply(&mut self, request: &Request) -> Answer {
        let next = self.revision + 1;
        let mut found = Vec::new();
        let is_changed = match request {
            Request::Put { key, value } => {
                self.keys.insert(key.clone(), (value.clone(), next));
                true
            }
            Request::Delete { key } => self.keys.remove(key).is_some(),
            Request::PutIf { guard, unchanged_since, puts } => {
                let is_unchanged = self.mod_revision(guard) == *unchanged_since;
                for (key, value) in puts.iter().filter(|_| is_unchanged) {
                    self.keys.insert(key.clone(), (value.clone(), next));
                }
                is_unchanged
            }
            Request::Range { from, to } => {
                found = self.range(from, to.as_deref());
                false
            }
        };
        self.revision += u64::from(is_changed);
        Answer { revision: self.revision, is_changed, found }
    }

    fn mod_revision(&self, key: &str) -> u64 {
        self.keys.get(key).map_or(0, |(_, revision)| *revision)
    }

    fn range(&self, from: &str, to: Option<&str>) -> Vec<Found> {
        let found = |(key, (value, revision)): (&String, &(String, u64))| Found {
            key: key.clone(),
            value: value.clone(),
            mod_revision: *revision,
        };
        match to {
            None => self.keys.get_key_value(from).map(found).into_iter().collect(),
            Some(to) if from < to => {
                self.keys.range(from.to_owned()..to.to_owned()).map(found).collect()
            }
            Some(_) => Vec::new(),
        }
    }
}

impl Model for Store {
    type State = Self;
    type Action = Exchange;
    type Part = ();

    fn initial(&self) -> Self {
        self.clone()
    }

    fn step(&self, state: &Self, exchange: &Exchange) -> Option<Self> {
        let mut after = state.clone();
        let answer = after.apply(&exchange.request);
        exchange.answer.as_ref().is_none_or(|told| *told == answer).then_some(after)
    }

    fn is_read(&self, exchange: &Exchange) -> bool {
        let is_range = matches!(exchange.request, Request::Range { .. });
        is_range || exchange.answer.as_ref().is_some_and(|answer| !answer.is_changed)
    }

    /// The revision couples all keys.
    fn parts(&self, _: &Exchange) -> Vec<()> {
        vec![()]
    }
}

/// Why a history cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unexplained {
    /// Up to here all is explained.
    pub revision: u64,
    /// What is wrong with what comes next.
    pub what: &'static str,
    /// The operation that cannot follow.
    pub stuck: Option<Call<Exchange>>,
    /// One that it contradicts.
    pub because: Option<Call<Exchange>>,
    /// False if there were too many ways to try them all. Never to be taken for a yes.
    pub is_decided: bool,
}

impl fmt::Display for Unexplained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "all is explained up to revision {}; then: {}", self.revision, self.what)?;
        for (label, call) in [("stuck", &self.stuck), ("because", &self.because)] {
            if let Some(call) = call {
                writeln!(f, "  {label} {call:?}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Unexplained {}

/// Checks a history by its revisions. `initial` is the store before it.
///
/// # Errors
///
/// Where the longest explanation ends, and what cannot follow.
pub fn check(initial: &Store, history: &[Call<Exchange>]) -> Result<(), Box<Unexplained>> {
    let mut by_revision = Ordered::new(initial, history)?;
    by_revision.explain(initial)
}

/// A history, by revision.
struct Ordered<'a> {
    history: &'a [Call<Exchange>],
    /// The change that was answered with this revision.
    changes: BTreeMap<u64, usize>,
    /// What changed nothing, by the revision that it saw.
    reads: BTreeMap<u64, Vec<usize>>,
    /// Changes without an answer, by their start.
    unknown: Vec<usize>,
    last: u64,
    /// For each revision that nobody claims: which key and value a read has found there.
    seen: BTreeMap<u64, BTreeSet<(&'a str, &'a str)>>,
    steps_left: u64,
    furthest: Option<Box<Unexplained>>,
}

/// The explanation so far.
#[derive(Clone)]
struct Told {
    store: Store,
    used: Vec<bool>,
    /// Of all that is told, what was called last.
    latest: Option<usize>,
}

impl<'a> Ordered<'a> {
    fn new(initial: &Store, history: &'a [Call<Exchange>]) -> Result<Self, Box<Unexplained>> {
        let mut all = Self {
            history,
            changes: BTreeMap::new(),
            reads: BTreeMap::new(),
            unknown: Vec::new(),
            last: initial.revision,
            seen: BTreeMap::new(),
            steps_left: STEPS_MAX,
            furthest: None,
        };
        for (at, call) in history.iter().enumerate() {
            let Some(answer) = &call.action.answer else {
                if !matches!(call.action.request, Request::Range { .. }) {
                    all.unknown.push(at);
                }
                continue;
            };
            all.last = all.last.max(answer.revision);
            for found in &answer.found {
                all.last = all.last.max(found.mod_revision);
                let pairs = all.seen.entry(found.mod_revision).or_default();
                pairs.insert((&found.key, &found.value));
            }
            if !answer.is_changed {
                all.reads.entry(answer.revision).or_default().push(at);
            } else if let Some(other) = all.changes.insert(answer.revision, at) {
                let what = "a revision was given to two changes";
                return Err(all.unexplained(initial.revision, what, Some(at), Some(other)));
            }
        }
        all.unknown.sort_by_key(|&at| history[at].start);
        let early = all.changes.range(..=initial.revision).map(|(_, &at)| at).next();
        let before = all.reads.range(..initial.revision).map(|(_, reads)| reads[0]).next();
        if let Some(at) = early.or(before) {
            let what = "its revision is older than the history";
            return Err(all.unexplained(initial.revision, what, Some(at), None));
        }
        Ok(all)
    }

    fn unexplained(
        &self,
        revision: u64,
        what: &'static str,
        stuck: Option<usize>,
        because: Option<usize>,
    ) -> Box<Unexplained> {
        let call = |at: usize| self.history[at].clone();
        let (stuck, because) = (stuck.map(call), because.map(call));
        Box::new(Unexplained { revision, what, stuck, because, is_decided: true })
    }

    fn explain(&mut self, initial: &Store) -> Result<(), Box<Unexplained>> {
        let start =
            Told { store: initial.clone(), used: vec![false; self.unknown.len()], latest: None };
        // What can still be told from where; the last is tried first.
        let mut open = vec![self.tell_reads(start)?];
        let mut visited = BTreeSet::new();
        while let Some(told) = open.pop() {
            if told.store.revision == self.last {
                return Ok(());
            }
            let Some(fewer) = self.steps_left.checked_sub(1) else {
                let what = "too many ways to explain it";
                let mut undecided = self.unexplained(told.store.revision, what, None, None);
                undecided.is_decided = false;
                return Err(undecided);
            };
            self.steps_left = fewer;
            let is_given = self.changes.contains_key(&(told.store.revision + 1));
            for next in self.next(&told).into_iter().rev() {
                // The rest depends on nothing else. Without a choice nothing comes twice.
                if is_given
                    || visited.insert((next.store.clone(), next.used.clone(), self.start_of(&next)))
                {
                    open.push(next);
                }
            }
        }
        Err(self.furthest.take().unwrap_or_else(|| {
            self.unexplained(initial.revision, "there is no explanation", None, None)
        }))
    }

    fn start_of(&self, told: &Told) -> Option<u64> {
        told.latest.map(|at| self.history[at].start)
    }

    /// All that can have the next revision, with the reads that follow it.
    fn next(&mut self, told: &Told) -> Vec<Told> {
        let revision = told.store.revision + 1;
        if let Some(&at) = self.changes.get(&revision) {
            let told = self.tell(told.clone(), at).and_then(|told| self.tell_reads(told));
            return told.map_err(|unexplained| self.note(unexplained)).into_iter().collect();
        }
        let seen = self.seen.get(&revision).cloned().unwrap_or_default();
        let mut all = Vec::new();
        let mut refused = None;
        for (number, at) in self.unknown.clone().into_iter().enumerate() {
            if told.used[number] || !seen.iter().all(|&pair| self.writes(at, pair)) {
                continue;
            }
            let mut next = told.clone();
            next.used[number] = true;
            match self.tell(next, at).and_then(|next| self.tell_reads(next)) {
                Ok(next) => all.push(next),
                Err(unexplained) => refused = Some(unexplained),
            }
        }
        if all.is_empty() {
            let what = "nobody can have made this change";
            let lost = refused.unwrap_or_else(|| self.unexplained(revision - 1, what, None, None));
            self.note(lost);
        }
        all
    }

    /// Whether an operation writes this pair.
    fn writes(&self, at: usize, (key, value): (&str, &str)) -> bool {
        match &self.history[at].action.request {
            Request::Put { key: other, value: written } => key == other && value == written,
            Request::PutIf { puts, .. } => puts.iter().any(|(k, v)| key == k && value == v),
            Request::Delete { .. } | Request::Range { .. } => false,
        }
    }

    fn note(&mut self, unexplained: Box<Unexplained>) {
        let best = self.furthest.as_ref().map(|best| best.revision);
        if best.is_none_or(|revision| revision < unexplained.revision) {
            self.furthest = Some(unexplained);
        }
    }

    /// Tells one operation.
    fn tell(&self, mut told: Told, at: usize) -> Result<Told, Box<Unexplained>> {
        let (call, before) = (&self.history[at], told.store.revision);
        if let (Some(end), Some(latest)) = (call.end, told.latest)
            && end < self.history[latest].start
        {
            let what = "it was answered before something of an earlier revision was asked";
            return Err(self.unexplained(before, what, Some(at), Some(latest)));
        }
        let answer = told.store.apply(&call.action.request);
        let is_right = match &call.action.answer {
            Some(told) => *told == answer,
            // One that changes nothing fills no revision.
            None => answer.is_changed,
        };
        if !is_right {
            return Err(self.unexplained(before, "its answer is wrong", Some(at), None));
        }
        if told.latest.is_none_or(|latest| self.history[latest].start < call.start) {
            told.latest = Some(at);
        }
        Ok(told)
    }

    /// Tells what saw this revision. Those operations change nothing, so any order will do.
    fn tell_reads(&self, mut told: Told) -> Result<Told, Box<Unexplained>> {
        let reads = self.reads.get(&told.store.revision).map_or(&[][..], Vec::as_slice);
        let latest = told.latest;
        let mut last = latest;
        for &at in reads {
            told.latest = latest;
            told = self.tell(told, at)?;
            let start = |at: usize| self.history[at].start;
            if told.latest.map(start) > last.map(start) {
                last = told.latest;
            }
        }
        told.latest = last;
        Ok(told)
    }
}
