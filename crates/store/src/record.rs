//! One event as bytes, and blocks of them: what lies on disk and waits in memory to get there.
//!
//! ```text
//!    0      4      8      9     12     16     24         32        40      48        52    52+k
//!   │ crc │ len │ kind │ zero │ sub │ main │ create │ version │ lease │ key_len │ key │ value │
//! ```
//!
//! Integers are little-endian. `len` counts the whole record, `crc` is the CRC-32C of all that
//! follows it. `kind` is 1 for a put and 2 for a deletion, of which create, version, lease and
//! value are zero and empty. A block is records one after the other, in the order of their
//! revisions, and is named by the revision of the first.
//!
//! The store below does not verify what it reads; so every reader here does, by record.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::error::Fatal;

/// The place of a write in history: the transaction, and the write in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Revision {
    /// What clients call the revision. Positive.
    pub(crate) main: i64,
    /// Counts the writes of one transaction from zero.
    pub(crate) sub: u32,
}

impl Revision {
    /// Bytes whose order is the order of revisions.
    pub(crate) fn to_key(self) -> [u8; 12] {
        let mut key = [0; 12];
        let (main, sub) = key.split_at_mut(8);
        main.copy_from_slice(&self.main.to_be_bytes());
        sub.copy_from_slice(&self.sub.to_be_bytes());
        key
    }

    pub(crate) fn from_key(key: [u8; 12]) -> Self {
        let [a, b, c, d, e, f, g, h, rest @ ..] = key;
        Self { main: i64::from_be_bytes([a, b, c, d, e, f, g, h]), sub: u32::from_be_bytes(rest) }
    }
}

/// What is known of one version of a key, without its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Version {
    /// The write that made it.
    pub(crate) at: Revision,
    /// The main revision that created the key; zero in a tombstone.
    pub(crate) create_revision: i64,
    /// Counts the puts since the creation from one; zero in a tombstone.
    pub(crate) version: i64,
    /// The lease, or zero.
    pub(crate) lease: i64,
}

impl Version {
    pub(crate) fn tombstone(at: Revision) -> Self {
        Self { at, create_revision: 0, version: 0, lease: 0 }
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.version == 0
    }
}

/// One write to one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event<'a> {
    pub(crate) version: Version,
    pub(crate) key: &'a [u8],
    /// Empty in a tombstone.
    pub(crate) value: &'a [u8],
}

const HEADER_BYTES: usize = 52;
const PUT: u8 = 1;
const DELETE: u8 = 2;

/// Blocks are sealed before they grow beyond this. A block of this size and its key just fit
/// into 16 KiB, so that the B-tree below gives it one page of that size without a gap.
pub(crate) const BLOCK_BYTES: usize = 16 * 1024 - 64;

impl Event<'_> {
    /// The bytes that [`encode`](Self::encode) will add.
    pub(crate) fn encoded_len(&self) -> usize {
        HEADER_BYTES.saturating_add(self.key.len()).saturating_add(self.value.len())
    }

    /// Appends the record of this event.
    ///
    /// # Panics
    ///
    /// If key and value together take 4 GiB: requests are a thousand times smaller.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let len = u32::try_from(self.encoded_len()).expect("requests are far below 4 GiB");
        let key_len = u32::try_from(self.key.len()).expect("shorter than the record");
        let mut header = [0; HEADER_BYTES - 4];
        let fields: [&[u8]; 9] = [
            &len.to_le_bytes(),
            &[if self.version.is_tombstone() { DELETE } else { PUT }, 0, 0, 0],
            &self.version.at.sub.to_le_bytes(),
            &self.version.at.main.to_le_bytes(),
            &self.version.create_revision.to_le_bytes(),
            &self.version.version.to_le_bytes(),
            &self.version.lease.to_le_bytes(),
            &key_len.to_le_bytes(),
            &[],
        ];
        let mut rest = header.as_mut_slice();
        for field in fields {
            let (place, after) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = after;
        }
        let crc = [&header[..], self.key, self.value].into_iter().fold(0, crc32c::crc32c_append);
        out.reserve(self.encoded_len());
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
    }
}

