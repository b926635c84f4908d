//! Pitfall D15. Nothing that a peer says makes a node panic.
//!
//! One node among peers that say anything: every kind of message, with fields near to what
//! would be true, at the ends of their range, or arbitrary. Its host is honest. Safety is not
//! to be had among liars; what is claimed is that no invariant of the core can be broken from
//! outside, and that its host is never asked for nonsense.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use kontiki_raft::{
    AppendEntries, AppendEntriesReply, AppendResult, Apply, Body, Bytes, Change, ChangeSet, Config,
    Effects, Entry, EntryId, HardState, Index, Input, LogWrite, MemberRole, Membership, Message,
    NodeId, Outbound, Payload, Promotion, Proposal, ProposalId, RaftCore, ReadId, ReadMode,
    Readmission, Recovered, Rejection, Report, RequestVote, RequestVoteReply, Role, Round, Session,
    SnapshotMeta, StoreId, Term, Timestamp, Unavailable, VoteKind,
};

const SEEDS: u64 = 300;
const STEPS: u64 = 1_500;

#[test]
fn no_message_makes_a_node_panic() {
    let mut seen = Seen::default();
    for seed in 0..SEEDS {
        let mut node = Node::new(seed);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..STEPS {
                node.step();
                seen.note(&node);
            }
        }));
        if let Err(panic) = outcome {
            let trace = node.trace.iter().cloned().collect::<Vec<_>>().join("\n  ");
            let what = panic.downcast_ref::<String>().map_or("a panic", String::as_str);
            panic!("seed {seed}: {what}\nafter:\n  {trace}");
        }
    }
    // A test that never leads, commits or purges would prove nothing.
    assert!(SEEDS / 10 < seen.led, "{seen:?}");
    assert!(SEEDS / 10 < seen.committed, "{seen:?}");
    assert!(SEEDS / 10 < seen.purged, "{seen:?}");
    assert!(SEEDS / 10 < seen.replaced, "{seen:?}");
    assert!(SEEDS / 10 < seen.reconfigured, "{seen:?}");
    assert!(SEEDS / 10 < seen.led_joint, "{seen:?}");
    assert!(SEEDS / 10 < seen.installed, "{seen:?}");
    assert!(SEEDS / 10 < seen.recovered, "{seen:?}");
}

/// How often a node came to places where a panic could hide.
#[derive(Debug, Default)]
struct Seen {
    led: u64,
    committed: u64,
    purged: u64,
    replaced: u64,
    reconfigured: u64,
    led_joint: u64,
    installed: u64,
    recovered: u64,
}

impl Seen {
    fn note(&mut self, node: &Node) {
        let status = node.core.status();
        self.led += u64::from(status.soft_state.role == Role::Leader);
        self.committed += u64::from(Index::ZERO < status.commit_index);
        self.purged += u64::from(Index::ZERO < status.log_start.index);
        self.replaced += u64::from(node.has_replaced);
        self.reconfigured += u64::from(node.has_reconfigured);
        self.installed += u64::from(node.has_installed);
        self.recovered += u64::from(node.has_recovered);
        let is_leader = status.soft_state.role == Role::Leader;
        self.led_joint += u64::from(is_leader && status.membership.is_joint());
    }
}

/// A node and its honest host.
struct Node {
    rng: Rng,
    now: Timestamp,
    core: RaftCore,
    log_start: EntryId,
    log: Vec<Entry>,
    writes: VecDeque<LogWrite>,
    handed: Index,
    applied: Index,
    requests: u64,
    has_replaced: bool,
    has_reconfigured: bool,
    has_installed: bool,
    has_recovered: bool,
    /// The number under which the node says that it is damaged.
    life: Option<u64>,
    newest_session: Session,
    newest_round: Round,
    /// The last things that happened.
    trace: VecDeque<String>,
}

