//! What a process does with events and actions: the simulated counterpart of the real host.
//!
//! It keeps the contract of the real one and nothing more: writes in order, one record at a
//! time with one `sync` for all that waited, entries applied in order, messages whenever.

mod apply;
mod log_writer;

use std::{sync::Arc, time::Duration};

use kontiki::{Action, Answer, Event, Replica};
use kontiki_log::{IdentityRequest, Log};
use kontiki_raft::{Body, Config, Envelope, LogWrite, Message, NodeId, Role, StoreId};

use crate::{
    dice::Stream,
    disk::SimDisk,
    machine::{Machine, MachineKind},
    network::{Arrivals, nanos},
    node::{Clock, Happening, Node, Process, StoredRead},
    requests::{Ask, Outcome},
    trace::{Fate, How, Note, Summary},
    truth::command_of,
    world::{Checked, World, data_dir, encode, genesis, place},
};

impl World {
    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[place(id)]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[place(id)]
    }

    pub(crate) fn process(&mut self, id: NodeId) -> Checked<&mut Process> {
        self.nodes[place(id)].process.as_mut().ok_or_else(|| format!("{id} is down"))
    }

    pub(crate) fn life(&self, id: NodeId) -> u64 {
        self.node(id).process.as_ref().map_or(0, |process| process.life)
    }

    /// A count that is never used twice for this node: a key of decisions.
    pub(crate) fn count(&mut self, id: NodeId) -> u64 {
        let node = self.node_mut(id);
        node.other_count += 1;
        node.other_count
    }

    // -------------------------------------------------------------------------- start

    pub(crate) fn start_process(&mut self, id: NodeId) -> Checked {
        let count = self.count(id);
        let disk = Arc::clone(&self.node(id).disk);
        let (log, mut recovered) = self.open_log(id, disk, count)?;
        let machine = match self.setup.machine {
            MachineKind::Memory => Machine::default(),
            MachineKind::Durable => self.node(id).saved.clone(),
        };
        recovered.applied = machine.applied;
        self.ledger.on_restart(id, &recovered)?;

        let clock = self.new_clock(id, count);
        let config = Config {
            id,
            seed: self.dice.roll(Stream::Process, !id.get(), count),
            ..self.setup.config.clone()
        };
        let replica = Replica::new(config, recovered, clock.at(self.now))
            .map_err(|error| format!("{id} does not start: {error}"))?;
        let node = self.node_mut(id);
        node.lives += 1;
        node.process = Some(Process {
            life: node.lives,
            clock,
            replica,
            reader: log.reader(),
            spares: log.spares(),
            log,
            machine,
            waiting: Vec::new(),
            syncing: None,
            purge: None,
            has_failed: false,
            is_filling: false,
            to_apply: std::collections::VecDeque::new(),
            timer: None,
        });
        self.finish(id)
    }

    fn open_log(
        &self,
        id: NodeId,
        disk: Arc<SimDisk>,
        count: u64,
    ) -> Checked<(Log, kontiki_raft::Recovered)> {
        let identity = IdentityRequest {
            cluster: 0x6b6f_6e74_696b_6921,
            node: id,
            genesis: genesis(self.setup.nodes),
            new_store: StoreId(self.dice.roll(Stream::Process, id.get(), count)),
        };
        let (log, opened) = Log::open(disk, &data_dir(id), &identity, self.setup.log.clone())
            .map_err(|error| format!("the log of {id} does not open: {error}"))?;
        Ok((log, opened.recovered))
    }

    /// Looks at what would be left if all lost their power now. Copies of the disks are crashed;
    /// the world does not notice.
    pub(crate) fn audit(&mut self) -> Checked {
        let mut found = Vec::new();
        for id in self.node_ids() {
            let count = self.count(id);
            let disk = self.node(id).disk.fork();
            disk.crash(self.dice.roll(Stream::Crash, id.get(), count));
            found.push((id, self.open_log(id, Arc::new(disk), count)?.1));
        }
        self.ledger.audit(&found)
    }

    fn new_clock(&self, id: NodeId, count: u64) -> Clock {
        let drift = self.setup.clock_drift;
        let rate = self.dice.within(
            &(1_000_000 - drift..=1_000_000 + drift),
            Stream::Clock,
            id.get(),
            count,
        );
        // No two clocks show the same time, and a later life may see an earlier time.
        let offset = self.dice.below(1 << 50, Stream::Clock, !id.get(), count);
        Clock { started: self.now, offset, rate }
    }

    // -------------------------------------------------------------------------- events

    /// Something happens to a node: at once, later if it is paused, never if it is meant for a
    /// process that is gone.
    pub(crate) fn happen(&mut self, id: NodeId, what: Happening) -> Checked {
        let life = self.life(id);
        if life == 0 || what.life().is_some_and(|meant| meant != life) {
            return Ok(());
        }
        if let Some(held) = &mut self.node_mut(id).held {
            held.push(what);
            return Ok(());
        }
        self.take(id, what)?;
        self.finish(id)?;
        self.check_overdue()
    }

    /// All that has come while the node was paused is taken in, and only then acted upon.
    pub(crate) fn happen_at_once(&mut self, id: NodeId, held: Vec<Happening>) -> Checked {
        let life = self.life(id);
        for what in held {
            if what.life().is_none_or(|meant| meant == life) {
                self.take(id, what)?;
            }
        }
        self.finish(id)
    }

    fn take(&mut self, id: NodeId, what: Happening) -> Checked {
        match what {
            Happening::Arrives { from, bytes } => {
                if !self.network.delivers(from, id) {
                    return Ok(());
                }
                self.recorder.borrow_mut().bytes(&bytes);
                let message = kontiki::codec::decode(bytes)
                    .map_err(|error| format!("{id} cannot read a message of {from}: {error}"))?;
                let envelope = Envelope { to: id, message };
                self.note(Note::Delivered(Summary::new(from, &envelope)));
                self.handle_message(id, from, envelope.message)
            }
            Happening::Event { event, .. } => self.handle(id, event),
            Happening::Timer { .. } => self.on_timer(id),
            Happening::Synced { .. } => self.on_synced(id),
            Happening::Applied { .. } => self.on_applied(id),
            Happening::StoredRead { read, .. } => self.on_stored_read(id, *read),
            Happening::FillSpare { .. } => self.on_fill_spare(id),
        }
    }

    pub(crate) fn handle(&mut self, id: NodeId, event: Event) -> Checked {
        let now = self.now;
        let process = self.process(id)?;
        process.replica.handle(process.clock.at(now), event);
        Ok(())
    }

    /// Whoever hears of a higher term is in it (§5.1). Only a request for a vote may be ignored,
    /// by those who are loyal to a leader (thesis §4.2.3).
    fn handle_message(&mut self, id: NodeId, from: NodeId, message: Message) -> Checked {
        let term = message.term;
        let is_vote = matches!(message.body, Body::RequestVote(_));
        self.handle(id, Event::Message { from, message })?;
        let state = self.process(id)?.replica.status().soft_state;
        if !is_vote && state.term < term && state.role != Role::Stopped {
            return Err(format!("{id} stays in term {} after a message of {term}", state.term));
        }
        Ok(())
    }

    fn on_timer(&mut self, id: NodeId) -> Checked {
        let now = self.now;
        let process = self.process(id)?;
        if process.timer.is_none_or(|timer| now < timer) {
            return Ok(());
        }
        process.timer = None;
        let clock_now = process.clock.at(now);
        if process.replica.next_deadline().is_some_and(|deadline| deadline <= clock_now) {
            process.replica.handle(clock_now, Event::Timeout);
        }
        Ok(())
    }

    /// Asks the node what is to be done, checks it, does it, and sets its timer.
    pub(crate) fn finish(&mut self, id: NodeId) -> Checked {
        let now = self.now;
        let mut actions = std::mem::take(&mut self.actions);
        let process = self.process(id)?;
        process.replica.poll(process.clock.at(now), &mut actions);
        // What is written is known before anything is judged.
        for action in &actions {
            if let Action::Write(LogWrite { batch, .. }) = action {
                let state = self.process(id)?.replica.status().soft_state;
                let leads = (state.role == Role::Leader).then_some(state.term);
                self.ledger.on_write(id, batch, leads)?;
                self.note(Note::wrote(id, batch));
            }
        }
        self.observe(id)?;
        for action in actions.drain(..) {
            self.carry_out(id, action)?;
        }
        self.actions = actions;
        self.set_timer(id)
    }

    fn observe(&mut self, id: NodeId) -> Checked {
        let process = self.nodes[place(id)].process.as_ref();
        let Some(process) = process else { return Ok(()) };
        if let Some(upto) = self.ledger.observe(&process.replica.status())? {
            self.note(Note::Committed { node: id, upto });
            for entry in self.ledger.take_newly_committed() {
                self.truth.commit(&entry)?;
                if let Some(command) = command_of(&entry) {
                    self.requests.on_committed(command.request, entry.id)?;
                    self.committed_commands.push(command.request);
                }
            }
        }
        Ok(())
    }

    fn set_timer(&mut self, id: NodeId) -> Checked {
        let (now, lateness) = (self.now, nanos(self.setup.timer_lateness));
        let count = self.count(id);
        let late = match lateness {
            0 => 0,
            _ => self.dice.below(lateness, Stream::Timer, id.get(), count),
        };
        let process = self.process(id)?;
        let Some(deadline) = process.replica.next_deadline() else { return Ok(()) };
        let when = process.clock.when(deadline).max(now);
        // A later timer is left alone: when it fires it looks at the deadline of then.
        if process.timer.is_none_or(|timer| when < timer) {
            process.timer = Some(when);
            let life = process.life;
            self.schedule(when + late, id, Happening::Timer { life });
        }
        Ok(())
    }

    fn check_overdue(&self) -> Checked {
        let now = self.now();
        self.requests.overdue(now, |id| {
            let node = self.node(id);
            node.held.is_some() || now < node.resumed + Duration::from_secs(3)
        })
    }

    // ------------------------------------------------------------------------- actions

    fn carry_out(&mut self, id: NodeId, action: Action) -> Checked {
        match action {
            Action::Send(envelope) => self.send(id, &envelope),
            Action::SendStored { envelope, range, bytes_max, session } => {
                let read = Box::new(StoredRead { envelope, range, bytes_max, session });
                let delay = self.small_delay(id, Stream::StoredRead);
                let life = self.life(id);
                self.schedule(self.now + delay, id, Happening::StoredRead { life, read });
                Ok(())
            }
            Action::Write(LogWrite { batch, ticket }) => {
                self.process(id)?.waiting.push((batch, ticket));
                self.maybe_write(id)
            }
            Action::Apply { what, waiters } => self.submit_apply(id, what, waiters),
            Action::Answer { id: request, answer } => self.answer(id, request.0, answer),
            Action::Purge { upto } => {
                self.process(id)?.purge = Some(upto);
                self.maybe_purge(id)
            }
            Action::SendSnapshot { .. }
            | Action::CancelSnapshot { .. }
            | Action::Membership(..) => Ok(()),
            Action::SoftState(state) => {
                self.note(Note::became(id, state));
                Ok(())
            }
        }
    }

    pub(crate) fn send(&mut self, id: NodeId, envelope: &Envelope) -> Checked {
        self.ledger.on_send(id, envelope)?;
        let bytes = encode(&envelope.message);
        let node = self.node_mut(id);
        node.counts.messages += 1;
        node.counts.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let arrivals = self.network.send(self.now, id, envelope.to, &envelope.message);
        let message = Summary::new(id, envelope);
        let (fate, times) = match arrivals {
            Arrivals::None => (Fate::Lost, [None, None]),
            Arrivals::Once(at) => (Fate::Travels, [Some(at), None]),
            Arrivals::Twice(first, second) => (Fate::Twice, [Some(first), Some(second)]),
        };
        self.note(Note::Sent { message, fate });
        for at in times.into_iter().flatten() {
            self.schedule(at, envelope.to, Happening::Arrives { from: id, bytes: bytes.clone() });
        }
        Ok(())
    }

    fn answer(&mut self, id: NodeId, number: u64, answer: Answer) -> Checked {
        let now = self.now();
        let how = match answer {
            Answer::ReadReady { index } => {
                let ask = self.requests.get(number).map(|request| &request.ask);
                let Some(&Ask::Read { key }) = ask else {
                    return Err(format!("{id} answers #{number} with a read: {ask:?}"));
                };
                let machine = &self.process(id)?.machine;
                let (applied, value) = (machine.applied, machine.value(key));
                self.truth.assert_read(applied, key, value.as_deref())?;
                self.requests.on_read(id, now, number, (index, applied), value)?
            }
            Answer::MembershipChanged { .. } => {
                return Err(format!("{id} answers #{number} with a membership"));
            }
            Answer::Rejected(why) => {
                self.requests.close(id, now, number, Outcome::Rejected(why))?;
                How::Rejected
            }
            Answer::Superseded { .. } => {
                self.requests.close(id, now, number, Outcome::Superseded)?;
                How::Superseded
            }
            Answer::Unknown { .. } => {
                self.requests.close(id, now, number, Outcome::Unknown)?;
                How::Unknown
            }
        };
        self.note(Note::Answered { node: id, request: number, how });
        Ok(())
    }

    pub(crate) fn small_delay(&mut self, id: NodeId, stream: Stream) -> u64 {
        let count = self.count(id);
        self.dice.below(nanos(Duration::from_millis(2)), stream, id.get(), count)
    }
}
