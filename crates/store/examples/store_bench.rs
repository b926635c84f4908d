//! Measures the store on a real disk, without network and log: puts, gets, ranges, opening.
//!
//! ```text
//! cargo run --release -p kontiki-store --example store_bench -- [KEYS] [VALUE BYTES] [DIRECTORY]
//! ```
//!
//! Keys of 24 bytes are put in random order in batches of 130, as 256 clients make them, by
//! one thread, which generates them too. The directory is made and removed again.
#![expect(clippy::print_stdout, reason = "that is what it is for")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
#![expect(clippy::unwrap_used, reason = "a benchmark stops at the first error")]
#![expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures for people")]

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use kontiki_store::{
    Bytes, CompactRequest, PutRequest, RangeRequest, Request, Store, StoreOptions,
};

const BATCH: u64 = 130;

fn main() {
    let mut args = std::env::args().skip(1);
    let keys: u64 = args.next().map_or(1_000_000, |arg| arg.parse().unwrap());
    let value_bytes: usize = args.next().map_or(256, |arg| arg.parse().unwrap());
    let dir = args.next().map_or_else(
        || std::env::temp_dir().join(format!("store-bench-{}", std::process::id())),
        PathBuf::from,
    );
    run(keys, value_bytes, &dir);
    std::fs::remove_dir_all(&dir).unwrap();
}

fn run(keys: u64, value_bytes: usize, dir: &Path) {
    println!("{keys} keys of 24 bytes, values of {value_bytes} bytes, in {}", dir.display());
    let store = open(dir, 0);
    let mut load = Load { keys, value_bytes, index: 0, seed: 1 };

    load.put_all(&store, "load");
    println!("memory after load           {} MB", resident_megabytes());
    close(store);
    let store = open(dir, keys);
    load.put_all(&store, "overwrite");
    gets(&store, keys, 1);
    gets(&store, keys, 2);
    ranges(&store, keys, 0, "range of 1,000 keys");
    let half = store.revision() - i64::try_from(keys).unwrap() / 2;
    ranges(&store, keys, half, "same, old revision");

    println!("size before compaction      {} MB", store.size_bytes() >> 20);
    let before = Instant::now();
    load.apply(
        &store,
        vec![Request::Compact(CompactRequest { revision: store.revision(), physical: true })],
    );
    println!("compaction answered in      {:?}", before.elapsed());
    assert!(store.wait_compacted(store.compact_revision(), Duration::from_secs(600)));
    println!("compaction done in          {:?}", before.elapsed());
    println!("size, in use                {} MB, {} MB", store.size_bytes() >> 20, {
        store.size_in_use_bytes() >> 20
    });
    load.put_all(&store, "overwrite again");
    println!("memory                      {} MB", resident_megabytes());

    close(store);
    let store = open(dir, 2 * keys);
    ranges(&store, keys, 0, "range of 1,000 keys");
    let before = Instant::now();
    let hash = store.hash_kv(0).unwrap();
    println!("hash of everything          {:?}, {:08x}", before.elapsed(), hash.hash);
    println!("CPU of everything           {:.1} s", cpu());
}

fn open(dir: &Path, events: u64) -> Store {
    let (before, cpu_before) = (Instant::now(), cpu());
    let options = StoreOptions { value_cache_bytes: 512 << 20, ..StoreOptions::default() };
    let store = Store::open(dir, options).unwrap();
    let cpu_used = cpu() - cpu_before;
    println!("open, {events:<9} events     {:?}, CPU {cpu_used:.2} s", before.elapsed());
    store
}

fn close(store: Store) {
    let before = Instant::now();
    store.close().unwrap();
    println!("close                       {:?}", before.elapsed());
}

struct Load {
    keys: u64,
    value_bytes: usize,
    index: u64,
    seed: u64,
}

