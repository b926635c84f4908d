//! The store against the naive model: the same commands, the same answers, whatever is
//! flushed, compacted, crashed and reopened in between.
//!
//! `KONTIKI_STORE_SEEDS` sets the number of seeds, `KONTIKI_STORE_SEED` the first one.

use std::{path::Path, sync::Arc};

use crate::support::{self, disk::MemoryDisk, generate, model::Model, quiet, refusal, rng::Rng};
use kontiki_store::{Request, Response, Store, StoreOptions};

const STEPS: usize = 400;

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn the_store_answers_as_the_naive_model() {
    let first = env("KONTIKI_STORE_SEED", 1);
    for seed in first..first + env("KONTIKI_STORE_SEEDS", 12) {
        let outcome = std::panic::catch_unwind(|| World::new(seed).run());
        assert!(outcome.is_ok(), "replay with KONTIKI_STORE_SEED={seed} KONTIKI_STORE_SEEDS=1");
    }
}

struct World {
    rng: Rng,
    disk: MemoryDisk,
    store: Option<Store>,
    options: StoreOptions,
    model: Model,
    /// Every command with what was answered, from index 1.
    log: Vec<(Request, Result<Response, &'static str>)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let options = StoreOptions {
            value_cache_bytes: [0, 300, 20_000, 1 << 20][rng.below(4)],
            pending_bytes_max: [2000, 1 << 20][rng.below(2)],
            segment_bytes: [1000, 20_000, 1 << 20][rng.below(3)],
            checkpoint_bytes: [1000, 30_000, 1 << 20][rng.below(3)],
            ..quiet()
        };
        let disk = MemoryDisk::default();
        let mut world =
            Self { rng, disk, store: None, options, model: Model::new(), log: Vec::new() };
        world.open();
        world
    }

    fn open(&mut self) {
        self.store = None;
        let store =
            Store::open_on(Arc::new(self.disk.clone()), Path::new("/store"), self.options.clone());
        self.store = Some(store.unwrap());
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            match self.rng.below(100) {
                0..=49 => self.batch(),
                50..=79 => self.read(),
                80..=86 => self.store().flush().unwrap(),
                87..=93 => {
                    for _ in 0..self.rng.below(6) {
                        self.store().compact_step().unwrap();
                    }
                }
                94..=95 => self.check_hash(),
                96 => self.close_and_open(),
                97 => self.restore_elsewhere(),
                _ => self.crash_and_open(),
            }
        }
        self.check_everything();
        self.crash_and_open();
        self.check_everything();
    }

    /// Applies a few commands as one batch, with blank entries in between.
    fn batch(&mut self) {
        let mut batch = Vec::new();
        let mut model = self.model.clone();
        let (mut index, _) = self.store().applied();
        let mut expected = Vec::new();
        for _ in 0..=self.rng.below(5) {
            let request = generate::command(&mut self.rng, model.revision);
            let request = Request::decode(&request.encode()).unwrap();
            index += 1;
            expected.push(model.apply(&request));
            batch.push((index, 3, request));
        }
        self.model = model;
        let responses = self.store().apply(&batch, (index, 3)).unwrap();
        for (((_, _, request), response), expected) in
            batch.into_iter().zip(responses).zip(expected)
        {
            let response = response.map_err(|error| refusal(&error));
            assert_eq!(response, expected, "{request:?}");
            self.log.push((request, expected));
        }
    }

    fn read(&mut self) {
        if self.rng.one_in(3) {
            let txn = generate::read_only_txn(&mut self.rng, self.model.revision);
            let response = self.store().txn_read(&txn).map_err(|error| refusal(&error));
            assert_eq!(response, self.model.txn_read(&txn), "{txn:?}");
        } else {
            let range = generate::range(&mut self.rng, self.model.revision);
            let response = self.store().range(&range).map_err(|error| refusal(&error));
            assert_eq!(response, self.model.range(&range), "{range:?}");
        }
    }

    fn close_and_open(&mut self) {
        let applied = self.store().applied();
        self.store.take().unwrap().close().unwrap();
        self.open();
        assert_eq!(self.store().applied(), applied, "closing makes all durable");
        self.check_positions();
    }

    /// Another store takes the state over, with whatever it held before, and goes on with it.
    fn restore_elsewhere(&mut self) {
        let disk = MemoryDisk::default();
        let other =
            Store::open_on(Arc::new(disk.clone()), Path::new("/store"), self.options.clone());
        let other = other.unwrap();
        let at = self.store().applied();
        for index in 1..=at.0.min(7) {
            let stale = Request::Put(support::put("stale", "value"));
            other.apply(&[(index, 1, stale)], (index, 1)).unwrap();
        }
        let mut bytes = Vec::new();
        self.store().snapshot().unwrap().write_to(&mut bytes).unwrap();
        other.restore(at, &mut &bytes[..]).unwrap();
        assert_eq!((other.applied(), other.durable_applied()), (at, at.0));
        assert_eq!(other.hash_kv(0).unwrap(), self.store().hash_kv(0).unwrap());
        (self.disk, self.store) = (disk, Some(other));
        self.check_positions();
    }

    /// The power fails; what is lost is applied again from the log.
    fn crash_and_open(&mut self) {
        let durable = self.store().durable_applied();
        let (last, _) = self.store().applied();
        let after = self.disk.crash(&mut self.rng);
        self.disk = after;
        self.open();
        let (applied, _) = self.store().applied();
        assert!(durable <= applied && applied <= last, "{durable} <= {applied} <= {last}");
        let lost = self.log.split_off(usize::try_from(applied).unwrap());
        for (request, expected) in lost {
            let response = support::apply(self.store(), &request);
            assert_eq!(response, expected, "the second time: {request:?}");
            self.log.push((request, expected));
        }
        self.check_positions();
    }

    fn check_positions(&self) {
        assert_eq!(self.store().revision(), self.model.revision);
        assert_eq!(self.store().compact_revision(), self.model.compact_revision);
    }

    /// A fresh store that gets the same commands in one piece has the same hash.
    fn check_hash(&self) {
        let fresh = Store::in_memory(quiet()).unwrap();
        for (request, expected) in &self.log {
            assert_eq!(&support::apply(&fresh, request), expected);
        }
        let at = self.model.revision - self.model.revision % 3;
        for revision in [0, at] {
            let (ours, theirs) = (self.store().hash_kv(revision), fresh.hash_kv(revision));
            let ours = ours.map_err(|error| refusal(&error));
            assert_eq!(ours, theirs.map_err(|error| refusal(&error)));
        }
    }

    /// Every revision that can be read is as the model has it.
    fn check_everything(&self) {
        self.check_hash();
        for revision in -1..=self.model.revision + 1 {
            let everything = kontiki_store::RangeRequest {
                key: "\0".into(),
                range_end: "\0".into(),
                revision,
                ..Default::default()
            };
            let response = self.store().range(&everything).map_err(|error| refusal(&error));
            assert_eq!(response, self.model.range(&everything), "revision {revision}");
        }
    }
}
