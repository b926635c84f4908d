//! Every kind of record, byte for byte, as `docs/log-format.md` shows it.
//!
//! A difference is a change of the format: logs that exist could not be read any more. To show
//! a change that is meant: `UPDATE_GOLDEN=1 cargo test -p kontiki-log --test golden`.

use std::{
    env,
    fmt::Write as _,
    fs,
    io::Write as _,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use kontiki_disk::RealDisk;
use kontiki_log::{IdentityRequest, KnownPeers, Log, LogOptions, Snapshots};
use kontiki_raft::{
    Bytes, Entry, EntryId, HardState, Index, Membership, NodeId, Payload, SnapshotMeta, StoreId,
    Term, WriteBatch,
};

/// A field: what it is called, how many bytes it has, how its value is shown.
type Field = (&'static str, usize, Shown);

#[derive(Clone, Copy)]
enum Shown {
    Number,
    Hex,
    Text,
    /// Bytes speak for themselves.
    Nothing,
}

use Shown::{Hex, Nothing, Number, Text};

const SEGMENT: [Field; 13] = [
    ("magic", 8, Text),
    ("version", 4, Number),
    ("salt", 4, Hex),
    ("number of the segment", 8, Number),
    ("length of the file", 8, Number),
    ("seq of the last record before", 8, Number),
    ("crc of the last record before", 4, Hex),
    ("zero", 4, Number),
    ("store", 8, Hex),
    ("last entry before: index", 8, Number),
    ("last entry before: term", 8, Number),
    ("hard state: term, vote, commit", 24, Nothing),
    CRC,
];

const RECORD: [Field; 14] = [
    ("len", 4, Number),
    ("crc of what follows, after that of the record before", 4, Hex),
    ("seq", 8, Number),
    ("index of the first entry", 8, Number),
    ("hard state: term", 8, Number),
    ("hard state: vote", 8, Number),
    ("hard state: commit", 8, Number),
    ("count of entries", 4, Number),
    ("group", 4, Number),
    ("kind", 1, Number),
    ("flags: 1 = the hard state is new", 1, Number),
    ("mask", 1, Number),
    ("version", 1, Number),
    ("crc of the header, after the salt", 4, Hex),
];

const ENTRY: [Field; 6] = [
    ("entry: len of the data", 4, Number),
    ("entry: crc of the data", 4, Hex),
    ("entry: term", 8, Number),
    ("entry: kind", 1, Number),
    ("entry: zero", 3, Nothing),
    ("entry: crc of index and header", 4, Hex),
];

const START: [Field; 5] = [
    ("the log starts after: index", 8, Number),
    ("the log starts after: term", 8, Number),
    ("membership in force there: index", 8, Number),
    ("membership in force there: term", 8, Number),
    ("len of the membership", 4, Number),
];

const MEMBERSHIP: [Field; 10] = [
    ("membership: version", 1, Number),
    ("membership: next id", 8, Number),
    ("membership: count of members", 4, Number),
    ("member: id", 8, Number),
    ("member: role", 1, Number),
    ("member: store is known", 1, Number),
    ("member: store", 8, Number),
    ("member: len of the address", 4, Number),
    ("member: address", 4, Text),
    ("member: len of the context", 4, Number),
];

const NO_OUTGOING: Field = ("membership: count of outgoing voters", 4, Number);

const SMALL_FILE: [Field; 3] =
    [("magic", 8, Text), ("version", 4, Number), ("len of the content", 4, Number)];

const SNAPSHOT: [Field; 6] = [
    ("magic", 8, Text),
    ("version", 4, Number),
    ("len of the data of a chunk", 4, Number),
    ("the snapshot stands for the log up to: index", 8, Number),
    ("the snapshot stands for the log up to: term", 8, Number),
    ("len of the membership", 4, Number),
];

const CHUNK: [Field; 2] =
    [("chunk: len of the data", 4, Number), ("chunk: crc of place, len and data", 4, Hex)];

const SNAPSHOT_END: [Field; 5] = [
    ("magic of the end", 8, Text),
    ("count of chunks", 8, Number),
    ("len of all chunks, heads and data", 8, Number),
    ("crc of the crcs of all chunks", 4, Hex),
    ("crc of the end, after that of the header", 4, Hex),
];

const CRC: Field = ("crc of all above", 4, Hex);

/// The bytes in lines of 16 at most, with what they mean.
fn render(bytes: &[u8], fields: &[Field]) -> String {
    let mut text = String::new();
    let mut at = 0;
    for &(name, len, shown) in fields {
        let value = &bytes[at..at + len];
        let mut number = [0; 8];
        if len <= 8 {
            number[..len].copy_from_slice(value);
        }
        let number = u64::from_le_bytes(number);
        let mut meaning = match shown {
            Number => format!("{name} = {number}"),
            Hex => format!("{name} = {number:#x}"),
            Text => format!("{name} = {:?}", String::from_utf8_lossy(value)),
            Nothing => name.to_owned(),
        };
        for line in value.chunks(16) {
            let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{at:>4}  {:<47}  {meaning}", hex.join(" ")).expect("into memory");
            meaning.clear();
            at += line.len();
        }
    }
    assert_eq!(at, bytes.len(), "the fields take all bytes");
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn entry(index: u64, payload: Payload) -> Entry {
    Entry::new(EntryId::new(index, 5), payload)
}

fn command(bytes: &[u8]) -> Payload {
    Payload::Command(Bytes::copy_from_slice(bytes))
}

fn open(dir: &Path) -> Log {
    let request = IdentityRequest {
        cluster: 0xC1,
        node: NodeId(1),
        genesis: Membership::of_voters([(NodeId(1), "n1:1")]),
        new_store: StoreId(0x5701),
    };
    let options =
        LogOptions { segment_bytes: 8 << 10, spares: 0, seed: 7, ..LogOptions::default() };
    Log::open(Arc::new(RealDisk), dir, &request, options).expect("a log").0
}

/// Writes a log with a record of every kind. Returns its first two segments, which are gone.
fn write(dir: &Path) -> [Vec<u8>; 2] {
    let membership = Membership::of_voters([(NodeId(1), "n1:1")]);
    let mut log = open(dir);
    let hard_state = |term, vote, commit| {
        Some(HardState { term: Term(term), voted_for: Some(NodeId(vote)), commit: Index(commit) })
    };
    let meta = SnapshotMeta { last: EntryId::new(9, 5), membership: Arc::new(membership.clone()) };
    let write_batch = |log: &mut Log, batch| {
        log.write(vec![batch]).expect("nothing fails");
        log.sync().expect("nothing fails");
    };
    let mut write = |hard_state, entries| {
        write_batch(&mut log, WriteBatch { hard_state, entries, ..WriteBatch::default() });
    };
    write(hard_state(5, 1, 0), Vec::new());
    write(
        hard_state(5, 1, 1),
        vec![entry(1, Payload::Blank), entry(2, command(b"put hello world"))],
    );
    write(None, vec![entry(3, Payload::Membership(Arc::new(membership)))]);
    write(None, vec![entry(4, command(&[0; 40]))]);
    write(None, vec![entry(5, command(&[b'x'; 3600]))]); // does not fit into the first segment
    let read = |number| {
        fs::read(dir.join(format!("wal/000000000000000{number}.wal"))).expect("it was written")
    };
    let first = read(1);
    log.purge(EntryId::new(4, 5)).expect("nothing fails");
    let second = read(2);
    let reset = WriteBatch {
        reset_to: Some(meta),
        entries: vec![entry(10, Payload::Session(Bytes::from_static(b"open")))],
        ..WriteBatch::default()
    };
    write_batch(&mut log, reset);

    let mut peers = KnownPeers::open(Arc::new(RealDisk), dir).expect("none yet");
    peers.check_or_remember(NodeId(2), StoreId(0x5702)).expect("nothing fails");
    [first, second]
}

/// The records of a segment.
fn records(segment: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    let mut rest = &segment[4096..];
    loop {
        let len: [u8; 4] = rest[..4].try_into().expect("four bytes");
        let len = usize::try_from(u32::from_le_bytes(len)).expect("small");
        if len == 0 {
            return records;
        }
        let (record, after) = rest.split_at(len);
        records.push(record);
        rest = after;
    }
}

/// What the format is: a name and the annotated bytes of each example.
fn examples() -> Vec<(&'static str, String)> {
    let dir = tempfile::tempdir().expect("a directory");
    let [first, second] = write(dir.path());
    let read = |name: &str| fs::read(dir.path().join(name)).expect("it was written");
    let third = read("wal/0000000000000003.wal");
    let mut examples = first_segment(&first);
    examples.extend(later_segments(&second, &third));
    examples.extend(damage(&first));
    let membership = [&MEMBERSHIP[..], &[NO_OUTGOING]].concat();
    let identity = [("cluster", 8, Hex), ("node", 8, Number), ("store", 8, Hex)];
    examples.push((
        "identity",
        render(&read("identity"), &[&SMALL_FILE[..], &identity, &membership, &[CRC]].concat()),
    ));
    let peer = [("node", 8, Number), ("store", 8, Hex)];
    examples.push(("peers", render(&read("peers"), &[&SMALL_FILE[..], &peer, &[CRC]].concat())));
    let chunk = |len| [CHUNK[0], CHUNK[1], ("chunk: data", len, Text)];
    let chunks = [chunk(8), chunk(3)].concat();
    examples.push((
        "snapshot",
        render(
            &snapshot(dir.path()),
            &[&SNAPSHOT[..], &membership, &[CRC], &chunks, &SNAPSHOT_END].concat(),
        ),
    ));
    examples
}

const fn padding(len: usize) -> Field {
    ("padding", len, Nothing)
}

fn first_segment(first: &[u8]) -> Vec<(&'static str, String)> {
    let [vote, entries, membership, masked, seal] = records(first)[..] else {
        panic!("five records in the first segment")
    };
    let data = [("entry: data", 15, Text), ("zero", 1, Nothing)];
    let membership_fields = [&ENTRY[..], &MEMBERSHIP, &[NO_OUTGOING, padding(57)]].concat();
    let masked_fields = [("masked entry, of 40 zeros", 64, Nothing)];
    vec![
        ("segment header", render(&first[..100], &SEGMENT)),
        ("hard state", render(vote, &RECORD)),
        ("entries", render(entries, &[&RECORD[..], &ENTRY, &ENTRY, &data].concat())),
        ("membership entry", render(membership, &[&RECORD[..], &membership_fields].concat())),
        ("masked entries", render(masked, &[&RECORD[..], &masked_fields].concat())),
        ("seal", render(seal, &RECORD)),
    ]
}

fn later_segments(second: &[u8], third: &[u8]) -> Vec<(&'static str, String)> {
    let start = [&RECORD[..], &START, &MEMBERSHIP, &[NO_OUTGOING]].concat();
    let data = [("entry: data", 4, Text), ("zero", 4, Nothing), padding(8)];
    let reset = [&start[..], &[("zero", 5, Nothing)], &ENTRY, &data].concat();
    vec![
        ("start", render(records(second)[1], &[&start[..], &[padding(45)]].concat())),
        ("reset", render(records(third)[0], &reset)),
    ]
}

/// What is left when entry 3 of that first segment is damaged.
fn damage(first: &[u8]) -> Vec<(&'static str, String)> {
    let dir = tempfile::tempdir().expect("a directory");
    write(dir.path());
    let wal = dir.path().join("wal");
    fs::remove_dir_all(&wal).expect("it was made");
    fs::create_dir(&wal).expect("it was removed");
    let path = wal.join("0000000000000001.wal");
    let mut damaged = first.to_vec();
    let third = 4096 + 64 + 128;
    damaged[third + 100] ^= 1;
    fs::write(&path, damaged).expect("a directory");
    drop(open(dir.path()));
    let left = fs::read(&path).expect("it was made again");
    let marker = fs::read(dir.path().join("damaged")).expect("it was written");
    let range = [("first index", 8, Number), ("last index", 8, Number), ("stage", 1, Number)];
    vec![
        ("cut", render(records(&left)[2], &RECORD)),
        ("damaged", render(&marker, &[&SMALL_FILE[..], &range, &[CRC]].concat())),
    ]
}

/// A snapshot with two chunks.
fn snapshot(dir: &Path) -> Vec<u8> {
    let snapshots = Snapshots::open_with_chunks(Arc::new(RealDisk), dir, 8).expect("none yet");
    let membership = Arc::new(Membership::of_voters([(NodeId(1), "n1:1")]));
    let meta = SnapshotMeta { last: EntryId::new(9, 5), membership };
    let mut writer = snapshots.begin(&meta).expect("nothing fails");
    writer.write_all(b"hello world").expect("nothing fails");
    writer.finish().expect("nothing fails");
    let name = "snapshot/0000000000000009-0000000000000005.snap";
    fs::read(dir.join(name)).expect("it was written")
}

fn doc_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/log-format.md")
}

/// Where the example stands in the page: in a fenced block with its name.
fn block(page: &str, name: &str) -> Option<Range<usize>> {
    let begin = format!("```text golden {name}\n");
    let start = page.find(&begin)? + begin.len();
    let len = page[start..].find("```")?;
    Some(start..start + len)
}

#[test]
fn every_byte_is_what_the_documentation_says() {
    let mut page = fs::read_to_string(doc_path()).unwrap();
    let is_update = env::var_os("UPDATE_GOLDEN").is_some();
    for (name, rendered) in examples() {
        let Some(place) = block(&page, name) else { panic!("no example of {name}") };
        if is_update {
            page.replace_range(place, &rendered);
        } else {
            assert_eq!(page[place], rendered, "{name}: the format has changed");
        }
    }
    if is_update {
        fs::write(doc_path(), page).unwrap();
    }
}
