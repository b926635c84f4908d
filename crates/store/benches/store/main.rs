//! Measures the state machine alone, on a real disk, beside the same layout on redb.
//!
//! ```text
//! cargo bench -p kontiki-store                        all figures, 1 million keys
//! cargo bench -p kontiki-store -- --ours-only         without redb
//! cargo bench -p kontiki-store -- --ranges            ranges of hot values alone
//! cargo bench -p kontiki-store -- --open 10000000     how long ten million keys take to open
//! ```
//!
//! Keys of 24 bytes in random order, values of 256 bytes of which half can be compressed,
//! batches of 128 puts, each of which reads the version before it; 3 % deletions while keys are
//! overwritten. The load is generated outside of what is timed. The directory is made under
//! `target/tmp` and removed at the end.
#![expect(clippy::print_stdout, reason = "that is what it is for")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock and waits")]
#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]
#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures for people"
)]

mod figures;
mod load;
mod ours;
mod rival;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use figures::{Latencies, Table, resident_bytes};
use load::{Batch, Load};
use ours::Ours;
use rival::Redb;

/// What is measured.
trait Subject: Sync {
    const NAME: &'static str;
    /// `cache` values in memory, or none.
    fn open(dir: &Path, cache: bool) -> Self;
    fn apply(&self, batch: &Batch);
    /// Whether the key has a value.
    fn get(&self, key: &[u8]) -> bool;
    /// How many keys with their values a range returns.
    fn range(&self, from: &[u8], end: &[u8]) -> usize;
    /// How many events there are.
    fn scan(&self) -> u64;
    /// Hands all of the state to `take`.
    fn snapshot(&self, take: &mut dyn FnMut(&[u8]));
    /// Drops history up to the newest half of the revisions, and waits until that is done.
    fn compact_half(&self);
    fn flush(&self);
    fn close(self);
}

const VALUE_BYTES: usize = 256;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("store-bench");
    if let [flag, dir] = &args[..] {
        match flag.as_str() {
            "--write-until-killed" => return write_until_killed(Path::new(dir)),
            "--memory-of-kontiki" => return memory::<Ours>(Path::new(dir), 1_000_000),
            "--memory-of-redb" => return memory::<Redb>(Path::new(dir), 1_000_000),
            _ => {}
        }
    }
    drop(std::fs::remove_dir_all(&dir));
    if args.iter().any(|arg| arg == "--ranges") {
        ranges(&dir);
    } else if let [flag, keys] = &args[..]
        && flag == "--open"
    {
        let keys = keys.parse().unwrap();
        println!("{keys} keys of 24 bytes, values of 64 bytes");
        opening(&dir, keys, 64);
    } else {
        println!("1000000 keys of 24 bytes, values of {VALUE_BYTES} bytes, batches of 128");
        let mut table = Table::default();
        run::<Ours>(&dir, 1_000_000, &mut table);
        if !args.iter().any(|arg| arg == "--ours-only") {
            run::<Redb>(&dir, 1_000_000, &mut table);
        }
        table.print();
        opening(&dir, 1_000_000, VALUE_BYTES);
    }
    drop(std::fs::remove_dir_all(&dir));
}

fn run<S: Subject>(dir: &Path, keys: u64, table: &mut Table) {
    let dir = dir.join(S::NAME);
    std::fs::create_dir_all(&dir).unwrap();
    let place = dir.join("memory");
    let told = this_program(&format!("--memory-of-{}", S::NAME), &place).output().unwrap();
    let bytes = String::from_utf8(told.stdout).unwrap().trim().parse::<f64>().unwrap();
    table.add(S::NAME, "memory, without values", bytes, "bytes a key", Some(-130.0));
    let place = dir.join("store");
    let subject = S::open(&place, true);
    let mut load = Load::new(keys, VALUE_BYTES);
    puts(&subject, &mut load, 0, "load", table);
    puts(&subject, &mut load, 3, "overwrite", table);
    reads(&subject, keys, "values in memory", table);
    subject.close();

    let subject = S::open(&place, false);
    reads(&subject, keys, "values on disk", table);
    let before = Instant::now();
    let events = subject.scan();
    table.rate(S::NAME, "catch-up", events as f64, before, "M events/s", 1e6, Some(10.0));
    snapshot(&subject, &mut load, table);
    compaction(&subject, &mut load, table);
    subject.close();
    std::fs::remove_dir_all(&dir).unwrap();
}

/// Prints what ranges of hot values reach, ten times: the noise of a machine is larger than most
/// changes of the code.
fn ranges(dir: &Path) {
    const KEYS: u64 = 1_000_000;
    let subject = Ours::open(&dir.join("ranges"), true);
    let mut load = Load::new(KEYS, VALUE_BYTES);
    for what in ["one version a key", "two versions a key"] {
        load.restart();
        while let Some(batch) = load.next(0) {
            subject.apply(&batch);
        }
        subject.flush();
        println!("{what}:");
        ten_ranges(&subject, KEYS);
    }
    subject.close();
}

fn ten_ranges(subject: &Ours, keys: u64) {
    for _ in 0..10 {
        println!("{:.2} M keys/s", ranges_of_1000(subject, keys));
    }
}

/// Prints the memory for a key when no value is in memory, in a process of its own.
fn memory<S: Subject>(dir: &Path, keys: u64) {
    let idle = resident_bytes();
    let subject = S::open(dir, false);
    let mut load = Load::new(keys, 16);
    while let Some(batch) = load.next(0) {
        subject.apply(&batch);
    }
    subject.flush();
    println!("{}", (resident_bytes() - idle) as f64 / keys as f64);
    subject.close();
}

