//! How fast a log is written, opened and read back, on the disk under a directory.
//!
//! ```text
//! cargo run --release -p kontiki-log --example log_speed -- DIR [MEBIBYTES] [BATCH]
//! ```
//!
//! Writes entries of 256 bytes, BATCH of them at a time (default 16), each batch synced, then
//! fills up to MEBIBYTES (default 1024) with large batches; opens the log again and reads old
//! entries. The directory must be empty, and is left behind.

use std::{
    env,
    error::Error,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use kontiki_disk::RealDisk;
use kontiki_log::{IdentityRequest, Log, LogOptions};
use kontiki_raft::{
    Bytes, Entry, EntryId, Index, Membership, NodeId, Payload, StoreId, WriteBatch,
};

const ENTRY_BYTES: usize = 256;

struct Writer {
    log: Log,
    next: u64,
    command: Bytes,
}

impl Writer {
    fn write(&mut self, count: u64) -> Result<(), Box<dyn Error>> {
        let entries = (self.next..self.next + count)
            .map(|index| Entry::new(EntryId::new(index, 1), Payload::Command(self.command.clone())))
            .collect();
        self.next += count;
        self.log.write(vec![WriteBatch { hard_state: None, entries, ..WriteBatch::default() }])?;
        self.log.sync()?;
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "this is what the program is for")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let dir = arguments.next().ok_or("usage: log_speed DIR [MEBIBYTES] [BATCH]")?;
    let mebibytes: u64 = arguments.next().map_or(Ok(1024), |value| value.parse())?;
    let batch: u64 = arguments.next().map_or(Ok(16), |value| value.parse())?;
    let dir = Path::new(&dir);
    let request = IdentityRequest {
        cluster: 1,
        node: NodeId(1),
        genesis: Membership::of_voters([(NodeId(1), "localhost:1")]),
        new_store: StoreId(1),
    };
    let open = || Log::open(Arc::new(RealDisk), dir, &request, LogOptions::default());

    let (log, _) = open()?;
    let spares = log.spares();
    while spares.fill()? {}
    let mut writer = Writer { log, next: 1, command: vec![0xAB; ENTRY_BYTES].into() };
    let started = Instant::now();
    let mut batches = 0_u32;
    while started.elapsed() < Duration::from_secs(3) {
        writer.write(batch)?;
        batches += 1;
        spares.fill()?;
    }
    println!("{batches} batches of {batch} in 3 s, spares included");
    while writer.next * (ENTRY_BYTES as u64 + 32) < mebibytes << 20 {
        writer.write(4096)?;
    }
    drop(writer);

    let started = Instant::now();
    let (log, opened) = open()?;
    println!("opened in {:?}: {:?}", started.elapsed(), opened.report);

    let reader = log.reader();
    let started = Instant::now();
    let (mut index, mut count) = (Index(1), 0_u64);
    while index < opened.recovered.last.index {
        let read = reader.read(index..=opened.recovered.last.index, 1 << 20)?;
        count += read.len() as u64;
        index = Index(index.get() + read.len() as u64);
    }
    println!("{count} entries read in {:?}, a mebibyte at a time", started.elapsed());
    Ok(())
}
