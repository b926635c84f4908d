//! One event as bytes.
//!
//! ```text
//!    0      4      8      9     12     16     24         32        40      48        52    52+k
//!   │ crc │ len │ kind │ zero │ sub │ main │ create │ version │ lease │ key_len │ key │ value │
//! ```
//!
//! Integers are little-endian. `len` counts the whole record, `crc` is the CRC-32C of all that
//! follows it. `kind` is 1 for a put and 2 for a deletion, of which create, version, lease and
//! value are zero and empty. Records lie in frames, one after the other, in the order of their
//! revisions (see `frame`); each has a checksum of its own, for most reads are of one record.
#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

/// The place of a write in history: the transaction, and the write in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Revision {
    /// What clients call the revision. Positive.
    pub(crate) main: i64,
    /// Counts the writes of one transaction from zero.
    pub(crate) sub: u32,
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

/// The bytes before the key.
pub(crate) const HEADER_BYTES: usize = 52;
const PUT: u8 = 1;
const DELETE: u8 = 2;

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
        let start = out.len();
        out.reserve(self.encoded_len());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&header);
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
        let (_, record) = out.split_at_mut(start);
        if let Some((crc, covered)) = record.split_first_chunk_mut::<4>() {
            *crc = crc32c::crc32c(covered).to_le_bytes();
        }
    }
}

/// What is wrong with a record.
pub(crate) type Flaw = &'static str;

const SHORT: Flaw = "a record is cut short";

/// The records of a frame whose checksum fits, in order. Ends after the first flaw.
#[derive(Clone, Debug)]
pub(crate) struct Records<'a> {
    rest: &'a [u8],
    /// How many there should be; what follows them is padding.
    left: u32,
}

impl<'a> Records<'a> {
    pub(crate) fn new(bytes: &'a [u8], count: u32) -> Self {
        Self { rest: bytes, left: count }
    }

    /// Takes one record off the front without looking into it.
    fn split(&mut self) -> Result<&'a [u8], Flaw> {
        let len = u32_at(self.rest, 4).ok_or(SHORT)?;
        let len = usize::try_from(len).map_err(|_| SHORT)?;
        if len < HEADER_BYTES {
            return Err("a record is too short");
        }
        let (record, rest) = self.rest.split_at_checked(len).ok_or(SHORT)?;
        self.rest = rest;
        Ok(record)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(Event<'a>, &'a [u8]), Flaw>;

    /// The next event, with its record as it lies there. The checksum of the frame covers it.
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let item = self.split().and_then(|record| parse(record).map(|event| (event, record)));
        if item.is_err() {
            self.left = 0;
        }
        Some(item)
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

/// Reads a whole record, if its checksum fits.
pub(crate) fn decode(record: &[u8]) -> Result<Event<'_>, Flaw> {
    let covered = record.get(4..).ok_or(SHORT)?;
    if u32_at(record, 4).and_then(|len| usize::try_from(len).ok()) != Some(record.len()) {
        return Err("a record is not as long as it should be");
    }
    if u32_at(record, 0) != Some(crc32c::crc32c(covered)) {
        return Err("a record fails its checksum");
    }
    parse(record)
}

/// Reads a record that something else vouches for.
fn parse(record: &[u8]) -> Result<Event<'_>, Flaw> {
    let version = Version {
        at: revision_of(record).ok_or(SHORT)?,
        create_revision: i64_at(record, 24).ok_or(SHORT)?,
        version: i64_at(record, 32).ok_or(SHORT)?,
        lease: i64_at(record, 40).ok_or(SHORT)?,
    };
    let kind = record.get(8).ok_or(SHORT)?;
    if *kind != if version.is_tombstone() { DELETE } else { PUT } {
        return Err("a record is of an unknown kind");
    }
    let key_len = usize::try_from(u32_at(record, 48).ok_or(SHORT)?).map_err(|_| SHORT)?;
    let content = record.get(HEADER_BYTES..).ok_or(SHORT)?;
    let (key, value) =
        content.split_at_checked(key_len).ok_or("a key is longer than its record")?;
    Ok(Event { version, key, value })
}
