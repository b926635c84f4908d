//! A log, its model, and a die that decides what happens next.
//!
//! What is durable must be there, what was never written must not, and what is in between may
//! be there or not, but whole and in order: a write that survives has all earlier ones under
//! it.

use std::{ops::RangeInclusive, sync::Arc};

use kontiki_log::{Log, LogError, Opened};
use kontiki_raft::{
    Bytes, Entry, EntryId, HardState, Index, Membership, NodeId, Payload, SnapshotMeta, Term,
    WriteBatch,
};
use kontiki_sim::{
    Dice, Draws, Stream,
    disk::{Fault, SimDisk},
};

use crate::model::{DIR, Expected, Model, open_setting_aside as open};

/// What happened, to know whether the run was worth something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) torn_tails: u64,
    pub(crate) completed_rolls: u64,
    pub(crate) lost_writes: u64,
    pub(crate) kept_writes: u64,
    pub(crate) purged_segments: u64,
    pub(crate) truncations: u64,
    pub(crate) resets: u64,
    pub(crate) damaged: u64,
    pub(crate) repaired: u64,
    pub(crate) poisoned: u64,
    pub(crate) full_disks: u64,
    pub(crate) crashes_while_opening: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: Self) {
        self.torn_tails += other.torn_tails;
        self.completed_rolls += other.completed_rolls;
        self.lost_writes += other.lost_writes;
        self.kept_writes += other.kept_writes;
        self.purged_segments += other.purged_segments;
        self.truncations += other.truncations;
        self.resets += other.resets;
        self.damaged += other.damaged;
        self.repaired += other.repaired;
        self.poisoned += other.poisoned;
        self.full_disks += other.full_disks;
        self.crashes_while_opening += other.crashes_while_opening;
    }
}

pub(crate) struct Torture {
    seed: u64,
    steps: u64,
    draws: Draws,
    disk: SimDisk,
    /// `None` only while it is being opened.
    log: Option<Log>,
    expected: Expected,
    /// Nothing up to here is replaced.
    commit: Index,
    term: Term,
    /// What the log says is damaged, until it is told that it is not any more.
    damaged: Option<RangeInclusive<Index>>,
    seen: Seen,
}

impl Torture {
    pub(crate) fn new(seed: u64) -> Self {
        let disk = SimDisk::with_seed(seed);
        let (log, opened) = open(&disk).expect("an empty disk");
        let durable = Model::observe(&log, &opened);
        assert_eq!(durable, Model::new());
        Self {
            seed,
            steps: 0,
            draws: Draws::new(Dice::new(seed), Stream::Scenario, 1),
            disk,
            log: Some(log),
            expected: Expected::new(durable),
            commit: Index::ZERO,
            term: Term(1),
            damaged: None,
            seen: Seen::default(),
        }
    }

    pub(crate) const fn seen(&self) -> Seen {
        self.seen
    }

    pub(crate) fn step(&mut self) {
        self.steps += 1;
        match self.draws.below(100) {
            0..=57 => self.write_and_maybe_sync(),
            58..=63 => self.sync(),
            64..=69 => self.purge(),
            70..=75 => drop(self.log().spares().fill().expect("there is room")),
            76..=83 => self.read(),
            84..=89 => self.crash(),
            90..=91 => self.kill(),
            92..=95 => self.crash_in_the_middle(),
            96 => self.fail_an_operation(),
            97 => self.rot(),
            _ => self.fill_the_disk(),
        }
    }

    fn log(&mut self) -> &mut Log {
        self.log.as_mut().expect("it is open")
    }

    fn latest(&self) -> &Model {
        self.expected.latest()
    }

    fn write_and_maybe_sync(&mut self) {
        if let Err(error) = self.write() {
            panic!("{}: {error}", self.place());
        }
        if self.draws.percent(70) {
            self.sync();
        }
    }

    /// Writes what the die says. The model knows of it before the log does.
    fn write(&mut self) -> Result<(), LogError> {
        let mut next = self.latest().clone();
        let count = 1 + self.draws.below(3);
        let batches: Vec<WriteBatch> = (0..count)
            .map(|_| {
                let batch = self.batch(&next);
                next.write(std::slice::from_ref(&batch));
                batch
            })
            .collect();
        self.expected.write(&batches);
        self.log().write(batches)
    }

