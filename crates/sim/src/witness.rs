//! What the checker knows of one node, over all its lives.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::RangeInclusive,
};

use kontiki_raft::{EntryId, HardState, Index, NodeId, Recovered, Term};

use crate::{
    ledger::Broken,
    view::{Delta, LogView},
};

/// What the checker knows of one node, over all its lives.
#[derive(Clone, Debug)]
pub(crate) struct Witness {
    pub(crate) id: NodeId,
    /// Handed out to be written.
    pub(crate) view: LogView,
    /// Acknowledged by the disk.
    pub(crate) durable: LogView,
    /// Acknowledged by the disk.
    pub(crate) hard_state: HardState,
    /// Handed out to be written.
    pub(crate) newest: HardState,
    /// Handed out, not yet with the disk.
    pub(crate) waiting: VecDeque<Pending>,
    /// With the disk as one record, not yet acknowledged.
    pub(crate) record: Vec<Pending>,
    pub(crate) votes: BTreeMap<Term, NodeId>,
    /// Entries up to here may be gone.
    pub(crate) purged: Index,
    /// What it had acknowledged each time before it was damaged, be it while it was refilled from
    /// the time before: whoever was told so counts it still, and may, for a quorum without it
    /// decides before it takes part again.
    lost: Vec<LogView>,
    /// Its disk was damaged on purpose since it was last opened.
    pub(crate) may_be_damaged: bool,
    /// It has lost acknowledged entries, and has not said that it has got them back.
    pub(crate) is_damaged: bool,
    pub(crate) life: Life,
}

#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) delta: Delta,
    pub(crate) hard_state: Option<HardState>,
    pub(crate) is_repaired: bool,
}

/// What is forgotten in a crash.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Life {
    pub(crate) term: Term,
    pub(crate) leads: Option<Term>,
    pub(crate) commit: Index,
    pub(crate) applied: Index,
    /// Handed to the state machine.
    pub(crate) handed: Index,
    /// The snapshot that its log was dropped for, until it is applied.
    pub(crate) installs: Option<EntryId>,
    pub(crate) is_stopped: bool,
    /// Its log begins after what its state machine holds: it applies nothing before it has
    /// taken over a snapshot.
    pub(crate) is_bereft: bool,
}

impl Witness {
    pub(crate) fn new(id: NodeId) -> Self {
        Self {
            id,
            view: LogView::new(),
            durable: LogView::new(),
            hard_state: HardState::default(),
            newest: HardState::default(),
            waiting: VecDeque::new(),
            record: Vec::new(),
            votes: BTreeMap::new(),
            purged: Index::ZERO,
            lost: Vec::new(),
            may_be_damaged: false,
            is_damaged: false,
            life: Life::default(),
        }
    }

    /// Takes a write for durable, and looks at the vote that comes with it.
    pub(crate) fn acknowledge(&mut self, pending: &Pending) -> Result<(), Broken> {
        self.durable.write(&pending.delta)?;
        let Some(state) = pending.hard_state else {
            self.is_damaged &= !pending.is_repaired;
            return Ok(());
        };
        self.assert_hard_state(self.hard_state, state)?;
        self.is_damaged &= !pending.is_repaired;
        self.hard_state = state;
        if let Some(vote) = state.voted_for {
            let earlier = self.votes.insert(state.term, vote);
            // Whoever is let in again votes for whom it follows, which has won that term without
            // it; what it had voted before the damage nobody counts any more.
            if !pending.is_repaired && earlier.is_some_and(|earlier| earlier != vote) {
                return Err(format!(
                    "{} votes for {vote} in term {}, after it has voted for {earlier:?}",
                    self.id, state.term
                ));
            }
        }
        Ok(())
    }

    /// A log was opened: it must hold exactly what the disk had acknowledged, or that and the
    /// one whole record that was on its way. True if that record was there and is gone.
    ///
    /// A log that was damaged on purpose may end earlier, if it says so.
    pub(crate) fn restart(&mut self, recovered: &Recovered) -> Result<bool, Broken> {
        let (found, state) = (LogView::of(recovered), recovered.hard_state);
        if let Some(damaged) = &recovered.damaged {
            self.restart_damaged(&found, damaged)?;
            self.begin_life(found, recovered);
            return Ok(false);
        }
        if self.is_damaged {
            return Err(format!("{} has forgotten that its log is damaged", self.id));
        }
        let mut is_torn = !self.record.is_empty();
        if !self.is_durable(&found, state) {
            is_torn = false;
            let before = (self.durable.last(), self.hard_state);
            for pending in std::mem::take(&mut self.record) {
                self.acknowledge(&pending)?;
            }
            if !self.is_durable(&found, state) {
                return Err(format!(
                    "the disk of {} had acknowledged {} after {} with {:?}, purged to {} at most, \
                     and holds {} after {} with {state:?}",
                    self.id,
                    before.0,
                    self.durable.start(),
                    before.1,
                    self.purged,
                    found.last(),
                    found.start(),
                ));
            }
        }
        self.begin_life(found, recovered);
        Ok(is_torn)
    }

