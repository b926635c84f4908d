//! Three replicas and what they ask for, carried out by hand: no clock, no thread, no socket.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use kontiki::{
    Action, Answer, Bytes, Config, Entry, EntryId, Event, Index, Membership, Message, NodeId,
    Payload, ReadMode, Recovered, Replica, RequestId, Role, SnapshotMeta, Timestamp, WriteBatch,
};
use kontiki_raft::{Apply, Body, HardState, LogWrite};

/// What became of a request: the answer, or the entry that answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Answer(Answer),
    Applied { at: EntryId, command: Bytes },
}

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) message: Message,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) nodes: Vec<Host>,
    pub(crate) flights: VecDeque<Flight>,
    /// Nothing reaches or leaves these.
    pub(crate) cut: BTreeSet<NodeId>,
    genesis: Arc<Membership>,
    next_request: u64,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) replica: Replica,
    config: Config,
    hard_state: HardState,
    pub(crate) log: Vec<Entry>,
    pub(crate) writes: VecDeque<LogWrite>,
    pub(crate) applies: VecDeque<(Apply, Vec<(Index, RequestId)>)>,
    pub(crate) outcomes: BTreeMap<RequestId, Vec<Outcome>>,
    /// The disk does not answer.
    pub(crate) is_disk_stalled: bool,
    /// The state machine does not answer.
    pub(crate) is_machine_stalled: bool,
}

pub(crate) const ELECTION_TIMEOUT: Duration = Duration::from_millis(1000);
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);

impl World {
    pub(crate) fn new(count: u64) -> Self {
        Self::tuned(count, |_| {})
    }

    pub(crate) fn tuned(count: u64, tune: impl Fn(&mut Config)) -> Self {
        let now = Timestamp(1_000_000);
        let voters = (1..=count).map(|id| (NodeId(id), format!("n{id}")));
        let genesis = Arc::new(Membership::of_voters(voters));
        let nodes = (1..=count).map(|id| {
            let mut config = Config::new(NodeId(id), 100 + id);
            config.election_timeout = ELECTION_TIMEOUT;
            config.heartbeat_interval = HEARTBEAT;
            tune(&mut config);
            let recovered = Recovered {
                memberships: vec![(EntryId::ZERO, Arc::clone(&genesis))],
                is_pristine: true,
                ..Recovered::default()
            };
            Host {
                replica: Replica::new(config.clone(), recovered, now)
                    .expect("the settings are sound"),
                config,
                hard_state: HardState::default(),
                log: Vec::new(),
                writes: VecDeque::new(),
                applies: VecDeque::new(),
                outcomes: BTreeMap::new(),
                is_disk_stalled: false,
                is_machine_stalled: false,
            }
        });
        let nodes = nodes.collect();
        Self {
            now,
            nodes,
            flights: VecDeque::new(),
            cut: BTreeSet::new(),
            genesis,
            next_request: 0,
        }
    }

    pub(crate) fn host(&mut self, id: u64) -> &mut Host {
        &mut self.nodes[usize::try_from(id - 1).expect("a small id")]
    }

    /// The process of a node dies and comes back: the log is there and the state is not, as of a
    /// machine in memory.
    pub(crate) fn restart(&mut self, id: u64) {
        let (now, genesis) = (self.now, Arc::clone(&self.genesis));
        let host = self.host(id);
        let mut term_runs: Vec<EntryId> = Vec::new();
        for entry in &host.log {
            if term_runs.last().is_none_or(|run| run.term != entry.id.term) {
                term_runs.push(entry.id);
            }
        }
        let recovered = Recovered {
            hard_state: host.hard_state,
            term_runs,
            last: host.log.last().map_or(EntryId::ZERO, |entry| entry.id),
            memberships: vec![(EntryId::ZERO, genesis)],
            applied: Index::ZERO,
            ..Recovered::default()
        };
        host.replica = Replica::new(host.config.clone(), recovered, now).expect("it was sound");
        host.writes.clear();
        host.applies.clear();
    }