/// What is wrong with a record. Becomes [`Fatal::Corrupt`] where the revision is known.
type Flaw = &'static str;

/// The records of a block, in order. Ends after the first flaw.
#[derive(Clone, Debug)]
pub(crate) struct Records<'a> {
    first: Revision,
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// `first` is the name of the block, for the error message.
    pub(crate) fn new(first: Revision, bytes: &'a [u8]) -> Self {
        Self { first, rest: bytes }
    }

    /// Takes one record off the front without looking into it.
    fn split(&mut self) -> Result<Option<&'a [u8]>, Flaw> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let len = u32_at(self.rest, 4).ok_or("record is cut short")?;
        let len = usize::try_from(len).map_err(|_| "record is too long")?;
        if len < HEADER_BYTES {
            return Err("record is too short");
        }
        let (record, rest) = self.rest.split_at_checked(len).ok_or("record is cut short")?;
        self.rest = rest;
        Ok(Some(record))
    }

    fn corrupt(&self, what: Flaw) -> Fatal {
        Fatal::Corrupt { revision: self.first.main, what }
    }

    /// The record of `wanted`, if the block has it. Records before it are stepped over
    /// unread.
    pub(crate) fn find(mut self, wanted: Revision) -> Result<Option<Event<'a>>, Fatal> {
        while let Some(record) = self.split().map_err(|what| self.corrupt(what))? {
            let at = revision_of(record).ok_or("record is cut short");
            if wanted <= at.map_err(|what| self.corrupt(what))? {
                let event = decode(record).map_err(|what| self.corrupt(what))?;
                return Ok((event.version.at == wanted).then_some(event));
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(Event<'a>, &'a [u8]), Fatal>;

    /// The next event, with its record as it lies there.
    fn next(&mut self) -> Option<Self::Item> {
        let item = match self.split() {
            Ok(record) => record.map(|record| decode(record).map(|event| (event, record))),
            Err(what) => Some(Err(what)),
        };
        item.map(|result| {
            result.map_err(|what| {
                self.rest = &[];
                self.corrupt(what)
            })
        })
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().copied().map(u32::from_le_bytes)
}

fn i64_at(bytes: &[u8], offset: usize) -> Option<i64> {
    bytes.get(offset..)?.first_chunk().copied().map(i64::from_le_bytes)
}

fn revision_of(record: &[u8]) -> Option<Revision> {
    Some(Revision { main: i64_at(record, 16)?, sub: u32_at(record, 12)? })
}

fn decode(record: &[u8]) -> Result<Event<'_>, Flaw> {
    const SHORT: Flaw = "record is cut short";
    let covered = record.get(4..).ok_or(SHORT)?;
    if u32_at(record, 0) != Some(crc32c::crc32c(covered)) {
        return Err("record fails its checksum");
    }
    let version = Version {
        at: revision_of(record).ok_or(SHORT)?,
        create_revision: i64_at(record, 24).ok_or(SHORT)?,
        version: i64_at(record, 32).ok_or(SHORT)?,
        lease: i64_at(record, 40).ok_or(SHORT)?,
    };
    let kind = record.get(8).ok_or(SHORT)?;
    if *kind != if version.is_tombstone() { DELETE } else { PUT } {
        return Err("record is of an unknown kind");
    }
    let key_len = usize::try_from(u32_at(record, 48).ok_or(SHORT)?).map_err(|_| SHORT)?;
    let content = record.get(HEADER_BYTES..).ok_or(SHORT)?;
    let (key, value) = content.split_at_checked(key_len).ok_or("key is longer than its record")?;
    Ok(Event { version, key, value })
}

/// Events in the order of their revisions, as they are stored.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// The revision of the first event: the name of the block.
    pub(crate) first: Revision,
    /// The records.
    pub(crate) bytes: Vec<u8>,
}

impl Block {
    pub(crate) fn records(&self) -> Records<'_> {
        Records::new(self.first, &self.bytes)
    }
}
