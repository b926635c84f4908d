//! The log on a real directory: what is written is there again, for the writer, for readers
//! beside it, and after a restart.

use std::{path::Path, sync::Arc};

use kontiki_disk::RealDisk;
use kontiki_log::{IdentityRequest, KnownPeers, Log, LogError, LogOptions, Opened, PeerError};
use kontiki_raft::{
    Bytes, Entry, EntryId, HardState, Index, Membership, NodeId, Payload, StoreId, Term, WriteBatch,
};

fn request() -> IdentityRequest {
    IdentityRequest {
        cluster: 0xC1,
        node: NodeId(1),
        genesis: Membership::of_voters([(NodeId(1), "localhost:1"), (NodeId(2), "localhost:2")]),
        new_store: StoreId(0x5701),
    }
}

fn options() -> LogOptions {
    LogOptions { segment_bytes: 64 << 10, spares: 1, seed: 7, ..LogOptions::default() }
}

fn open(dir: &Path) -> Result<(Log, Opened), LogError> {
    Log::open(Arc::new(RealDisk), dir, &request(), options())
}

fn entry(index: u64, term: u64, len: usize) -> Entry {
    let byte = u8::try_from(index % 251).expect("small");
    Entry::new(EntryId::new(index, term), Payload::Command(Bytes::from(vec![byte; len])))
}

fn batch(entries: impl IntoIterator<Item = Entry>) -> WriteBatch {
    WriteBatch { hard_state: None, entries: entries.into_iter().collect(), ..WriteBatch::default() }
}

fn vote(term: u64, node: u64) -> HardState {
    HardState { term: Term(term), voted_for: Some(NodeId(node)), commit: Index(0) }
}

#[test]
fn what_is_written_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let written: Vec<Entry> = (1..=50).map(|index| entry(index, 2, 100)).collect();
    {
        let (mut log, opened) = open(dir.path()).unwrap();
        assert!(opened.recovered.is_pristine);
        assert_eq!(opened.recovered.last, EntryId::ZERO);
        log.write(vec![
            WriteBatch {
                hard_state: Some(vote(2, 1)),
                entries: written[..20].to_vec(),
                ..WriteBatch::default()
            },
            batch(written[20..].to_vec()),
        ])
        .unwrap();
        log.sync().unwrap();
        let read = log.reader().read(Index(1)..=Index(50), usize::MAX).unwrap();
        assert_eq!(read, written);
    }
    let (log, opened) = open(dir.path()).unwrap();
    assert!(!opened.recovered.is_pristine);
    assert_eq!(opened.identity.store, StoreId(0x5701));
    assert_eq!(opened.recovered.hard_state, vote(2, 1));
    assert_eq!(opened.recovered.last, EntryId::new(50, 2));
    assert_eq!(opened.recovered.term_runs, [EntryId::new(1, 2)]);
    assert_eq!(opened.recovered.memberships.len(), 1);
    assert_eq!(log.reader().read(Index(1)..=Index(99), usize::MAX).unwrap(), written);
    assert_eq!(log.reader().read(Index(7)..=Index(9), 1).unwrap(), written[6..7]);
    assert_eq!(log.reader().read(Index(7)..=Index(9), 264).unwrap(), written[6..8]);
    assert!(matches!(
        log.reader().read(Index(51)..=Index(99), 1).unwrap_err(),
        LogError::NotInLog { index: Index(51), .. }
    ));
}

#[test]
fn a_log_of_many_segments_is_purged_by_whole_ones() {
    let dir = tempfile::tempdir().unwrap();
    let start = {
        let (mut log, _) = open(dir.path()).unwrap();
        for index in 1..=400 {
            log.write(vec![batch([entry(index, 1 + index / 100, 1000)])]).unwrap();
            log.sync().unwrap();
            while log.spares().fill().unwrap() {}
        }
        // Larger than a segment.
        log.write(vec![batch([entry(401, 9, 100_000)])]).unwrap();
        log.sync().unwrap();
        let start = log.purge(EntryId::new(300, 4)).unwrap();
        assert!(start.index < Index(301) && Index(200) < start.index, "{start}");
        assert_eq!(log.purge(EntryId::new(300, 4)).unwrap(), start);
        start
    };
    let (log, opened) = open(dir.path()).unwrap();
    assert_eq!(opened.recovered.log_start, start);
    assert_eq!(opened.recovered.last, EntryId::new(401, 9));
    assert_eq!(opened.recovered.term_runs.len(), 4);
    assert_eq!(opened.recovered.term_runs[0], EntryId { index: start.index.next(), term: Term(3) });
    let read = log.reader().read(start.index.next()..=Index(401), usize::MAX).unwrap();
    assert_eq!(read.len() as u64, 401 - start.index.get());
    assert_eq!(read.last().unwrap(), &entry(401, 9, 100_000));
    assert!(log.reader().read(start.index..=Index(401), 1).is_err());
}

#[test]
fn the_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path()).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, LogError::Locked { .. }));
    assert!(error.to_string().contains("another process uses this data directory"));
    drop(log);
    open(dir.path()).unwrap();
}

#[test]
fn the_directory_of_another_server_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let other = IdentityRequest { node: NodeId(2), ..request() };
    let error = Log::open(Arc::new(RealDisk), dir.path(), &other, options()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{} is the data directory of n1 of cluster 00000000000000c1, this server was started \
             as n2 of cluster 00000000000000c1; give it its own directory",
            dir.path().join("identity").display()
        )
    );
}

/// Pitfall M7.
#[test]
fn a_peer_that_was_wiped_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = || KnownPeers::open(Arc::new(RealDisk), dir.path()).unwrap();
    let mut peers = open();
    peers.check_or_remember(NodeId(2), StoreId(22)).unwrap();
    peers.check_or_remember(NodeId(3), StoreId(33)).unwrap();
    peers.check_or_remember(NodeId(2), StoreId(22)).unwrap();

    let mut peers = open();
    peers.check_or_remember(NodeId(2), StoreId(22)).unwrap();
    let error = peers.check_or_remember(NodeId(3), StoreId(44)).unwrap_err();
    assert!(matches!(error, PeerError::StoreChanged(changed) if changed.known == StoreId(33)));
}
