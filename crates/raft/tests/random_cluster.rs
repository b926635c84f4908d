//! Random clusters of bare cores against the safety properties of Figure 3.
//!
//! No log, no codec, no host: a message pool from which anything may be delivered in any order,
//! twice or never, disks that are slow, and crashes that lose what was not handed back. It is
//! the quickest way from a broken rule of the core to a seed; the simulator runs the same
//! properties over whole nodes and real logs.

mod random;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use kontiki_raft::{
    Apply, Body, Bytes, Change, ChangeSet, Config, Effects, Entry, Envelope, Index, Input,
    Membership, NodeId, Outbound, Payload, Proposal, ProposalId, ProposalOutcome, RaftCore, ReadId,
    ReadMode, ReadOutcome, Role, Session, SnapshotEffect, SnapshotMeta, StoreId, Term, Timestamp,
};

use random::{Disk, memberships, place};

const STEPS: u64 = 10_000;

#[test]
fn safety_holds_under_any_order_of_events() {
    let mut seen = Seen::default();
    for seed in 0..126 {
        World::new(seed, 1 + seed % 7).run(&mut seen);
    }
    // An empty run proves nothing.
    assert!(100 < seen.leaders, "elections: {seen:?}");
    assert!(1_000 < seen.committed, "entries: {seen:?}");
    assert!(100 < seen.crashes, "crashes: {seen:?}");
    assert!(50 < seen.lost_writes, "writes that a crash took: {seen:?}");
    assert!(100 < seen.reads, "reads: {seen:?}");
    assert!(20 < seen.overwritten, "entries that another leader replaced: {seen:?}");
    assert!(100 < seen.changes, "changes of the membership: {seen:?}");
    assert!(50 < seen.joint, "joint memberships that were applied: {seen:?}");
    assert!(3 < seen.rolled_back, "memberships that were taken back: {seen:?}");
    assert!(10 < seen.retired, "leaders that were removed: {seen:?}");
    assert!(100 < seen.purged, "purges: {seen:?}");
    assert!(50 < seen.installed, "snapshots that were installed: {seen:?}");
    assert!(20 < seen.damaged, "logs that were damaged: {seen:?}");
    assert!(20 < seen.repaired, "logs that were refilled: {seen:?}");
    assert!(20 < seen.bereft, "states that were lost: {seen:?}");
    assert!(3 < seen.bereft_leaders, "leaders that had lost their state: {seen:?}");
}

#[derive(Debug, Default)]
struct Seen {
    leaders: usize,
    committed: u64,
    crashes: usize,
    lost_writes: usize,
    reads: usize,
    overwritten: usize,
    changes: usize,
    joint: usize,
    rolled_back: usize,
    retired: usize,
    purged: usize,
    installed: usize,
    damaged: usize,
    repaired: usize,
    bereft: usize,
    bereft_leaders: usize,
}

/// Servers that are up and may be added, beside those that the cluster begins with.
const SPARES: u64 = 4;

/// No more members than this are asked for at once.
const MEMBERS_MAX: usize = 8;

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
    /// Snapshots on their way: from, to, the session to name, and what it must reach.
    shipments: Vec<(NodeId, NodeId, Session, Index)>,
    /// Logs are damaged in this world, and the membership does not change.
    has_damage: bool,
    /// State machines lose their state in this world, and the membership does not change.
    has_losses: bool,
    /// Open reads, with what was committed when they were asked.
    reads: BTreeMap<(NodeId, ReadId), u64>,
}

