//! What one log holds: the term of every entry, nothing else.
//!
//! The checker keeps two of these for each node: what the node has handed out to be written,
//! and what its disk has acknowledged. By Log Matching (§5.3), which is checked apart, index
//! and term of one entry stand for the whole log up to it.

use kontiki_raft::{EntryId, Index, Recovered, Term};

/// The terms of the entries of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogView {
    /// The entry before the first.
    start: EntryId,
    terms: Vec<Term>,
}

/// Entries that a write puts into a log, replacing what was there.
#[derive(Clone, Debug)]
pub(crate) struct Delta {
    /// First of all the log is dropped, and starts again after this.
    pub(crate) reset_to: Option<EntryId>,
    pub(crate) first: Index,
    pub(crate) terms: Vec<Term>,
}

impl LogView {
    pub(crate) const fn new() -> Self {
        Self { start: EntryId::ZERO, terms: Vec::new() }
    }

    pub(crate) fn of(recovered: &Recovered) -> Self {
        let mut view = Self { start: recovered.log_start, terms: Vec::new() };
        let mut runs = recovered.term_runs.iter().peekable();
        let mut term = recovered.log_start.term;
        let mut index = recovered.log_start.index;
        while index < recovered.last.index {
            index = index.next();
            while let Some(run) = runs.next_if(|run| run.index <= index) {
                term = run.term;
            }
            view.terms.push(term);
        }
        view
    }

    pub(crate) fn start(&self) -> EntryId {
        self.start
    }

    pub(crate) fn last(&self) -> EntryId {
        let count = u64::try_from(self.terms.len()).unwrap_or(u64::MAX);
        let term = self.terms.last().copied().unwrap_or(self.start.term);
        EntryId { index: Index(self.start.index.get() + count), term }
    }

    /// The term of the entry at `index`, if the log holds it or starts right after it.
    pub(crate) fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.start.index {
            return Some(self.start.term);
        }
        self.position(index).and_then(|at| self.terms.get(at)).copied()
    }

    pub(crate) fn holds(&self, id: EntryId) -> bool {
        self.term_at(id.index) == Some(id.term)
    }

    /// Writes entries; whatever stood at their place and after it is gone.
    ///
    /// # Errors
    ///
    /// When they leave a hole, or reach below the start.
    pub(crate) fn write(&mut self, delta: &Delta) -> Result<(), String> {
        if let Some(last) = delta.reset_to {
            self.reset(last);
        }
        if delta.terms.is_empty() {
            return Ok(());
        }
        let first = delta.first;
        let (start, last) = (self.start, self.last());
        let at = self
            .position(first)
            .filter(|&at| at <= self.terms.len())
            .ok_or_else(|| format!("a write at {first} to a log of ({start}, {last}]"))?;
        self.terms.truncate(at);
        self.terms.extend_from_slice(&delta.terms);
        Ok(())
    }

    /// Drops the whole log, which starts again after `last`.
    pub(crate) fn reset(&mut self, last: EntryId) {
        *self = Self { start: last, terms: Vec::new() };
    }

    /// Whether it holds this committed entry, or begins after it.
    pub(crate) fn covers(&self, id: EntryId) -> bool {
        id.index < self.start.index || self.holds(id)
    }

    /// Forgets everything up to `upto`.
    pub(crate) fn purge(&mut self, upto: EntryId) {
        if let Some(at) = self.position(upto.index)
            && at < self.terms.len()
        {
            self.terms.drain(..=at);
            self.start = upto;
        }
    }

    /// Where the entry at `index` stands or would stand.
    fn position(&self, index: Index) -> Option<usize> {
        let offset = index.get().checked_sub(self.start.index.get())?.checked_sub(1)?;
        usize::try_from(offset).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(first: u64, terms: &[u64]) -> Delta {
        Delta {
            reset_to: None,
            first: Index(first),
            terms: terms.iter().copied().map(Term).collect(),
        }
    }

    #[test]
    fn a_write_replaces_what_follows_and_leaves_no_hole() {
        let mut view = LogView::new();
        view.write(&delta(1, &[1, 1, 1])).unwrap();
        view.write(&delta(2, &[2])).unwrap();
        assert_eq!(view.last(), EntryId::new(2, 2));
        assert!(view.holds(EntryId::new(1, 1)) && !view.holds(EntryId::new(2, 1)));
        assert!(view.write(&delta(4, &[2])).is_err());
        view.purge(EntryId::new(1, 1));
        assert_eq!(view.term_at(Index(1)), Some(Term(1)));
        assert!(view.write(&delta(1, &[3])).is_err());
        view.write(&delta(2, &[3])).unwrap();
        assert_eq!((view.start(), view.last()), (EntryId::new(1, 1), EntryId::new(2, 3)));
    }

    #[test]
    fn a_recovered_log_is_read_from_its_term_runs() {
        let recovered = Recovered {
            log_start: EntryId::new(2, 1),
            term_runs: vec![EntryId::new(3, 1), EntryId::new(5, 4)],
            last: EntryId::new(6, 4),
            ..Recovered::default()
        };
        let view = LogView::of(&recovered);
        let terms: Vec<_> = (2..=7).map(|index| view.term_at(Index(index))).collect();
        let expected = [1, 1, 1, 4, 4].map(|term| Some(Term(term)));
        assert_eq!(terms[..5], expected);
        assert_eq!((terms[5], view.last()), (None, EntryId::new(6, 4)));
    }
}