    fn begin_life(&mut self, found: LogView, recovered: &Recovered) {
        let state = recovered.hard_state;
        self.record.clear();
        self.may_be_damaged = false;
        self.durable = found.clone();
        self.view = found;
        self.hard_state = state;
        self.newest = state;
        self.life = Life {
            term: state.term,
            applied: recovered.applied,
            handed: recovered.applied,
            is_bereft: recovered.applied < recovered.log_start.index,
            ..Life::default()
        };
    }

    /// Of what the disk had acknowledged there is a front, and the log says what is missing.
    fn restart_damaged(
        &mut self,
        found: &LogView,
        damaged: &RangeInclusive<Index>,
    ) -> Result<(), Broken> {
        if !self.may_be_damaged && !self.is_damaged {
            return Err(format!("the log of {} is damaged, and nobody has done it", self.id));
        }
        let (last, lost) = (found.last().index, *damaged.start());
        // The record that was on its way may be there.
        let mut with_record = self.durable.clone();
        for pending in &self.record {
            with_record.write(&pending.delta)?;
        }
        let is_front_of = |held: &LogView| {
            let start = held.start().index.max(found.start().index);
            let agrees = (start.get()..=last.get().min(held.last().index.get()))
                .all(|index| found.term_at(Index(index)) == held.term_at(Index(index)));
            // What was damaged before may be refilled in part, and a leader may have cut what is
            // before it.
            let is_known = self.is_damaged && (lost <= last.next() || found.last() == held.last());
            agrees && (lost == last.next() || is_known)
        };
        if !is_front_of(&self.durable) && !is_front_of(&with_record) {
            return Err(format!(
                "{} says that it has lost {damaged:?}, and holds {last}; it held {}",
                self.id,
                self.durable.last()
            ));
        }
        // Where nothing at all is kept the log begins anew; the state covers what is before, or
        // the server would not start.
        self.purged = self.purged.max(found.start().index);
        if !self.is_damaged {
            self.lost.clear();
        }
        self.lost.push(self.durable.clone());
        self.is_damaged = true;
        Ok(())
    }

    /// Whether this is what the disk has acknowledged. A purge is not durable at once, so the
    /// log may start earlier, and one that failed has done something, so it may start later.
    fn is_durable(&self, found: &LogView, state: HardState) -> bool {
        let start = self.durable.start().index.max(found.start().index);
        let last = self.durable.last();
        state == self.hard_state
            && found.last() == last
            && found.start().index <= self.purged
            && (start.get()..=last.index.get())
                .all(|index| found.term_at(Index(index)) == self.durable.term_at(Index(index)))
    }

    /// Whether its disk has acknowledged this entry, and has not gone back on it.
    pub(crate) fn holds(&self, id: EntryId) -> bool {
        let lost = || self.is_damaged && self.lost.iter().any(|lost| lost.holds(id));
        self.durable.holds(id) || lost()
    }

    pub(crate) fn assert_voted(&self, term: Term, candidate: NodeId) -> Result<(), Broken> {
        if self.votes.get(&term) == Some(&candidate) {
            return Ok(());
        }
        Err(format!(
            "{} speaks of its vote for {candidate} in term {term}, but its disk holds {:?}",
            self.id, self.hard_state
        ))
    }

    /// Term, vote in a term, and commit index only grow. Who has lost entries does not know how
    /// much of them was committed.
    pub(crate) fn assert_hard_state(
        &self,
        before: HardState,
        after: HardState,
    ) -> Result<(), Broken> {
        let keeps_vote = before.term < after.term
            || before.voted_for.is_none()
            || before.voted_for == after.voted_for;
        let keeps_commit = self.is_damaged || before.commit <= after.commit;
        if after.term < before.term || !keeps_vote || !keeps_commit {
            return Err(format!("{} writes {after:?} after {before:?}", self.id));
        }
        Ok(())
    }
}