impl World {
    fn new(seed: u64, size: u64) -> Self {
        let members = (1..=size).map(|id| (NodeId(id), id.to_string()));
        let nodes = (1..=size + SPARES)
            .map(NodeId)
            .map(|id| (id, Node { core: None, disk: Disk::default(), applied: Index::ZERO }))
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
            shipments: Vec::new(),
            has_damage: 2 < size && seed.is_multiple_of(3),
            has_losses: 2 < size && seed % 3 == 1,
            reads: BTreeMap::new(),
        }
    }

    fn pick(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % below.max(1)
    }

    /// One of those that are members by now, mostly.
    fn pick_node(&mut self, ids: &[NodeId]) -> NodeId {
        let (_, members) = memberships(&self.members, &self.committed).last().expect("the first");
        let mut members: Vec<NodeId> = members.members.iter().map(|member| member.id).collect();
        members.retain(|member| ids.contains(member));
        let ids = if self.pick(8) == 0 { ids } else { &members };
        ids[usize::try_from(self.pick(ids.len() as u64)).expect("small")]
    }

    fn run(mut self, seen: &mut Seen) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for &id in &ids {
            self.start(id);
        }
        for _ in 0..STEPS {
            let id = self.pick_node(&ids);
            match self.pick(1_000) {
                0..500 => self.deliver(seen),
                500..700 => self.persist(id, seen),
                700..850 => self.pass_time(id, seen),
                850..895 => self.propose(id, seen),
                895..900 => self.snapshot(id, seen),
                900..915 => self.change(id, seen),
                915..920 => self.ship(seen),
                920..970 => self.read(id, seen),
                970..973 => self.crash(id, seen),
                973..988 => self.start(id),
                988..990 => self.input(id, Input::TransferLeadership { to: None }, seen),
                990 => self.damage(id, seen),
                991 => {
                    let is_full = self.pick(3) == 0;
                    self.input(id, Input::StorageSpace { is_full }, seen);
                }
                992..996 => self.cut_off(id),
                996 => self.input(id, Input::PeerUnreachable { id: NodeId(1) }, seen),
                997 => {
                    let store = StoreId(id.get());
                    let who = NodeId(1 + self.pick(3));
                    self.input(who, Input::PeerStore { id, store }, seen);
                }
                998 => self.lose_state(id, seen),
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
            self.input(id, Input::StorageSpace { is_full: false }, seen);
        }
        for round in 0..4_000 {
            self.ship(seen);
            for &id in &ids {
                self.pass_time(id, seen);
                self.persist(id, seen);
                if round == 3_000 {
                    self.propose(id, seen);
                }
            }
            for _ in 0..self.network.len() {
                let (from, envelope) = self.network.remove(0);
                self.receive(from, envelope, seen);
            }
        }
        // Who is no member hears of nothing.
        let (_, members) = memberships(&self.members, &self.committed).last().expect("the first");
        assert!(!members.is_joint(), "seed {}: it is left: {members:?}", self.seed);
        let applied: Vec<Index> = members
            .members
            .iter()
            .filter_map(|m| self.nodes.get(&m.id))
            .map(|n| n.applied)
            .collect();
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
        config.log_keep_bytes = 100;
        config.log_bytes_max = 500;
        config.purge_entries_min = 5;
        config.clock_drift_ppm_max = 1_000;
        let recovered = node.disk.recovered(&self.members);
        node.applied = recovered.applied;
        node.core = Some(RaftCore::new(config, recovered, self.now).expect("a disk we wrote"));
    }

    fn crash(&mut self, id: NodeId, seen: &mut Seen) {
        let node = self.nodes.get_mut(&id).expect("known");
        if node.core.take().is_some() {
            seen.crashes += 1;
            seen.lost_writes += node.disk.queue.len();
            node.disk.queue.clear();
            self.reads.retain(|&(reader, _), _| reader != id);
            self.shipments.retain(|&(from, ..)| from != id);
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

    /// Asks for any change, most of which make sense. A follower that lags may ask for more
    /// servers than there are: those are learners that never answer.
    fn change(&mut self, id: NodeId, seen: &mut Seen) {
        if self.has_damage || self.has_losses {
            return;
        }
        let Some(core) = &self.nodes[&id].core else { return };
        let membership = Membership::clone(core.status().membership);
        let mut next_id = membership.next_id.get();
        let mut changes = Vec::new();
        for _ in 0..=self.pick(3) {
            let at = self.pick(membership.members.len() as u64);
            let member = membership.members[usize::try_from(at).expect("small")].id;
            let can_add = self.nodes.contains_key(&NodeId(next_id))
                && membership.members.len() + changes.len() < MEMBERS_MAX;
            let kind = self.pick(8);
            let (address, context) = (Arc::from(next_id.to_string()), Bytes::new());
            changes.push(match kind {
                0 => Change::Remove(member),
                1 => Change::Demote(member),
                2..=4 => Change::Promote(member),
                5 | 6 if can_add => {
                    next_id += 1;
                    Change::AddLearner { address, context, auto_promote: kind == 5 }
                }
                7 if can_add => {
                    next_id += 1;
                    Change::Replace { old: member, address, context }
                }
                _ => Change::Update {
                    id: member,
                    address: format!("{member} moved").into(),
                    context,
                },
            });
        }
        self.next_id += 1;
        let id_of_change = ProposalId(self.next_id);
        let change = ChangeSet { changes, expect: None };
        self.input(id, Input::ChangeMembership { id: id_of_change, change }, seen);
    }

    fn read(&mut self, id: NodeId, seen: &mut Seen) {
        self.next_id += 1;
        let read = ReadId(self.next_id);
        if self.nodes[&id].core.is_some() {
            self.reads.insert((id, read), self.committed.len() as u64);
            let mode = if self.pick(2) == 0 { ReadMode::Lease } else { ReadMode::ReadIndex };
            self.input(id, Input::Read { id: read, mode }, seen);
        }
    }

    /// The state machine of a node is written out.
    fn snapshot(&mut self, id: NodeId, seen: &mut Seen) {
        let genesis = Arc::clone(&self.members);
        let node = self.nodes.get_mut(&id).expect("known");
        if node.core.is_some() && node.disk.snapshot(&genesis, node.applied).is_some() {
            self.applied(id, seen);
        }
    }

    /// A snapshot arrives, mostly.
    fn ship(&mut self, seen: &mut Seen) {
        if self.shipments.is_empty() {
            return;
        }
        let at = usize::try_from(self.pick(self.shipments.len() as u64)).expect("small");
        let (from, to, session, at_least) = self.shipments.swap_remove(at);
        let genesis = Arc::clone(&self.members);
        let sender = self.nodes.get_mut(&from).expect("known");
        if sender.disk.snapshots.range(at_least..).next().is_none() {
            let made = sender.disk.snapshot(&genesis, sender.applied);
            if made.is_none_or(|made| made < at_least) {
                // The receiver has lost its state, and had applied more.
                return self.input(from, Input::SnapshotSent { to, session, sent: None }, seen);
            }
        }
        let newest = sender.disk.snapshots.last_key_value();
        let (meta, entries) = newest.expect("there is one").1.clone();
        let last = meta.last;
        let is_cut = self.cut.contains(&from) || self.cut.contains(&to);
        let receiver = self.nodes.get_mut(&to).filter(|node| node.core.is_some() && !is_cut);
        let sent = receiver.is_some().then_some(last);
        if let Some(receiver) = receiver {
            receiver.disk.snapshots.entry(last.index).or_insert((meta.clone(), entries));
            self.input(to, Input::SnapshotReceived { from, meta }, seen);
        }
        let sent = sent.filter(|_| self.pick(4) != 0);
        self.input(from, Input::SnapshotSent { to, session, sent }, seen);
    }

    fn install(&mut self, id: NodeId, meta: &SnapshotMeta, seen: &mut Seen) {
        seen.installed += 1;
        let truth = self.committed.get(place(meta.last.index)).map(|entry| entry.id);
        assert_eq!(truth, Some(meta.last), "seed {}: {id} installs what never was", self.seed);
        let node = self.nodes.get_mut(&id).expect("known");
        assert!(node.applied < meta.last.index, "a state machine does not go back");
        let is_held = node.disk.log.get(place(meta.last.index)).map(|e| e.id) == Some(meta.last);
        assert!(
            meta.last.index <= node.disk.start.index || is_held,
            "the log was reset before, or holds all of it"
        );
        node.applied = meta.last.index;
        self.applied(id, seen);
    }

    /// A node goes down, and its log is damaged. One at a time, or there might be no quorum that
    /// could bring them back.
    fn damage(&mut self, id: NodeId, seen: &mut Seen) {
        if !self.has_damage || self.is_other_hurt(id) {
            return;
        }
        self.crash(id, seen);
        let (whither, is_ballot_lost) = (self.pick(6), self.pick(2) == 0);
        let disk = &mut self.nodes.get_mut(&id).expect("known").disk;
        let (start, end) = (disk.start.index.get(), disk.log.len() as u64);
        if start < end {
            seen.damaged += 1;
            let from = (start + 1).max((end + 1).saturating_sub(whither));
            disk.damage(Index(from.min(end)), is_ballot_lost);
        }
    }

    /// A node goes down, and its state is lost, while its log is whole.
    fn lose_state(&mut self, id: NodeId, seen: &mut Seen) {
        if !self.has_losses || self.is_other_hurt(id) {
            return;
        }
        self.crash(id, seen);
        let disk = &mut self.nodes.get_mut(&id).expect("known").disk;
        disk.lose_state();
        seen.bereft += usize::from(Index::ZERO < disk.start.index);
        // The log may be the only one with all that is committed.
        if self.pick(2) == 0 {
            self.start(id);
        }
    }

    /// Whether somebody else has lost a part of what it had and not got it back.
    fn is_other_hurt(&self, id: NodeId) -> bool {
        self.nodes.iter().filter(|&(&other, _)| other != id).any(|(_, node)| {
            let recovered = node.disk.recovered(&self.members);
            node.disk.damaged.is_some() || recovered.applied < recovered.log_start.index
        })
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
        let is_lost = self.cut.contains(&from) || self.cut.contains(&to);
        if is_lost || !self.nodes.contains_key(&to) {
            return;
        }
        self.input(to, Input::Message { from, message }, seen);
    }

    fn persist(&mut self, id: NodeId, seen: &mut Seen) {
        let node = self.nodes.get_mut(&id).expect("known");
        if let Some(write) = node.disk.queue.pop_front() {
            let before = memberships(&self.members, &node.disk.log).last();
            seen.repaired += usize::from(write.batch.is_repaired);
            seen.overwritten += node.disk.apply(&write.batch);
            let after = memberships(&self.members, &node.disk.log).last();
            let is_back =
                after.zip(before).is_some_and(|(after, before)| after.0.index < before.0.index);
            seen.rolled_back += usize::from(is_back);
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
            let status = self.nodes[&id].core.as_ref().map(RaftCore::status);
            let is_bereft = status.is_some_and(|status| status.needs_snapshot.is_some());
            seen.bereft_leaders += usize::from(is_bereft);
            self.assert_leader_is_complete(id);
        }
        for outbound in effects.messages.drain(..) {
            self.send(id, outbound);
        }
        for apply in effects.apply.drain(..) {
            self.apply(id, apply, seen);
        }
        for effect in effects.snapshots.drain(..) {
            match effect {
                SnapshotEffect::Send { to, session, at_least } => {
                    self.shipments.push((id, to, session, at_least));
                }
                SnapshotEffect::Cancel { to, session } => {
                    self.shipments
                        .retain(|&(from, by, sent, _)| (from, by, sent) != (id, to, session));
                }
            }
        }
        if let Some(upto) = effects.purge {
            seen.purged += 1;
            self.nodes.get_mut(&id).expect("known").disk.start = upto;
            self.input(id, Input::Purged { upto }, seen);
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
        let log = self.nodes[&id].disk.written();
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
            Apply::Snapshot(meta) => return self.install(id, &meta, seen),
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
            self.assert_committed_on_quorum(&entry, seen);
            self.committed.push(entry);
        }
        self.applied(id, seen);
    }

    fn applied(&mut self, id: NodeId, seen: &mut Seen) {
        let node = &self.nodes[&id];
        let durable = node.disk.snapshots.keys().next_back().copied().unwrap_or_default();
        self.input(id, Input::Applied { upto: node.applied, durable }, seen);
    }

    /// `CommittedOnQuorum`: what is applied is on a quorum of disks, of the membership in force
    /// at its index or of one that a leader has appended since.
    fn assert_committed_on_quorum(&self, entry: &Entry, seen: &mut Seen) {
        let at = usize::try_from(entry.id.index.get() - 1).expect("small");
        let holds = |id: NodeId| self.nodes.get(&id).is_some_and(|node| node.disk.has_held(entry));
        if let Payload::Membership(membership) = &entry.payload {
            seen.changes += 1;
            seen.joint += usize::from(membership.is_joint());
            let leader = self.leaders.get(&entry.id.term);
            seen.retired += usize::from(leader.is_some_and(|&id| !membership.is_voter(id)));
        }
        let is_on_quorum = self.nodes.values().any(|node| {
            let log = node.disk.written();
            let memberships: Vec<_> = memberships(&self.members, &log).collect();
            // The one in force at the index is the last that is not after it.
            let in_force = memberships.partition_point(|(id, _)| id.index <= entry.id.index) - 1;
            log.get(at) == Some(entry)
                && memberships[in_force..].iter().any(|(_, later)| later.has_quorum(holds))
        });
        assert!(
            is_on_quorum,
            "seed {}: {} is applied and not on a quorum of disks",
            self.seed, entry.id
        );
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
