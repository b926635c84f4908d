//! What a log is, in a few lines, to compare the real one with.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    path::Path,
    sync::Arc,
};

use kontiki_log::{IdentityRequest, Log, LogError, LogOptions, OnDamage, Opened};
use kontiki_raft::{
    Entry, EntryId, HardState, Index, Membership, NodeId, Payload, StoreId, WriteBatch,
};
use kontiki_sim::disk::SimDisk;

/// Where the log lies on its disk.
pub(crate) const DIR: &str = "/n1";

/// Small segments, so that they change often. Damage is refused.
pub(crate) fn options() -> LogOptions {
    let on_damage = OnDamage::Refuse;
    LogOptions { segment_bytes: 8 << 10, spares: 1, seed: 7, on_damage }
}

/// The same, and damage is set aside.
pub(crate) fn open_setting_aside(disk: &SimDisk) -> Result<(Log, Opened), LogError> {
    let options = LogOptions { on_damage: OnDamage::SetAside, ..options() };
    Log::open(Arc::new(disk.clone()), Path::new(DIR), &request(), options)
}

pub(crate) fn request() -> IdentityRequest {
    IdentityRequest {
        cluster: 0xC1,
        node: NodeId(1),
        genesis: Membership::of_voters([(NodeId(1), "n1:1"), (NodeId(2), "n2:1")]),
        new_store: StoreId(0x5701),
    }
}

/// The content of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) start: EntryId,
    /// In force at the start.
    base: (EntryId, Arc<Membership>),
    pub(crate) entries: Vec<Entry>,
    pub(crate) hard_state: HardState,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            start: EntryId::ZERO,
            base: (EntryId::ZERO, Arc::new(request().genesis)),
            entries: Vec::new(),
            hard_state: HardState::default(),
        }
    }

    /// What the real log holds, as it says itself and as its reader reads it.
    pub(crate) fn observe(log: &Log, opened: &Opened) -> Self {
        let recovered = &opened.recovered;
        let (start, last) = (recovered.log_start, recovered.last);
        assert_eq!(log.reader().bounds(), (start, last));
        let entries = if start == last {
            Vec::new()
        } else {
            let all = start.index.next()..=last.index;
            log.reader().read(all, usize::MAX).expect("what was recovered can be read")
        };
        let base = recovered.memberships.first().expect("there is always one").clone();
        let model = Self { start, base, entries, hard_state: recovered.hard_state };
        assert_eq!(recovered.last, model.last());
        assert_eq!(recovered.term_runs, model.term_runs());
        assert_eq!(recovered.memberships, model.memberships());
        let bytes: usize = model.entries.iter().map(Entry::byte_len).sum();
        let has_memberships = 1 < recovered.memberships.len();
        let sizes = &recovered.log_sizes;
        assert!(
            has_memberships || sizes.iter().map(|(_, bytes)| bytes).sum::<u64>() == bytes as u64
        );
        assert!(sizes.is_sorted() && sizes.first().is_none_or(|s| s.0 == start.index.next()));
        model
    }

    pub(crate) fn last(&self) -> EntryId {
        self.entries.last().map_or(self.start, |entry| entry.id)
    }

    pub(crate) fn id(&self, index: Index) -> EntryId {
        let at = index.get() - self.start.index.get();
        if at == 0 { self.start } else { self.entries[usize::try_from(at - 1).unwrap_or(0)].id }
    }

    pub(crate) fn write(&mut self, batches: &[WriteBatch]) {
        for batch in batches {
            if let Some(meta) = &batch.reset_to {
                self.start = meta.last;
                self.base = (meta.last, Arc::clone(&meta.membership));
                self.entries.clear();
            }
            if let Some(first) = batch.entries.first() {
                self.entries.retain(|entry| entry.id.index < first.id.index);
                self.entries.extend(batch.entries.iter().cloned());
            }
            self.hard_state = batch.hard_state.unwrap_or(self.hard_state);
        }
    }

    /// The same log, starting later.
    pub(crate) fn purged(&self, start: EntryId) -> Self {
        let memberships = self.memberships();
        let in_force = memberships.iter().rfind(|(id, _)| id.index <= start.index);
        Self {
            start,
            base: in_force.unwrap_or(&self.base).clone(),
            entries: self.entries.iter().filter(|e| start.index < e.id.index).cloned().collect(),
            hard_state: self.hard_state,
        }
    }

    fn term_runs(&self) -> Vec<EntryId> {
        let mut runs: Vec<EntryId> = self.entries.iter().map(|entry| entry.id).collect();
        runs.dedup_by_key(|id| id.term);
        runs
    }

    pub(crate) fn memberships(&self) -> Vec<(EntryId, Arc<Membership>)> {
        let logged = self.entries.iter().filter_map(|entry| match &entry.payload {
            Payload::Membership(membership) => Some((entry.id, Arc::clone(membership))),
            Payload::Blank | Payload::Command(_) | Payload::Session(_) => None,
        });
        std::iter::once(self.base.clone()).chain(logged).collect()
    }
}

/// Short enough to be read: the ends, and a hash of what is between.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hasher = DefaultHasher::new();
        format!("{:?}", self.entries).hash(&mut hasher);
        let (start, last, state) = (self.start, self.last(), self.hard_state);
        write!(f, "after {start} up to {last} ({:016x}), {state:?}", hasher.finish())?;
        write!(f, ", members {:?}", self.memberships())
    }
}

/// What may be found after a restart.
#[derive(Clone, Debug)]
pub(crate) struct Expected {
    /// What must survive.
    pub(crate) durable: Model,
    /// The states after each write that may survive, each on top of the one before.
    pub(crate) written: Vec<Model>,
    /// Up to where a purge that was interrupted may have come.
    pub(crate) purging: Option<Index>,
}

impl Expected {
    pub(crate) fn new(durable: Model) -> Self {
        Self { durable, written: Vec::new(), purging: None }
    }

    pub(crate) fn latest(&self) -> &Model {
        self.written.last().unwrap_or(&self.durable)
    }

    /// To be called before the log writes: it may fail half-way.
    pub(crate) fn write(&mut self, batches: &[WriteBatch]) {
        let mut next = self.latest().clone();
        next.write(batches);
        self.written.push(next);
    }

    pub(crate) fn synced(&mut self) {
        if let Some(latest) = self.written.pop() {
            self.written.clear();
            self.durable = latest;
        }
    }

    /// To be called after the log has purged.
    pub(crate) fn purged(&mut self, start: EntryId) {
        self.synced();
        self.durable = self.durable.purged(start);
        self.purging = None;
    }

    pub(crate) fn allows(&self, found: &Model) -> bool {
        self.is_latest(found)
            || std::iter::once(&self.durable).chain(&self.written).any(|s| self.matches(s, found))
    }

    /// Whether everything survived that was ever written.
    pub(crate) fn is_latest(&self, found: &Model) -> bool {
        self.matches(self.latest(), found)
    }

    fn matches(&self, state: &Model, found: &Model) -> bool {
        let is_start_legal = state.start == found.start
            || self.purging.is_some_and(|upto| {
                state.start.index < found.start.index && found.start.index <= upto
            });
        is_start_legal && state.purged(found.start) == *found
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "durable {}\nlatest  {}", self.durable, self.latest())
    }
}
