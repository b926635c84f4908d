//! What can be done to a world on purpose.

use std::{path::PathBuf, time::Duration};

use kontiki::Event;
use kontiki_raft::NodeId;

use super::{World, nanos, place};
use crate::{
    dice::Stream,
    network::NetworkSettings,
    node::Happening,
    trace::{Failure, Fault, Note},
};

/// A peer that notices that a process has ended notices within this time.
const UNREACHABLE_NANOS_MAX: u64 = 50_000_000;

impl World {
    /// Cuts one direction of a link.
    pub fn cut(&mut self, from: NodeId, to: NodeId) {
        if from != to && self.network.set_cut(from, to, true) {
            self.note(Note::Fault(Fault::Cut { from, to }));
        }
    }

    /// Heals one direction of a link.
    pub fn heal(&mut self, from: NodeId, to: NodeId) {
        if from != to && self.network.set_cut(from, to, false) {
            self.note(Note::Fault(Fault::Heal { from, to }));
        }
    }

    /// Heals all links.
    pub fn heal_all(&mut self) {
        for from in self.node_ids() {
            for to in self.node_ids() {
                self.heal(from, to);
            }
        }
    }

    /// Changes the weather on all links.
    pub fn set_network(&mut self, settings: NetworkSettings) {
        self.network.settings = settings;
    }

    /// The weather on all links.
    #[must_use]
    pub fn network(&self) -> &NetworkSettings {
        &self.network.settings
    }

    /// The power fails: memory is gone, and of what was not synced the disk keeps what chance
    /// decides. Nothing happens if the node is down.
    pub fn crash(&mut self, id: NodeId) {
        if !self.is_up(id) {
            return;
        }
        self.note(Note::Fault(Fault::Crash(id)));
        self.interrupt(id);
        self.end_process(id);
        let node = &mut self.nodes[place(id)];
        node.other_count += 1;
        node.disk.crash(self.dice.roll(Stream::Crash, id.get(), node.other_count));
    }

    /// The process is killed; what it had written the operating system still has.
    pub fn stop(&mut self, id: NodeId) {
        if self.is_up(id) {
            self.note(Note::Fault(Fault::Stop(id)));
            self.interrupt(id);
            self.end_process(id);
            self.nodes[place(id)].disk.kill();
        }
    }

    fn end_process(&mut self, id: NodeId) {
        let now = self.now();
        let node = &mut self.nodes[place(id)];
        node.process = None;
        node.held = None;
        node.other_count += 1;
        let count = node.other_count;
        self.ledger.on_down(id);
        self.requests.on_down(id, now);
        self.break_connections(id, count);
    }

    /// The connections to a process that ended break: most peers notice soon, some never.
    fn break_connections(&mut self, id: NodeId, count: u64) {
        for peer in self.node_ids() {
            let Some(process) = &self.nodes[place(peer)].process else { continue };
            let life = process.life;
            let who = id.get() * 64 + peer.get();
            if self.dice.chance(750_000, Stream::Unreachable, who, 2 * count) {
                let delay = self.dice.within(
                    &(0..=UNREACHABLE_NANOS_MAX),
                    Stream::Unreachable,
                    who,
                    2 * count + 1,
                );
                let event = Event::PeerUnreachable { id };
                self.schedule(self.now + delay, peer, Happening::Event { life, event });
            }
        }
    }

    /// The process stands still: it loses nothing and does nothing.
    pub fn pause(&mut self, id: NodeId) {
        let node = &mut self.nodes[place(id)];
        if node.process.is_some() && node.held.is_none() {
            node.held = Some(Vec::new());
            self.note(Note::Fault(Fault::Pause(id)));
        }
    }

    /// Starts the process of a node that is down. A message that is on its way to it may still
    /// arrive.
    ///
    /// # Errors
    ///
    /// When its disk does not hold what it had acknowledged, or does not open.
    pub fn start(&mut self, id: NodeId) -> Result<(), Failure> {
        if self.is_up(id) || !self.is_set_up(id) {
            return Ok(());
        }
        self.note(Note::Fault(Fault::Start(id)));
        self.start_process(id).map_err(|broken| self.failure(broken))
    }

    /// Starts all that are down.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_all(&mut self) -> Result<(), Failure> {
        for id in self.node_ids() {
            self.start(id)?;
        }
        Ok(())
    }

    /// A paused process goes on: all that has come in the meantime it finds at once.
    ///
    /// # Errors
    ///
    /// When an invariant breaks.
    pub fn resume(&mut self, id: NodeId) -> Result<(), Failure> {
        let now = self.now();
        let node = &mut self.nodes[place(id)];
        let Some(mut held) = node.held.take() else { return Ok(()) };
        node.resumed = now;
        node.other_count += 1;
        // A process that wakes up may look at its timers first or at its inbox.
        if self.dice.chance(500_000, Stream::Timer, id.get(), node.other_count) {
            held.sort_by_key(Happening::is_timer);
        }
        self.note(Note::Fault(Fault::Resume(id)));
        self.happen_at_once(id, held).map_err(|broken| self.failure(broken))
    }

    /// The disk of a node does not answer for so long.
    pub fn stall(&mut self, id: NodeId, time: Duration) {
        let until = self.now + nanos(time);
        let node = &mut self.nodes[place(id)];
        node.stalled_until = node.stalled_until.max(until);
    }

    /// The disk of a node answers again.
    pub fn end_stall(&mut self, id: NodeId) {
        self.nodes[place(id)].stalled_until = 0;
    }

    /// A bit of what a node has on its disk is flipped. The node is down. False if there is
    /// nothing on it.
    pub(crate) fn rot(&mut self, id: NodeId, luck: u64) -> bool {
        let disk = &self.nodes[place(id)].disk;
        let has_content = |path: &PathBuf| {
            let dir = path.parent().and_then(|dir| dir.file_name());
            dir.is_some_and(|dir| dir == "wal" || dir == "snapshot" || dir == "store")
                && disk.content(path).iter().any(|&byte| byte != 0)
        };
        let files: Vec<PathBuf> = disk.files().into_iter().filter(has_content).collect();
        let Some(count) = u64::try_from(files.len()).ok().filter(|&count| 0 < count) else {
            return false;
        };
        let path = &files[usize::try_from(luck % count).unwrap_or_default()];
        // Behind the last byte that is not zero nothing was ever written.
        let content = disk.content(path);
        let used = content.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 1);
        let bits = u64::try_from(used).unwrap_or_default() * 8;
        let bit = (luck >> 8) % bits.max(1);
        disk.flip_bit(path, bit);
        if path.parent().is_some_and(|dir| dir.ends_with("store")) {
            self.nodes[place(id)].kv_is_rotten = true;
        } else {
            self.ledger.on_damage(id);
        }
        self.note(Note::Fault(Fault::Rot(id)));
        true
    }

    /// A node makes a snapshot of what it has applied.
    ///
    /// # Errors
    ///
    /// When an invariant breaks.
    pub fn make_snapshot(&mut self, id: NodeId) -> Result<(), Failure> {
        if self.is_up(id) && !self.is_paused(id) {
            self.begin_snapshot(id).map_err(|broken| self.failure(broken))?;
        }
        Ok(())
    }
}
