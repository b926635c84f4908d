//! What a process does with events and actions: the simulated counterpart of the real host.
//!
//! It keeps the contract of the real one and nothing more: writes in order, one record at a
//! time with one `sync` for all that waited, entries applied in order, messages whenever.

mod apply;
mod kv;
mod log_writer;
mod members;
pub(crate) mod snapshots;
mod start;

use std::time::Duration;

use kontiki::{Action, Answer, Event};
use kontiki_raft::{Body, Envelope, LogWrite, Message, NodeId, Role};

use crate::{
    dice::Stream,
    network::{Arrivals, nanos},
    node::{Happening, Node, Process, StoredRead},
    requests::{Ask, Outcome},
    trace::{Fate, How, Note, Summary},
    truth::command_of,
    world::{Checked, World, encode, place},
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
            Happening::Arrives { from, store, bytes } => {
                if !self.network.delivers(from, id) || !self.meet(id, from, store)? {
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
            Happening::RetryWrite { .. } => self.maybe_write(id),
            Happening::StoreFlush { .. } => self.on_store_flush(id),
            Happening::SnapshotMade { .. } => self.on_snapshot_made(id),
            Happening::BulkSilence { to, session, heard, .. } => {
                self.on_bulk_silence(id, to, session, heard)
            }
            Happening::Bulk { from, bulk } => self.on_bulk(id, from, *bulk),
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
        let (now, status) = (self.now, process.replica.status());
        let lease = status.lease_until.map(|until| process.clock.when(until));
        let committed = self.ledger.observe(&status)?;
        self.observe_lease(id, lease.filter(|&until| now < until))?;
        if let Some(upto) = committed {
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
                let process = self.process(id)?;
                process.purge = Some(upto);
                process.purge_asked = upto.index;
                self.maybe_purge(id)
            }
            Action::SendSnapshot { to, session, at_least } => {
                self.send_snapshot(id, to, session, at_least)
            }
            Action::CancelSnapshot { to, session } => self.cancel_snapshot(id, to, session),
            Action::Membership(at, membership) => self.on_membership(id, at, membership),
            Action::SoftState(state) => {
                self.note(Note::became(id, state));
                Ok(())
            }
        }
    }

    pub(crate) fn send(&mut self, id: NodeId, envelope: &Envelope) -> Checked {
        self.ledger.on_send(id, envelope)?;
        let bytes = encode(&envelope.message);
        let store = self.process(id)?.store;
        let node = self.node_mut(id);
        node.counts.messages += 1;
        node.counts.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.nodes.len() <= place(envelope.to) {
            return Ok(()); // named by a membership, and not set up yet
        }
        let arrivals = self.network.send(self.now, id, envelope.to, &envelope.message);
        let message = Summary::new(id, envelope);
        let (fate, times) = match arrivals {
            Arrivals::None => (Fate::Lost, [None, None]),
            Arrivals::Once(at) => (Fate::Travels, [Some(at), None]),
            Arrivals::Twice(first, second) => (Fate::Twice, [Some(first), Some(second)]),
        };
        self.note(Note::Sent { message, fate });
        if times == [None, None] {
            self.maybe_give_back(id, envelope);
        }
        for at in times.into_iter().flatten() {
            self.schedule(
                at,
                envelope.to,
                Happening::Arrives { from: id, store, bytes: bytes.clone() },
            );
        }
        Ok(())
    }

    /// A transport without a connection knows that it has not sent a message, and may say so.
    fn maybe_give_back(&mut self, id: NodeId, envelope: &Envelope) {
        if self.setup.given_back == 0 {
            return;
        }
        let count = self.count(id);
        if self.dice.chance(self.setup.given_back, Stream::Unreachable, id.get(), count) {
            let delay = self.small_delay(id, Stream::Unreachable);
            let (life, event) = (self.life(id), Event::NotSent(envelope.clone()));
            self.given_back += 1;
            self.schedule(self.now + delay, id, Happening::Event { life, event });
        }
    }

    fn answer(&mut self, id: NodeId, number: u64, answer: Answer) -> Checked {
        let now = self.now();
        let how = match answer {
            Answer::ReadReady { index } => {
                let ask = self.requests.get(number).map(|request| &request.ask);
                let Some(&Ask::Read { key }) = ask else {
                    return Err(format!("{id} answers #{number} with a read: {ask:?}"));
                };
                let process = self.process(id)?;
                let applied = process.machine.applied;
                let value = match &process.kv {
                    None => process.machine.value(key),
                    Some(kv) => match kv.value(key) {
                        Ok(value) => value,
                        Err(fatal) => {
                            self.requests.close(id, now, number, Outcome::Unknown)?;
                            return self.fail_kv(id, &fatal);
                        }
                    },
                };
                self.truth.assert_read(applied, key, value.as_deref())?;
                self.requests.on_read(id, now, number, (index, applied), value)?
            }
            Answer::MembershipChanged { at, membership } => {
                self.requests.on_changed(id, now, number, at)?;
                self.ledger.assert_committed_membership(id, at, &membership)?;
                How::Applied(at)
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
