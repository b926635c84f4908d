//! Where events are kept: in blocks, in revision order, together with how far they go.

use std::{collections::BTreeMap, fmt, sync::Arc};

use parking_lot::Mutex;

use crate::{
    error::Fatal,
    record::{BLOCK_BYTES, Block, Event, Records, Revision},
};

/// How far the events on disk go. Always written in one step with the events themselves: a
/// position stored apart from its data was etcd's worst bug (#13766).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The last command that is applied, as the host counts.
    pub(crate) applied_index: u64,
    /// Its term.
    pub(crate) applied_term: u64,
    /// The current revision. Kept, for compaction may have removed the last event.
    pub(crate) revision: i64,
    /// Below this no history is readable, whether it is still there or not. -1 at first.
    pub(crate) compact_revision: i64,
}

impl Default for Checkpoint {
    /// An empty store, which has revision 1, as in etcd.
    fn default() -> Self {
        Self { applied_index: 0, applied_term: 0, revision: 1, compact_revision: -1 }
    }
}

/// Keeps events and their checkpoint. One writer at a time; reads run beside it.
pub(crate) trait EventStore: fmt::Debug + Send + Sync {
    /// Adds blocks after all others and replaces the checkpoint: all or nothing, durable when
    /// it returns.
    fn write(&self, blocks: &[Arc<Block>], checkpoint: &Checkpoint) -> Result<(), Fatal>;

    /// Hands each event of `wanted`, which ascends, to `found` with its position there. One
    /// that is not there is left out.
    fn read(&self, wanted: &[Revision], found: &mut Found<'_>) -> Result<(), Fatal>;

    /// Hands up to `blocks_max` blocks to `each`, from the one that holds `from` on. Returns
    /// the name of the block after them, or none at the end.
    fn scan(
        &self,
        from: Revision,
        blocks_max: usize,
        each: &mut Each<'_>,
    ) -> Result<Option<Revision>, Fatal>;

    /// Removes events of `dead`, which ascends, from at most `blocks_max` blocks. Durable with
    /// the next write. Returns how many of `dead` are done with, at least one.
    fn remove(&self, dead: &[Revision], blocks_max: usize) -> Result<Removed, Fatal>;

    /// The length of all records that were written and not removed. Kept beside them, so that
    /// a lost page is noticed.
    fn record_bytes(&self) -> Result<u64, Fatal>;

    /// Bytes taken on disk.
    fn size_bytes(&self) -> Result<u64, Fatal>;

    /// What is here at this moment: what is written and removed later does not show in it.
    fn view(&self) -> Result<Box<dyn EventView>, Fatal>;

    /// An empty store beside this one. A crash forgets it until it has
    /// [taken over](Self::take_over).
    fn beside(&self) -> Result<Box<dyn EventStore>, Fatal>;

    /// Takes the place of the store that this one was made beside, at once and for good. The
    /// other can still be read, and what is written there is lost.
    fn take_over(&self) -> Result<(), Fatal>;
}

/// Events at one moment.
pub(crate) trait EventView: Send {
    /// Hands all blocks to `each`, in order.
    fn scan(&self, each: &mut Each<'_>) -> Result<(), Fatal>;
}

/// Takes an event that was looked for, with its position in the list.
pub(crate) type Found<'a> = dyn FnMut(usize, Event<'_>) -> Result<(), Fatal> + 'a;

/// Takes a block.
pub(crate) type Each<'a> = dyn FnMut(Records<'_>) -> Result<(), Fatal> + 'a;

/// What one step of removal has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// How many revisions of the list are done with.
    pub(crate) revisions: usize,
    /// How many bytes of records are gone.
    pub(crate) bytes: u64,
}

/// A map of blocks, as compaction sees it.
pub(crate) trait Blocks {
    /// The block that holds `at`, if it is anywhere: the last one with a name up to it.
    fn holding(&self, at: Revision) -> Result<Option<Block>, Fatal>;
    /// The name of the last block before the one with this name.
    fn before(&self, name: Revision) -> Result<Option<Revision>, Fatal>;
    fn insert(&mut self, block: &Block) -> Result<(), Fatal>;
    fn remove(&mut self, name: Revision) -> Result<(), Fatal>;
}

/// Removes events from blocks, and joins what is left of neighbours into full ones. The rule
/// of [`EventStore::remove`].
pub(crate) fn remove_events(
    blocks: &mut impl Blocks,
    dead: &[Revision],
    blocks_max: usize,
) -> Result<Removed, Fatal> {
    let mut removed = Removed::default();
    let mut packed: Option<Block> = None;
    for _ in 0..blocks_max {
        let Some(&next) = dead.get(removed.revisions) else { break };
        let Some(block) = blocks.holding(next)? else {
            removed.revisions += 1; // gone already
            continue;
        };
        // A block is found by its name, so one that holds nothing dead and stays where it is
        // must not come to lie in the middle of what is packed.
        let before = blocks.before(block.first)?;
        let may_join = |packed: &mut Block| {
            before.is_none_or(|before| before < packed.first)
                && packed.bytes.len() + block.bytes.len() <= BLOCK_BYTES
        };
        if let Some(full) = packed.take_if(|packed| !may_join(packed)) {
            blocks.insert(&full)?;
        }
        let last_dead = removed.revisions;
        removed.bytes += strip(&block, dead, &mut removed.revisions, &mut packed)?;
        blocks.remove(block.first)?;
        if removed.revisions == last_dead {
            removed.revisions += 1; // gone already, though its neighbours are here
        }
    }
    if let Some(rest) = packed {
        blocks.insert(&rest)?;
    }
    Ok(removed)
}

