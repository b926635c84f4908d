//! What clients asked and what they were told: exactly one outcome for each request, and no lie.
//!
//! - A command that was rejected or superseded is never committed; one that is answered is
//!   applied once. A proposal may not be committed twice.
//! - What was answered before a request was asked is before it in the log: a read sees every
//!   such write, and a write comes after all of them. With the values, which `truth.rs` knows,
//!   that is linearizability, checked answer by answer.
//! - Whatever its tries, an operation of a session takes effect once, after it was asked for.
//! - A request is answered, once, soon after its deadline at the latest.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kontiki_raft::{Bytes, EntryId, Index, NodeId, Rejection};

use crate::{
    command::{Action as Change, Stamp},
    ledger::Broken,
    linear::{Action, Operation},
    trace::How,
};

/// A request of a client.
#[derive(Clone, Debug)]
pub struct Request {
    /// The node that was asked.
    pub node: NodeId,
    /// When, in virtual time.
    pub asked: Duration,
    /// What for.
    pub ask: Ask,
    /// What came of it, and when. `None` while it is open.
    pub outcome: Option<(Duration, Outcome)>,
    /// Where its command was committed.
    pub committed: Option<EntryId>,
    /// What was answered before it was asked.
    floor: Index,
    /// Its command was given to the state machine: the answer comes from there.
    is_handed: bool,
    deadline: Duration,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a checker that overlooks a kind must not compile")]
pub enum Ask {
    /// A command in the log.
    Write {
        /// What it does.
        action: Change,
        /// Which operation this is a try of, if the client has a session.
        stamp: Option<Stamp>,
    },
    /// The value of a key.
    Read {
        /// The key.
        key: u64,
    },
    /// Another membership.
    Change,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a checker that overlooks an outcome must not compile")]
pub enum Outcome {
    /// The command was applied under this id.
    Applied(EntryId),
    /// The key had this value.
    Read(Option<Bytes>),
    /// The membership was changed, in full with this entry.
    Changed(EntryId),
    /// It was certainly not done.
    Rejected(Rejection),
    /// It was certainly lost.
    Superseded,
    /// Nobody knows.
    Unknown,
    /// The process died before it answered. Nobody knows.
    Gone,
}

impl Request {
    /// The key that it appends to.
    pub(crate) fn appends_to(&self) -> Option<u64> {
        match &self.ask {
            Ask::Write { action: Change::Append { key, .. }, .. } => Some(*key),
            Ask::Write { .. } | Ask::Read { .. } | Ask::Change => None,
        }
    }

    /// What the history checker is to know of it. `None` if it had no effect and told nothing, or
    /// is no matter of registers.
    pub(crate) fn operation(&self) -> Option<Operation<u64, Bytes>> {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let start = nanos(self.asked);
        let end_of = |outcome: Option<&(Duration, Outcome)>| match outcome {
            Some((at, Outcome::Applied(_))) => Some(nanos(*at)),
            _ => None,
        };
        let (key, action, end) = match (&self.ask, &self.outcome) {
            (_, Some((_, Outcome::Rejected(_) | Outcome::Superseded))) => return None,
            (Ask::Write { action: Change::Put { key, value }, stamp: None }, outcome) => {
                (*key, Action::Write(Some(value.clone())), end_of(outcome.as_ref()))
            }
            (Ask::Write { action: Change::Delete { key }, stamp: None }, outcome) => {
                (*key, Action::Write(None), end_of(outcome.as_ref()))
            }
            (Ask::Read { key }, Some((at, Outcome::Read(value)))) => {
                (*key, Action::Read(value.clone()), Some(nanos(*at)))
            }
            (Ask::Write { .. } | Ask::Read { .. } | Ask::Change, _) => return None,
        };
        Some(Operation { key, action, start, end })
    }
}

/// All requests of a world.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    all: Vec<Request>,
    /// Not answered: deadline and number.
    open: BTreeSet<(Duration, u64)>,
    /// Whatever was answered is covered by this index.
    floor: Index,
    /// What was answered before the first try of each operation.
    operations: BTreeMap<Stamp, Index>,
}

/// A request may be answered this late after its deadline: timers are late, nodes are paused.
const GRACE: Duration = Duration::from_secs(3);

impl Requests {
    pub(crate) fn ask(&mut self, node: NodeId, now: Duration, deadline: Duration, ask: Ask) -> u64 {
        let number = self.next_number();
        if let Ask::Write { stamp: Some(stamp), .. } = &ask {
            self.operations.entry(*stamp).or_insert(self.floor);
        }
        self.all.push(Request {
            node,
            asked: now,
            ask,
            outcome: None,
            committed: None,
            floor: self.floor,
            is_handed: false,
            deadline,
        });
        self.open.insert((deadline, number));
        number
    }

    /// The number that the next request gets.
    pub(crate) fn next_number(&self) -> u64 {
        u64::try_from(self.all.len()).unwrap_or(u64::MAX)
    }

