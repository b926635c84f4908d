//! A log that was damaged, and how its node takes part again (§5.4.3).
//!
//! A disk may lose what was acknowledged. Whoever loses entries has gone back on his word: an
//! entry may be committed with his copy, and he might now help to elect a leader without it. He
//! may have lost his term and vote too. The damaged part is known, so nothing wrong is read;
//! what must not be relied on is what this node promised.
//!
//! So it neither votes nor stands. It follows, takes entries and snapshots, and says that it is
//! damaged under a number drawn at random in each life. Its leader starts anew with it, and
//! counts it for nothing until *all voters that are not damaged*, and with them a quorum, have
//! answered a round that began after the leader had heard of the damage. Whatever the damaged
//! node had helped to commit earlier is in the log of that leader (Leader Completeness). And
//! nobody is a candidate of a later term, so a vote that was given in one and is forgotten helps
//! nobody: a quorum alone could not tell, for the candidate may be outside of it. Once the node
//! holds the log up to where it ended then, durably, it has lost nothing that counts. It spends
//! its vote of the term on the leader, and is whole.

use std::ops::RangeInclusive;

use crate::{
    Index, NodeId, RaftCore, Readmission, Recovered, Report, RestoreError, Round, Term, core::State,
};

/// What is wrong with the log of this node.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    range: RangeInclusive<Index>,
    /// Of this life, at random: what was said to an earlier one is not for this.
    pub(crate) life: u64,
    /// The state machine holds so much, though the log may end before.
    pub(crate) applied: Index,
    /// What the leader of this term asks for.
    asked: Option<(Term, Index)>,
}

/// What a leader knows of the damage of a follower.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ailing {
    life: u64,
    /// The newest round when this leader heard of it. Only later ones count.
    heard_at: Round,
    /// Where the log ended when a quorum without the damaged had answered.
    upto: Option<Index>,
}

impl Ailing {
    /// Whether its answers may be counted, and its readmission is only a matter of copying.
    pub(crate) fn is_proven(self) -> bool {
        self.upto.is_some()
    }

    pub(crate) fn readmission(self) -> Option<Readmission> {
        self.upto.map(|upto| Readmission { life: self.life, upto })
    }
}

/// Checks that somebody can help.
pub(crate) fn check_damage(id: NodeId, recovered: &Recovered) -> Result<(), RestoreError> {
    let (Some(damaged), Some((_, membership))) = (&recovered.damaged, recovered.memberships.last())
    else {
        return Ok(());
    };
    let is_alone = membership.is_voter(id) && membership.replicas().len() == 1;
    if is_alone {
        return Err(RestoreError::DamagedAlone { damaged: damaged.clone() });
    }
    Ok(())
}

impl Damage {
    pub(crate) fn new(range: RangeInclusive<Index>, life: u64, applied: Index) -> Self {
        Self { range, life, applied, asked: None }
    }

    pub(crate) fn range(&self) -> RangeInclusive<Index> {
        self.range.clone()
    }
}

impl RaftCore {
    // ---------------------------------------------------------------- the damaged node

    /// The leader tells what this node must hold to take part again.
    pub(crate) fn note_readmission(&mut self, readmission: Option<Readmission>) {
        let term = self.term;
        if let (Some(damage), Some(Readmission { life, upto })) = (&mut self.damage, readmission)
            && damage.life == life
        {
            damage.asked = Some((term, upto));
        }
    }

    /// Takes part again, if this node holds what it must, durably. Its vote in this term is
    /// spent: it may have given it before. In earlier terms nobody asks any more.
    pub(crate) fn maybe_recover(&mut self) {
        let (Some(damage), State::Follower(following)) = (&self.damage, &self.state) else {
            return;
        };
        let (Some(leader), Some((term, upto))) = (following.leader, damage.asked) else { return };
        let matched = following.received().min(self.writes.durable_index());
        // What the state machine holds had been committed; an honest leader asks for it too.
        if term != self.term || matched < upto.max(damage.applied) {
            return;
        }
        self.commit_index = self.commit_index.max(damage.applied);
        self.damage = None;
        self.voted_for = self.voted_for.or(Some(leader));
        self.writes.note_hard_state();
        self.writes.note_repair();
    }

    // ---------------------------------------------------------------- its leader

    /// A follower says how it is. If it is damaged and this leader did not know, nothing is
    /// known of it any more. Says whether the rest of what it says may be believed.
    pub(crate) fn note_report(&mut self, from: NodeId, report: Report) -> bool {
        let last = self.log.last().index;
        let State::Leader(leading) = &mut self.state else { return false };
        let Some(progress) = leading.progress.get_mut(&from) else { return false };
        progress.report = report;
        let known = progress.ailing.map(|ailing| ailing.life);
        let Some(life) = report.damaged.filter(|&life| known != Some(life)) else {
            progress.ailing = progress.ailing.filter(|_| report.damaged.is_some());
            return true;
        };
        let (session, heard_at) = (leading.next_session(), leading.round);
        let Some(progress) = leading.progress.get_mut(&from) else { return false };
        let sending = progress.start_anew(session, last);
        progress.ailing = Some(Ailing { life, heard_at, upto: None });
        self.snapshot_effects.extend(sending.cancel(from));
        false
    }

    /// Notes for whom of the damaged a quorum without them has answered.
    pub(crate) fn prove_ailing(&mut self) {
        let (id, last) = (self.config.id, self.log.last().index);
        let State::Leader(leading) = &mut self.state else { return };
        if leading.progress.values().all(|progress| progress.ailing.is_none()) {
            return;
        }
        // Damaged nodes have forgotten for whom they voted: none speaks for another.
        let membership = self.memberships.current();
        let healthy = membership.quorum_value(|voter| match leading.progress.get(&voter) {
            Some(progress) if progress.ailing.is_none() => progress.acked_round,
            None if voter == id => Round(u64::MAX),
            Some(_) | None => Round::default(),
        });
        let slowest = leading
            .progress
            .iter()
            .filter(|&(&voter, progress)| membership.is_voter(voter) && progress.ailing.is_none())
            .map(|(_, progress)| progress.acked_round)
            .fold(healthy, Round::min);
        for progress in leading.progress.values_mut() {
            if let Some(ailing) = &mut progress.ailing
                && ailing.upto.is_none()
                && ailing.heard_at < slowest
            {
                ailing.upto = Some(last);
            }
        }
    }
}