    fn batch(&mut self, log: &Model) -> WriteBatch {
        let mut last = log.last().index.get();
        let mut floor = self.commit.max(log.start.index).get();
        if self.draws.percent(15) {
            self.term = self.term.next();
        }
        let reset_to = self.draws.percent(4).then(|| self.snapshot(floor..=last + 20));
        if let Some(meta) = &reset_to {
            (last, floor) = (meta.last.index.get(), meta.last.index.get());
            self.seen.resets += 1;
        }
        let term = self.term;
        let hard_state = self.draws.percent(30).then(|| HardState {
            term,
            voted_for: Some(NodeId(1 + self.draws.below(3)))
                .filter(|_| !term.get().is_multiple_of(3)),
            commit: self.commit,
        });
        let mut first = last + 1;
        if self.draws.percent(15) {
            first = self.draws.within(floor + 1..=first);
            self.seen.truncations += u64::from(first <= last);
        }
        let count = self.draws.below(6);
        let entries = (first..first + count).map(|index| self.entry(index)).collect();
        WriteBatch { hard_state, entries, reset_to, ..WriteBatch::default() }
    }

    fn snapshot(&mut self, at: RangeInclusive<u64>) -> SnapshotMeta {
        let last = EntryId { index: Index(self.draws.within(at)), term: self.term };
        let address = format!("n1:{}", self.draws.below(1000));
        SnapshotMeta { last, membership: Arc::new(Membership::of_voters([(NodeId(1), address)])) }
    }

    fn entry(&mut self, index: u64) -> Entry {
        let payload = match self.draws.below(100) {
            0..=9 => Payload::Blank,
            10..=13 => {
                let address = format!("n1:{}", self.draws.below(1000));
                Payload::Membership(Arc::new(Membership::of_voters([(NodeId(1), address)])))
            }
            _ => Payload::Command(self.command()),
        };
        Entry::new(EntryId { index: Index(index), term: self.term }, payload)
    }

    /// Bytes that are easy, and bytes that look like what was never written.
    fn command(&mut self) -> Bytes {
        let len = match self.draws.below(200) {
            0 => 9000 + self.draws.below(9000), // longer than a segment
            1..=19 => 500 + self.draws.below(2500),
            _ => self.draws.below(200),
        };
        let bits = self.draws.bits();
        let word = match self.draws.below(4) {
            0 => [0; 8],
            1 => (1_u64 << (bits % 64)).to_le_bytes(),
            _ => bits.to_le_bytes(),
        };
        let len = usize::try_from(len).expect("small");
        word.iter().copied().cycle().take(len).collect::<Vec<u8>>().into()
    }

    fn sync(&mut self) {
        if let Err(error) = self.log().sync() {
            panic!("{}: {error}", self.place());
        }
        self.all_is_durable();
    }

    fn all_is_durable(&mut self) {
        self.expected.synced();
        let last = self.latest().last().index.get();
        if self.draws.percent(30) {
            self.commit = Index(self.draws.within(self.commit.get()..=last));
        }
    }

    fn purge(&mut self) {
        let (before, upto) = self.purge_upto();
        let files = self.disk.files().len();
        match self.log().purge(upto) {
            Ok(start) => {
                assert!(before.index <= start.index, "{}: {before} {start}", self.place());
                assert!(start.index <= upto.index.max(before.index), "{}", self.place());
                self.seen.purged_segments += (files - self.disk.files().len()) as u64;
                self.expected.purged(start);
            }
            Err(error) => panic!("{}: {error}", self.place()),
        }
    }

    fn purge_upto(&mut self) -> (EntryId, EntryId) {
        let before = self.latest().start;
        let upto =
            Index(self.draws.within(before.index.get()..=self.commit.max(before.index).get()));
        self.expected.purging = Some(upto);
        (before, self.latest().id(upto))
    }