/// Copies what survives of `block` to the end of `packed`. Returns the bytes that do not.
fn strip(
    block: &Block,
    dead: &[Revision],
    done: &mut usize,
    packed: &mut Option<Block>,
) -> Result<u64, Fatal> {
    let mut bytes = 0;
    for item in block.records() {
        let (event, record) = item?;
        let at = event.version.at;
        while dead.get(*done).is_some_and(|dead| *dead < at) {
            *done += 1; // gone already
        }
        if dead.get(*done) == Some(&at) {
            *done += 1;
            bytes += u64::try_from(record.len()).expect("a length fits in 64 bits");
        } else {
            let packed = packed.get_or_insert_with(|| Block { first: at, bytes: Vec::new() });
            packed.bytes.extend_from_slice(record);
        }
    }
    Ok(bytes)
}

/// Events in memory: for tests and simulations, and as the model of what the disk must do.
#[derive(Debug, Default)]
pub(crate) struct MemoryEvents {
    blocks: Mutex<MemoryBlocks>,
}

/// Blocks by their names. A view shares them.
type MemoryBlocks = BTreeMap<Revision, Arc<[u8]>>;

impl EventStore for MemoryEvents {
    fn write(&self, blocks: &[Arc<Block>], _checkpoint: &Checkpoint) -> Result<(), Fatal> {
        let mut map = self.blocks.lock();
        map.extend(blocks.iter().map(|block| (block.first, block.bytes.as_slice().into())));
        Ok(())
    }

    fn read(&self, wanted: &[Revision], found: &mut Found<'_>) -> Result<(), Fatal> {
        let map = self.blocks.lock();
        for (position, at) in wanted.iter().enumerate() {
            let Some((first, bytes)) = map.range(..=at).next_back() else { continue };
            if let Some(event) = Records::new(*first, bytes).find(*at)? {
                found(position, event)?;
            }
        }
        Ok(())
    }

    fn scan(
        &self,
        from: Revision,
        blocks_max: usize,
        each: &mut Each<'_>,
    ) -> Result<Option<Revision>, Fatal> {
        let map = self.blocks.lock();
        let start = map.range(..=from).next_back().map_or(from, |(first, _)| *first);
        let mut blocks = map.range(start..);
        for (first, bytes) in blocks.by_ref().take(blocks_max) {
            each(Records::new(*first, bytes))?;
        }
        Ok(blocks.next().map(|(first, _)| *first))
    }

    fn remove(&self, dead: &[Revision], blocks_max: usize) -> Result<Removed, Fatal> {
        remove_events(&mut *self.blocks.lock(), dead, blocks_max)
    }

    fn record_bytes(&self) -> Result<u64, Fatal> {
        self.size_bytes()
    }

    fn size_bytes(&self) -> Result<u64, Fatal> {
        let bytes = self.blocks.lock().values().map(|bytes| bytes.len()).sum::<usize>();
        Ok(u64::try_from(bytes).expect("a length fits in 64 bits"))
    }

    fn view(&self) -> Result<Box<dyn EventView>, Fatal> {
        Ok(Box::new(self.blocks.lock().clone()))
    }

    fn beside(&self) -> Result<Box<dyn EventStore>, Fatal> {
        Ok(Box::<Self>::default())
    }

    fn take_over(&self) -> Result<(), Fatal> {
        Ok(())
    }
}

impl EventView for MemoryBlocks {
    fn scan(&self, each: &mut Each<'_>) -> Result<(), Fatal> {
        self.iter().try_for_each(|(first, bytes)| each(Records::new(*first, bytes)))
    }
}

impl Blocks for MemoryBlocks {
    fn holding(&self, at: Revision) -> Result<Option<Block>, Fatal> {
        let block = self.range(..=at).next_back();
        Ok(block.map(|(first, bytes)| Block { first: *first, bytes: bytes.to_vec() }))
    }

    fn before(&self, name: Revision) -> Result<Option<Revision>, Fatal> {
        Ok(self.range(..name).next_back().map(|(first, _)| *first))
    }

    fn insert(&mut self, block: &Block) -> Result<(), Fatal> {
        self.insert(block.first, block.bytes.as_slice().into());
        Ok(())
    }

    fn remove(&mut self, name: Revision) -> Result<(), Fatal> {
        self.remove(&name);
        Ok(())
    }
}
