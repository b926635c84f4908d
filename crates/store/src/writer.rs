//! The thread that brings frames to disk, and what it does there.

use std::{
    io, mem,
    sync::{Arc, atomic::Ordering},
    thread::{Builder, JoinHandle},
    time::Duration,
};

use crate::{
    error::Fatal, files::DurableMark, frame::Position, segment::Segment, store::Shared, tail::Chunk,
};

/// The pause after a step of compaction or of a checkpoint, so that they take about half of
/// the disk and of one processor at most.
const STEP_PAUSE: Duration = Duration::from_millis(2);

/// After how many steps a flush comes in between.
const STEPS_PER_FLUSH: usize = 16;

/// What the writer thread is told.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    /// Something is pending.
    pub(crate) is_dirty: bool,
    /// So much is pending that it should not wait.
    pub(crate) is_urgent: bool,
    /// The store is closing.
    pub(crate) is_stopping: bool,
}

/// How far the files go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flushed {
    /// The state after the last durable frame.
    pub(crate) position: Position,
    /// That frame, and where it ends.
    pub(crate) mark: DurableMark,
    /// What of that is in `STATE`.
    pub(crate) told: DurableMark,
    /// The compact revision that `told` stands for.
    pub(crate) told_compact_revision: i64,
    /// Bytes written since the last checkpoint of the index.
    pub(crate) since_checkpoint: u64,
    /// Another epoch counts: `STATE` is not ours any more.
    pub(crate) is_replaced: bool,
}

/// Starts the thread. It ends when it is told to stop, or at the first error, which the next
/// `apply` reports.
pub(crate) fn spawn(shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    Builder::new().name("store-writer".to_owned()).spawn(move || {
        // The error is kept in `shared`.
        if run(&shared).is_err() {
            debug_assert!(shared.check().is_err(), "an error that nobody would hear of");
        }
    })
}

fn run(shared: &Shared) -> Result<(), Fatal> {
    loop {
        let mut is_busy = shared.upkeep_step()?;
        for _ in 0..STEPS_PER_FLUSH {
            if !is_busy || shared.pause(STEP_PAUSE) {
                break;
            }
            is_busy = shared.upkeep_step()?;
        }
        if !is_busy && !shared.wait_for_work() {
            return Ok(());
        }
        let is_stopping = {
            let mut signal = shared.signal.lock();
            let Signal { is_stopping, .. } = *signal;
            *signal = Signal { is_stopping, ..Signal::default() };
            is_stopping
        };
        if is_stopping {
            return Ok(());
        }
        shared.flush()?;
        if shared.is_full() {
            // Tried again when the disk has had some time.
            shared.wake_writer(0);
        }
    }
}

impl Shared {
    /// A little of what is due beside writing: a checkpoint of the index, else compaction.
    pub(crate) fn upkeep_step(&self) -> Result<bool, Fatal> {
        Ok(self.checkpoint_step()? || self.compact_step()?)
    }

    /// Waits until frames have gathered and it is time to write them out. False if the store
    /// is closing.
    fn wait_for_work(&self) -> bool {
        let mut signal = self.signal.lock();
        self.wake.wait_while(&mut signal, |signal| !signal.is_dirty && !signal.is_stopping);
        // Time-out or not: it is time now.
        let _timed_out = self.wake.wait_while_for(
            &mut signal,
            |signal| !signal.is_urgent && !signal.is_stopping,
            self.options.flush_interval,
        );
        !signal.is_stopping
    }

    /// Lets others run for a moment. Returns whether there is no time for that.
    fn pause(&self, duration: Duration) -> bool {
        let mut signal = self.signal.lock();
        let must_go_on = |signal: &mut Signal| !signal.is_urgent && !signal.is_stopping;
        !self.wake.wait_while_for(&mut signal, must_go_on, duration).timed_out()
    }

    /// Tells the writer that `pending` bytes wait. Cheap when it knows.
    pub(crate) fn wake_writer(&self, pending: usize) {
        let is_urgent = self.options.flush_bytes <= pending && !self.is_full();
        let mut signal = self.signal.lock();
        if !signal.is_dirty || (is_urgent && !signal.is_urgent) {
            signal.is_dirty = true;
            signal.is_urgent |= is_urgent;
            self.wake.notify_one();
        }
    }