    fn read(&mut self) {
        let (start, last) = (self.latest().start.index.get(), self.latest().last().index.get());
        if start == last {
            return;
        }
        let first = self.draws.within(start + 1..=last);
        let end = self.draws.within(first..=last);
        let bytes_max = usize::try_from(self.draws.below(3000)).expect("small");
        let read = self
            .log()
            .reader()
            .read(Index(first)..=Index(end), bytes_max)
            .expect("what was written can be read");
        let from = usize::try_from(first - start - 1).expect("small");
        assert!(read == self.latest().entries[from..from + read.len()], "{}", self.place());
        let bytes: usize = read.iter().map(Entry::byte_len).sum();
        assert!(read.len() == 1 || bytes <= bytes_max + 32 * 8, "{}", self.place());
    }

    fn crash(&mut self) {
        let seed = self.draws.bits();
        self.log = None;
        self.disk.crash(seed);
        self.reopen();
    }

    fn kill(&mut self) {
        self.log = None;
        self.disk.kill();
        let latest = self.latest().clone();
        let (log, opened) = open(&self.disk).expect("nothing was lost");
        let found = Model::observe(&log, &opened);
        assert!(found == latest, "{}: a killed process loses nothing", self.place());
        drop(log);
        self.reopen();
    }

    /// The power fails between two operations of the disk.
    fn crash_in_the_middle(&mut self) {
        self.disk.halt_after(self.disk.ops() + self.draws.below(8));
        self.some_work_that_may_fail();
        self.crash();
    }

    /// Works until something fails, at most a few times.
    fn some_work_that_may_fail(&mut self) -> Option<LogError> {
        for _ in 0..10 {
            let result = if self.draws.percent(20) {
                let (_, upto) = self.purge_upto();
                let result = self.log().purge(upto);
                result.map(|start| self.expected.purged(start))
            } else if self.draws.percent(20) {
                self.log().spares().fill().map(drop)
            } else {
                let written = self.write();
                // A write makes durable what was written before.
                written.and_then(|()| self.log().sync()).map(|()| self.all_is_durable())
            };
            if let Err(error) = result {
                return Some(error);
            }
        }
        None
    }

    /// Pitfall D4. After a failed write or sync nothing is written, ever.
    fn fail_an_operation(&mut self) {
        let op = self.disk.ops() + 1 + self.draws.below(8);
        self.disk.fail_at(op, Fault::Io);
        let error = self.some_work_that_may_fail();
        if error.is_some() && self.log().sync().is_err() {
            self.seen.poisoned += 1;
            let again =
                WriteBatch { hard_state: Some(HardState::default()), ..WriteBatch::default() };
            assert!(matches!(self.log().sync(), Err(LogError::Poisoned)));
            assert!(matches!(self.log().write(vec![again]), Err(LogError::Poisoned)));
        }
        if self.draws.percent(50) {
            self.log = None;
            self.disk.kill();
            self.reopen();
        } else {
            self.crash();
        }
    }

    /// A full disk refuses before anything is written, and goes on when there is room.
    fn fill_the_disk(&mut self) {
        self.disk.set_capacity(self.disk.used() + self.draws.below(4096));
        for _ in 0..40 {
            let before = self.expected.clone();
            match self.write() {
                Ok(()) => self.sync(),
                Err(LogError::NoSpace { .. }) => {
                    self.seen.full_disks += 1;
                    self.expected = before;
                    break;
                }
                Err(error) => panic!("{}: {error}", self.place()),
            }
        }
        self.disk.set_capacity(u64::MAX);
        self.write_and_maybe_sync();
    }

    fn reopen(&mut self) {
        while self.draws.percent(25) {
            self.disk.halt_after(self.disk.ops() + self.draws.below(8));
            if open(&self.disk).is_err() {
                self.seen.crashes_while_opening += 1;
            }
            self.disk.crash(self.draws.bits());
        }
        let (log, opened) = match open(&self.disk) {
            Ok(opened) => opened,
            Err(error) => panic!("{}: {error}", self.place()),
        };
        let found = Model::observe(&log, &opened);
        self.check_damage(&opened);
        self.seen.torn_tails += u64::from(opened.report.torn_tail.is_some());
        self.seen.completed_rolls += u64::from(opened.report.completed_roll);
        self.check(&found);

        // What was found is durable from here on, and found again.
        drop(log);
        if self.draws.percent(50) {
            self.disk.crash(self.draws.bits());
        }
        let (log, opened) = open(&self.disk).expect("it was just opened");
        let again = Model::observe(&log, &opened);
        assert!(again == found, "{}: opened twice\n{found}\n{again}", self.place());
        assert_eq!(opened.report.torn_tail, None, "{}: a cut is made once", self.place());
        self.check_damage(&opened);
        self.log = Some(log);
        self.expected = Expected::new(found);
    }

