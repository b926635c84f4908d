//! The state machine of the server: the real store, on the disk of a simulated node.
//!
//! What commands do is what [`Machine`] does with them, said in requests of etcd: a session is a
//! guard of a transaction, and what is appended is put. The machine runs beside the store and
//! says what each answer must be; [`Kv::audit`] reads everything back and compares it.

use std::{collections::BTreeMap, io, ops::ControlFlow, path::Path, sync::Arc};

use kontiki_disk::Disk;
use kontiki_raft::{Entry, EntryId, Index, Payload};
use kontiki_store::{
    Bytes, CompactRequest, Compare, CompareResult, CompareTarget, DeleteRangeRequest, Fatal,
    OpenError, PutRequest, RangeRequest, Request, RequestOp, Response, ResponseOp, RestoreError,
    Store, StoreError, StoreOptions, StoreSnapshot, TxnRequest,
};

use crate::{
    command::{Action, Command, Stamp, take_word},
    disk::SimDisk,
    machine::{Effect, Machine},
};

/// A store, and what is known of it from outside.
#[derive(Debug)]
pub(crate) struct Kv {
    store: Store,
    /// A write of its own waits for its time.
    pub(crate) is_scheduled: bool,
    /// It has found the disk full.
    pub(crate) is_full: bool,
    /// It has failed for good; the process is about to exit.
    pub(crate) has_failed: bool,
}

/// An event of history, as a model knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KvEvent {
    pub(crate) revision: i64,
    pub(crate) key: Bytes,
    /// Empty in a deletion, and nowhere else.
    pub(crate) value: Bytes,
}

impl KvEvent {
    pub(crate) fn is_deletion(&self) -> bool {
        self.value.is_empty()
    }
}

impl Kv {
    pub(crate) fn open(
        disk: Arc<SimDisk>,
        dir: &Path,
        options: StoreOptions,
    ) -> Result<Self, OpenError> {
        let store = Store::open_on(disk, dir, options)?;
        Ok(Self { store, is_scheduled: false, is_full: false, has_failed: false })
    }

    /// Index and term of the last entry that is applied.
    pub(crate) fn applied(&self) -> EntryId {
        let (index, term) = self.store.applied();
        EntryId::new(index, term)
    }

    /// Up to here it is known after a crash.
    pub(crate) fn durable_applied(&self) -> Index {
        Index(self.store.durable_applied())
    }

    pub(crate) fn revision(&self) -> i64 {
        self.store.revision()
    }

    pub(crate) fn compact_revision(&self) -> i64 {
        self.store.compact_revision()
    }

    /// Applies entries as a batch, or as several where a command depends on the one before.
    /// What became of each command that can tell.
    pub(crate) fn apply(&self, entries: &[Entry]) -> Result<BTreeMap<Index, Effect>, Fatal> {
        let Some(last) = entries.last() else { return Ok(BTreeMap::new()) };
        let mut effects = BTreeMap::new();
        let mut batch = Vec::new();
        for entry in entries {
            let (Payload::Command(bytes) | Payload::Session(bytes)) = &entry.payload else {
                continue;
            };
            let Some(command) = Command::decode(bytes) else { continue };
            if matches!(command.action, Action::Append { .. } | Action::Compact { .. }) {
                self.apply_batch(&mut batch, entry.id, &mut effects, true)?;
            }
            let Some(request) = self.request(&command, entry.id.index)? else { continue };
            batch.push((entry.id.index.get(), entry.id.term.get(), request));
        }
        self.apply_batch(&mut batch, last.id, &mut effects, false)?;
        Ok(effects)
    }

