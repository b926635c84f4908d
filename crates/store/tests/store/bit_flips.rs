//! Every byte of every file of a small store is damaged once while no process has it open, and
//! the last segment is cut at every length.

use std::{collections::BTreeMap, path::Path};

use kontiki_sim::disk::SimDisk;
use kontiki_store::{Fatal, OpenError};

use crate::support::{
    apply_compact, apply_put, compact_fully,
    small::{DIR, End, Frame, Small, durable_mark, files, frames, number, open},
    truth::{Question, Truth},
};

/// What has to become of damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// The store says so when it is opened.
    Refused,
    /// Nobody was promised what was there: the store is at this command, the log has the rest.
    Cut(u64),
    /// A checkpoint stands for what was there: the store says so when somebody asks for it.
    Found,
    /// Nobody needs what was there.
    Harmless,
}

/// What is known of the files before they are damaged, read with nothing of the store.
#[derive(Debug)]
struct Map {
    /// The last segment, and how far `STATE` says that it is durable.
    last: std::path::PathBuf,
    durable_end: usize,
    /// The segment and the place in it up to which a checkpoint has all.
    checkpoint: Option<(u64, usize)>,
    frames: BTreeMap<std::path::PathBuf, Vec<Frame>>,
}

impl Map {
    fn of(disk: &SimDisk) -> Self {
        let segments = files(disk, "seg");
        let last = segments.last().unwrap().clone();
        let (seq, offset) = durable_mark(disk);
        let last_seq = number(&disk.content(&last), 32);
        let checkpoint = files(disk, "ck").first().map(|path| {
            let content = disk.content(path);
            (number(&content, 20), usize::try_from(number(&content, 28)).unwrap())
        });
        let frames = segments.iter().map(|path| (path.clone(), frames(&disk.content(path))));
        let frames = frames.collect();
        Self { last, durable_end: if seq == last_seq { offset } else { 0 }, checkpoint, frames }
    }

    /// What has to become of damage to a byte.
    fn fate(&self, disk: &SimDisk, path: &Path, byte: usize) -> Fate {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("seg") => {}
            Some("ck") => return Fate::Harmless,
            _ => return Fate::Refused, // STATE
        }
        let frames = &self.frames[path];
        let Some(at) = frames.iter().position(|frame| (frame.start..frame.end).contains(&byte))
        else {
            return self.fate_of_header(frames, path);
        };
        let frame = frames[at];
        let last_seq = number(&disk.content(path), 32);
        if self.checkpoint.is_some_and(|end| (last_seq, frame.start) < end) {
            return Fate::Found;
        }
        let is_proven = frames[at..].iter().any(|later| frame.seq <= later.durable_seq);
        if path != self.last || frame.start < self.durable_end || is_proven {
            return Fate::Refused;
        }
        Fate::Cut(self.before(frame.seq))
    }

    /// What has to become of damage to the header of a segment.
    fn fate_of_header(&self, frames: &[Frame], path: &Path) -> Fate {
        let first = frames.first().unwrap().seq;
        let is_proven = frames.iter().any(|later| first <= later.durable_seq);
        if *path == *self.last && self.durable_end == 0 && !is_proven {
            return Fate::Cut(self.before(first)); // it was being made
        }
        Fate::Refused
    }

    /// The command that the frame before `seq` brings the store to.
    fn before(&self, seq: u64) -> u64 {
        let all = self.frames.values().flatten().filter(|frame| frame.seq < seq);
        all.max_by_key(|frame| frame.seq).unwrap().index
    }
}

/// What is written over a byte, other than what is there.
fn damages(byte: u8, at: usize) -> impl Iterator<Item = u8> {
    [byte ^ (1 << ((at * 7 + 3) % 8)), 0x00, 0xFF].into_iter().filter(move |new| *new != byte)
}