    fn check(&mut self, found: &Model) {
        assert!(
            self.expected.allows(found),
            "{}: the log holds what it must not, or lacks what it must hold\n{}\nfound   {found}",
            self.place(),
            self.expected,
        );
        if !self.expected.written.is_empty() {
            let all_survived = self.expected.is_latest(found);
            self.seen.kept_writes += u64::from(all_survived);
            self.seen.lost_writes += u64::from(!all_survived);
        }
    }

    /// A bit of an acknowledged record flips, or of its segment's header.
    ///
    /// What is left is the front of what was there, nothing that was replaced comes back
    /// (etcd #22442), and all that is missing is told of.
    fn rot(&mut self) {
        self.sync();
        self.log = None;
        self.disk.kill();
        let mut segments = self.disk.files();
        segments.retain(|path| path.extension().is_some_and(|extension| extension == "wal"));
        assert!(segments.iter().all(|path| path.starts_with(DIR)));
        let chosen = usize::try_from(self.draws.below(segments.len() as u64)).expect("small");
        let path = &segments[chosen];
        let used = self.disk.content(path).iter().rposition(|&byte| byte != 0).unwrap_or(0) as u64;
        let header = self.draws.percent(10) || used < 4096;
        let bits = if header { 0..=799 } else { 4096 * 8..=used * 8 };
        self.disk.flip_bit(path, self.draws.within(bits));
        while self.draws.percent(30) {
            self.disk.halt_after(self.disk.ops() + self.draws.below(12));
            drop(open(&self.disk));
            self.disk.crash(self.draws.bits());
        }
        let (log, opened) = match open(&self.disk) {
            Ok(opened) => opened,
            Err(error) => panic!("{}: {error}", self.place()),
        };
        let (found, truth) = (Model::observe(&log, &opened), self.latest().clone());
        let now = opened.recovered.damaged;
        self.log = Some(log);
        if found == truth && now == self.damaged {
            return; // nothing stood there
        }
        let Some(range) = now.clone() else {
            panic!("{}: {found} instead of {truth}, and not a word", self.place())
        };
        self.seen.damaged += 1;
        let is_front = found
            .entries
            .iter()
            .all(|entry| truth.start.index < entry.id.index && truth.entries.contains(entry));
        assert!(is_front, "{}: {found} is no front of {truth}", self.place());
        // How far the log reached may stand only in the header that is gone.
        let is_told = *range.start() <= found.last().index.next() && range.start() <= range.end();
        assert!(found.last() == truth.last() || is_told, "{}: {range:?}, {found}", self.place());
        assert!(found.hard_state.term <= truth.hard_state.term, "{}", self.place());
        self.commit = self.commit.min(found.last().index);
        self.damaged = now;
        self.expected = Expected::new(found);
        if self.draws.percent(50) {
            self.repair();
        }
    }

    /// Tells the log that it is whole again. Until that is durable it tells of the damage.
    fn repair(&mut self) {
        let mut batch = self.batch(&self.latest().clone());
        batch.is_repaired = true;
        self.expected.write(std::slice::from_ref(&batch));
        self.log().write(vec![batch]).expect("nothing fails");
        if self.draws.percent(30) {
            return self.crash(); // nobody was told that it is durable
        }
        self.sync();
        self.damaged = None;
        self.seen.repaired += 1;
    }

    fn check_damage(&self, opened: &Opened) {
        assert_eq!(opened.recovered.damaged, self.damaged, "{}", self.place());
    }

    fn place(&self) -> String {
        format!("seed {} step {}", self.seed, self.steps)
    }
}
