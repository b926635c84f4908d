//! What a node measures of itself, told through the `metrics` facade. Names: `docs/metrics.md`.
//!
//! Without a recorder nobody hears of it and it costs next to nothing: gauges are set once a
//! second, and of the proposals one in [`SAMPLE`] is timed.

mod help;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use kontiki_raft::{Index, NodeId, Role, SoftState, Timestamp};
use metrics::{Counter, Gauge, Histogram, Label, counter, gauge, histogram};

use crate::{Lane, PeerBacklog, RequestId, Status};

/// One proposal in so many is timed. A prime, so that clients that take turns are all met.
const SAMPLE: u64 = 61;

/// Timed proposals that have no answer yet: more are not timed.
const TIMED_MAX: usize = 1024;

/// Syncs that a timed proposal may still ask for.
const SYNCS_MAX: usize = 1024;

/// Gauges are set this often.
pub(crate) const GAUGE_INTERVAL: Duration = Duration::from_secs(1);

/// What waits where, beside what [`Status`] tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Depths {
    pub(crate) requests: usize,
    pub(crate) control: usize,
    pub(crate) append: usize,
    pub(crate) unanswered: usize,
}

/// What one node measures.
#[derive(Debug)]
pub(crate) struct Meters {
    node: Label,
    timed: BTreeMap<RequestId, Timed>,
    /// Up to where the log was durable when.
    syncs: VecDeque<(Index, Timestamp)>,
    leader: Option<NodeId>,
    stages: [(Stage, Histogram); 4],
    leader_changes: Counter,
    snapshots: Snapshots,
    gauges: Gauges,
    peers: BTreeMap<NodeId, PeerGauges>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Timed {
    proposed: Timestamp,
}

/// How far a proposal has come. Each is timed from the proposal on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Persisted,
    Committed,
    Applied,
    Answered,
}

#[derive(Debug)]
struct Snapshots {
    made: Counter,
    failed: Counter,
    sent: Counter,
    received: Counter,
    restored: Counter,
}

#[derive(Debug)]
struct Gauges {
    term: Gauge,
    is_leader: Gauge,
    commit_index: Gauge,
    applied_index: Gauge,
    log_bytes: Gauge,
    oldest_write: Gauge,
    lease_left: Gauge,
    is_storage_full: Gauge,
    is_damaged: Gauge,
    needs_snapshot: Gauge,
    queue: [Gauge; 3],
    unanswered: Gauge,
}

/// What is known of one peer. Not a number: nothing.
#[derive(Debug)]
struct PeerGauges {
    lag: Gauge,
    round_trip: Gauge,
    /// Of control, entries and snapshots: how much waits, and its bytes.
    lanes: [(Gauge, Gauge); 3],
}

impl PeerGauges {
    fn new(node: &Label, peer: NodeId) -> Self {
        let peer = Label::new("peer", peer.get().to_string());
        let labels = || vec![node.clone(), peer.clone()];
        let lanes = [Lane::Control.to_string(), Lane::Append.to_string(), "snapshot".to_owned()];
        Self {
            lag: gauge!("kontiki_follower_lag_entries", labels()),
            round_trip: gauge!("kontiki_round_trip_seconds", labels()),
            lanes: lanes.map(|lane| {
                let lane = Label::new("lane", lane);
                let labels = || vec![node.clone(), peer.clone(), lane.clone()];
                (gauge!("kontiki_lane_length", labels()), gauge!("kontiki_lane_bytes", labels()))
            }),
        }
    }
}

/// What the log thread of a node measures.
pub(crate) fn log_sync_seconds(id: NodeId) -> Histogram {
    histogram!("kontiki_log_sync_seconds", vec![Label::new("node", id.get().to_string())])
}

