//! Reading a checkpoint of the index. Whatever is wrong with it: there is none then.

use std::{collections::BTreeMap, path::Path, thread};

use kontiki_disk::{ByteReader, DiskFile};

use super::{BLOCK_HEADER_BYTES, HEADER_BYTES, MAGIC, VERSION};
use crate::{
    files::{DurableMark, Files},
    frame::Position,
    index::{KeyEntry, Older},
    key::Key,
    record::{Revision, Version},
    segment::Place,
    varint,
};

/// No block is longer than this: what claims to be is damaged.
const BLOCK_BYTES_MAX: u64 = 1 << 30;

/// Segments by their place in history: the generation and the end of each.
type SegmentEnds = BTreeMap<u64, (u32, u64)>;

/// The index, and how far history is in it.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) mark: DurableMark,
    pub(crate) position: Position,
    /// Those that it points to.
    pub(crate) segments: SegmentEnds,
    /// Blocks of entries, in the order of keys. Places name segments by `seq`.
    pub(crate) entries: Vec<Vec<(Key, KeyEntry)>>,
}

impl Loaded {
    /// What was durable before the checkpoint got its name: all that it points to, which goes
    /// beyond what is surely in it.
    pub(crate) fn rests_on(&self) -> DurableMark {
        let last = self.segments.last_key_value().map(|(&segment_seq, &(_, offset))| DurableMark {
            segment_seq,
            offset,
            frame_seq: self.mark.frame_seq,
        });
        last.map_or(self.mark, |last| last.max(self.mark))
    }
}

/// Where a block is.
#[derive(Clone, Copy, Debug)]
struct BlockAt {
    offset: u64,
    len: usize,
    count: u32,
    crc: u32,
}

/// Reads the checkpoint at `path`. `number` turns the place of a segment in history, its
/// generation and its length into its number here, or into 0 if it is not here. `None` if the
/// checkpoint is not whole, or not of these files.
pub(crate) fn load(
    files: &Files,
    path: &Path,
    threads: usize,
    number: &(dyn Fn(u64, u32, u64) -> u32 + Sync),
) -> Option<Loaded> {
    let file = files.disk.open(path).ok()?;
    let len = file.len().ok()?;
    let mut header = [0; HEADER_BYTES];
    file.read_at(0, &mut header).ok()?;
    let (epoch, mark, position) = decode_header(&header)?;
    if epoch != files.epoch {
        return None;
    }
    let (blocks, footer) = find_blocks(&*file, len)?;
    let (keys, segments) = decode_footer(&read_block(&*file, &footer)?)?;
    if blocks.iter().map(|block| u64::from(block.count)).sum::<u64>() != keys {
        return None;
    }
    let numbers: BTreeMap<u64, u32> = segments
        .iter()
        .map(|(&seq, &(generation, end))| (seq, number(seq, generation, end)))
        .collect();
    let number = |seq| numbers.get(&seq).copied().unwrap_or(0);
    let share = blocks.len().div_ceil(threads.max(1)).max(1);
    let decode = |blocks: &[BlockAt]| -> Option<Vec<Vec<(Key, KeyEntry)>>> {
        blocks
            .iter()
            .map(|block| decode_block(&read_block(&*file, block)?, block.count, &number))
            .collect()
    };
    let decode = &decode;
    let shares = if threads <= 1 {
        vec![decode(&blocks)]
    } else {
        thread::scope(|scope| {
            let running: Vec<_> =
                blocks.chunks(share).map(|share| scope.spawn(move || decode(share))).collect();
            running.into_iter().map(|share| share.join().ok().flatten()).collect()
        })
    };
    let shares = shares.into_iter().collect::<Option<Vec<_>>>()?;
    let entries: Vec<_> = shares.into_iter().flatten().collect();
    let is_sorted = entries.is_sorted_by(|a, b| match (a.last(), b.first()) {
        (Some((a, _)), Some((b, _))) => a < b,
        _ => true,
    });
    is_sorted.then_some(Loaded { mark, position, segments, entries })
}

fn decode_header(header: &[u8; HEADER_BYTES]) -> Option<(u64, DurableMark, Position)> {
    let (covered, crc) = header.split_last_chunk::<4>()?;
    if crc32c::crc32c(covered) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut reader = ByteReader::new(covered);
    if reader.array()? != MAGIC || reader.u32()? != VERSION {
        return None;
    }
    let epoch = reader.u64()?;
    let mark =
        DurableMark { segment_seq: reader.u64()?, offset: reader.u64()?, frame_seq: reader.u64()? };
    let position = Position {
        applied_index: reader.u64()?,
        applied_term: reader.u64()?,
        revision: reader.u64()?.cast_signed(),
        compact_revision: reader.u64()?.cast_signed(),
    };
    Some((epoch, mark, position))
}