impl Load {
    fn next(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    fn value(&mut self) -> Bytes {
        let mut value = vec![0; self.value_bytes];
        for chunk in value.chunks_mut(16) {
            let random = self.next().to_le_bytes();
            let len = chunk.len().min(8);
            chunk[..len].copy_from_slice(&random[..len]);
        }
        value.into()
    }

    /// Puts every key once, in an order that looks random.
    fn put_all(&mut self, store: &Store, name: &str) {
        let mut latencies = hdr();
        let mut in_apply = Duration::ZERO;
        let mut position = 0;
        let (before, cpu_before) = (Instant::now(), cpu());
        while position < self.keys {
            let encoded: Vec<Vec<u8>> = (position..self.keys.min(position + BATCH))
                .map(|n| {
                    let put = PutRequest {
                        key: key(scatter(n, self.keys)),
                        value: self.value(),
                        ..PutRequest::default()
                    };
                    Request::Put(put).encode()
                })
                .collect();
            position += BATCH;
            let started = Instant::now();
            let requests = encoded.iter().map(|bytes| Request::decode(bytes).unwrap()).collect();
            self.apply(store, requests);
            let took = started.elapsed();
            in_apply += took;
            latencies.push(took);
        }
        let per_second = self.keys as f64 / before.elapsed().as_secs_f64();
        latencies.sort_unstable();
        let at = |share: f64| latencies[(share * (latencies.len() - 1) as f64) as usize];
        println!(
            "{name:27} {per_second:.0} puts/s; CPU of all threads {:.2} µs a put, decode and apply {:.2} µs; batch p50 {:?} p99 {:?} max {:?}",
            (cpu() - cpu_before) * 1e6 / self.keys as f64,
            in_apply.as_secs_f64() * 1e6 / self.keys as f64,
            at(0.5),
            at(0.99),
            at(1.0),
        );
    }

    fn apply(&mut self, store: &Store, requests: Vec<Request>) {
        let batch: Vec<(u64, u64, Request)> = requests
            .into_iter()
            .map(|request| {
                self.index += 1;
                (self.index, 1, request)
            })
            .collect();
        for response in store.apply(&batch, (self.index, 1)).unwrap() {
            response.unwrap();
        }
    }
}

fn hdr() -> Vec<Duration> {
    Vec::with_capacity(10_000)
}

fn key(n: u64) -> Bytes {
    format!("/registry/keys/{n:09}").into()
}

/// A permutation of `0..keys`, for every number of keys that the prime does not divide.
fn scatter(n: u64, keys: u64) -> u64 {
    n * 2_654_435_761 % keys
}

fn gets(store: &Store, keys: u64, threads: u64) {
    const GETS: u64 = 1_000_000;
    let (before, cpu_before) = (Instant::now(), cpu());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for n in 0..GETS {
                    let key = key(scatter(n * 7 + thread, keys));
                    let range = RangeRequest { key, ..RangeRequest::default() };
                    assert_eq!(store.range(&range).unwrap().count, 1);
                }
            });
        }
    });
    let per_second = (GETS * threads) as f64 / before.elapsed().as_secs_f64();
    let cpu = (cpu() - cpu_before) * 1e6 / (GETS * threads) as f64;
    println!("get, {threads} threads              {per_second:.0}/s, CPU {cpu:.2} µs a get");
}

fn ranges(store: &Store, keys: u64, revision: i64, name: &str) {
    const RANGES: u64 = 1000;
    let (before, cpu_before) = (Instant::now(), cpu());
    let mut read = 0;
    for n in 0..RANGES {
        let first = scatter(n, keys).min(keys.saturating_sub(1000));
        let range = RangeRequest {
            key: key(first),
            range_end: key(first + 1000),
            revision,
            ..RangeRequest::default()
        };
        read += store.range(&range).unwrap().kvs.len();
    }
    let took = before.elapsed().as_secs_f64();
    println!(
        "{name:27} {:.2} M keys/s, {:.0} µs a range, CPU {:.3} µs a key",
        read as f64 / took / 1e6,
        took * 1e6 / RANGES as f64,
        (cpu() - cpu_before) * 1e6 / read as f64
    );
}

/// Seconds of processor time that this process has used; the kernel counts in hundredths.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