    pub(crate) fn handle(&mut self, id: u64, event: Event) {
        let now = self.now;
        self.host(id).replica.handle(now, event);
    }

    pub(crate) fn propose(
        &mut self,
        id: u64,
        command: impl Into<Bytes>,
        patience: Duration,
    ) -> RequestId {
        let request = self.new_request();
        let (command, deadline) = (command.into(), self.now + patience);
        let is_session = false;
        self.handle(id, Event::Propose { id: request, command, is_session, deadline });
        self.poll(id);
        request
    }

    pub(crate) fn read(&mut self, id: u64, patience: Duration) -> RequestId {
        let request = self.new_request();
        let deadline = self.now + patience;
        let mode = ReadMode::ReadIndex;
        self.handle(id, Event::Read { id: request, mode, deadline });
        self.poll(id);
        request
    }

    fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    /// Everything that this request was told.
    pub(crate) fn outcomes(&mut self, id: u64, request: RequestId) -> Vec<Outcome> {
        self.host(id).outcomes.get(&request).cloned().unwrap_or_default()
    }

    /// The one thing that this request was told.
    pub(crate) fn outcome(&mut self, id: u64, request: RequestId) -> Outcome {
        let mut outcomes = self.outcomes(id, request);
        assert_eq!(outcomes.len(), 1, "one answer for each request: {outcomes:?}");
        outcomes.remove(0)
    }

    /// Polls a node and takes in what it asks for.
    pub(crate) fn poll(&mut self, id: u64) {
        let (now, mut actions) = (self.now, Vec::new());
        self.host(id).replica.poll(now, &mut actions);
        for action in actions {
            match action {
                Action::Send(envelope) => self.send(id, envelope.to, envelope.message),
                Action::SendStored { mut envelope, range, .. } => {
                    let entries = self.host(id).stored(range.start().get(), range.end().get());
                    if let Body::AppendEntries(append) = &mut envelope.message.body {
                        append.entries = entries;
                    }
                    self.send(id, envelope.to, envelope.message);
                }
                Action::Write(write) => self.host(id).writes.push_back(write),
                Action::Apply { what, waiters } => {
                    self.host(id).applies.push_back((what, waiters));
                }
                Action::Answer { id: request, answer } => {
                    let outcomes = self.host(id).outcomes.entry(request).or_default();
                    outcomes.push(Outcome::Answer(answer));
                }
                Action::Purge { .. }
                | Action::SendSnapshot { .. }
                | Action::CancelSnapshot { .. }
                | Action::Membership(..)
                | Action::SoftState(_) => {}
            }
        }
    }

    fn send(&mut self, from: u64, to: NodeId, message: Message) {
        self.flights.push_back(Flight { from: NodeId(from), to, message });
    }

    /// Delivers one message, unless its sender or receiver is cut off.
    pub(crate) fn deliver(&mut self, flight: Flight) {
        let Flight { from, to, message } = flight;
        // Who was added is not started.
        let is_there = to.get() <= self.count();
        if is_there && !self.cut.contains(&from) && !self.cut.contains(&to) {
            self.handle(to.get(), Event::Message { from, message });
            self.poll(to.get());
        }
    }

    /// Lets the disk and the state machine of a node finish what they have.
    pub(crate) fn work(&mut self, id: u64) -> bool {
        let mut has_worked = false;
        while let Some(write) = self.host(id).next_write() {
            let LogWrite { batch, ticket } = write;
            self.host(id).write(batch);
            self.handle(id, Event::Persisted(ticket));
            self.poll(id);
            has_worked = true;
        }
        while let Some(upto) = self.host(id).apply() {
            self.handle(id, Event::Applied { upto, durable: Index::ZERO });
            self.poll(id);
            has_worked = true;
        }
        has_worked
    }

    /// Delivers and works until there is nothing left to do at this moment.
    pub(crate) fn settle(&mut self) {
        loop {
            let mut is_quiet = true;
            for id in 1..=self.count() {
                is_quiet &= !self.work(id);
            }
            match self.flights.pop_front() {
                Some(flight) => self.deliver(flight),
                None if is_quiet => return,
                None => {}
            }
        }
    }