impl Meters {
    pub(crate) fn new(id: NodeId) -> Self {
        help::describe();
        let node = Label::new("node", id.get().to_string());
        let labels = || vec![node.clone()];
        let stage = |stage, name: &'static str| {
            let labels = vec![node.clone(), Label::from_static_parts("stage", name)];
            (stage, histogram!("kontiki_proposal_seconds", labels))
        };
        let queue = |name: &'static str| {
            let labels = vec![node.clone(), Label::from_static_parts("queue", name)];
            gauge!("kontiki_queue_length", labels)
        };
        let snapshot = |name: &'static str| {
            let labels = vec![node.clone(), Label::from_static_parts("what", name)];
            counter!("kontiki_snapshots_total", labels)
        };
        Self {
            timed: BTreeMap::new(),
            syncs: VecDeque::new(),
            leader: None,
            stages: [
                stage(Stage::Persisted, "persisted"),
                stage(Stage::Committed, "committed"),
                stage(Stage::Applied, "applied"),
                stage(Stage::Answered, "answered"),
            ],
            leader_changes: counter!("kontiki_leader_changes_total", labels()),
            snapshots: Snapshots {
                made: snapshot("made"),
                failed: snapshot("failed"),
                sent: snapshot("sent"),
                received: snapshot("received"),
                restored: snapshot("restored"),
            },
            gauges: Gauges {
                term: gauge!("kontiki_term", labels()),
                is_leader: gauge!("kontiki_is_leader", labels()),
                commit_index: gauge!("kontiki_commit_index", labels()),
                applied_index: gauge!("kontiki_applied_index", labels()),
                log_bytes: gauge!("kontiki_log_bytes", labels()),
                oldest_write: gauge!("kontiki_oldest_write_seconds", labels()),
                lease_left: gauge!("kontiki_lease_left_seconds", labels()),
                is_storage_full: gauge!("kontiki_is_storage_full", labels()),
                is_damaged: gauge!("kontiki_is_damaged", labels()),
                needs_snapshot: gauge!("kontiki_needs_snapshot", labels()),
                queue: [queue("requests"), queue("control"), queue("append")],
                unanswered: gauge!("kontiki_unanswered_requests", labels()),
            },
            peers: BTreeMap::new(),
            node,
        }
    }

    /// Somebody proposes something.
    pub(crate) fn on_proposed(&mut self, now: Timestamp, id: RequestId) {
        if id.0.is_multiple_of(SAMPLE) && self.timed.len() < TIMED_MAX {
            self.timed.insert(id, Timed { proposed: now });
        }
    }

    /// The log of this node is durable up to here.
    pub(crate) fn on_persisted(&mut self, now: Timestamp, upto: Index) {
        if self.timed.is_empty() {
            self.syncs.clear();
            return;
        }
        if self.syncs.len() == SYNCS_MAX {
            self.syncs.pop_front();
        }
        self.syncs.push_back((upto, now));
    }

    /// The entries that these became are committed, and durable here.
    pub(crate) fn on_committed(&mut self, now: Timestamp, waiters: &[(Index, RequestId)]) {
        if self.timed.is_empty() {
            return;
        }
        for (index, id) in waiters.iter().filter(|(_, id)| id.0.is_multiple_of(SAMPLE)) {
            let Some(&Timed { proposed }) = self.timed.get(id) else { continue };
            let sync = self.syncs.iter().find(|(upto, at)| index <= upto && proposed <= *at);
            if let Some(&(_, at)) = sync {
                self.record(Stage::Persisted, at - proposed);
            }
            self.record(Stage::Committed, now - proposed);
        }
    }

    /// The state machine has answered `before` ago, and the answer is given.
    pub(crate) fn on_answered(&mut self, now: Timestamp, id: RequestId, before: Duration) {
        if let Some(Timed { proposed }) = self.forget(id) {
            let answered = now - proposed;
            self.record(Stage::Applied, answered.saturating_sub(before));
            self.record(Stage::Answered, answered);
        }
    }

    /// The request has its answer, and was not applied.
    pub(crate) fn forget(&mut self, id: RequestId) -> Option<Timed> {
        if id.0.is_multiple_of(SAMPLE) { self.timed.remove(&id) } else { None }
    }

    fn record(&self, stage: Stage, time: Duration) {
        let histogram = self.stages.iter().find(|(of, _)| *of == stage);
        if let Some((_, histogram)) = histogram {
            histogram.record(time.as_secs_f64());
        }
    }

    pub(crate) fn on_soft_state(&mut self, soft_state: SoftState) {
        if soft_state.leader.is_some() && soft_state.leader != self.leader {
            self.leader = soft_state.leader;
            self.leader_changes.increment(1);
        }
    }

    pub(crate) fn on_snapshot_made(&self, is_made: bool) {
        let counter = if is_made { &self.snapshots.made } else { &self.snapshots.failed };
        counter.increment(1);
    }

    pub(crate) fn on_snapshot_sent(&self) {
        self.snapshots.sent.increment(1);
    }

    pub(crate) fn on_snapshot_received(&self) {
        self.snapshots.received.increment(1);
    }

    pub(crate) fn on_restored(&self) {
        self.snapshots.restored.increment(1);
    }

    /// Sets all gauges.
    pub(crate) fn set(&mut self, status: &Status, depths: Depths) {
        let gauges = &self.gauges;
        gauges.term.set(number(status.soft_state.term.get()));
        gauges.is_leader.set(flag(status.soft_state.role == Role::Leader));
        gauges.commit_index.set(number(status.commit_index.get()));
        gauges.applied_index.set(number(status.applied_index.get()));
        gauges.log_bytes.set(number(status.log_bytes));
        let age = status.oldest_write.map_or(Duration::ZERO, |since| status.now - since);
        gauges.oldest_write.set(age.as_secs_f64());
        let left = status.lease_until.map_or(Duration::ZERO, |until| until - status.now);
        gauges.lease_left.set(left.as_secs_f64());
        gauges.is_storage_full.set(flag(status.is_storage_full));
        gauges.is_damaged.set(flag(status.damaged.is_some()));
        gauges.needs_snapshot.set(flag(status.needs_snapshot.is_some()));
        let Depths { requests, control, append, unanswered } = depths;
        for (gauge, length) in gauges.queue.iter().zip([requests, control, append]) {
            gauge.set(size(length));
        }
        gauges.unanswered.set(size(unanswered));
    }

    /// Sets the gauges of all peers. Who does not lead knows of no lag and no round trip, and
    /// nothing waits for who is gone.
    pub(crate) fn set_peers(&mut self, status: &Status, backlogs: &[PeerBacklog]) {
        let known = status.progress.iter().map(|progress| progress.id);
        for id in known.chain(backlogs.iter().map(|backlog| backlog.peer)) {
            self.peers.entry(id).or_insert_with(|| PeerGauges::new(&self.node, id));
        }
        for (id, gauges) in &self.peers {
            gauges.lag.set(status.lag(*id).map_or(f64::NAN, number));
            let progress = status.progress.iter().find(|progress| progress.id == *id);
            let round_trip = progress.and_then(|progress| progress.round_trip);
            gauges.round_trip.set(round_trip.map_or(f64::NAN, |took| took.as_secs_f64()));
            let backlog = backlogs.iter().find(|backlog| backlog.peer == *id);
            let lanes = backlog.map(|lanes| [lanes.control, lanes.append, lanes.snapshot]);
            for (at, (length, bytes)) in gauges.lanes.iter().enumerate() {
                let lane = lanes.and_then(|lanes| lanes.get(at).copied());
                length.set(lane.map_or(f64::NAN, |lane| number(lane.count)));
                bytes.set(lane.map_or(f64::NAN, |lane| number(lane.bytes)));
            }
        }
    }
}

