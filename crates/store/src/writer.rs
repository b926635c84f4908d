//! The thread that brings events to disk, and what it does there.

use std::{
    io, mem,
    sync::{Arc, atomic::Ordering},
    thread::{Builder, JoinHandle},
    time::Duration,
};

use crate::{error::Fatal, store::Shared};

/// The pause after a step of compaction, so that it takes about half of the disk and of one
/// processor at most.
const STEP_PAUSE: Duration = Duration::from_micros(500);

/// After how many steps of compaction a flush comes in between.
const STEPS_PER_FLUSH: usize = 32;

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
        let mut is_busy = shared.compact_step()?;
        for _ in 0..STEPS_PER_FLUSH {
            if !is_busy || shared.pause(STEP_PAUSE) {
                break;
            }
            is_busy = shared.compact_step()?;
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
    }
}

impl Shared {
    /// Waits until events have gathered and it is time to write them out. False if the store
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
        let is_urgent = self.options.flush_bytes <= pending;
        let mut signal = self.signal.lock();
        if !signal.is_dirty || (is_urgent && !signal.is_urgent) {
            signal.is_dirty = true;
            signal.is_urgent |= is_urgent;
            self.wake.notify_one();
        }
    }

    /// Makes everything that is applied durable, the position in the log with it.
    ///
    /// An error is final. After a failed sync the process has to stop: what redb holds in
    /// memory and what the kernel holds may both differ from the disk then, and only opening
    /// the file anew tells what is there.
    pub(crate) fn flush(&self) -> Result<(), Fatal> {
        self.check()?;
        let mut flushed = self.flushed.lock();
        let (blocks, checkpoint) = {
            let mut state = self.state.write();
            // Asked again under the locks: whoever held them may have failed meanwhile, in the
            // middle of a command or of a sync, and neither may be followed by a write.
            self.check()?;
            for value in mem::take(&mut *self.fetched.lock()) {
                state.index.warm(&value.key, value.at, value.value);
            }
            state.index.evict();
            (state.pending.seal(), state.checkpoint)
        };
        if blocks.is_empty() && *flushed == checkpoint {
            return Ok(());
        }
        self.events.write(&blocks, &checkpoint).map_err(|fatal| self.fail(fatal))?;
        *flushed = checkpoint;
        self.state.write().pending.forget(blocks.len());
        self.durable_applied.store(checkpoint.applied_index, Ordering::Release);
        Ok(())
    }
}