    /// Lets time pass, with everything that falls due in it.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        while let Some((at, id)) = self.next_deadline()
            && at <= end
        {
            self.now = self.now.max(at);
            self.handle(id, Event::Timeout);
            self.poll(id);
            self.settle();
        }
        self.now = end;
        for id in 1..=self.count() {
            self.poll(id);
        }
        self.settle();
    }

    fn next_deadline(&self) -> Option<(Timestamp, u64)> {
        let deadlines = self.nodes.iter().zip(1..);
        deadlines.filter_map(|(node, id)| Some((node.replica.next_deadline()?, id))).min()
    }

    /// Lets time pass until a node that is not cut off leads, and returns it.
    pub(crate) fn elect(&mut self) -> u64 {
        for _ in 0..100 {
            let leads = |id: &u64| {
                let host = &self.nodes[usize::try_from(*id - 1).expect("a small id")];
                let soft_state = host.replica.status().soft_state;
                soft_state.role == Role::Leader && !self.cut.contains(&NodeId(*id))
            };
            if let Some(leader) = (1..=self.count()).find(leads) {
                self.run_for(3 * HEARTBEAT); // everyone hears of it, and its first entry commits
                return leader;
            }
            self.run_for(ELECTION_TIMEOUT / 2);
        }
        panic!("nobody leads");
    }

    /// How often `command` stands in the log of a node.
    pub(crate) fn times_in_log(&mut self, id: u64, command: &Bytes) -> usize {
        let is_it = |entry: &&Entry| entry.payload == Payload::Command(command.clone());
        self.host(id).log.iter().filter(is_it).count()
    }

    pub(crate) fn count(&self) -> u64 {
        u64::try_from(self.nodes.len()).expect("a small count")
    }
}

impl Host {
    fn next_write(&mut self) -> Option<LogWrite> {
        if self.is_disk_stalled { None } else { self.writes.pop_front() }
    }

    fn write(&mut self, batch: WriteBatch) {
        if let Some(SnapshotMeta { last, .. }) = batch.reset_to {
            // Nobody reads what the snapshot stands for: anything may stand there.
            let blank = |index| Entry::new(EntryId { index: Index(index), ..last }, Payload::Blank);
            self.log = (1..=last.index.get()).map(blank).collect();
        }
        self.hard_state = batch.hard_state.unwrap_or(self.hard_state);
        for entry in batch.entries {
            let position = usize::try_from(entry.id.index.prev().get()).expect("a small index");
            self.log.truncate(position);
            self.log.push(entry);
        }
    }

    fn stored(&self, first: u64, last: u64) -> Vec<Entry> {
        let at = |index: u64| usize::try_from(index).expect("a small index");
        self.log[at(first - 1)..at(last)].to_vec()
    }

    /// Applies what was handed out next. Returns how far it goes.
    pub(crate) fn apply(&mut self) -> Option<Index> {
        if self.is_machine_stalled {
            return None;
        }
        let (what, waiters) = self.applies.pop_front()?;
        let entries = match what {
            Apply::Entries(entries) => entries,
            Apply::Snapshot(meta) => {
                assert!(waiters.is_empty(), "a snapshot answers nobody");
                return Some(meta.last.index);
            }
            Apply::Stored(range) => self.stored(range.start().get(), range.end().get()),
        };
        for (index, request) in waiters {
            let entry = entries.iter().find(|entry| entry.id.index == index);
            let entry = entry.expect("who waits, waits for one of these entries");
            let Payload::Command(command) = &entry.payload else {
                panic!("{} answers a request, and has no command", entry.id);
            };
            let outcome = Outcome::Applied { at: entry.id, command: command.clone() };
            self.outcomes.entry(request).or_default().push(outcome);
        }
        entries.last().map(|entry| entry.id.index)
    }
}
