//! The store of a node: how it is opened, written out and looked after, and what may become of
//! it.
//!
//! The thread that writes behind the state machine is here an event that comes later. A crash
//! may come in the middle of what it does: then the first operations of that are done, and the
//! disk decides what is left of them.

use std::{path::PathBuf, sync::Arc};

use kontiki::Event;
use kontiki_log::Snapshots;
use kontiki_raft::{EntryId, Index, NodeId, Recovered, SnapshotMeta};
use kontiki_store::{Fatal, OpenError, RestoreError, StoreOptions};

use crate::{
    dice::Stream,
    disk::SimDisk,
    kv::{self, Kv},
    machine::{Machine, MachineKind},
    network::nanos,
    node::Happening,
    trace::Note,
    view::LogView,
    world::{Checked, World, data_dir},
};

/// How often in a million the store is read back after it was written out.
const AUDITS: u64 = 50_000;

/// The operations that a crash lets through, at most, of what was being written.
const INTERRUPTED_OPS: u64 = 12;

/// What a process finds when it looks for its state.
pub(super) enum Found {
    State(Machine, Option<Kv>),
    /// There is no room to recover.
    NoSpace,
    /// It is gone, and nobody has it.
    Lost,
}

impl World {
    // ------------------------------------------------------------------------ starting

    /// Opens the store, and brings it to where the log goes on, if it can be had here.
    pub(super) fn recover_kv(
        &mut self,
        id: NodeId,
        snapshots: &Snapshots,
        recovered: &Recovered,
    ) -> Checked<Found> {
        let Some(kv) = self.open_kv(id)? else { return Ok(Found::NoSpace) };
        let is_behind = kv.applied().index < recovered.log_start.index;
        let view = LogView::of(recovered);
        let newest = snapshots
            .newest_intact(|meta: &SnapshotMeta| view.holds(meta.last))
            .map_err(|error| format!("the snapshots of {id} cannot be read: {error}"))?;
        if let Some(info) = newest.filter(|_| is_behind) {
            match restore(&kv, snapshots, info.meta.last) {
                Ok(()) => {}
                Err(RestoreError::Fatal(Fatal::Io { source, .. })) if is_full(&*source) => {
                    return Ok(Found::NoSpace);
                }
                Err(error) => return Err(format!("{id} cannot restore {info:?}: {error}")),
            }
        }
        let applied = kv.applied();
        let node = self.node_mut(id);
        let had_lost = std::mem::take(&mut node.kv_is_lost) || node.kv_durable == Index::ZERO;
        if applied.index < node.kv_durable {
            let durable = node.kv_durable;
            return Err(format!("the store of {id} was durable up to {durable}, and is {applied}"));
        }
        if applied.index < recovered.log_start.index {
            let has_lost = had_lost || self.ledger.is_damaged(id);
            if !has_lost {
                let start = recovered.log_start;
                return Err(format!("{id} has a log after {start} and a store of {applied}"));
            }
            let is_alone = recovered.memberships.last().is_some_and(|(_, membership)| {
                membership.is_voter(id) && membership.replicas().len() == 1
            });
            if is_alone {
                return Ok(Found::Lost);
            }
            self.node_mut(id).kv_is_lost = true;
            self.lost_states += 1;
        }
        let machine = self.audit_kv(id, &kv)?;
        self.node_mut(id).kv_durable = kv.durable_applied();
        Ok(Found::State(machine, Some(kv)))
    }

    /// Opens the store; a damaged one is removed, and opened empty. `None` if there is no room.
    fn open_kv(&mut self, id: NodeId) -> Checked<Option<Kv>> {
        let disk = Arc::clone(&self.node(id).disk);
        let is_rotten = std::mem::take(&mut self.node_mut(id).kv_is_rotten);
        if is_rotten {
            // Damage at the very end looks like what a crash has torn, and the log has it.
            self.node_mut(id).kv_durable = Index::ZERO;
        }
        let mut opened = self.open_kv_on(id, Arc::clone(&disk));
        // What is read seldom may be damaged as well.
        let verified =
            opened.as_ref().map_or(Ok(()), |kv| if is_rotten { kv.verify() } else { Ok(()) });
        if verified.is_err() || matches!(opened, Err(OpenError::Damaged { .. })) {
            let what = match &opened {
                Err(error) => error.to_string(),
                Ok(_) => verified.err().unwrap_or_default(),
            };
            if !is_rotten {
                return Err(format!(
                    "the store of {id} is damaged, and nobody has done it: {what}"
                ));
            }
            drop(opened);
            kv::remove(&disk, &kv_dir(id))
                .map_err(|error| format!("the damaged store of {id} cannot be removed: {error}"))?;
            self.damaged_stores += 1;
            opened = self.open_kv_on(id, disk);
        }
        match opened {
            Ok(kv) => Ok(Some(kv)),
            Err(OpenError::Io { source, .. }) if is_full(&*source) => {
                // Nothing has been looked at: the next start finds what this one has not.
                self.node_mut(id).kv_is_rotten = is_rotten;
                Ok(None)
            }
            Err(error) => Err(format!("the store of {id} does not open: {error}")),
        }
    }