/// The blocks, and the footer, which must be the last thing in the file.
fn find_blocks(file: &dyn DiskFile, len: u64) -> Option<(Vec<BlockAt>, BlockAt)> {
    let (mut blocks, mut at) = (Vec::new(), HEADER_BYTES as u64);
    loop {
        let mut header = [0; BLOCK_HEADER_BYTES];
        file.read_at(at, &mut header).ok()?;
        let mut reader = ByteReader::new(&header);
        let (block_len, count, crc) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let offset = at + BLOCK_HEADER_BYTES as u64;
        at = offset + u64::from(block_len);
        if BLOCK_BYTES_MAX < u64::from(block_len) || len < at {
            return None;
        }
        let block = BlockAt { offset, len: usize::try_from(block_len).ok()?, count, crc };
        if count == 0 {
            return (at == len).then_some((blocks, block));
        }
        blocks.push(block);
    }
}

/// The content of a block, if it is what was written.
fn read_block(file: &dyn DiskFile, block: &BlockAt) -> Option<Vec<u8>> {
    let mut content = vec![0; block.len];
    file.read_at(block.offset, &mut content).ok()?;
    let mut head = u32::try_from(block.len).ok()?.to_le_bytes().to_vec();
    head.extend_from_slice(&block.count.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &content);
    (crc == block.crc).then_some(content)
}

fn decode_footer(content: &[u8]) -> Option<(u64, SegmentEnds)> {
    let mut reader = ByteReader::new(content);
    let keys = varint::take(&mut reader)?;
    let count = varint::take(&mut reader)?;
    let mut segments = BTreeMap::new();
    for _ in 0..count {
        let seq = varint::take(&mut reader)?;
        segments.insert(seq, (varint::take_as(&mut reader)?, varint::take(&mut reader)?));
    }
    reader.rest().is_empty().then_some((keys, segments))
}

fn decode_block(
    content: &[u8],
    count: u32,
    number: &dyn Fn(u64) -> u32,
) -> Option<Vec<(Key, KeyEntry)>> {
    let mut reader = ByteReader::new(content);
    let mut key = Vec::new();
    let mut entries: Vec<(Key, KeyEntry)> =
        Vec::with_capacity(usize::try_from(count).ok()?.min(content.len() / 8));
    for _ in 0..count {
        let shared: usize = varint::take_as(&mut reader)?;
        let suffix = varint::take_as(&mut reader)?;
        if key.len() < shared {
            return None;
        }
        key.truncate(shared);
        key.extend_from_slice(reader.bytes(suffix)?);
        let entry = decode_entry(&mut reader, number)?;
        let is_next = entries.last().is_none_or(|(last, _)| **last < key[..]);
        if !is_next {
            return None;
        }
        entries.push((key.as_slice().into(), entry));
    }
    reader.rest().is_empty().then_some(entries)
}

fn decode_entry(reader: &mut ByteReader<'_>, number: &dyn Fn(u64) -> u32) -> Option<KeyEntry> {
    let at = take_revision(reader)?;
    let version = varint::take(reader)?.cast_signed();
    let create_revision = varint::take(reader)?.cast_signed();
    let lease = varint::take(reader)?.cast_signed();
    let newest = Version { at, create_revision, version, lease };
    let segment = number(varint::take(reader)?);
    let offset = varint::take_as(reader)?;
    let place = Place { segment, offset, len: varint::take_as(reader)? };
    let mut older = Vec::new();
    for _ in 0..varint::take(reader)? {
        let at = take_revision(reader)?;
        let segment = number(varint::take(reader)?);
        let offset = varint::take_as(reader)?;
        let len = varint::take(reader)?;
        let place = Place { segment, offset, len: u32::try_from(len >> 1).ok()? };
        older.push(Older::new(at, place, len & 1 == 1));
    }
    Some(KeyEntry::restored(&newest, place, older))
}

fn take_revision(reader: &mut ByteReader<'_>) -> Option<Revision> {
    Some(Revision { main: varint::take(reader)?.cast_signed(), sub: varint::take_as(reader)? })
}
