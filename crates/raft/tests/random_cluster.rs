//! Random clusters of bare cores against the safety properties of Figure 3.
//!
//! No log, no codec, no host: a message pool from which anything may be delivered in any order,
//! twice or never, disks that are slow, and crashes that lose what was not handed back. It is
//! the quickest way from a broken rule of the core to a seed; the simulator runs the same
//! properties over whole nodes and real logs.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use kontiki_raft::{
    Apply, Body, Bytes, Config, Effects, Entry, EntryId, Envelope, HardState, Index, Input,
    LogWrite, Membership, NodeId, Outbound, Payload, Proposal, ProposalId, ProposalOutcome,
    RaftCore, ReadId, ReadMode, ReadOutcome, Recovered, Role, Term, Timestamp, WriteBatch,
};

const STEPS: u64 = 5_000;

#[test]
fn safety_holds_under_any_order_of_events() {
    let mut seen = Seen::default();
    for seed in 0..60 {
        World::new(seed, 1 + seed % 5).run(&mut seen);
    }
    // An empty run proves nothing.
    assert!(100 < seen.leaders, "elections: {seen:?}");
    assert!(1_000 < seen.committed, "entries: {seen:?}");
    assert!(100 < seen.crashes, "crashes: {seen:?}");
    assert!(50 < seen.lost_writes, "writes that a crash took: {seen:?}");
    assert!(100 < seen.reads, "reads: {seen:?}");
    assert!(20 < seen.overwritten, "entries that another leader replaced: {seen:?}");
}

#[derive(Debug, Default)]
struct Seen {
    leaders: usize,
    committed: u64,
    crashes: usize,
    lost_writes: usize,
    reads: usize,
    overwritten: usize,
}

/// What a node's disk holds, and what is on its way there.
#[derive(Default)]
struct Disk {
    hard_state: HardState,
    log: Vec<Entry>,
    queue: VecDeque<LogWrite>,
}

impl Disk {
    fn apply(&mut self, batch: WriteBatch) -> usize {
        let mut overwritten = 0;
        if let Some(hard_state) = batch.hard_state {
            assert!(self.hard_state.term <= hard_state.term, "terms on disk do not go back");
            if self.hard_state.term == hard_state.term {
                assert!(
                    self.hard_state.voted_for.is_none()
                        || self.hard_state.voted_for == hard_state.voted_for,
                    "one vote a term, over all lives"
                );
            }
            self.hard_state = hard_state;
        }
        if let Some(first) = batch.entries.first() {
            let keep = usize::try_from(first.id.index.get() - 1).expect("small");
            assert!(keep <= self.log.len(), "no hole in the log");
            overwritten = self.log.len() - keep;
            self.log.truncate(keep);
        }
        self.log.extend(batch.entries);
        overwritten
    }

    fn recovered(&self, members: &Arc<Membership>) -> Recovered {
        let mut term_runs: Vec<EntryId> = Vec::new();
        for entry in &self.log {
            if term_runs.last().is_none_or(|run| run.term < entry.id.term) {
                term_runs.push(entry.id);
            }
        }
        Recovered {
            hard_state: self.hard_state,
            term_runs,
            last: self.log.last().map_or(EntryId::ZERO, |entry| entry.id),
            memberships: vec![(EntryId::ZERO, Arc::clone(members))],
            is_pristine: self.hard_state == HardState::default() && self.log.is_empty(),
            ..Recovered::default()
        }
    }
}

struct Node {
    core: Option<RaftCore>,
    disk: Disk,
    /// Applied in this life: the machine is in memory.
    applied: Index,
}

struct World {
    seed: u64,
    random: u64,
    now: Timestamp,
    members: Arc<Membership>,
    nodes: BTreeMap<NodeId, Node>,
    network: Vec<(NodeId, Envelope)>,
    /// Nodes that nobody hears and that hear nobody.
    cut: BTreeSet<NodeId>,
    leaders: BTreeMap<Term, NodeId>,
    /// The truth: what was ever applied anywhere, in order.
    committed: Vec<Entry>,
    next_id: u64,
    /// Open reads, with what was committed when they were asked.
    reads: BTreeMap<(NodeId, ReadId), u64>,
}

impl World {
    fn new(seed: u64, size: u64) -> Self {
        let members: Vec<(NodeId, &str)> = (1..=size).map(|id| (NodeId(id), "")).collect();
        let nodes = members
            .iter()
            .map(|&(id, _)| (id, Node { core: None, disk: Disk::default(), applied: Index::ZERO }))
            .collect();
        Self {
            seed,
            random: seed,
            now: Timestamp(0),
            members: Arc::new(Membership::of_voters(members)),
            nodes,
            network: Vec::new(),
            cut: BTreeSet::new(),
            leaders: BTreeMap::new(),
            committed: Vec::new(),
            next_id: 1,
            reads: BTreeMap::new(),
        }
    }

    fn pick(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % below.max(1)
    }

