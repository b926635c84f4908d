//! The requests of this host that have no answer yet, and what each of them waits for.
//!
//! Each try of a request goes to the core under a number of its own, its *attempt*: a late
//! answer to an earlier try must not be taken for the answer to this one, or a proposal could be
//! counted as refused that a second leader has appended. Attempts start from a random number, so
//! that an answer meant for an earlier life of this process finds nobody either.
//!
//! ```text
//!              ┌───────────── rejected, certainly not appended ────────────┐
//!              ▼                                                           │
//!   opened ► waiting ── a leader is known ──► submitted ── appended at ──► appended ──► applied
//!              │                                 │             │
//!              └──── deadline: rejected          └─ deadline: unknown
//! ```
//!
//! A change of the membership goes the same way, and is answered when the entry that completes
//! it is about to be applied: its own, or the one that ends the joint membership.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kontiki_raft::{
    Bytes, ChangeSet, EntryId, Index, Membership, ReadMode, Rejection, Term, Timestamp,
};

use crate::{Answer, RequestId};

/// Answers that are to be given, in order.
pub(crate) type Answers = Vec<(RequestId, Answer)>;

/// All open requests.
#[derive(Debug)]
pub(crate) struct Requests {
    /// By the number of their current attempt.
    open: BTreeMap<u64, Request>,
    /// Every open request, by its deadline.
    deadlines: BTreeSet<(Timestamp, u64)>,
    /// Refused for now, to be tried again.
    waiting: BTreeSet<u64>,
    /// Proposals that stand in a log, by place. An entry id names one entry, so one proposal.
    appended: BTreeMap<(Index, Term), u64>,
    /// Changes of the membership whose first step is committed, by its place.
    changing: BTreeSet<(Index, u64)>,
    /// Reads that need the state machine to have applied an index.
    ready: BTreeSet<(Index, u64)>,
    /// The next attempt gets this number.
    next_attempt: u64,
    /// Commands that are not in a log yet, in bytes.
    command_bytes: usize,
    /// Open reads.
    read_count: usize,
}

#[derive(Debug)]
struct Request {
    id: RequestId,
    deadline: Timestamp,
    what: What,
    stage: Stage,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// To append this. Empty once it is appended: the log holds it then.
    Proposal { command: Bytes, is_session: bool },
    /// To change the membership.
    Change(ChangeSet),
    /// To read what is committed.
    Read(ReadMode),
}

impl What {
    /// What it takes of the room for commands that no log holds yet.
    pub(crate) fn byte_len(&self) -> usize {
        const CHANGE_BYTES: usize = 1024;
        match self {
            Self::Proposal { command, .. } => command.len(),
            Self::Change(change) => CHANGE_BYTES * change.changes.len(),
            Self::Read(_) => 0,
        }
    }
}

#[derive(Debug)]
enum Stage {
    /// The core has it and will say what became of it.
    Submitted,
    /// Refused for this reason, certainly without a trace.
    Waiting(Rejection),
    /// Stands in a log under this id.
    Appended(EntryId),
    /// The first step of the change is committed at this place.
    Changing(EntryId),
    /// May be served when this is applied.
    Ready(Index),
}

impl Requests {
    /// No requests. The first attempt gets the number `first_attempt`.
    pub(crate) fn new(first_attempt: u64) -> Self {
        Self {
            open: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            waiting: BTreeSet::new(),
            appended: BTreeMap::new(),
            changing: BTreeSet::new(),
            ready: BTreeSet::new(),
            next_attempt: first_attempt,
            command_bytes: 0,
            read_count: 0,
        }
    }

    /// Commands that no log holds yet, in bytes.
    pub(crate) fn command_bytes(&self) -> usize {
        self.command_bytes
    }

    /// Reads without an answer.
    pub(crate) fn read_count(&self) -> usize {
        self.read_count
    }

    /// Whether a request waits to be tried again.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// When the next request runs out of time.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Takes in a request and returns the number of its first attempt.
    pub(crate) fn open(&mut self, id: RequestId, deadline: Timestamp, what: What) -> u64 {
        self.insert(Request { id, deadline, what, stage: Stage::Submitted })
    }