    pub(crate) fn all(&self) -> &[Request] {
        &self.all
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Request> {
        self.all.get(usize::try_from(number).ok()?)
    }

    fn get_mut(&mut self, number: u64) -> Result<&mut Request, Broken> {
        usize::try_from(number)
            .ok()
            .and_then(|at| self.all.get_mut(at))
            .ok_or_else(|| format!("request #{number} was never asked"))
    }

    /// The command is handed to the state machine of the node that was asked.
    pub(crate) fn on_handed(&mut self, node: NodeId, number: u64) -> Result<(), Broken> {
        let request = self.get_mut(number)?;
        if request.node != node || request.is_handed || request.outcome.is_some() {
            return Err(format!("{node} answers #{number} once more: {request:?}"));
        }
        request.is_handed = true;
        let deadline = request.deadline;
        self.open.remove(&(deadline, number));
        Ok(())
    }

    /// The state machine has answered a handed command, which took effect at `effect`: there, or
    /// where an earlier try of the same operation stands.
    pub(crate) fn on_applied(
        &mut self,
        node: NodeId,
        now: Duration,
        number: u64,
        (at, effect): (EntryId, Index),
    ) -> Result<How, Broken> {
        let request = self.get_mut(number)?;
        if request.committed != Some(at) || !request.is_handed || request.outcome.is_some() {
            return Err(format!("{node} answers #{number} with {at}: {request:?}"));
        }
        request.outcome = Some((now, Outcome::Applied(at)));
        let (floor, stamp) = match &request.ask {
            Ask::Write { stamp, .. } => (request.floor, *stamp),
            Ask::Read { .. } | Ask::Change => (request.floor, None),
        };
        let floor = match stamp {
            Some(stamp) => self.operations.get(&stamp).copied(),
            None => Some(floor),
        };
        if floor.is_none_or(|floor| effect <= floor) {
            return Err(format!(
                "#{number} took effect at {effect}, but {floor:?} was answered before it was asked"
            ));
        }
        self.floor = self.floor.max(at.index);
        Ok(How::Applied(at))
    }

    /// A read is answered from a state machine that has applied `applied`.
    pub(crate) fn on_read(
        &mut self,
        node: NodeId,
        now: Duration,
        number: u64,
        (index, applied): (Index, Index),
        value: Option<Bytes>,
    ) -> Result<How, Broken> {
        if applied < index {
            return Err(format!("{node} serves #{number} at {index}, and has applied {applied}"));
        }
        let request = self.get_mut(number)?;
        if index < request.floor {
            return Err(format!(
                "{node} serves read #{number} at index {index}, but {} was answered before it \
                 was asked: a stale read",
                request.floor
            ));
        }
        self.close(node, now, number, Outcome::Read(value))?;
        self.floor = self.floor.max(applied);
        Ok(How::ReadReady(index))
    }

    /// A change of the membership is through: its last step is committed at `at`.
    pub(crate) fn on_changed(
        &mut self,
        node: NodeId,
        now: Duration,
        number: u64,
        at: EntryId,
    ) -> Result<(), Broken> {
        if self.get_mut(number)?.ask != Ask::Change {
            return Err(format!("{node} answers #{number} with a membership"));
        }
        self.close(node, now, number, Outcome::Changed(at))
    }

    /// The node itself has answered.
    pub(crate) fn close(
        &mut self,
        node: NodeId,
        now: Duration,
        number: u64,
        outcome: Outcome,
    ) -> Result<(), Broken> {
        let request = self.get_mut(number)?;
        if request.node != node || request.is_handed || request.outcome.is_some() {
            return Err(format!("{node} answers #{number} once more, {outcome:?}: {request:?}"));
        }
        let is_lost = matches!(outcome, Outcome::Rejected(_) | Outcome::Superseded);
        if let (true, Some(at)) = (is_lost, request.committed) {
            return Err(format!("{node} says {outcome:?} of #{number}, committed as {at}"));
        }
        request.outcome = Some((now, outcome));
        let deadline = request.deadline;
        self.open.remove(&(deadline, number));
        Ok(())
    }

    /// The process died: whatever it had not answered it never will.
    pub(crate) fn on_down(&mut self, node: NodeId, now: Duration) {
        for (number, request) in (0_u64..).zip(&mut self.all) {
            if request.node == node && request.outcome.is_none() {
                request.outcome = Some((now, Outcome::Gone));
                self.open.remove(&(request.deadline, number));
            }
        }
    }

    /// A command was committed somewhere.
    pub(crate) fn on_committed(&mut self, number: u64, at: EntryId) -> Result<(), Broken> {
        let request = self.get_mut(number)?;
        if let Some(earlier) = request.committed.replace(at) {
            return Err(format!("#{number} is committed as {at}, and was as {earlier}"));
        }
        match &request.outcome {
            Some((_, lost @ (Outcome::Rejected(_) | Outcome::Superseded))) => {
                Err(format!("#{number} is committed as {at}, and was answered {lost:?}"))
            }
            _ => Ok(()),
        }
    }

    /// The first request that should have been answered long ago. `is_excused` says of which
    /// nodes nothing can be expected.
    pub(crate) fn overdue(
        &self,
        now: Duration,
        mut is_excused: impl FnMut(NodeId) -> bool,
    ) -> Result<(), Broken> {
        for &(deadline, number) in &self.open {
            if now < deadline + GRACE {
                return Ok(());
            }
            let Some(request) = self.get(number) else { continue };
            if !is_excused(request.node) {
                let node = request.node;
                return Err(format!("{node} has not answered #{number}, due at {deadline:?}"));
            }
        }
        Ok(())
    }
}
