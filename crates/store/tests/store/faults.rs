//! One operation of the disk fails, each in turn, under a store that does everything that stores
//! do. Either the store says that this was its end, or it goes on rightly; what it said to be
//! durable is there after a crash, and what is there is the state after one of the commands.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_sim::disk::{Fault, SimDisk};
use kontiki_store::{
    CompactRequest, Fatal, OpenError, Request, RestoreError, Store, StoreError, StoreOptions,
};

use crate::support::{
    apply, apply_batch, apply_compact, compact_fully, delete, put, quiet, range,
    small::{DIR, files},
    truth::{Truth, copy},
};

fn open(disk: &SimDisk) -> Result<Store, OpenError> {
    let options = StoreOptions {
        value_cache_bytes: 100,
        segment_bytes: 700,
        checkpoint_bytes: 1500,
        secret: 7,
        ..quiet()
    };
    Store::open_on(Arc::new(disk.clone()), Path::new(DIR), options)
}

/// Something that a store is asked to do.
#[derive(Clone, Copy, Debug)]
enum Step {
    Apply(u64),
    Flush,
    /// Compaction and checkpoints, until there is nothing more to do.
    Upkeep,
    Read,
    Snapshot,
    /// The state after this command, from another store.
    Restore(u64),
    Close,
    Kill,
}

use Step::{Apply, Close, Flush, Kill, Read, Restore, Snapshot, Upkeep};

const STEPS: [Step; 36] = [
    Apply(5),
    Flush,
    Apply(4),
    Apply(4),
    Flush,
    Read,
    Apply(7),
    Flush,
    Upkeep,
    Apply(3),
    Flush,
    Snapshot,
    Close,
    Read,
    Apply(5),
    Flush,
    Apply(2),
    Upkeep,
    Restore(36),
    Apply(4),
    Flush,
    Kill,
    Apply(6),
    Flush,
    Apply(6),
    Flush,
    Upkeep,
    Read,
    Kill,
    Restore(58),
    Snapshot,
    Apply(4),
    Upkeep,
    Apply(1),
    Flush,
    Close,
];

/// The commands of the log, and what a store that nothing happens to answers after each.
#[derive(Debug)]
struct Script {
    commands: Vec<Request>,
    truths: Vec<Truth>,
    /// States that are restored, by their position.
    states: BTreeMap<u64, Vec<u8>>,
}

impl Script {
    fn new() -> Self {
        let store = Store::in_memory(quiet()).unwrap();
        let mut script = Self {
            commands: Vec::new(),
            truths: vec![Truth::of(&store).unwrap()],
            states: BTreeMap::new(),
        };
        for n in 1..=70_usize {
            let command = match n % 10 {
                4 => Request::DeleteRange(delete("b", "c")),
                7 => Request::Compact(CompactRequest {
                    revision: store.revision() - 2,
                    physical: false,
                }),
                _ => Request::Put(put(["a", "b", "bb", "key"][n % 4], &"v".repeat(n * 2))),
            };
            apply(&store, &command).unwrap();
            script.commands.push(command);
            script.truths.push(Truth::of(&store).unwrap());
            let is_restored = |step: &Step| matches!(step, Restore(at) if *at == n as u64);
            if STEPS.iter().any(is_restored) {
                let mut bytes = Vec::new();
                store.snapshot().unwrap().write_to(&mut bytes).unwrap();
                script.states.insert(n as u64, bytes);
            }
        }
        script
    }

    fn truth(&self, applied: u64) -> &Truth {
        &self.truths[usize::try_from(applied).unwrap()]
    }
}

/// The store cannot be used any more.
#[derive(Debug)]
struct Over;

/// A store at its work.
struct World<'a> {
    script: &'a Script,
    disk: SimDisk,
    store: Option<Store>,
    /// The last command that was said to be durable, and the last one that may be.
    promised: u64,
    last: u64,
}