    /// Starts a new attempt of every request that waits, oldest first.
    pub(crate) fn retry(&mut self, mut submit: impl FnMut(u64, What)) {
        for attempt in std::mem::take(&mut self.waiting) {
            let Some(mut request) = self.remove(attempt) else { continue };
            request.stage = Stage::Submitted;
            let what = request.what.clone();
            submit(self.insert(request), what);
        }
    }

    /// The proposal stands in a log under `at`, which is still to be applied here.
    pub(crate) fn on_appended(&mut self, attempt: u64, at: EntryId, answers: &mut Answers) {
        let Some(request) = self.open.get_mut(&attempt) else { return };
        self.command_bytes -= request.what.byte_len();
        match &mut request.what {
            What::Proposal { command, .. } => command.clear(),
            What::Change(change) => change.changes.clear(),
            What::Read(_) => return,
        }
        request.stage = Stage::Appended(at);
        if let Some(other) = self.appended.insert((at.index, at.term), attempt)
            && let Some(request) = self.remove(other)
        {
            // Two proposals in one place: a leader has told us nonsense. Nobody is promised
            // anything.
            self.appended.insert((at.index, at.term), attempt);
            answers.push((request.id, Answer::Unknown { at: Some(at) }));
        }
    }

    /// The entry at `at`, which this request became, was handed to the state machine before it was
    /// known whose it is. A change can be told what came of it, a proposal cannot.
    pub(crate) fn on_overtaken(&mut self, attempt: u64, at: EntryId, answers: &mut Answers) {
        let is_change = |request: &Request| matches!(request.what, What::Change(_));
        if self.open.get(&attempt).is_some_and(is_change) {
            self.on_appended(attempt, at, answers);
            self.begin_change(attempt, at);
        } else {
            self.close(attempt, Answer::Unknown { at: Some(at) }, answers);
        }
    }

    /// The first step of a change is committed.
    fn begin_change(&mut self, attempt: u64, at: EntryId) {
        let Some(request) = self.open.get_mut(&attempt) else { return };
        self.appended.remove(&(at.index, at.term));
        request.stage = Stage::Changing(at);
        self.changing.insert((at.index, attempt));
    }

    /// The membership of `at` is committed: answers the changes that it completes.
    pub(crate) fn on_membership(
        &mut self,
        at: EntryId,
        membership: &Arc<Membership>,
        answers: &mut Answers,
    ) {
        if membership.is_joint() {
            return;
        }
        while let Some(&(index, attempt)) = self.changing.first()
            && index <= at.index
        {
            self.changing.pop_first();
            let membership = Arc::clone(membership);
            self.close(attempt, Answer::MembershipChanged { at, membership }, answers);
        }
    }

    /// The request was refused without a trace. Keeps it to be tried again where that may help.
    pub(crate) fn on_rejected(&mut self, attempt: u64, why: Rejection, answers: &mut Answers) {
        match why {
            Rejection::NotLeader { .. }
            | Rejection::NotReady
            | Rejection::NoState
            | Rejection::Transferring { .. }
            | Rejection::MembershipInProgress { .. } => {
                let Some(request) = self.open.get_mut(&attempt) else { return };
                request.stage = Stage::Waiting(why);
                self.waiting.insert(attempt);
            }
            Rejection::Busy
            | Rejection::TooLarge { .. }
            | Rejection::NoQuorum
            | Rejection::MembershipChanged { .. }
            | Rejection::InvalidChange(_)
            | Rejection::NoSpace
            | Rejection::NoSessions
            | Rejection::Stopped => self.close(attempt, Answer::Rejected(why), answers),
        }
    }

    /// Gives the request its answer.
    pub(crate) fn close(&mut self, attempt: u64, answer: Answer, answers: &mut Answers) {
        if let Some(request) = self.remove(attempt) {
            answers.push((request.id, answer));
        }
    }

    /// The read may be served when `index` is applied, which it is not yet.
    pub(crate) fn on_ready(&mut self, attempt: u64, index: Index) {
        let Some(request) = self.open.get_mut(&attempt) else { return };
        request.stage = Stage::Ready(index);
        self.ready.insert((index, attempt));
    }

    /// Answers the reads that waited for an index up to `applied`.
    pub(crate) fn on_applied(&mut self, applied: Index, answers: &mut Answers) {
        while let Some(&(index, attempt)) = self.ready.first()
            && index <= applied
        {
            self.ready.pop_first();
            self.close(attempt, Answer::ReadReady { index }, answers);
        }
    }

