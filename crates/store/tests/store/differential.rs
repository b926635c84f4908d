//! The store against the naive model and against redb: the same commands, the same answers,
//! whatever is flushed, compacted, crashed, copied and reopened in between.
//!
//! `KONTIKI_STORE_SEEDS` sets the number of seeds, `KONTIKI_STORE_SEED` the first one, and
//! `KONTIKI_STORE_STEPS` how much each of them does.

use std::{ops::ControlFlow, path::Path, sync::Arc};

use crate::support::{
    self,
    disk::MemoryDisk,
    generate,
    model::{Model, Past},
    oracle::Oracle,
    quiet, refusal,
    rng::Rng,
};
use kontiki_store::{RangeRequest, Request, Response, Store, StoreOptions};

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn the_store_answers_as_the_naive_model_and_as_redb() {
    let first = env("KONTIKI_STORE_SEED", 1);
    let steps = env("KONTIKI_STORE_STEPS", 400);
    for seed in first..first + env("KONTIKI_STORE_SEEDS", 12) {
        let outcome = std::panic::catch_unwind(|| World::new(seed).run(steps));
        assert!(
            outcome.is_ok(),
            "replay with KONTIKI_STORE_SEED={seed} KONTIKI_STORE_SEEDS=1 KONTIKI_STORE_STEPS={steps}"
        );
    }
}

struct World {
    rng: Rng,
    disk: MemoryDisk,
    store: Option<Store>,
    options: StoreOptions,
    model: Model,
    oracle: Oracle,
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
        let (model, oracle) = (Model::new(), Oracle::new());
        let mut world = Self { rng, disk, store: None, options, model, oracle, log: Vec::new() };
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

    fn run(mut self, steps: u64) {
        for _ in 0..steps {
            match self.rng.below(100) {
                0..=49 => self.batch(),
                50..=79 => self.read(),
                80..=86 => self.store().flush().unwrap(),
                87..=93 => {
                    for _ in 0..self.rng.below(6) {
                        self.store().compact_step().unwrap();
                    }
                }
                94..=95 => {
                    self.check_hash();
                    self.check_history();
                }
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
        let (mut index, _) = self.store().applied();
        let mut expected = Vec::new();
        for _ in 0..=self.rng.below(5) {
            let request = generate::command(&mut self.rng, self.model.revision);
            let request = Request::decode(&request.encode()).unwrap();
            index += 1;
            expected.push(self.model.apply(&request));
            assert_eq!(expected.last(), Some(&self.oracle.apply(&request)), "{request:?}");
            batch.push((index, 3, request));
        }
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
            assert_eq!(response, self.oracle.range(&range), "{range:?}");
        }
    }

    fn close_and_open(&mut self) {
        let applied = self.store().applied();
        self.store.take().unwrap().close().unwrap();
        self.open();
        self.oracle.reopen();
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
        self.oracle = self.oracle.copy();
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

    /// What watchers are told is what redb holds, be it that the store has not removed all that
    /// it may.
    fn check_history(&self) {
        let first = self.model.compact_revision.max(1);
        for revision in [first, (first + self.model.revision) / 2, self.model.revision] {
            let mut expected = self.oracle.history(revision).into_iter();
            let scanned = self.store().scan_events(revision, &mut |event| {
                let expected = expected.next().unwrap();
                assert_eq!((event.key, event.value), (&expected.key[..], &expected.value[..]));
                let numbers = (event.mod_revision, event.create_revision, event.version);
                assert_eq!(numbers, (expected.main, expected.create_revision, expected.version));
                ControlFlow::Continue(())
            });
            scanned.unwrap();
            assert_eq!(expected.next(), None);
        }
    }

    /// Every revision that can be read is as the model has it, and redb.
    fn check_everything(&self) {
        self.check_hash();
        self.check_history();
        for revision in -1..=self.model.revision + 1 {
            let everything = RangeRequest {
                key: "\0".into(),
                range_end: "\0".into(),
                revision,
                ..Default::default()
            };
            let response = self.store().range(&everything).map_err(|error| refusal(&error));
            assert_eq!(response, self.model.range(&everything), "revision {revision}");
            assert_eq!(response, self.oracle.range(&everything), "revision {revision}");
        }
    }
}
