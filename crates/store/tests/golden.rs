//! Every kind of file of a store, byte for byte, as `docs/store-format.md` shows it, and a
//! store of each format that was ever released, which has to open for ever.
//!
//! A difference is a change of the format. To show one that is meant:
//! `UPDATE_GOLDEN=1 cargo test -p kontiki-store --test golden`.
#![expect(clippy::disallowed_methods, reason = "the files are looked at from outside")]
#![expect(clippy::unwrap_used, reason = "a test ends where it is surprised")]

use std::{
    env,
    fmt::Write as _,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use kontiki_store::{
    CompactRequest, DeleteRangeRequest, PutRequest, RangeRequest, Request, Store, StoreOptions,
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

const STATE: [Field; 10] = [
    ("magic", 8, Text),
    ("version of small files", 4, Number),
    ("len of the content", 4, Number),
    ("version of the store", 4, Number),
    ("epoch", 8, Number),
    ("secret", 8, Hex),
    ("durable: seq of the segment", 8, Number),
    ("durable: end in its file", 8, Number),
    ("durable: seq of the frame", 8, Number),
    CRC,
];

const SEGMENT: [Field; 11] = [
    ("magic", 8, Text),
    ("version", 4, Number),
    ("salt", 4, Hex),
    ("epoch", 8, Number),
    ("seq", 8, Number),
    ("last seq", 8, Number),
    ("generation", 4, Number),
    ("zero", 4, Number),
    ("seq of the last frame before", 8, Number),
    ("zero", 4, Number),
    CRC,
];

const FRAME: [Field; 14] = [
    ("crc of all from byte 8 on, after the salt", 4, Hex),
    ("crc of bytes 8 to 72, after the salt", 4, Hex),
    ("len", 4, Number),
    ("kind: 1 = batch, 2 = rewritten", 1, Number),
    ("version", 1, Number),
    ("zero", 2, Number),
    ("seq", 8, Number),
    ("durable seq", 8, Number),
    ("index", 8, Number),
    ("term", 8, Number),
    ("revision", 8, Number),
    ("compact revision", 8, Nothing),
    ("count of records", 4, Number),
    ("zero", 4, Number),
];

const RECORD: [Field; 10] = [
    ("record: crc of what follows", 4, Hex),
    ("record: len", 4, Number),
    ("record: kind: 1 = put, 2 = deletion", 1, Number),
    ("record: zero", 3, Nothing),
    ("record: sub revision", 4, Number),
    ("record: main revision", 8, Number),
    ("record: create revision", 8, Number),
    ("record: version", 8, Number),
    ("record: lease", 8, Number),
    ("record: len of the key", 4, Number),
];

const CHECKPOINT: [Field; 11] = [
    ("magic", 8, Text),
    ("version", 4, Number),
    ("epoch", 8, Number),
    ("history up to: seq of the segment", 8, Number),
    ("history up to: end in its file", 8, Number),
    ("history up to: seq of the frame", 8, Number),
    ("index", 8, Number),
    ("term", 8, Number),
    ("revision", 8, Number),
    ("compact revision", 8, Number),
    CRC,
];

const BLOCK: [Field; 3] = [
    ("block: len of the content", 4, Number),
    ("block: count of keys, 0 in the footer", 4, Number),
    ("block: crc of len, count and content", 4, Hex),
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
            writeln!(text, "{at:>4}  {:<47}  {meaning}", hex.join(" ")).unwrap();
            meaning.clear();
            at += line.len();
        }
    }
    assert_eq!(at, bytes.len(), "the fields take all bytes");
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn open(dir: &Path) -> Store {
    let options = StoreOptions { secret: 7, background: false, ..StoreOptions::default() };
    Store::open(dir, options).unwrap()
}

/// A put, a transaction of a put and a deletion, a compaction; then a clean stop.
fn write(dir: &Path) {
    let store = open(dir);
    let put = |key: &'static str, value: &'static str| {
        Request::Put(PutRequest { key: key.into(), value: value.into(), ..Default::default() })
    };
    let delete = Request::DeleteRange(DeleteRangeRequest {
        key: "hello".into(),
        ..DeleteRangeRequest::default()
    });
    let apply = |batch: &[(u64, u64, Request)]| {
        let upto = batch.last().map(|(index, term, _)| (*index, *term)).unwrap();
        assert!(store.apply(batch, upto).unwrap().iter().all(Result::is_ok));
        store.flush().unwrap();
    };
    apply(&[(3, 1, put("hello", "world"))]);
    apply(&[(4, 1, put("hello", "again")), (5, 1, delete)]);
    let compact = CompactRequest { revision: 3, physical: false };
    apply(&[(6, 2, Request::Compact(compact))]);
    while store.compact_step().unwrap() {}
    apply(&[(7, 2, put("key", "value"))]);
    store.close().unwrap();
}

const SEGMENT_NAME: &str = "00000001-0000000000000001-00000000.seg";
const CHECKPOINT_NAME: &str = "00000001-0000000000000004.ck";
const FILES: [&str; 3] = ["STATE", SEGMENT_NAME, CHECKPOINT_NAME];

/// What the format is: a name and the annotated bytes of each example.
fn examples(dir: &Path) -> Vec<(&'static str, String)> {
    let read = |name: &str| fs::read(dir.join(name)).unwrap();
    let record = |key, value| {
        [&RECORD[..], &[("record: key", key, Text), ("record: value", value, Text)]].concat()
    };
    let segment = read(SEGMENT_NAME);
    let (header, mut rest) = segment.split_at(64);
    let mut frames = Vec::new();
    while let Some(len) = rest.get(8..12) {
        let len = usize::try_from(u32::from_le_bytes(len.try_into().unwrap())).unwrap();
        let (frame, after) = rest.split_at(len);
        frames.push(frame);
        rest = after;
    }
    let [first, second, third, _] = frames[..] else { panic!("{} frames", frames.len()) };
    let padding = |len| [("padding", len, Nothing)];
    let checkpoint = read(CHECKPOINT_NAME);
    let (checkpoint_header, blocks) = checkpoint.split_at(80);
    let content = usize::from(blocks[0]);
    let (block, footer) = blocks.split_at(12 + content);
    let entries = [("two keys", content, Nothing)];
    let segments = [("count of keys, and the segments", footer.len() - 12, Nothing)];
    vec![
        ("state", render(&read("STATE"), &STATE)),
        ("segment header", render(header, &SEGMENT)),
        ("frame", render(first, &[&FRAME[..], &record(5, 5), &padding(2)].concat())),
        (
            "batch",
            render(second, &[&FRAME[..], &record(5, 5), &record(5, 0), &padding(1)].concat()),
        ),
        ("position", render(third, &FRAME)),
        ("checkpoint header", render(checkpoint_header, &CHECKPOINT)),
        ("checkpoint block", render(block, &[&BLOCK[..], &entries].concat())),
        ("checkpoint footer", render(footer, &[&BLOCK[..], &segments].concat())),
    ]
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn fixture() -> PathBuf {
    root().join("tests/fixtures/format-2")
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
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let path = root().join("../../docs/store-format.md");
    let mut page = fs::read_to_string(&path).unwrap();
    let is_update = env::var_os("UPDATE_GOLDEN").is_some();
    for (name, rendered) in examples(dir.path()) {
        let Some(place) = block(&page, name) else { panic!("no example of {name}") };
        if is_update {
            page.replace_range(place, &rendered);
        } else {
            assert_eq!(page[place], rendered, "{name}: the format has changed");
        }
    }
    if is_update {
        fs::write(path, page).unwrap();
        fs::create_dir_all(fixture()).unwrap();
        for name in FILES {
            fs::copy(dir.path().join(name), fixture().join(name)).unwrap();
        }
    }
}

/// The store as an earlier build has left it: with its checkpoint, and from the segments alone.
#[test]
fn a_store_of_format_2_opens() {
    for names in [&FILES[..], &FILES[..2]] {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::copy(fixture().join(name), dir.path().join(name)).unwrap();
        }
        let store = open(dir.path());
        assert_eq!((store.applied(), store.durable_applied()), ((7, 2), 7));
        assert_eq!((store.revision(), store.compact_revision()), (5, 3));
        let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        let now = store.range(&all).unwrap();
        assert_eq!((&now.kvs[0].key[..], &now.kvs[0].value[..]), (&b"key"[..], &b"value"[..]));
        let then = store.range(&RangeRequest { revision: 3, ..all }).unwrap();
        assert_eq!((&then.kvs[0].key[..], &then.kvs[0].value[..]), (&b"hello"[..], &b"again"[..]));
    }
}