    fn open_kv_on(&self, id: NodeId, disk: Arc<SimDisk>) -> Result<Kv, OpenError> {
        let secret = self.dice.roll(Stream::Process, id.get(), u64::MAX);
        let options = StoreOptions {
            secret,
            background: false,
            pending_bytes_max: usize::MAX,
            ..self.setup.store.clone()
        };
        Kv::open(disk, &kv_dir(id), options)
    }

    /// Reads all of a store back and compares it with what is true. Returns what it holds.
    fn audit_kv(&mut self, id: NodeId, kv: &Kv) -> Checked<Machine> {
        let unreadable = |fatal: Fatal| format!("the store of {id} cannot be read: {fatal}");
        let applied = kv.applied();
        let commands = self
            .ledger
            .commands_upto(applied)
            .ok_or_else(|| format!("the store of {id} is at {applied}, which nobody wrote"))?;
        let machine = kv.machine(commands).map_err(unreadable)?;
        self.truth.assert_machine(id, &machine)?;
        let history = kv.history().map_err(unreadable)?;
        let bounds = (kv.compact_revision(), kv.revision());
        self.truth.assert_history(id, applied.index, bounds, &history)?;
        let (oldest, newest) = (bounds.0.max(1), bounds.1);
        let count = self.count(id);
        let span = u64::try_from(newest - oldest).unwrap_or_default() + 1;
        let back = self.dice.below(span, Stream::Checkpoint, id.get(), count);
        let revision = newest - i64::try_from(back).unwrap_or_default();
        let all = kv.all_at(revision).map_err(unreadable)?;
        self.truth.assert_all_at(id, revision, &all)?;
        self.store_audits += 1;
        Ok(machine)
    }

    /// What the store would be after a crash: `disk` is a copy.
    pub(super) fn audit_kv_on(&mut self, id: NodeId, disk: Arc<SimDisk>) -> Checked {
        let (is_rotten, durable) = (self.node(id).kv_is_rotten, self.node(id).kv_durable);
        if self.setup.machine != MachineKind::Store || is_rotten {
            return Ok(());
        }
        let kv = self
            .open_kv_on(id, disk)
            .map_err(|error| format!("the store of {id} would not open: {error}"))?;
        if kv.applied().index < durable {
            let applied = kv.applied();
            return Err(format!("the store of {id}, durable up to {durable}, would be {applied}"));
        }
        self.audit_kv(id, &kv).map(drop)
    }

    // ------------------------------------------------------------------------- writing

    /// Something was applied: it will be written out.
    pub(super) fn maybe_flush(&mut self, id: NodeId) -> Checked {
        if self.process(id)?.kv.is_none() {
            return Ok(());
        }
        let range = nanos(self.setup.store_flush.0)..=nanos(self.setup.store_flush.1);
        let count = self.count(id);
        let delay = self.dice.within(&range, Stream::Checkpoint, !id.get(), count);
        self.schedule_flush(id, delay)
    }

    fn schedule_flush(&mut self, id: NodeId, delay: u64) -> Checked {
        let at = (self.now + delay).max(self.node(id).stalled_until);
        let process = self.process(id)?;
        let life = process.life;
        let Some(kv) = process.kv.as_mut().filter(|kv| !kv.is_scheduled && !kv.has_failed) else {
            return Ok(());
        };
        kv.is_scheduled = true;
        self.schedule(at, id, Happening::StoreFlush { life });
        Ok(())
    }