    /// Makes everything that is applied durable, the position in the log with it. When the
    /// disk is full it returns without having done so: [`is_full`](Self::is_full) says that,
    /// and the next call tries again.
    ///
    /// An error is final. After a failed sync the process has to stop: what the kernel holds
    /// may differ from the disk then, and only opening the files anew tells what is there.
    pub(crate) fn flush(&self) -> Result<(), Fatal> {
        self.check()?;
        let mut flushed = self.flushed.lock();
        let chunks = {
            let mut state = self.state.write();
            // Asked again under the locks: whoever held them may have failed meanwhile, in the
            // middle of a command or of a sync, and neither may be followed by a write.
            self.check()?;
            for value in mem::take(&mut *self.fetched.lock()) {
                state.index.warm(&value.key, value.at, value.value);
            }
            state.index.evict();
            let (position, durable_frame) = (state.position, state.durable_frame);
            state.tail.mark(&position, durable_frame);
            state.tail.seal()
        };
        let mut is_full = false;
        for part in chunks.chunk_by(|a, b| a.segment == b.segment) {
            match self.write(&mut flushed, part).map_err(|fatal| self.fail(fatal))? {
                Written::Durable => {}
                Written::NoSpace => {
                    is_full = true;
                    break;
                }
            }
        }
        self.is_full.store(is_full, Ordering::Release);
        self.room.notify_all();
        Ok(())
    }

    /// Writes chunks of one segment and makes them durable.
    fn write(&self, flushed: &mut Flushed, chunks: &[Arc<Chunk>]) -> Result<Written, Fatal> {
        let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else {
            return Ok(Written::Durable);
        };
        let known = self.state.read().segments.get(first.segment).and_then(|held| {
            let segment = held.segment.as_ref()?;
            Some(Arc::clone(segment))
        });
        let segment = match known {
            Some(segment) => segment,
            None => {
                // The one before is complete now, and damage in it is damage from here on.
                self.tell(flushed)?;
                let path = self.files.segment_path(&first.header);
                match full(Segment::create(&*self.files.disk, path, first.header), "make")? {
                    Some(segment) => Arc::new(segment),
                    None => return Ok(Written::NoSpace),
                }
            }
        };
        for chunk in chunks {
            let written = segment.file.write_at(chunk.start.into(), &chunk.bytes);
            if full(written, "write")?.is_none() {
                return Ok(Written::NoSpace);
            }
        }
        segment.file.sync_data().map_err(|error| Fatal::io("sync", error))?;
        if flushed.mark.segment_seq != first.header.seq {
            self.files.sync_dir().map_err(|error| Fatal::io("sync the directory of", error))?;
        }
        flushed.mark = DurableMark {
            segment_seq: first.header.seq,
            offset: last.end(),
            frame_seq: last.last_frame,
        };
        flushed.position = last.position;
        let bytes: usize = chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        flushed.since_checkpoint += bytes as u64;
        let mut state = self.state.write();
        state.segments.written(first.segment, &segment, last.end());
        let forgotten = state.tail.forget(chunks.len());
        state.durable_frame = last.last_frame;
        drop(state);
        drop(forgotten);
        self.durable_applied.store(last.position.applied_index, Ordering::Release);
        Ok(Written::Durable)
    }

    /// Writes down how far everything is durable. A full disk is no error: then it is not told.
    pub(crate) fn tell(&self, flushed: &mut Flushed) -> Result<(), Fatal> {
        let is_due = !flushed.is_replaced && flushed.told != flushed.mark;
        if is_due && self.files.write_state(flushed.mark)? {
            flushed.told = flushed.mark;
        }
        if flushed.told == flushed.mark {
            flushed.told_compact_revision = flushed.position.compact_revision;
        }
        Ok(())
    }
}

/// What became of a write.
enum Written {
    Durable,
    /// Nothing is lost, and it can be tried again.
    NoSpace,
}

/// Tells a full disk, which is `None`, from one that fails.
pub(crate) fn full<T>(result: io::Result<T>, op: &'static str) -> Result<Option<T>, Fatal> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_no_space(&error) => Ok(None),
        Err(error) => Err(Fatal::io(op, error)),
    }
}

pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