    /// `is_before` if the batch ends before the entry `at`, which needs to see what it did.
    fn apply_batch(
        &self,
        batch: &mut Vec<(u64, u64, Request)>,
        at: EntryId,
        effects: &mut BTreeMap<Index, Effect>,
        is_before: bool,
    ) -> Result<(), Fatal> {
        let upto = match batch.last() {
            Some((index, term, _)) if is_before => (*index, *term),
            None if is_before => return Ok(()),
            _ => (at.index.get(), at.term.get()),
        };
        let batch = std::mem::take(batch);
        let answers = self.store.apply(&batch, upto)?;
        for ((index, _, request), answer) in batch.iter().zip(answers) {
            let (Request::Txn(txn), Ok(Response::Txn(answer))) = (request, answer) else {
                continue;
            };
            let effect = match answer.responses.first() {
                Some(ResponseOp::Range(found)) if answer.succeeded => {
                    let value = found.kvs.first().map(|kv| kv.value.clone()).unwrap_or_default();
                    repeated(txn, &value)
                }
                _ => Effect::Done,
            };
            effects.insert(Index(*index), effect);
        }
        Ok(())
    }

    /// The request that does what a command says. `None` for one that changes nothing.
    fn request(&self, command: &Command, at: Index) -> Result<Option<Request>, Fatal> {
        let put = match &command.action {
            Action::Note { .. } => None,
            Action::Put { key, value } => Some(put(value_key(*key), value.clone())),
            Action::Append { key, value } => {
                let mut whole = self.value(*key)?.map_or_else(Vec::new, |old| old.to_vec());
                whole.extend_from_slice(value);
                Some(put(value_key(*key), whole.into()))
            }
            Action::Delete { key } => {
                let request = DeleteRangeRequest { key: value_key(*key), ..<_>::default() };
                return Ok(Some(Request::DeleteRange(request)));
            }
            Action::Compact { keep } => {
                let revision = self.revision().saturating_sub(i64::try_from(*keep).unwrap_or(0));
                let request = CompactRequest { revision, physical: false };
                return Ok(Some(Request::Compact(request)));
            }
        };
        Ok(match (command.stamp, put) {
            (Some(stamp), put) => Some(Request::Txn(once(stamp, at, put))),
            (None, put) => put.map(Request::Put),
        })
    }

    /// The value of a key, by way of a range.
    pub(crate) fn value(&self, key: u64) -> Result<Option<Bytes>, Fatal> {
        let request = RangeRequest { key: value_key(key), ..RangeRequest::default() };
        let found = self.range(&request)?;
        Ok(found.into_iter().next().map(|event| event.value))
    }

    fn range(&self, request: &RangeRequest) -> Result<Vec<KvEvent>, Fatal> {
        let response = self.store.range(request).map_err(|error| match error {
            StoreError::Fatal(fatal) => fatal,
            refusal => unreachable!("the current revision and those kept can be read: {refusal}"),
        })?;
        let event = |kv: kontiki_store::KeyValue| KvEvent {
            revision: kv.mod_revision,
            key: kv.key,
            value: kv.value,
        };
        Ok(response.kvs.into_iter().map(event).collect())
    }

    /// All keys at a revision that is kept; at 0 as they are.
    pub(crate) fn all_at(&self, revision: i64) -> Result<Vec<KvEvent>, Fatal> {
        let all = Bytes::from_static(b"\0");
        let range = RangeRequest { key: all.clone(), range_end: all, revision, ..<_>::default() };
        self.range(&range)
    }

    /// Every event that is kept from the compact revision on, in order.
    pub(crate) fn history(&self) -> Result<Vec<KvEvent>, Fatal> {
        let mut events = Vec::new();
        let scanned = self.store.scan_events(self.compact_revision(), &mut |event| {
            events.push(KvEvent {
                revision: event.mod_revision,
                key: Bytes::copy_from_slice(event.key),
                value: Bytes::copy_from_slice(event.value),
            });
            ControlFlow::Continue(())
        });
        match scanned {
            Ok(()) => Ok(events),
            Err(StoreError::Fatal(fatal)) => Err(fatal),
            Err(refusal) => unreachable!("the compact revision can be asked for: {refusal}"),
        }
    }

    /// The machine that holds what the store holds. `commands` is not in it.
    pub(crate) fn machine(&self, commands: u64) -> Result<Machine, Fatal> {
        let mut machine = Machine::at(self.applied().index, commands);
        for event in self.all_at(0)? {
            match *event.key.as_ref() {
                [SESSION, ref session @ ..] => {
                    let mut value = &event.value[..];
                    let words = (number_of(session), take_big(&mut value), take_big(&mut value));
                    machine.restore_session(words.0, (words.1, Index(words.2)));
                }
                [_, ref key @ ..] => machine.restore_value(number_of(key), event.value),
                [] => {}
            }
        }
        Ok(machine)
    }

