//! Giving back the space of history that nobody may read any more.
//!
//! Two passes, in steps so small that neither readers nor writers notice. The first walks the
//! keys in order and forgets the dead versions: that is all that compaction means, and nothing
//! is written. The second copies what is left of segments that are mostly dead into new ones
//! (see [`rewrite`](crate::rewrite)), and removes the old files.

use parking_lot::RwLockWriteGuard;

use crate::{
    error::Fatal,
    key::Key,
    rewrite::{Planned, Progress, Rewrite},
    state::State,
    store::Shared,
};

/// How many keys a step looks at: about 50 µs under the lock.
const STEP_KEYS: usize = 500;

/// How many frames must find room after a full disk before rewriting, which takes the space of
/// a segment for a while, gets in their way again.
const STALLED_FRAMES: u64 = 64;

/// Where compaction is.
#[derive(Debug)]
pub(crate) struct Compaction {
    /// Up to this compact revision no version in memory is dead,
    walked: i64,
    /// and up to this one no segment is worth to be rewritten.
    done: i64,
    walk: Option<Walk>,
    rewrite: Option<Rewrite>,
    /// Rewriting found the disk full: it waits until this frame has found room.
    stalled_until: Option<u64>,
}

#[derive(Debug)]
struct Walk {
    /// The compact revision of this pass.
    revision: i64,
    /// The last key that was looked at, or none before the first.
    cursor: Option<Key>,
}

impl Compaction {
    /// To begin with: up to `walked` no version in memory is dead.
    pub(crate) fn new(walked: i64) -> Self {
        Self { walked, done: walked, walk: None, rewrite: None, stalled_until: None }
    }

    pub(crate) fn done(&self) -> i64 {
        self.done
    }

    /// Whether records are moving.
    pub(crate) fn is_rewriting(&self) -> bool {
        self.rewrite.is_some()
    }

    /// The state was replaced: nothing of it remains to be compacted.
    pub(crate) fn give_up(&mut self) {
        *self = Self::new(i64::MAX);
    }
}

impl State {
    /// Forgets the dead versions of the next keys. Returns where to go on.
    pub(crate) fn forget_dead(&mut self, cursor: Option<&[u8]>, revision: i64) -> Option<Key> {
        let mut dead = Vec::new();
        let next = self.index.compact(cursor, STEP_KEYS, revision, &mut dead);
        dead.into_iter().for_each(|place| self.segments.bury(place));
        next
    }
}

impl Shared {
    /// Does a little of the compaction that is due. Returns whether there was anything to do.
    pub(crate) fn compact_step(&self) -> Result<bool, Fatal> {
        self.check()?;
        if self.is_checkpointing() {
            return Ok(false); // which relies on places
        }
        // Nothing is removed before the revision that allows it is on disk, or a crash would
        // bring back a store that promises history it has lost (etcd #17780). And `STATE` has to
        // say so, or damage at the end would be taken for torn, and do the same.
        let (due, mark) = {
            let mut flushed = self.flushed.lock();
            if flushed.told_compact_revision < flushed.position.compact_revision {
                self.tell(&mut flushed).map_err(|fatal| self.fail(fatal))?;
            }
            (flushed.told_compact_revision, flushed.mark)
        };
        let mut compaction = self.compaction.lock();
        let Compaction { walked, done, walk, rewrite, stalled_until } = &mut *compaction;
        stalled_until.take_if(|frame_seq| *frame_seq <= mark.frame_seq);
        if walk.is_none() && rewrite.is_none() && *walked < due {
            *walk = Some(Walk { revision: due, cursor: None });
        }
        if let Some(pass) = walk {
            let mut state = self.state.write();
            pass.cursor = state.forget_dead(pass.cursor.as_deref(), pass.revision);
            RwLockWriteGuard::unlock_fair(state);
            if pass.cursor.is_none() {
                *walked = pass.revision;
                *walk = None;
                *stalled_until = None;
            }
            return Ok(true);
        }
        if rewrite.is_none() && stalled_until.is_none() && *walked <= due {
            let planned = self.plan_rewrite(mark.segment_seq, *walked);
            match planned.map_err(|fatal| self.fail(fatal))? {
                Planned::Rewrite(planned) => *rewrite = Some(*planned),
                Planned::Nothing => {}
                Planned::NoSpace => *stalled_until = Some(mark.frame_seq + STALLED_FRAMES),
            }
        }
        if let Some(step) = rewrite {
            match step.step(self).map_err(|fatal| self.fail(fatal))? {
                Progress::More => {}
                Progress::Done => *rewrite = None,
                Progress::NoSpace => {
                    *rewrite = None;
                    *stalled_until = Some(mark.frame_seq + STALLED_FRAMES);
                }
            }
            return Ok(true);
        }
        if *done < *walked && stalled_until.is_none() {
            *done = *walked;
            self.compacted.notify_all();
            return Ok(true);
        }
        Ok(false)
    }
}