    fn run(mut self, seen: &mut Seen) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for &id in &ids {
            self.start(id);
        }
        for _ in 0..STEPS {
            let id = ids[usize::try_from(self.pick(ids.len() as u64)).expect("small")];
            match self.pick(1_000) {
                0..500 => self.deliver(seen),
                500..700 => self.persist(id, seen),
                700..850 => self.pass_time(id, seen),
                850..920 => self.propose(id, seen),
                920..970 => self.read(id, seen),
                970..976 => self.crash(id, seen),
                976..990 => self.start(id),
                990..995 => self.input(id, Input::TransferLeadership { to: None }, seen),
                995 => self.cut_off(id),
                996..997 => self.input(id, Input::PeerUnreachable { id: NodeId(1) }, seen),
                _ => self.network.clear(),
            }
        }
        self.recover_and_agree(seen);
        seen.committed += self.committed.len() as u64;
    }

    /// Faults end: everyone is up, everything arrives, and the cluster comes round.
    fn recover_and_agree(&mut self, seen: &mut Seen) {
        self.cut.clear();
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for &id in &ids {
            self.start(id);
        }
        for round in 0..4_000 {
            for &id in &ids {
                self.pass_time(id, seen);
                self.persist(id, seen);
                if round == 2_000 {
                    self.propose(id, seen);
                }
            }
            for _ in 0..self.network.len() {
                let (from, envelope) = self.network.remove(0);
                self.receive(from, envelope, seen);
            }
        }
        let applied: Vec<Index> = self.nodes.values().map(|node| node.applied).collect();
        let end = Index(self.committed.len() as u64);
        assert!(
            applied.iter().all(|&index| index == end) && 0 < end.get(),
            "seed {}: applied {applied:?} of {end}",
            self.seed
        );
    }

    fn start(&mut self, id: NodeId) {
        let seed = self.pick(u64::MAX) ^ self.next_id;
        let node = self.nodes.get_mut(&id).expect("known");
        if node.core.is_some() {
            return;
        }
        let mut config = Config::new(id, seed);
        config.heartbeat_interval = Duration::from_millis(10);
        config.election_timeout = Duration::from_millis(40);
        config.inflight_messages_max = 3;
        config.append_bytes_max = 120;
        config.log_cache_bytes_max = 200;
        let recovered = node.disk.recovered(&self.members);
        node.applied = Index::ZERO;
        node.core = Some(RaftCore::new(config, recovered, self.now).expect("a disk we wrote"));
    }

    fn crash(&mut self, id: NodeId, seen: &mut Seen) {
        let node = self.nodes.get_mut(&id).expect("known");
        if node.core.take().is_some() {
            seen.crashes += 1;
            seen.lost_writes += node.disk.queue.len();
            node.disk.queue.clear();
            self.reads.retain(|&(reader, _), _| reader != id);
        }
    }

    /// Isolates one node, a leader for choice, or heals everything.
    fn cut_off(&mut self, id: NodeId) {
        if self.pick(3) == 0 {
            self.cut.clear();
            return;
        }
        let leader = self.nodes.iter().find(|(_, node)| {
            node.core.as_ref().is_some_and(|core| core.status().soft_state.role == Role::Leader)
        });
        self.cut.insert(leader.map_or(id, |(&leader, _)| leader));
    }

    fn input(&mut self, id: NodeId, input: Input, seen: &mut Seen) {
        let Some(core) = &mut self.nodes.get_mut(&id).expect("known").core else { return };
        core.step(self.now, input);
        if self.pick(4) != 0 {
            self.poll(id, seen);
        }
    }

    fn pass_time(&mut self, id: NodeId, seen: &mut Seen) {
        self.now.0 += self.pick(1_000_000);
        let Some(core) = &self.nodes[&id].core else { return };
        if core.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.input(id, Input::Timeout, seen);
        }
        self.poll(id, seen);
    }

    fn propose(&mut self, id: NodeId, seen: &mut Seen) {
        self.next_id += 1;
        let proposal = Proposal {
            id: ProposalId(self.next_id),
            command: Bytes::from(self.next_id.to_string()),
            is_session: false,
        };
        self.input(id, Input::Propose(vec![proposal]), seen);
    }

    fn read(&mut self, id: NodeId, seen: &mut Seen) {
        self.next_id += 1;
        let read = ReadId(self.next_id);
        if self.nodes[&id].core.is_some() {
            self.reads.insert((id, read), self.committed.len() as u64);
            self.input(id, Input::Read { id: read, mode: ReadMode::ReadIndex }, seen);
        }
    }

    fn deliver(&mut self, seen: &mut Seen) {
        if self.network.is_empty() {
            return;
        }
        let at = usize::try_from(self.pick(self.network.len() as u64)).expect("small");
        let (from, envelope) = match self.pick(20) {
            0 => self.network[at].clone(),
            _ => self.network.swap_remove(at),
        };
        if self.pick(20) != 0 {
            self.receive(from, envelope, seen);
        }
    }

    fn receive(&mut self, from: NodeId, envelope: Envelope, seen: &mut Seen) {
        let Envelope { to, message } = envelope;
        if self.cut.contains(&from) || self.cut.contains(&to) {
            return;
        }
        self.input(to, Input::Message { from, message }, seen);
    }

    fn persist(&mut self, id: NodeId, seen: &mut Seen) {
        let node = self.nodes.get_mut(&id).expect("known");
        if let Some(write) = node.disk.queue.pop_front() {
            seen.overwritten += node.disk.apply(write.batch);
            self.input(id, Input::Persisted(write.ticket), seen);
        }
    }

    fn poll(&mut self, id: NodeId, seen: &mut Seen) {
        let mut effects = Effects::default();
        let node = self.nodes.get_mut(&id).expect("known");
        let Some(core) = &mut node.core else { return };
        core.poll(self.now, &mut effects);
        if let Some(write) = effects.write.take() {
            node.disk.queue.push_back(write);
        }
        if let Some(soft_state) = effects.soft_state
            && soft_state.role == Role::Leader
        {
            let leader = *self.leaders.entry(soft_state.term).or_insert(id);
            assert_eq!(leader, id, "seed {}: two leaders in {}", self.seed, soft_state.term);
            seen.leaders += 1;
            self.assert_leader_is_complete(id);
        }
        for outbound in effects.messages.drain(..) {
            self.send(id, outbound);
        }
        for apply in effects.apply.drain(..) {
            self.apply(id, apply, seen);
        }
        for outcome in effects.reads.drain(..) {
            self.on_read_outcome(id, &outcome, seen);
        }
        for outcome in effects.proposals.drain(..) {
            if let ProposalOutcome::Appended { at, .. } = outcome {
                assert!(0 < at.index.get(), "an entry has a place");
            }
        }
    }

    /// Leader completeness (§5.4.3), from the disks: a leader has what was ever committed.
    fn assert_leader_is_complete(&self, id: NodeId) {
        let node = &self.nodes[&id];
        let mut log = node.disk.log.clone();
        for write in &node.disk.queue {
            if let Some(first) = write.batch.entries.first() {
                log.truncate(usize::try_from(first.id.index.get() - 1).expect("small"));
                log.extend(write.batch.entries.iter().cloned());
            }
        }
        for entry in &self.committed {
            let at = usize::try_from(entry.id.index.get() - 1).expect("small");
            assert_eq!(log.get(at), Some(entry), "seed {}: {id} leads without it", self.seed);
        }
    }

    fn send(&mut self, from: NodeId, outbound: Outbound) {
        let envelope = match outbound {
            Outbound::Send(envelope) => envelope,
            Outbound::SendStored { mut envelope, range, .. } => {
                if let Body::AppendEntries(append) = &mut envelope.message.body {
                    append.entries = self.stored(from, &range);
                    append.entries.truncate(2);
                }
                envelope
            }
        };
        self.network.push((from, envelope));
    }

    /// Old entries, as the host reads them: from the disk, or from what is on its way there.
    fn stored(&self, id: NodeId, range: &RangeInclusive<Index>) -> Vec<Entry> {
        let node = &self.nodes[&id];
        let first = usize::try_from(range.start().get() - 1).expect("small");
        let last = usize::try_from(range.end().get()).expect("small");
        node.disk.log[first..last].to_vec()
    }

    /// State machine safety (§5.4.3), and: what is applied is on a quorum of disks.
    fn apply(&mut self, id: NodeId, apply: Apply, seen: &mut Seen) {
        let entries = match apply {
            Apply::Entries(entries) => entries,
            Apply::Stored(range) => self.stored(id, &range),
            Apply::Snapshot(_) => panic!("no snapshot was received"),
        };
        for entry in entries {
            let node = self.nodes.get_mut(&id).expect("known");
            assert_eq!(entry.id.index, node.applied.next(), "in order, without holes");
            node.applied = entry.id.index;
            let at = usize::try_from(entry.id.index.get() - 1).expect("small");
            if let Some(truth) = self.committed.get(at) {
                assert_eq!(*truth, entry, "seed {}: {id} applies another entry", self.seed);
                continue;
            }
            let copies = self.nodes.values().filter(|n| n.disk.log.get(at) == Some(&entry));
            assert!(
                self.nodes.len() / 2 < copies.count(),
                "seed {}: {} is applied and not on a quorum of disks",
                self.seed,
                entry.id
            );
            assert!(matches!(entry.payload, Payload::Blank | Payload::Command(_)), "as proposed");
            self.committed.push(entry);
        }
        let applied = self.nodes[&id].applied;
        self.input(id, Input::Applied { upto: applied, durable: Index::ZERO }, seen);
    }

    fn on_read_outcome(&mut self, id: NodeId, outcome: &ReadOutcome, seen: &mut Seen) {
        let (read, index) = match outcome {
            ReadOutcome::Ready { id, index } => (*id, Some(*index)),
            ReadOutcome::Rejected { id, .. } => (*id, None),
        };
        let asked = self.reads.remove(&(id, read)).expect("one outcome for each read");
        if let Some(index) = index {
            seen.reads += 1;
            assert!(
                asked <= index.get(),
                "seed {}: a read at {index} would miss what was committed at {asked}",
                self.seed
            );
        }
    }
}