    /// Reads every frame that there is, as a follower would get it.
    pub(crate) fn verify(&self) -> Result<(), String> {
        let snapshot = self.store.snapshot().map_err(|fatal| fatal.to_string())?;
        snapshot.write_to(&mut io::sink()).map_err(|error| error.to_string())
    }

    pub(crate) fn snapshot(&self) -> Result<StoreSnapshot, Fatal> {
        self.store.snapshot()
    }

    pub(crate) fn restore(&self, at: EntryId, from: &mut dyn io::Read) -> Result<(), RestoreError> {
        self.store.restore((at.index.get(), at.term.get()), from)
    }

    /// Writes out what is applied. Whether the disk is full.
    pub(crate) fn flush(&self) -> Result<bool, Fatal> {
        self.store.flush()?;
        Ok(self.store.is_full())
    }

    /// A little of what is due beside that. Whether there is more.
    pub(crate) fn upkeep(&self) -> Result<bool, Fatal> {
        self.store.compact_step()
    }
}

/// Removes a damaged store, first what makes it one.
pub(crate) fn remove(disk: &SimDisk, dir: &Path) -> io::Result<()> {
    let state = dir.join("STATE");
    if disk.files().contains(&state) {
        disk.remove(&state)?;
        disk.sync_dir(dir)?;
    }
    for path in disk.files().iter().filter(|path| path.parent() == Some(dir)) {
        disk.remove(path)?;
    }
    disk.sync_dir(dir)
}

const SESSION: u8 = b's';
const VALUE: u8 = b'v';

pub(crate) fn value_key(key: u64) -> Bytes {
    key_of(VALUE, key)
}

pub(crate) fn session_key(session: u64) -> Bytes {
    key_of(SESSION, session)
}

fn key_of(kind: u8, number: u64) -> Bytes {
    let mut key = vec![kind];
    key.extend_from_slice(&number.to_be_bytes());
    key.into()
}

/// What is kept of a session: its newest operation, and where that took effect. Greater is later.
pub(crate) fn session_value(sequence: u64, at: Index) -> Bytes {
    let mut value = sequence.to_be_bytes().to_vec();
    value.extend_from_slice(&at.get().to_be_bytes());
    value.into()
}

fn number_of(mut bytes: &[u8]) -> u64 {
    take_big(&mut bytes)
}

fn take_big(bytes: &mut &[u8]) -> u64 {
    take_word(bytes).map_or(0, u64::swap_bytes)
}

fn put(key: Bytes, value: Bytes) -> PutRequest {
    PutRequest { key, value, ..PutRequest::default() }
}

/// Does it if the session has not done it yet, else finds out what it has done.
fn once(stamp: Stamp, at: Index, put: Option<PutRequest>) -> TxnRequest {
    let key = session_key(stamp.session);
    let before = session_value(stamp.sequence.saturating_sub(1), Index(u64::MAX));
    let is_done = Compare {
        result: CompareResult::Greater,
        target: CompareTarget::Value(before),
        key: key.clone(),
        range_end: Bytes::new(),
    };
    let found = RangeRequest { key: key.clone(), ..RangeRequest::default() };
    let value = session_value(stamp.sequence, at);
    let done = PutRequest { key, value, ..PutRequest::default() };
    TxnRequest {
        compare: vec![is_done],
        success: vec![RequestOp::Range(found)],
        failure: std::iter::once(done).chain(put).map(RequestOp::Put).collect(),
    }
}

/// What a session has done instead of this transaction.
fn repeated(txn: &TxnRequest, mut newest: &[u8]) -> Effect {
    let (sequence, at) = (take_big(&mut newest), Index(take_big(&mut newest)));
    let asked = match txn.failure.first() {
        Some(RequestOp::Put(done)) => number_of(&done.value),
        _ => 0,
    };
    if sequence == asked { Effect::Repeated(at) } else { Effect::Stale }
}