    pub(super) fn on_store_flush(&mut self, id: NodeId) -> Checked {
        let Some(kv) = &mut self.process(id)?.kv else { return Ok(()) };
        kv.is_scheduled = false;
        if kv.has_failed {
            return Ok(());
        }
        let flushed = kv.flush().and_then(|is_full| Ok((is_full, kv.upkeep()?)));
        let (is_full, is_busy) = match flushed {
            Ok(flushed) => flushed,
            Err(fatal) => return self.fail_kv(id, &fatal),
        };
        kv.is_full = is_full;
        let durable = kv.durable_applied();
        let node = self.node_mut(id);
        node.kv_durable = node.kv_durable.max(durable);
        self.store_flushes += 1;
        self.tell_space(id)?;
        if is_full {
            self.schedule_flush(id, nanos(super::log_writer::FULL_RETRY))?;
        } else if is_busy {
            let delay = self.small_delay(id, Stream::Checkpoint);
            self.schedule_flush(id, delay)?;
        }
        let count = self.count(id);
        if self.dice.chance(AUDITS, Stream::Checkpoint, id.get(), count) {
            return self.audit_running(id);
        }
        Ok(())
    }

    fn audit_running(&mut self, id: NodeId) -> Checked {
        // Taken out so that the world can look at it.
        let Some(kv) = self.process(id)?.kv.take() else { return Ok(()) };
        let audited = self.audit_kv(id, &kv);
        self.process(id)?.kv = Some(kv);
        audited.map(drop)
    }

    /// The store has failed, and the process exits soon. Only the disk may be to blame.
    pub(super) fn fail_kv(&mut self, id: NodeId, fatal: &Fatal) -> Checked {
        if let Fatal::Corrupt { .. } = fatal {
            return Err(format!("the store of {id} is damaged, and nobody has done it: {fatal}"));
        }
        self.note(Note::WriteFailed { node: id });
        if let Some(kv) = &mut self.process(id)?.kv {
            kv.has_failed = true;
        }
        Ok(())
    }

    /// The disk is full for the log, for the store, for both or for neither.
    pub(super) fn tell_space(&mut self, id: NodeId) -> Checked {
        let process = self.process(id)?;
        let is_full = process.is_full || process.kv.as_ref().is_some_and(|kv| kv.is_full);
        if std::mem::replace(&mut process.told_full, is_full) == is_full {
            return Ok(());
        }
        if is_full {
            self.full_disks += 1;
            self.note(Note::Full { node: id });
        }
        self.handle(id, Event::StorageSpace { is_full })
    }

    /// A process ends, by chance in the middle of what it writes out.
    pub(crate) fn interrupt(&mut self, id: NodeId) {
        if self.setup.machine != MachineKind::Store {
            return;
        }
        let count = self.count(id);
        let Some(process) = &self.node(id).process else { return };
        let Some(kv) = process.kv.as_ref().filter(|kv| !kv.has_failed) else { return };
        if self.dice.chance(500_000, Stream::Crash, !id.get(), count) {
            let ops = self.dice.below(INTERRUPTED_OPS, Stream::Crash, id.get(), !count);
            let disk = &self.node(id).disk;
            disk.halt_after(disk.ops() + ops);
            // Nobody hears how it went.
            let mut is_busy = kv.flush().is_ok();
            while is_busy {
                is_busy = kv.upkeep().unwrap_or(false);
            }
        }
    }

    /// The whole state is replaced by that of a snapshot. False if the disk does not let it.
    pub(super) fn restore_kv(&mut self, id: NodeId, last: EntryId) -> Checked<Option<Machine>> {
        let process = self.process(id)?;
        let Some(kv) = process.kv.take() else { return Err(format!("{id} has no store")) };
        let restored = restore(&kv, &process.snapshots, last);
        let machine = match restored {
            Ok(()) => {
                let node = self.node_mut(id);
                node.kv_durable = last.index;
                node.kv_is_lost = false;
                Some(self.audit_kv(id, &kv)?)
            }
            Err(RestoreError::Fatal(fatal)) => {
                self.process(id)?.kv = Some(kv);
                self.fail_kv(id, &fatal)?;
                return Ok(None);
            }
            Err(error) => return Err(format!("{id} cannot restore {last}: {error}")),
        };
        self.process(id)?.kv = Some(kv);
        Ok(machine)
    }
}

fn restore(kv: &Kv, snapshots: &Snapshots, last: EntryId) -> Result<(), RestoreError> {
    let mut reader =
        snapshots.reader(last).map_err(|error| RestoreError::Read(std::io::Error::other(error)))?;
    kv.restore(last, &mut reader)
}

fn kv_dir(id: NodeId) -> PathBuf {
    data_dir(id).join("store")
}

/// Whether a full disk is behind an error.
fn is_full(source: &(dyn std::error::Error + 'static)) -> bool {
    source
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull)
}