fn puts<S: Subject>(subject: &S, load: &mut Load, deletes: u64, what: &str, table: &mut Table) {
    load.restart();
    let mut latencies = Latencies::default();
    let mut count = 0.0;
    while let Some(batch) = load.next(deletes) {
        count += batch.len() as f64;
        latencies.time(|| subject.apply(&batch));
    }
    let rate = count / latencies.total().as_secs_f64();
    table.add(S::NAME, &format!("{what}, in apply"), rate / 1e3, "thousand puts/s", Some(300.0));
    latencies.report(S::NAME, what, table, None);
}

fn reads<S: Subject>(subject: &S, keys: u64, what: &str, table: &mut Table) {
    const GETS: u64 = 400_000;
    let target = (what == "values in memory").then_some(300.0);
    for threads in [1, 2] {
        let before = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    let found = (0..GETS)
                        .filter(|n| subject.get(&load::key(load::scatter(n * 7 + thread, keys))))
                        .count();
                    assert!(0 < found);
                });
            }
        });
        let name = format!("get, {what}, {threads} threads");
        let count = (GETS * threads) as f64;
        table.rate(S::NAME, &name, count, before, "thousand/s", 1e3, target);
    }
    let mut rates: Vec<f64> = (0..RANGE_PASSES).map(|_| ranges_of_1000(subject, keys)).collect();
    rates.sort_by(f64::total_cmp);
    let target = if what == "values in memory" { 5.0 } else { 0.8 };
    let name = format!("range of 1,000, {what}");
    table.add(S::NAME, &name, rates[RANGE_PASSES / 2], "M keys/s", Some(target));
}

/// A thousand ranges; the median of so many passes is told, for a machine that others use.
const RANGE_PASSES: usize = 5;

/// How many million keys a second a thousand ranges of a thousand keys get.
fn ranges_of_1000<S: Subject>(subject: &S, keys: u64) -> f64 {
    let (before, mut read) = (Instant::now(), 0);
    for n in 0..1000 {
        let first = load::scatter(n, keys).min(keys.saturating_sub(1000));
        read += subject.range(&load::key(first), &load::key(first + 1000));
    }
    read as f64 / before.elapsed().as_secs_f64() / 1e6
}

/// A snapshot while another thread writes as fast as it can.
fn snapshot<S: Subject>(subject: &S, load: &mut Load, table: &mut Table) {
    load.restart();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut latencies, mut count) = (Latencies::default(), 0);
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                let Some(batch) = load.next(0) else {
                    load.restart();
                    continue;
                };
                count += batch.len();
                latencies.time(|| subject.apply(&batch));
            }
            (latencies, count)
        });
        std::thread::sleep(Duration::from_millis(300));
        let (before, mut bytes) = (Instant::now(), 0.0);
        subject.snapshot(&mut |piece| bytes += piece.len() as f64);
        let name = "snapshot beside writes";
        table.rate(S::NAME, name, bytes, before, "MB/s", 1e6, Some(1500.0));
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        let (latencies, count) = writer.join().unwrap();
        let rate = count as f64 / latencies.total().as_secs_f64();
        table.add(S::NAME, "puts beside a snapshot", rate / 1e3, "thousand puts/s", None);
    });
}

/// Half of the revisions go while a writer puts 16 keys every 0.6 ms.
fn compaction<S: Subject>(subject: &S, load: &mut Load, table: &mut Table) {
    load.restart();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut latencies = Latencies::default();
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                let Some(batch) = load.next_of(16, 0) else {
                    load.restart();
                    continue;
                };
                latencies.time(|| subject.apply(&batch));
                std::thread::sleep(Duration::from_micros(600));
            }
            latencies
        });
        let before = Instant::now();
        subject.compact_half();
        let seconds = before.elapsed().as_secs_f64();
        table.add(S::NAME, "compaction of half", seconds, "s", None);
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap().report(S::NAME, "beside compaction", table, Some(-10.0));
    });
}

/// How long a store takes to open, after it was closed and after its process was killed.
fn opening(dir: &Path, keys: u64, value_bytes: usize) {
    let place = dir.join("opening");
    std::fs::create_dir_all(&place).unwrap();
    let store = Ours::open(&place, true);
    let mut load = Load::new(keys, value_bytes);
    while let Some(batch) = load.next(0) {
        store.apply(&batch);
    }
    store.close();
    let open = |what: &str| {
        let before = Instant::now();
        let store = Ours::open(&place, true);
        println!("open {keys} keys {what}: {:.2} s", before.elapsed().as_secs_f64());
        store
    };
    open("after a clean stop").close();
    let mut writer = this_program("--write-until-killed", &place).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    writer.kill().unwrap();
    writer.wait().unwrap();
    drop(open("after kill -9"));
    for item in std::fs::read_dir(&place).unwrap() {
        let path = item.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "ck") {
            std::fs::remove_file(path).unwrap();
        }
    }
    drop(open("without a checkpoint of the index"));
    std::fs::remove_dir_all(&place).unwrap();
}

/// This program, to do something else in a directory.
fn this_program(flag: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(flag).arg(dir);
    command
}

/// The other end of [`opening`]: writes until somebody ends it.
fn write_until_killed(dir: &Path) {
    let store = Ours::open(dir, true);
    let mut load = Load::new(100_000, VALUE_BYTES);
    loop {
        match load.next(0) {
            Some(batch) => store.apply(&batch),
            None => load.restart(),
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}