fn flag(is_set: bool) -> f64 {
    f64::from(u8::from(is_set))
}

/// Gauges are floats: exact up to 2⁵³.
#[expect(clippy::cast_precision_loss, reason = "a gauge is looked at, not calculated with")]
fn number(value: u64) -> f64 {
    value as f64
}

fn size(length: usize) -> f64 {
    number(u64::try_from(length).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::{Arc, Mutex},
    };

    use kontiki_raft::{
        Config, EntryId, Membership, ProgressState, ProgressStatus, RaftCore, Recovered, Report,
        StoreId,
    };
    use metrics::{
        CounterFn, GaugeFn, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
        with_local_recorder,
    };

    use super::*;
    use crate::{Backlog, NodeIdentity};

    /// Remembers what it is told, by name and labels; and the kinds and names that were
    /// registered, and described.
    #[derive(Clone, Debug, Default)]
    struct Notes(Arc<Mutex<Vec<(String, f64)>>>, Arc<Mutex<[BTreeSet<String>; 2]>>);

    #[derive(Debug)]
    struct Note(Notes, String);

    impl Notes {
        fn note(&self, key: &Key) -> Arc<Note> {
            let labels = key.labels().map(|label| format!(" {}={}", label.key(), label.value()));
            Arc::new(Note(self.clone(), format!("{}{}", key.name(), labels.collect::<String>())))
        }

        fn note_kind(&self, kind: &str, key: &Key) {
            self.1.lock().unwrap()[0].insert(format!("{kind} {}", key.name()));
        }

        fn note_help(&self, kind: &str, name: &KeyName, help: &SharedString) {
            assert!(help.ends_with('.'), "{} is described by a sentence", name.as_str());
            self.1.lock().unwrap()[1].insert(format!("{kind} {}", name.as_str()));
        }

        fn of(&self, name: &str) -> Vec<f64> {
            let notes = self.0.lock().unwrap();
            notes.iter().filter(|(of, _)| of == name).map(|(_, value)| *value).collect()
        }
    }

    impl Note {
        fn add(&self, value: f64) {
            self.0.0.lock().unwrap().push((self.1.clone(), value));
        }
    }

    impl CounterFn for Note {
        fn increment(&self, value: u64) {
            self.add(number(value));
        }

        fn absolute(&self, value: u64) {
            self.add(number(value));
        }
    }

    impl GaugeFn for Note {
        fn increment(&self, value: f64) {
            self.add(value);
        }

        fn decrement(&self, value: f64) {
            self.add(-value);
        }

        fn set(&self, value: f64) {
            self.add(value);
        }
    }

    impl HistogramFn for Note {
        fn record(&self, value: f64) {
            self.add(value);
        }
    }

    impl Recorder for Notes {
        fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
            self.note_help("counter", &name, &help);
        }

        fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
            self.note_help("gauge", &name, &help);
        }

        fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
            self.note_help("histogram", &name, &help);
        }

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            self.note_kind("counter", key);
            Counter::from_arc(self.note(key))
        }

        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            self.note_kind("gauge", key);
            Gauge::from_arc(self.note(key))
        }

        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            self.note_kind("histogram", key);
            Histogram::from_arc(self.note(key))
        }
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp(0) + Duration::from_millis(millis)
    }

    #[test]
    fn a_timed_proposal_tells_how_long_each_stage_took() {
        let notes = Notes::default();
        let mut meters = with_local_recorder(&notes, || Meters::new(NodeId(3)));
        let (timed, untimed) = (RequestId(SAMPLE), RequestId(SAMPLE + 1));
        meters.on_proposed(at(0), timed);
        meters.on_proposed(at(0), untimed);
        meters.on_persisted(at(2), Index(6)); // before its entry
        meters.on_persisted(at(4), Index(7));
        meters.on_committed(at(5), &[(Index(7), timed), (Index(8), untimed)]);
        meters.on_answered(at(9), untimed, Duration::ZERO);
        meters.on_answered(at(9), timed, Duration::from_millis(1));
        for (stage, expected) in
            [("persisted", 0.004), ("committed", 0.005), ("applied", 0.008), ("answered", 0.009)]
        {
            let name = format!("kontiki_proposal_seconds node=3 stage={stage}");
            assert_eq!(notes.of(&name), [expected], "{stage}");
        }
        assert!(meters.timed.is_empty());
    }

    #[test]
    fn a_proposal_that_was_not_applied_is_forgotten() {
        let mut meters = Meters::new(NodeId(1));
        meters.on_proposed(at(0), RequestId(0));
        assert!(meters.forget(RequestId(0)).is_some());
        assert!(meters.timed.is_empty());
    }

    #[test]
    fn each_change_of_leader_counts_once() {
        let notes = Notes::default();
        let mut meters = with_local_recorder(&notes, || Meters::new(NodeId(1)));
        let role = Role::Follower;
        for (term, leader) in [(1, Some(2)), (2, None), (3, Some(2)), (4, Some(3))] {
            let (term, leader) = (kontiki_raft::Term(term), leader.map(NodeId));
            meters.on_soft_state(SoftState { role, term, leader });
        }
        assert_eq!(notes.of("kontiki_leader_changes_total node=1"), [1.0, 1.0]);
    }

    /// What is said of a peer is unsaid when this node does not lead any more, or it is gone.
    #[test]
    fn each_peer_has_its_lag_its_round_trip_and_its_lanes() {
        let (node, peer) = (NodeId(1), NodeId(2));
        let membership = Membership::of_voters([(node, "a"), (peer, "b")]);
        let recovered = Recovered {
            memberships: vec![(EntryId::ZERO, Arc::new(membership))],
            ..Recovered::default()
        };
        let core = RaftCore::new(Config::new(node, 1), recovered, at(0)).unwrap();
        let identity = NodeIdentity { id: node, cluster: 1, store: StoreId(1) };
        let follows = Status::new(identity, at(0), core.status());
        let progress = ProgressStatus {
            id: peer,
            match_index: Index(4),
            next_index: Index(5),
            state: ProgressState::Replicate,
            acked_at: at(0),
            round_trip: Some(Duration::from_millis(2)),
            inflight_bytes: 0,
            report: Report::default(),
        };
        let last = EntryId::new(6, 1);
        let leads = Status { last, progress: vec![progress], ..follows.clone() };
        let waiting = |count, bytes| Backlog { count, bytes };
        let backlog = PeerBacklog {
            peer,
            control: waiting(1, 128),
            append: waiting(3, 900),
            snapshot: waiting(2, 2 << 20),
        };

        let notes = Notes::default();
        with_local_recorder(&notes, || {
            let mut meters = Meters::new(node);
            meters.set_peers(&leads, &[backlog]);
            meters.set_peers(&follows, &[backlog]);
            meters.set_peers(&follows, &[]);
        });
        let told = |name: &str| -> Vec<Option<f64>> {
            let told = notes.of(name).into_iter();
            told.map(|value| (!value.is_nan()).then_some(value)).collect()
        };
        for (name, value) in
            [("kontiki_follower_lag_entries", 2.0), ("kontiki_round_trip_seconds", 0.002)]
        {
            let name = format!("{name} node=1 peer=2");
            assert_eq!(told(&name), [Some(value), None, None], "{name}");
        }
        for (lane, Backlog { count, bytes }) in [
            ("control", backlog.control),
            ("append", backlog.append),
            ("snapshot", backlog.snapshot),
        ] {
            for (name, value) in [("length", count), ("bytes", bytes)] {
                let name = format!("kontiki_lane_{name} node=1 peer=2 lane={lane}");
                let value = Some(number(value));
                assert_eq!(told(&name), [value, value, None], "{name}");
            }
        }
    }

    #[test]
    fn every_metric_is_described() {
        let notes = Notes::default();
        with_local_recorder(&notes, || {
            let meters = Meters::new(NodeId(1));
            drop(PeerGauges::new(&meters.node, NodeId(2)));
            drop(log_sync_seconds(NodeId(1)));
        });
        let [registered, described] = &*notes.1.lock().unwrap();
        assert_eq!(registered, described);
    }

    /// The names are an interface: those of the page and those of the code are the same.
    #[test]
    fn every_metric_is_documented() {
        let names = |text: &str, quote: char| -> BTreeSet<String> {
            let parts = text.split(quote).map(str::to_owned);
            parts.filter(|name| name.starts_with("kontiki_")).collect()
        };
        let code = include_str!("metrics.rs").split("#[cfg(test)]").next().unwrap();
        let page = include_str!("../../../docs/metrics.md");
        let page = page.split("## What the server shows").next().unwrap();
        assert_eq!(names(code, '"'), names(page, '`'));
    }
}