/// Opens a damaged store, and compares what becomes of it with what should.
fn judge(small: &Small, disk: &SimDisk, (path, byte): (&Path, usize), fate: Fate, turn: usize) {
    let place = || format!("{} byte {byte}: {fate:?}", path.display());
    let store = match (open(disk), fate) {
        (Err(OpenError::Damaged { path: said, offset, .. }), Fate::Refused) => {
            assert_eq!(said, path, "{}", place());
            assert!(offset <= byte as u64, "{}, and it said {offset}", place());
            return;
        }
        (Ok(store), Fate::Cut(_) | Fate::Found | Fate::Harmless) => store,
        (Ok(store), Fate::Refused) => panic!("{}, opened at {:?}", place(), store.applied()),
        (Err(error), _) => panic!("{}, refused: {error}", place()),
    };
    if let Fate::Cut(applied) = fate {
        assert!(Truth::of(&store).unwrap() == small.truths[&applied], "{}", place());
        goes_on(store, disk);
        return;
    }
    let question = Question::ALL[turn % Question::ALL.len()];
    match small.truth().check(&store, question) {
        Ok(()) => {}
        Err(Fatal::Corrupt { file, offset, .. }) if fate == Fate::Found => {
            assert_eq!(file, path, "{}", place());
            assert!(offset <= byte as u64, "{}, and it said {offset}", place());
        }
        Err(error) => panic!("{}, asked for {question:?}: {error}", place()),
    }
}

/// What was cut takes writes, and is found again with them.
fn goes_on(store: kontiki_store::Store, disk: &SimDisk) {
    apply_put(&store, "b", "after all");
    store.flush().unwrap();
    let truth = Truth::of(&store).unwrap();
    drop(store);
    disk.crash(1);
    assert!(Truth::of(&open(disk).unwrap()).unwrap() == truth);
}

/// Damages every byte of every file. Returns how often what became of it.
fn sweep(small: &Small, disk: &SimDisk) -> BTreeMap<&'static str, u32> {
    let map = Map::of(disk);
    let mut fates = BTreeMap::new();
    for path in disk.files() {
        for (at, byte) in disk.content(&path).into_iter().enumerate() {
            let fate = map.fate(disk, &path, at);
            for (turn, new) in damages(byte, at).enumerate() {
                let disk = disk.fork();
                disk.overwrite(&path, at as u64, &[new]);
                judge(small, &disk, (&path, at), fate, at + turn);
                let name = match fate {
                    Fate::Refused => "refused",
                    Fate::Cut(_) => "cut",
                    Fate::Found => "found",
                    Fate::Harmless => "harmless",
                };
                *fates.entry(name).or_default() += 1;
            }
        }
    }
    fates
}

fn assert_seen(fates: &BTreeMap<&'static str, u32>, expected: &[&str]) {
    let often = fates.iter().filter(|(_, count)| 100 < **count).map(|(name, _)| *name);
    assert_eq!(often.collect::<Vec<_>>(), expected, "{fates:?}");
}

/// After a kill: what nobody was promised is cut, and nothing else.
#[test]
fn every_damaged_byte_of_a_killed_store_is_refused_found_or_provably_torn() {
    let small = Small::new(End::Killed);
    assert!(files(&small.disk, "seg").len() > 2, "{:?}", small.disk.files());
    let name = |path: &std::path::PathBuf| path.display().to_string();
    let is_rewritten = |path: &std::path::PathBuf| !name(path).ends_with("-00000000.seg");
    assert!(files(&small.disk, "seg").iter().any(is_rewritten), "{:?}", small.disk.files());
    let fates = sweep(&small, &small.disk);
    assert_seen(&fates, &["cut", "found", "harmless", "refused"]);
}

/// The same where nothing stands for what lies in the segments.
#[test]
fn every_damaged_byte_is_refused_or_provably_torn_without_a_checkpoint() {
    let small = Small::new(End::Killed);
    assert_seen(&sweep(&small, &small.without_checkpoint()), &["cut", "refused"]);
}

/// The same where the last segment is younger than what `STATE` says of durability.
#[test]
fn every_damaged_byte_of_a_segment_that_was_begun_lately_is_refused_or_provably_torn() {
    let small = Small::new(End::KilledLater);
    let last = small.disk.content(files(&small.disk, "seg").last().unwrap());
    let (mark, frames) = (durable_mark(&small.disk), frames(&last));
    assert!(mark.0 < number(&last, 24), "a later one was begun");
    let is_proven = frames.iter().any(|later| frames[0].seq <= later.durable_seq);
    assert!(is_proven, "and some of it was durable when more came: {frames:?}");
    let fates = sweep(&small, &small.without_checkpoint());
    assert_seen(&fates, &["cut", "refused"]);
}