impl Node {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let mut config = Config::new(NodeId(1), seed);
        config.purge_entries_min = 1 + rng.below(3);
        config.log_keep_bytes = rng.below(200);
        config.log_bytes_max = 200 + rng.below(400);
        config.log_cache_bytes_max = usize::try_from(rng.below(200)).expect("small");
        config.inflight_messages_max = usize::try_from(1 + rng.below(4)).expect("small");
        config.clock_drift_ppm_max = 500;
        let count = 1 + 2 * rng.below(3);
        let voters = (1..=count).map(|id| (NodeId(id), ""));
        let recovered = Recovered {
            hard_state: HardState::default(),
            memberships: vec![(EntryId::ZERO, Arc::new(Membership::of_voters(voters)))],
            is_pristine: true,
            // Where there is somebody to help.
            damaged: (1 < count && rng.below(6) == 0).then_some(Index(1)..=Index(4)),
            ..Recovered::default()
        };
        let now = Timestamp(1);
        let core = RaftCore::new(config, recovered, now).expect("a pristine node starts");
        Self {
            rng,
            now,
            core,
            log_start: EntryId::ZERO,
            log: Vec::new(),
            writes: VecDeque::new(),
            handed: Index::ZERO,
            applied: Index::ZERO,
            requests: 0,
            has_replaced: false,
            has_reconfigured: false,
            has_installed: false,
            has_recovered: false,
            life: None,
            newest_session: Session::default(),
            newest_round: Round::default(),
            trace: VecDeque::new(),
        }
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(self.rng.below(40));
        let input = self.draw_input();
        self.trace.push_back(format!("{} {input:?}", self.now));
        if 12 < self.trace.len() {
            self.trace.pop_front();
        }
        self.core.step(self.now, input);
        if self.rng.below(3) != 0 {
            self.poll();
        }
    }

    fn draw_input(&mut self) -> Input {
        self.requests += 1;
        match self.rng.below(49) {
            47 => {
                let sent = (self.rng.below(2) == 0).then(|| self.draw_id());
                let session = Session(self.near(&[5]));
                Input::SnapshotSent { to: NodeId(self.rng.below(7)), session, sent }
            }
            48 => Input::StorageSpace { is_full: self.rng.below(20) == 0 },
            45 if self.rng.below(24) == 0 => self.draw_snapshot(),
            43..=46 | 40 | 41 => Input::ChangeMembership {
                id: ProposalId(self.requests),
                change: self.draw_change(),
            },
            42 => {
                Input::PeerStore { id: NodeId(self.near(&[1])), store: StoreId(self.rng.below(9)) }
            }
            0 | 1 => {
                let id = ProposalId(self.requests);
                let command = Bytes::from(vec![7; 40]);
                Input::Propose(vec![Proposal { id, command, is_session: false }])
            }
            2 => {
                let mode =
                    if self.rng.below(2) == 0 { ReadMode::Lease } else { ReadMode::ReadIndex };
                Input::Read { id: ReadId(self.requests), mode }
            }
            3 => Input::Campaign,
            4 => Input::TransferLeadership { to: Some(NodeId(self.rng.below(7))) },
            5 => Input::PeerUnreachable { id: NodeId(self.rng.below(7)) },
            6 => {
                let session = Session(self.rng.below(4));
                Input::EntriesUnavailable {
                    to: NodeId(self.rng.below(7)),
                    session,
                    why: if self.rng.below(8) == 0 {
                        Unavailable::Damaged
                    } else {
                        Unavailable::Retry
                    },
                }
            }
            7..=10 => Input::Timeout,
            11..=18 => match self.writes.pop_front() {
                Some(write) => Input::Persisted(write.ticket),
                None => Input::Timeout,
            },
            19..=21 => {
                self.applied = self.handed;
                Input::Applied { upto: self.applied, durable: self.applied }
            }
            _ => Input::Message { from: NodeId(self.rng.below(7)), message: self.draw_message() },
        }
    }

    fn poll(&mut self) {
        let mut effects = Effects::default();
        self.core.poll(self.now, &mut effects);
        if let Some(write) = effects.write.take() {
            if let Some(meta) = &write.batch.reset_to {
                self.log.clear();
                self.log_start = meta.last;
            }
            if let Some(first) = write.batch.entries.first() {
                let place = first.id.index.get() - self.log_start.index.get() - 1;
                let place = usize::try_from(place).expect("in the log");
                assert!(place <= self.log.len(), "a write leaves a hole");
                self.has_replaced |= place < self.log.len();
                self.log.truncate(place);
                self.log.extend(write.batch.entries.iter().cloned());
            }
            self.writes.push_back(write);
        }
        if let Some((at, membership)) = effects.membership.take() {
            assert!(0 < membership.voters().count(), "{at}: nobody could decide anything");
            self.has_reconfigured |= at != EntryId::ZERO;
        }
        for outbound in effects.messages.drain(..) {
            if let Outbound::Send(envelope) = &outbound
                && let Body::AppendEntries(append) = &envelope.message.body
            {
                (self.newest_session, self.newest_round) = (append.session, append.round);
            }
            if let Outbound::Send(envelope) = &outbound
                && let Body::AppendEntriesReply(reply) = &envelope.message.body
            {
                self.has_recovered |= self.life.is_some() && reply.report.damaged.is_none();
                self.life = reply.report.damaged;
            }
            if let Outbound::SendStored { range, .. } = outbound {
                assert!(!range.is_empty(), "something is to be read: {range:?}");
                assert!(self.holds(*range.start()), "{} is not here", range.start());
                assert!(self.holds(*range.end()), "{} is not here", range.end());
            }
        }
        for apply in effects.apply.drain(..) {
            let (first, last) = match apply {
                Apply::Entries(entries) => (
                    entries.first().expect("not empty").id.index,
                    entries.last().expect("not empty").id.index,
                ),
                Apply::Stored(range) => (*range.start(), *range.end()),
                Apply::Snapshot(meta) => {
                    assert!(self.handed < meta.last.index, "the state does not go back");
                    let is_reset = self.writes.iter().all(|write| write.batch.reset_to.is_none());
                    assert!(is_reset, "the log was reset before, durably: {meta:?}");
                    self.has_installed = true;
                    self.handed = meta.last.index;
                    continue;
                }
            };
            assert_eq!(first, self.handed.next(), "entries are applied in order");
            self.handed = last;
        }
        if let Some(upto) = effects.purge {
            assert!(upto.index <= self.applied, "what is purged was applied: {upto}");
            let gone = self.log.iter().filter(|entry| entry.id.index <= upto.index).count();
            self.log.drain(..gone);
            self.log_start = upto;
            self.core.step(self.now, Input::Purged { upto });
        }
    }

    fn holds(&self, index: Index) -> bool {
        self.log.iter().any(|entry| entry.id.index == index)
    }

    // ------------------------------------------------------------ what peers say

    fn draw_message(&mut self) -> Message {
        let status = self.core.status();
        let (term, is_leader) = (status.term(), status.soft_state.role == Role::Leader);
        let term = match self.rng.below(24) {
            0 => self.rng.next(),
            1 => u64::MAX,
            2 => term.get().wrapping_sub(1),
            3 => term.get().wrapping_add(1),
            _ => term.get(),
        };
        let body = match self.rng.below(if is_leader { 20 } else { 16 }) {
            0 => Body::RequestVote(RequestVote {
                kind: self.draw_kind(),
                for_term: Term(self.near(&[term, term.wrapping_add(1)])),
                last: self.draw_id(),
            }),
            1..=4 => Body::RequestVoteReply(RequestVoteReply {
                kind: self.draw_kind(),
                for_term: Term(self.near(&[term, term.wrapping_add(1)])),
                granted: self.rng.below(4) != 0,
            }),
            5..=10 => Body::AppendEntries(self.draw_append(term)),
            11 => Body::TimeoutNow { last: self.draw_id() },
            12 => {
                let id = ProposalId(self.near(&[]));
                let command = Bytes::from_static(b"theirs");
                Body::Propose(vec![Proposal { id, command, is_session: false }])
            }
            13 if self.rng.below(2) == 0 => {
                let id = ProposalId(self.near(&[]));
                Body::ChangeMembership { id, change: self.draw_change() }
            }
            13 => {
                let result =
                    if self.rng.below(2) == 0 { Ok(self.draw_id()) } else { Err(Rejection::Busy) };
                Body::ProposeReply(vec![(ProposalId(self.near(&[])), result)])
            }
            14 => Body::ReadIndex { batch: self.near(&[]) },
            15 => Body::ReadIndexReply { batch: self.near(&[]), result: Ok(self.draw_index()) },
            _ => self.draw_append_reply(),
        };
        Message { term: Term(term), body }
    }

    fn draw_kind(&mut self) -> VoteKind {
        match self.rng.below(3) {
            0 => VoteKind::PreVote,
            1 => VoteKind::Vote,
            _ => VoteKind::Transfer,
        }
    }

    fn draw_append(&mut self, term: u64) -> AppendEntries {
        let prev = self.draw_id();
        let mut id = prev;
        let count = self.rng.below(6);
        let mut entries = Vec::new();
        for _ in 0..count {
            // The decoder makes indexes consecutive; everything else is up to the sender.
            let Some(index) = id.index.get().checked_add(1) else { break };
            let term = match self.rng.below(8) {
                0 => self.near(&[term, id.term.get()]),
                1 => term,
                _ => id.term.get(),
            };
            id = EntryId::new(index, term);
            let payload = match self.rng.below(12) {
                0 => Payload::Membership(Arc::new(self.draw_membership())),
                1 => Payload::Blank,
                _ => Payload::Command(Bytes::from_static(b"theirs")),
            };
            entries.push(Entry::new(id, payload));
        }
        AppendEntries {
            session: Session(self.near(&[1])),
            round: Round(self.near(&[self.now.0])),
            prev,
            commit: self.draw_index(),
            held_by_all: self.draw_index(),
            readmission: self.draw_readmission(),
            entries,
        }
    }

    /// Anything that the codec lets through: nobody, many, no voters, ids that are taken.
    fn draw_membership(&mut self) -> Membership {
        let count = match self.rng.below(8) {
            0 => 0,
            1 => 30,
            _ => 1 + self.rng.below(6),
        };
        let first = self.rng.below(3);
        let mut membership =
            Membership::of_voters((first..first + count).map(|id| (NodeId(id), id.to_string())));
        for member in &mut membership.members {
            let promotion = match self.rng.below(3) {
                0 => Promotion::ByHand,
                1 => Promotion::WhenCaughtUp,
                _ => Promotion::Replacing(NodeId(self.rng.below(6))),
            };
            match self.rng.below(8) {
                0 | 1 => member.role = MemberRole::Learner { promotion },
                2 => member.role = MemberRole::Leaving,
                _ => {}
            }
        }
        if self.rng.below(2) == 0 {
            membership.outgoing = (1..=self.rng.below(9)).map(NodeId).collect();
        }
        match self.rng.below(6) {
            0 => membership.next_id = NodeId(self.near(&[])),
            1 => membership.members.reverse(),
            2 => membership.members.extend(membership.members.last().cloned()),
            _ => {}
        }
        membership
    }

    fn draw_change(&mut self) -> ChangeSet {
        let mut changes = Vec::new();
        let count = self.rng.below(4).min(1 + self.rng.below(4));
        for _ in 0..count {
            let id = match self.rng.below(4) {
                0 => NodeId(self.near(&[1, 2, 3])),
                id => NodeId(id),
            };
            let (address, context) = (Arc::from(self.requests.to_string()), Bytes::new());
            changes.push(match self.rng.below(7) {
                0 => Change::AddLearner { address, context, auto_promote: false },
                1 => Change::AddLearner { address, context, auto_promote: true },
                2 => Change::Promote(id),
                3 => Change::Demote(id),
                4 => Change::Remove(id),
                5 => Change::Replace { old: id, address, context },
                _ => Change::Update { id, address, context },
            });
        }
        let expect = (self.rng.below(8) == 0).then(|| self.draw_id());
        ChangeSet { changes, expect }
    }

    /// Often one of those that the node began last, with one peer or another.
    fn draw_session(&mut self) -> Session {
        let newest = self.newest_session.get();
        Session(match self.rng.below(2) {
            0 => self.rng.below(5),
            _ => newest.saturating_sub(self.rng.below(5)),
        })
    }

    /// Whatever a file may say of itself: nobody has checked more than its bytes.
    fn draw_snapshot(&mut self) -> Input {
        let membership = match self.rng.below(3) {
            0 => self.draw_membership(),
            _ => Membership::clone(self.core.status().membership),
        };
        let meta = SnapshotMeta { last: self.draw_id(), membership: Arc::new(membership) };
        Input::SnapshotReceived { from: NodeId(self.rng.below(7)), meta }
    }

    /// Sometimes the leave to take part again that the node is waiting for.
    fn draw_readmission(&mut self) -> Option<Readmission> {
        let life = match self.rng.below(4) {
            0 => return None,
            1 => self.near(&[]),
            _ => self.life?,
        };
        Some(Readmission { life, upto: self.draw_index() })
    }

    /// Sometimes what an honest follower would say that has everything.
    fn draw_append_reply(&mut self) -> Body {
        let (last, session) = (self.core.status().last.index, self.draw_session());
        if self.rng.below(3) == 0 {
            return Body::AppendEntriesReply(AppendEntriesReply {
                session,
                round: self.newest_round,
                received: last,
                result: AppendResult::Match(last),
                report: Report::default(),
            });
        }
        let result = if self.rng.below(2) == 0 {
            AppendResult::Match(self.draw_index())
        } else {
            AppendResult::Conflict { prev: self.draw_id(), hint: self.draw_id() }
        };
        let hurt = self.rng.below(60);
        Body::AppendEntriesReply(AppendEntriesReply {
            session,
            round: Round(self.near(&[self.now.0])),
            received: self.draw_index(),
            result,
            report: Report {
                priority: 0,
                is_full: self.rng.below(8) == 0,
                damaged: (hurt == 0).then(|| self.rng.below(3)),
                needs_snapshot: (hurt == 1).then(|| self.draw_index()),
            },
        })
    }

    fn draw_index(&mut self) -> Index {
        let status = self.core.status();
        let anchors = [
            status.commit_index.get(),
            status.last.index.get(),
            status.log_start.index.get(),
            status.durable_index.get(),
        ];
        Index(self.near(&anchors))
    }

    /// Often an id that the log really holds, so that appends are taken.
    fn draw_id(&mut self) -> EntryId {
        if self.rng.below(2) == 0 && !self.log.is_empty() {
            let at = self.rng.below(u64::try_from(self.log.len()).expect("small"));
            return self.log[usize::try_from(at).expect("small")].id;
        }
        let (index, term) = (self.draw_index(), self.core.status().term());
        EntryId { index, term: Term(self.near(&[term.get(), self.log_start.term.get()])) }
    }

    /// One of the anchors, mostly; or right beside it; or far away.
    fn near(&mut self, anchors: &[u64]) -> u64 {
        match self.rng.below(12) {
            0 => 0,
            1 => self.rng.below(5),
            2 => match self.rng.below(4) {
                0 => u64::MAX,
                1 => u64::MAX - 1,
                2 => u64::MAX / 2,
                _ => self.rng.next(),
            },
            choice => {
                let count = u64::try_from(anchors.len()).expect("small");
                if count == 0 {
                    return self.rng.below(9);
                }
                let at = usize::try_from(self.rng.below(count)).expect("small");
                match choice {
                    3 => anchors[at].wrapping_sub(1),
                    4 => anchors[at].wrapping_add(1),
                    _ => anchors[at],
                }
            }
        }
    }
}

/// Small, seeded, good enough to draw cases (splitmix64).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
