//! Pitfall M12. Whatever a leader has purged, and whatever a follower holds, the follower gets
//! there: by entries, or by a snapshot.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use kontiki_raft::{
    Apply, Body, Bytes, Config, Effects, Entry, EntryId, HardState, Index, Input, Membership,
    NodeId, Outbound, Payload, RaftCore, Recovered, Role, SnapshotEffect, SnapshotMeta, Term,
    Timestamp,
};

/// The log of the first two: entries of term 1 up to here.
const LAST: u64 = 4;

fn entry(index: u64, term: u64) -> Entry {
    let command = Bytes::from(format!("{index}.{term}"));
    Entry::new(EntryId::new(index, term), Payload::Command(command))
}

fn membership() -> Arc<Membership> {
    Arc::new(Membership::of_voters([1, 2, 3].map(|id| (NodeId(id), id.to_string()))))
}

/// A node whose log starts after `start` and has entries of these terms.
fn node(id: u64, start: u64, terms: &[u64]) -> RaftCore {
    let log: Vec<EntryId> =
        (start + 1..).zip(terms).map(|(index, &term)| EntryId::new(index, term)).collect();
    let mut term_runs = log.clone();
    term_runs.dedup_by_key(|run| run.term);
    let log_start = EntryId::new(start, start.min(1));
    let recovered = Recovered {
        hard_state: HardState { term: Term(2), voted_for: None, commit: Index(start) },
        log_start,
        term_runs,
        last: log.last().copied().unwrap_or(log_start),
        memberships: vec![(EntryId::ZERO, membership())],
        applied: Index(start),
        ..Recovered::default()
    };
    let mut config = Config::new(NodeId(id), id);
    config.log_cache_bytes_max = usize::MAX;
    RaftCore::new(config, recovered, Timestamp(0)).expect("it could be so")
}

/// Three nodes, disks and state machines that take no time, and snapshots that arrive.
struct World {
    now: Timestamp,
    nodes: Vec<RaftCore>,
    wire: VecDeque<(NodeId, Input)>,
    snapshots: u64,
}

impl World {
    fn node(&mut self, id: NodeId) -> &mut RaftCore {
        let at = usize::try_from(id.get() - 1).expect("small");
        &mut self.nodes[at]
    }

    fn step(&mut self, id: NodeId, input: Input) {
        let now = self.now;
        self.node(id).step(now, input);
        let mut effects = Effects::default();
        loop {
            self.node(id).poll(now, &mut effects);
            let mut inputs = Vec::new();
            inputs.extend(effects.write.take().map(|write| Input::Persisted(write.ticket)));
            for apply in effects.apply.drain(..) {
                let upto = match apply {
                    Apply::Entries(entries) => entries.last().expect("not empty").id.index,
                    Apply::Stored(range) => *range.end(),
                    Apply::Snapshot(meta) => meta.last.index,
                };
                inputs.push(Input::Applied { upto, durable: Index::ZERO });
            }
            for outbound in effects.messages.drain(..) {
                let envelope = match outbound {
                    Outbound::Send(envelope) => envelope,
                    Outbound::SendStored { mut envelope, range, .. } => {
                        if let Body::AppendEntries(append) = &mut envelope.message.body {
                            let range = range.start().get()..=range.end().get();
                            append.entries = range.map(|index| entry(index, 1)).collect();
                        }
                        envelope
                    }
                };
                let message = envelope.message;
                self.wire.push_back((envelope.to, Input::Message { from: id, message }));
            }
            for effect in effects.snapshots.drain(..) {
                if let SnapshotEffect::Send { to, session, at_least } = effect {
                    self.snapshots += 1;
                    let last = EntryId::new(at_least.get(), at_least.get().min(1));
                    let meta = SnapshotMeta { last, membership: membership() };
                    self.wire.push_back((to, Input::SnapshotReceived { from: id, meta }));
                    let sent = Some(last);
                    self.wire.push_back((id, Input::SnapshotSent { to, session, sent }));
                }
            }
            if inputs.is_empty() {
                return;
            }
            inputs.into_iter().for_each(|input| self.node(id).step(now, input));
        }
    }

    fn run(&mut self, rounds: u64) {
        for _ in 0..rounds {
            self.now = self.now + Duration::from_millis(50);
            for id in [1, 2, 3].map(NodeId) {
                let now = self.now;
                if self.node(id).next_deadline().is_some_and(|deadline| deadline <= now) {
                    self.step(id, Input::Timeout);
                }
            }
            while let Some((to, input)) = self.wire.pop_front() {
                self.step(to, input);
            }
        }
    }
}

#[test]
fn a_follower_gets_there_whatever_is_purged() {
    let logs: [&[u64]; 9] = [
        &[],
        &[1],
        &[1, 1],
        &[1, 1, 1],
        &[1, 1, 1, 1],
        &[2],
        &[1, 2],
        &[1, 1, 2, 2],
        &[1, 1, 1, 1, 2, 2],
    ];
    let mut snapshots = 0;
    for start in 0..=LAST {
        for log in logs {
            let terms = vec![1; usize::try_from(LAST - start).expect("small")];
            let nodes = vec![node(1, start, &terms), node(2, start, &terms), node(3, 0, log)];
            let mut world = World { now: Timestamp(0), nodes, wire: VecDeque::new(), snapshots: 0 };
            world.run(200);
            let leader = world.nodes.iter().find(|n| n.status().soft_state.role == Role::Leader);
            let last = leader.expect("somebody leads").status().last;
            for node in &world.nodes {
                let (status, case) = (node.status(), format!("start {start}, log {log:?}"));
                assert_eq!((status.last, status.durable_index), (last, last.index), "{case}");
                assert_eq!(status.applied_index, last.index, "{case}");
            }
            snapshots += world.snapshots;
        }
    }
    assert!(10 < snapshots, "only {snapshots} snapshots were needed");
}