/// After a clean stop nothing can be torn, so nothing is cut.
#[test]
fn every_damaged_byte_of_a_closed_store_is_refused_or_found() {
    let small = Small::new(End::Closed);
    assert_seen(&sweep(&small, &small.disk), &["found", "harmless", "refused"]);
    assert_seen(&sweep(&small, &small.without_checkpoint()), &["refused"]);
}

/// Cuts every segment at every length. `fate` says what has to become of the last one.
fn cut_everywhere(small: &Small, disk: &SimDisk) {
    let map = Map::of(disk);
    for (path, frames) in &map.frames {
        for len in 0..disk.content(path).len() {
            let disk = disk.fork();
            disk.cut(path, len as u64);
            let place = || format!("{} cut at {len}", path.display());
            let torn = (*path == map.last && map.durable_end <= len)
                .then(|| frames.iter().find(|frame| len < frame.end).unwrap());
            match (open(&disk), torn) {
                (Err(OpenError::Damaged { .. }), None) => {}
                (Ok(store), Some(torn)) => {
                    let applied = map.before(torn.seq);
                    let truth = Truth::of(&store).unwrap();
                    assert!(truth == small.truths[&applied], "{}", place());
                    goes_on(store, &disk);
                }
                // Nobody needs to look there: what is left of it is all that is asked for, or
                // it is said when somebody asks.
                (Ok(store), None) if map.checkpoint.is_some() && *path != map.last => {
                    let question = Question::ALL[len % Question::ALL.len()];
                    if let Err(error) = small.truth().check(&store, question) {
                        let is_named =
                            matches!(&error, Fatal::Corrupt { file, .. } if file == path);
                        assert!(is_named, "{}: {error}", place());
                    }
                }
                (opened, torn) => {
                    let opened = opened.map(|store| store.applied());
                    panic!("{}: {opened:?}, where {torn:?} is torn", place());
                }
            }
        }
    }
}

#[test]
fn a_cut_segment_is_missed_unless_nobody_was_promised_what_is_gone() {
    for end in [End::Killed, End::KilledLater, End::Closed] {
        let small = Small::new(end);
        cut_everywhere(&small, &small.disk);
        cut_everywhere(&small, &small.without_checkpoint());
    }
}

/// A checkpoint may hold all that is asked for; what was durable is missed all the same, for
/// whoever takes the state over needs it.
#[test]
fn a_cut_is_missed_even_where_no_key_lies() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    apply_put(&store, "a", &"v".repeat(1000)); // as long as a segment
    // A position alone: entries of the log that are none of the store's.
    store.apply(&[], (6, 1)).unwrap();
    store.close().unwrap();
    disk.kill();
    let [_, last] = &files(&disk, "seg")[..] else { panic!("{:?}", disk.files()) };
    for len in 0..disk.content(last).len() {
        let disk = disk.fork();
        disk.cut(last, len as u64);
        match open(&disk) {
            Err(OpenError::Damaged { path, .. }) => assert_eq!(path, *last),
            other => panic!("cut at {len}: {:?}", other.map(|store| store.applied())),
        }
    }
}

/// What a compaction has removed is gone, so the frame that says that it was compacted is not
/// taken for torn: the state before it would promise history that nobody has (etcd #17780).
#[test]
fn a_compaction_that_was_carried_out_is_not_cut_off_with_a_damaged_end() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    for n in 0..9 {
        apply_put(&store, ["a", "b"][n % 2], &"v".repeat(200));
        store.flush().unwrap();
    }
    apply_compact(&store, store.revision()).unwrap();
    compact_fully(&store);
    drop(store);
    disk.kill();
    let is_copy = |path: &std::path::PathBuf| !path.to_string_lossy().ends_with("-00000000.seg");
    assert!(files(&disk, "seg").iter().any(is_copy), "something was removed");
    let segments = files(&disk, "seg");
    let last = segments.last().unwrap();
    let content = disk.content(last);
    let frame = frames(&content).pop().unwrap();
    disk.flip_bit(last, (frame.start * 8) as u64);
    let opened = open(&disk).map(|store| store.applied());
    assert!(matches!(&opened, Err(OpenError::Damaged { path, .. }) if path == last), "{opened:?}");
}