impl<'a> World<'a> {
    fn new(script: &'a Script, disk: SimDisk) -> Self {
        Self { script, disk, store: None, promised: 0, last: 0 }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn run(&mut self) -> Result<(), Over> {
        self.open()?;
        for step in STEPS {
            self.step(step)?;
            if let Some(store) = &self.store {
                self.promised = self.promised.max(store.durable_applied());
            }
        }
        Ok(())
    }

    /// What failed while a store was opened may not fail the second time.
    fn open(&mut self) -> Result<(), Over> {
        match open(&self.disk) {
            Ok(store) => self.store = Some(store),
            Err(OpenError::Io { .. }) => return Err(Over),
            Err(other) => panic!("nothing is damaged: {other}"),
        }
        self.check();
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<(), Over> {
        let done = match step {
            Apply(count) => self.apply(count),
            Flush => self.store().flush(),
            Upkeep => self.upkeep(),
            Read => return self.read(),
            Snapshot => copy(self.store(), &Store::in_memory(quiet()).unwrap()),
            Restore(at) => self.restore(at),
            Close => {
                let applied = self.store().applied().0;
                let closed = self.store.take().unwrap().close();
                if closed.is_ok() {
                    // But for a disk that was full.
                    self.open()?;
                    self.last = self.last.max(applied);
                }
                closed
            }
            Kill => {
                self.store = None;
                return self.open();
            }
        };
        match done {
            Ok(()) => {
                self.check();
                Ok(())
            }
            Err(Fatal::Io { .. }) => {
                self.check_closed();
                Err(Over)
            }
            Err(other) => panic!("nothing is damaged: {other}"),
        }
    }

    fn apply(&mut self, count: u64) -> Result<(), Fatal> {
        let first = self.store().applied().0 + 1;
        let upto = first + count - 1;
        self.last = self.last.max(upto);
        let command =
            |index: u64| self.script.commands[usize::try_from(index - 1).unwrap()].clone();
        let batch: Vec<_> = (first..=upto).map(|index| (index, 1, command(index))).collect();
        self.store().apply(&batch, (upto, 1)).map(|_| ())
    }

    fn upkeep(&self) -> Result<(), Fatal> {
        while self.store().compact_step()? {}
        let is_left = |path: &PathBuf| !path.ends_with("STATE.tmp"); // which is tried again
        let left: Vec<_> = files(&self.disk, "tmp").into_iter().filter(is_left).collect();
        assert!(left.is_empty(), "{left:?}");
        Ok(())
    }

    fn read(&self) -> Result<(), Over> {
        assert!(Truth::of(self.store()).unwrap() == *self.script.truth(self.store().applied().0));
        Ok(())
    }

    /// An error before the last step leaves the old state, which goes on.
    fn restore(&mut self, at: u64) -> Result<(), Fatal> {
        self.last = self.last.max(at);
        match self.store().restore((at, 1), &mut &self.script.states[&at][..]) {
            Ok(()) => {
                assert_eq!((self.store().applied().0, self.store().durable_applied()), (at, at));
                Ok(())
            }
            Err(RestoreError::Fatal(fatal)) => self.store().check().map_err(|_| fatal),
            Err(other) => panic!("the snapshot is whole: {other}"),
        }
    }

    /// What is served is the state after the last command.
    fn check(&self) {
        let Some(store) = &self.store else { return };
        store.check().unwrap();
        let applied = store.applied().0;
        assert!(self.promised <= applied && store.durable_applied() <= applied);
        let all = range("\0", "\0");
        assert_eq!(store.range(&all).unwrap(), *self.script.truth(applied).newest());
    }

    /// What has failed serves nothing, does nothing, and promises nothing more.
    fn check_closed(&mut self) {
        let Some(store) = &self.store else { return };
        assert!(store.check().is_err() && store.flush().is_err());
        assert!(matches!(store.range(&range("a", "")), Err(StoreError::Fatal(_))));
        assert!(store.apply(&[], store.applied()).is_err() && store.snapshot().is_err());
        self.promised = self.promised.max(store.durable_applied());
    }

    /// The store is opened again, and goes on.
    fn recovers(&self, disk: &SimDisk, what: &str) {
        let store = open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
        let applied = store.applied().0;
        let is_right = self.promised <= applied && applied <= self.last;
        assert!(is_right, "{what}: {} <= {applied} <= {}", self.promised, self.last);
        assert!(Truth::of(&store).unwrap() == *self.script.truth(applied), "{what} at {applied}");
        let mut world = World {
            store: Some(store),
            disk: disk.clone(),
            ..World::new(self.script, disk.clone())
        };
        world.promised = world.store().durable_applied();
        for step in [Apply(2), Flush, Upkeep, Apply(2), Flush] {
            world.step(step).expect("nothing fails any more");
        }
        world.store = None;
        disk.crash(7);
        let store = open(disk).unwrap_or_else(|error| panic!("{what}, again: {error}"));
        assert_eq!(store.applied().0, applied + 4, "{what}");
        assert!(Truth::of(&store).unwrap() == *self.script.truth(applied + 4), "{what}");
    }
}

/// Lets every operation fail, one in each run. Returns how often the store went on.
fn sweep(fault: Fault) -> (u64, u64) {
    let script = Script::new();
    let disk = SimDisk::new();
    let mut world = World::new(&script, disk.clone());
    world.run().unwrap();
    assert_eq!(world.store().applied().0, 63, "the workload is done");
    let ops = disk.ops();
    let (mut over, mut on) = (0, 0);
    for op in 1..=ops {
        let disk = SimDisk::with_seed(op);
        disk.fail_at(op, fault);
        let mut world = World::new(&script, disk.clone());
        match world.run() {
            Ok(()) => on += 1,
            Err(Over) => over += 1,
        }
        world.store = None;
        for seed in 0..2 {
            let disk = disk.fork();
            disk.crash(seed);
            world.recovers(&disk, &format!("{fault:?} at operation {op}, then crash {seed}"));
        }
        // What the kernel shows to the next process need not be on the disk.
        disk.kill();
        world.recovers(&disk, &format!("{fault:?} at operation {op}, then a restart"));
    }
    assert_eq!(over + on, ops);
    (over, on)
}

#[test]
fn every_operation_of_the_disk_may_fail() {
    let (over, on) = sweep(Fault::Io);
    assert!(100 < over && 10 < on, "{over} were the end, after {on} it went on");
}

/// A disk that is full is the end of nothing, but where a sync says so.
#[test]
fn the_disk_may_be_full_at_every_operation() {
    let (over, on) = sweep(Fault::NoSpace);
    assert!(10 < over && 100 < on, "{over} were the end, after {on} it went on");
}

/// A copy that got its name before the disk was found full must not stand in the way of those
/// that are made later, of other neighbours.
#[test]
fn a_copy_that_found_the_disk_full_is_never_in_the_way() {
    // Each letter fills a segment.
    let keys = |letter: &str, count: usize| -> Vec<String> {
        (0..count).map(|n| format!("{letter}{n}")).collect()
    };
    let fill = |key: &str| Request::Put(put(key, &"v".repeat(70)));
    let kill = |key: &str| Request::DeleteRange(delete(key, ""));
    let prepare = || {
        let disk = SimDisk::new();
        let store = open(&disk).unwrap();
        for letter in ["a", "b", "c", "d", "e"] {
            apply_batch(&store, &fill, &keys(letter, 5));
        }
        apply_batch(&store, &kill, &[keys("b", 2), keys("c", 4)].concat());
        apply_compact(&store, store.revision()).unwrap();
        store.flush().unwrap();
        (disk, store)
    };
    let (disk, store) = prepare();
    let before = disk.ops();
    compact_fully(&store);
    for op in before..disk.ops() {
        let (disk, store) = prepare();
        assert_eq!(disk.ops(), before);
        disk.fail_at(op + 1, Fault::NoSpace);
        let is_over = (0..1000).any(|_| store.compact_step().is_err());
        if is_over {
            continue;
        }
        apply_batch(&store, &kill, &[keys("d", 4), keys("e", 4)].concat());
        apply_compact(&store, store.revision()).unwrap();
        store.flush().unwrap();
        let truth = Truth::of(&store).unwrap();
        while store.compact_step().unwrap() {
            let disk = disk.fork();
            disk.kill();
            let store = open(&disk).unwrap_or_else(|error| {
                panic!("operation {op}: {error}, of {:?}", files(&disk, "seg"));
            });
            assert!(Truth::of(&store).unwrap() == truth, "operation {op}");
        }
    }
}