    /// Entries up to `last` are about to be applied. Returns those that answer one of our
    /// proposals; a proposal whose place another entry has taken is lost for certain.
    pub(crate) fn settle(
        &mut self,
        last: Index,
        term_at: impl Fn(Index) -> Option<Term>,
        answers: &mut Answers,
    ) -> Vec<(Index, RequestId)> {
        let mut waiters = Vec::new();
        while let Some(place) = self.appended.first_entry()
            && place.key().0 <= last
        {
            let ((index, term), attempt) = place.remove_entry();
            let at = EntryId { index, term };
            let is_ours = term_at(index) == Some(term);
            match self.open.get(&attempt) {
                Some(Request { what: What::Change(_), .. }) if is_ours => {
                    self.begin_change(attempt, at);
                }
                Some(request) if is_ours => {
                    waiters.push((index, request.id));
                    self.remove(attempt);
                }
                Some(_) => self.close(attempt, Answer::Superseded { at }, answers),
                None => {}
            }
        }
        waiters
    }

    /// The state machine is given a snapshot instead of the entries up to `last`. Whose entries
    /// these were is not known, but for the last one.
    pub(crate) fn skip(&mut self, last: EntryId, answers: &mut Answers) {
        while let Some(place) = self.appended.first_entry()
            && place.key().0 <= last.index
        {
            let ((index, term), attempt) = place.remove_entry();
            let at = EntryId { index, term };
            let answer = if index == last.index && term != last.term {
                Answer::Superseded { at }
            } else {
                Answer::Unknown { at: Some(at) }
            };
            self.close(attempt, answer, answers);
        }
    }

    /// Answers every request whose deadline has passed.
    pub(crate) fn expire(&mut self, now: Timestamp, answers: &mut Answers) {
        while let Some(&(deadline, attempt)) = self.deadlines.first()
            && deadline <= now
        {
            self.give_up(attempt, Rejection::NoQuorum, answers);
        }
    }

    /// Answers every request: the node takes part no more.
    pub(crate) fn stop(&mut self, answers: &mut Answers) {
        while let Some((&attempt, request)) = self.open.iter_mut().next() {
            if let Stage::Waiting(why) = &mut request.stage {
                *why = Rejection::Stopped;
            }
            self.give_up(attempt, Rejection::Stopped, answers);
        }
    }

    /// Answers a request with what is certain about it.
    fn give_up(&mut self, attempt: u64, read: Rejection, answers: &mut Answers) {
        let Some(request) = self.remove(attempt) else { return };
        let answer = match (request.what, request.stage) {
            (What::Read(_), _) => Answer::Rejected(read),
            (_, Stage::Waiting(why)) => Answer::Rejected(why),
            (_, Stage::Appended(at) | Stage::Changing(at)) => Answer::Unknown { at: Some(at) },
            (_, Stage::Submitted | Stage::Ready(_)) => Answer::Unknown { at: None },
        };
        answers.push((request.id, answer));
    }

    fn insert(&mut self, request: Request) -> u64 {
        let attempt = self.next_attempt;
        self.next_attempt += 1;
        self.deadlines.insert((request.deadline, attempt));
        self.command_bytes += request.what.byte_len();
        self.read_count += usize::from(matches!(request.what, What::Read(_)));
        self.open.insert(attempt, request);
        attempt
    }

    /// Forgets a request everywhere. `None` if it has had its answer before.
    fn remove(&mut self, attempt: u64) -> Option<Request> {
        let request = self.open.remove(&attempt)?;
        self.deadlines.remove(&(request.deadline, attempt));
        self.command_bytes -= request.what.byte_len();
        self.read_count -= usize::from(matches!(request.what, What::Read(_)));
        match request.stage {
            Stage::Submitted => {}
            Stage::Waiting(_) => {
                self.waiting.remove(&attempt);
            }
            Stage::Appended(at) => {
                self.appended.remove(&(at.index, at.term));
            }
            Stage::Changing(at) => {
                self.changing.remove(&(at.index, attempt));
            }
            Stage::Ready(index) => {
                self.ready.remove(&(index, attempt));
            }
        }
        Some(request)
    }
}