/// A store opens with this segment, where it was `applied`, and not without it.
fn assert_missed(disk: &SimDisk, segment: &Path, applied: (u64, u64)) {
    assert_eq!(open(&disk.fork()).unwrap().applied(), applied);
    disk.lose(segment);
    let opened = open(disk).map(|store| store.applied());
    let is_told = matches!(&opened, Err(OpenError::Damaged { path, .. }) if path == segment);
    assert!(is_told, "{opened:?}");
}

/// Only segments that others follow are copied. So a copy that nothing follows tells of a lost
/// file, be it that `STATE` was written before that was begun.
#[test]
fn a_copy_that_nothing_follows_tells_of_a_lost_segment() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    for _ in 0..7 {
        apply_put(&store, "a", &"v".repeat(200));
        store.flush().unwrap();
    }
    apply_compact(&store, store.revision()).unwrap();
    compact_fully(&store);
    drop(store);
    disk.kill();
    let segments = files(&disk, "seg");
    let [copy, last] = &segments[..] else { panic!("{segments:?}") };
    assert!(copy.display().to_string().ends_with("-00000001.seg"), "{copy:?}");
    assert_missed(&disk, last, (8, 1));
}

/// Of two frames that are broken the later may have said that the earlier was durable.
#[test]
fn what_cannot_be_read_behind_a_broken_frame_may_prove_that_it_was_durable() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    for _ in 0..3 {
        apply_put(&store, "a", "v");
        store.flush().unwrap();
    }
    drop(store);
    disk.kill();
    let [path] = &files(&disk, "seg")[..] else { panic!("{:?}", disk.files()) };
    let [_, broken, proof] = frames(&disk.content(path))[..] else { panic!("not three frames") };
    disk.flip_bit(path, broken.start as u64 * 8 + 99);
    for is_readable in [true, false] {
        let disk = disk.fork();
        if !is_readable {
            disk.make_unreadable(path, proof.start as u64..proof.end as u64);
        }
        let opened = open(&disk).map(|store| store.applied());
        let is_refused =
            matches!(&opened, Err(OpenError::Damaged { path: said, .. }) if said == path);
        assert!(is_refused, "readable: {is_readable}, {opened:?}");
    }
}

/// A checkpoint gets its name before `STATE` hears of it. What is in it was durable all the
/// same: it is no reason to go on with less that the file is gone where it ends.
#[test]
fn a_lost_segment_is_missed_if_only_a_checkpoint_knows_of_it() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    apply_put(&store, "a", &"v".repeat(1000)); // as long as a segment
    store.flush().unwrap();
    apply_put(&store, "b", "v");
    store.flush().unwrap();
    let state = Path::new(DIR).join("STATE");
    let before = disk.content(&state);
    store.close().unwrap();
    disk.kill();
    disk.overwrite(&state, 0, &before);
    let [_, last] = &files(&disk, "seg")[..] else { panic!("{:?}", disk.files()) };
    assert!(durable_mark(&disk).0 == 1 && files(&disk, "ck").len() == 1);
    assert_missed(&disk, last, (2, 1));
}

/// From the moment on in which a segment is begun, the one before is known to be complete.
#[test]
fn a_segment_that_is_begun_says_how_far_the_one_before_goes() {
    let disk = SimDisk::new();
    let store = open(&disk).unwrap();
    for _ in 0..12 {
        apply_put(&store, "a", &"v".repeat(200));
        store.flush().unwrap();
        let segments = files(&disk, "seg");
        let complete = segments.len() - 1;
        let end = complete.checked_sub(1).map_or(0, |at| disk.content(&segments[at]).len());
        assert_eq!(durable_mark(&disk), (complete as u64, end));
    }
}
