//! A cluster moved by hand: cores without I/O, links and disks that do as they are told.

use std::{collections::BTreeMap, error::Error, fmt::Write as _, sync::Arc, time::Duration};

use kontiki_raft::{
    Apply, Body, ChangeSet, Config, Effects, Entry, EntryId, HardState, Index, Input, Membership,
    Message, NodeId, Outbound, Payload, ProposalId, ProposalOutcome, RaftCore, ReadOutcome, Role,
    Session, SoftState, Term, Timestamp, Unavailable, WriteTicket,
};

use super::{
    checks::Checks,
    command::{Link, Log, Pace},
    disk::{Disk, Image},
    network::{Network, Parcel},
    print,
};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One node and what surrounds it.
#[derive(Debug)]
pub(crate) struct Node {
    config: Config,
    /// None while it is down.
    pub(crate) core: Option<RaftCore>,
    pub(crate) disk: Disk,
    pub(crate) disk_pace: Pace,
    pub(crate) machine_pace: Pace,
    pub(crate) cannot_read_back: Option<Unavailable>,
    /// The state machine was given everything up to here.
    pub(crate) handed: Index,
    /// The state machine has applied everything up to here.
    pub(crate) applied: Index,
    /// What the reader was told last.
    told: SoftState,
    /// The reader knows which membership it started with.
    is_membership_told: bool,
}

/// Everything that a script plays with.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) now: Timestamp,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) network: Network,
    pub(crate) genesis: Arc<Membership>,
    pub(crate) is_machine_durable: bool,
    /// Snapshots on their way, each with the session to name and what it must reach.
    pub(crate) shipments: BTreeMap<Link, (Session, Index)>,
    /// What was asked for: `propose` with the command, or `change`.
    proposals: BTreeMap<ProposalId, String>,
    pub(crate) requests: u64,
    checks: Checks,
    names: print::Names,
    /// What is being done will not be shown.
    pub(crate) is_silent: bool,
    out: String,
}

impl Cluster {
    /// `count` voters, and `spare` nodes that are no members, that are not started yet.
    pub(crate) fn new(
        (count, spare): (u64, u64),
        is_machine_durable: bool,
        tune: impl Fn(&mut Config),
    ) -> Self {
        let voters = (1..=count).map(|id| (NodeId(id), NodeId(id).to_string()));
        let genesis = Arc::new(Membership::of_voters(voters));
        let nodes = (1..=count + spare).map(NodeId).map(|id| {
            let mut config = Config::new(id, id.get());
            tune(&mut config);
            (id, Node::new(config))
        });
        Self {
            now: Timestamp::default() + Duration::from_secs(60),
            nodes: nodes.collect(),
            network: Network::default(),
            genesis,
            is_machine_durable,
            shipments: BTreeMap::new(),
            proposals: BTreeMap::new(),
            requests: 0,
            checks: Checks::default(),
            names: print::Names::default(),
            is_silent: false,
            out: String::new(),
        }
    }

    pub(crate) fn node(&mut self, id: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&id).ok_or_else(|| format!("there is no {id}").into())
    }

    pub(crate) fn core(&self, id: NodeId) -> Result<&RaftCore> {
        let node = self.nodes.get(&id).ok_or_else(|| format!("there is no {id}"))?;
        node.core.as_ref().ok_or_else(|| format!("{id} is down").into())
    }

    pub(crate) fn role(&self, id: NodeId) -> Result<Role> {
        Ok(self.core(id)?.status().soft_state.role)
    }

    pub(crate) fn say(&mut self, line: &str) {
        self.out.push_str(line);
        self.out.push('\n');
    }

    /// Says what is on its way.
    pub(crate) fn say_message(&mut self, link: Link, message: &Message) {
        let line = self.names.show(link, message);
        self.say(&line);
    }

    /// What was said since the last call, after a look at all rules.
    pub(crate) fn hear(&mut self) -> String {
        self.checks.logs_match(self.nodes.values().map(|node| &node.disk.durable));
        std::mem::take(&mut self.out)
    }

    /// Says it as `id` in its term.
    pub(crate) fn say_as(&mut self, id: NodeId, what: &str) -> Result<()> {
        let term = self.core(id)?.status().term();
        self.say(&format!("{id}/{term} {what}"));
        Ok(())
    }

    // ---------------------------------------------------------------- lives

    /// Gives a node another disk and starts it.
    pub(crate) fn start(&mut self, id: NodeId, image: Image) -> Result<()> {
        self.node(id)?.disk = Disk::new(image);
        self.node(id)?.applied = Index::ZERO;
        self.restart(id)
    }

    pub(crate) fn crash(&mut self, id: NodeId) -> Result<()> {
        self.core(id)?;
        let is_machine_durable = self.is_machine_durable;
        let node = self.node(id)?;
        node.core = None;
        node.disk.crash();
        if !is_machine_durable {
            node.applied = Index::ZERO;
        }
        self.shipments.retain(|link, _| link.from != id);
        Ok(())
    }

    pub(crate) fn restart(&mut self, id: NodeId) -> Result<()> {
        let (now, genesis) = (self.now, Arc::clone(&self.genesis));
        let node = self.node(id)?;
        node.recover_machine();
        let recovered = node.disk.recover(&genesis, node.applied);
        let core = RaftCore::new(node.config.clone(), recovered, now)?;
        node.told = core.status().soft_state;
        node.core = Some(core);
        node.is_membership_told = false;
        self.carry_out(id)
    }

    // ---------------------------------------------------------------- steps

    /// Steps one input and does what the node asks for.
    pub(crate) fn step(&mut self, id: NodeId, input: Input) -> Result<()> {
        self.core(id)?;
        let now = self.now;
        if let Some(core) = &mut self.node(id)?.core {
            core.step(now, input);
        }
        self.carry_out(id)
    }

    /// Proposes commands in one batch.
    pub(crate) fn propose(&mut self, id: NodeId, commands: Vec<Vec<u8>>) -> Result<()> {
        let mut proposals = Vec::new();
        for command in commands {
            self.requests += 1;
            let id = ProposalId(self.requests);
            let command = kontiki_raft::Bytes::from(command);
            self.proposals.insert(id, format!("propose {}", print::command(&command)));
            proposals.push(kontiki_raft::Proposal { id, command, is_session: false });
        }
        self.step(id, Input::Propose(proposals))
    }

    /// Asks for another membership.
    pub(crate) fn change(&mut self, id: NodeId, change: ChangeSet) -> Result<()> {
        self.requests += 1;
        let proposal = ProposalId(self.requests);
        self.proposals.insert(proposal, "change".to_owned());
        self.step(id, Input::ChangeMembership { id: proposal, change })
    }

    /// Polls a node until it wants nothing more.
    fn carry_out(&mut self, id: NodeId) -> Result<()> {
        let mut effects = Effects::default();
        for _ in 0..1_000 {
            let now = self.now;
            let node = self.node(id)?;
            let Some(core) = &mut node.core else { return Ok(()) };
            core.poll(now, &mut effects);
            if effects.is_empty() && !self.finish(id)? {
                return Ok(());
            }
            self.carry_out_once(id, &mut effects)?;
        }
        Err(format!("{id} does not come to rest").into())
    }

    fn carry_out_once(&mut self, id: NodeId, effects: &mut Effects) -> Result<()> {
        if let Some(soft_state) = effects.soft_state {
            self.tell_soft_state(id, soft_state)?;
        }
        if let Some((at, membership)) = effects.membership.take() {
            let is_news = std::mem::replace(&mut self.node(id)?.is_membership_told, true);
            if is_news {
                self.say_as(id, &format!("membership {at} {}", print::membership(&membership)))?;
            }
        }
        if let Some(write) = effects.write.take() {
            let node = self.node(id)?;
            let line = format!("write {}", node.describe(&write.batch));
            node.disk.submit(write);
            if node.disk_pace == Pace::Slow {
                self.say_as(id, &line)?;
            }
        }
        for outbound in effects.messages.drain(..) {
            self.send(id, outbound)?;
        }
        for apply in effects.apply.drain(..) {
            self.apply(id, apply)?;
        }
        for outcome in effects.proposals.drain(..) {
            self.tell_proposal(id, &outcome)?;
        }
        for outcome in effects.reads.drain(..) {
            let line = match outcome {
                ReadOutcome::Ready { id, index } => format!("read {id} ready index={index}"),
                ReadOutcome::Rejected { id, why } => format!("read {id} rejected: {why}"),
            };
            self.say_as(id, &line)?;
        }
        for effect in effects.snapshots.drain(..) {
            self.ship(id, &effect)?;
        }
        if let Some(upto) = effects.purge {
            self.say_as(id, &format!("purge upto={upto}"))?;
            self.node(id)?.disk.purge(upto);
            let now = self.now;
            if let Some(core) = &mut self.node(id)?.core {
                core.step(now, Input::Purged { upto });
            }
        }
        Ok(())
    }

    /// Lets the fast disk and the fast machine of a node finish. False if they had nothing to do.
    fn finish(&mut self, id: NodeId) -> Result<bool> {
        let node = self.node(id)?;
        let (is_disk_fast, is_machine_fast) =
            (node.disk_pace == Pace::Fast, node.machine_pace == Pace::Fast);
        let has_written = is_disk_fast && self.persist(id, usize::MAX)?;
        let has_applied = is_machine_fast && self.applied(id)?;
        Ok(has_written || has_applied)
    }

    /// The oldest `count` writes become durable with one flush: the host hands back the latest
    /// ticket only. False if there are none.
    pub(crate) fn persist(&mut self, id: NodeId, count: usize) -> Result<bool> {
        let mut flushed: Option<WriteTicket> = None;
        for _ in 0..count {
            let node = self.node(id)?;
            let before = node.disk.durable.clone();
            let Some((batch, ticket)) = node.disk.persist() else { break };
            flushed = Some(match flushed {
                Some(earlier) => earlier.merge(ticket),
                None => ticket,
            });
            self.checks.persists(id, &self.nodes[&id].disk.durable);
            self.say_as(id, &format!("persist {}", describe(&before, &batch)))?;
        }
        let Some(ticket) = flushed else { return Ok(false) };
        let now = self.now;
        if let Some(core) = &mut self.node(id)?.core {
            core.step(now, Input::Persisted(ticket));
        }
        Ok(true)
    }

    /// The state machine has applied what it was given. False if there was nothing.
    pub(crate) fn applied(&mut self, id: NodeId) -> Result<bool> {
        let (now, is_durable) = (self.now, self.is_machine_durable);
        let node = self.node(id)?;
        if node.applied == node.handed {
            return Ok(false);
        }
        node.applied = node.handed;
        let upto = node.applied;
        let durable = node.durable_applied(is_durable);
        if let Some(core) = &mut node.core {
            core.step(now, Input::Applied { upto, durable });
        }
        Ok(true)
    }

    /// Asks a node again, after something outside of it has finished.
    pub(crate) fn settle(&mut self, id: NodeId) -> Result<()> {
        self.carry_out(id)
    }

    // ---------------------------------------------------------------- effects

    fn tell_soft_state(&mut self, id: NodeId, new: SoftState) -> Result<()> {
        let old = std::mem::replace(&mut self.node(id)?.told, new);
        if new.role == Role::Leader {
            self.checks.leads(id, new.term);
        }
        if new.role != old.role {
            self.say(&format!("{id}/{} {} => {}", new.term, old.role, new.role));
        } else if new.term != old.term {
            self.say(&format!("{id}/{} term {} => {}", new.term, old.term, new.term));
        }
        if new.leader != old.leader && new.role != Role::Leader {
            let leader = new.leader.map_or("nobody".to_owned(), |leader| leader.to_string());
            self.say(&format!("{id}/{} follows {leader}", new.term));
        }
        Ok(())
    }

    fn tell_proposal(&mut self, id: NodeId, outcome: &ProposalOutcome) -> Result<()> {
        let (proposal, what) = match outcome {
            ProposalOutcome::Appended { id, at } => (id, format!("appended {at}")),
            ProposalOutcome::Rejected { id, why } => (id, format!("rejected: {why}")),
            ProposalOutcome::Unknown { id } => (id, "unknown".to_owned()),
        };
        let name = self.proposals.remove(proposal);
        let name = name.ok_or_else(|| format!("{proposal} has more than one outcome: {what}"))?;
        self.say_as(id, &format!("{name} {what}"))
    }

    fn send(&mut self, from: NodeId, outbound: Outbound) -> Result<()> {
        let (to, message) = match outbound {
            Outbound::Send(envelope) => (envelope.to, envelope.message),
            Outbound::SendStored { mut envelope, range, bytes_max, session } => {
                let to = envelope.to;
                let node = self.node(from)?;
                let mut entries = node.disk.written.read(&range);
                let why = node.cannot_read_back;
                if why.is_some() || entries.is_empty() {
                    self.say_as(from, &format!("cannot read back {}", range.start()))?;
                    let now = self.now;
                    if let Some(core) = &mut self.node(from)?.core {
                        core.step(
                            now,
                            Input::EntriesUnavailable {
                                to,
                                session,
                                why: why.unwrap_or(Unavailable::Retry),
                            },
                        );
                    }
                    return Ok(());
                }
                let mut bytes = 0;
                entries.retain(|entry| {
                    bytes += entry.byte_len();
                    entry.id.index == *range.start() || bytes <= bytes_max
                });
                self.say_as(from, &format!("read back [{}]", print::ids(&entries)))?;
                if let Body::AppendEntries(append) = &mut envelope.message.body {
                    append.entries = entries;
                }
                (to, envelope.message)
            }
        };
        self.checks.sends(from, &message, &self.nodes[&from].disk);
        let line = self.names.show(Link { from, to }, &message);
        let parcel = Parcel { message, is_told: !self.is_silent };
        let is_sent = self.network.send(Link { from, to }, parcel);
        self.say(&format!("{line}{}", if is_sent { "" } else { "  (lost)" }));
        Ok(())
    }

    fn apply(&mut self, id: NodeId, apply: Apply) -> Result<()> {
        let node = self.node(id)?;
        let entries = match apply {
            Apply::Entries(entries) => entries,
            Apply::Stored(range) => node.disk.durable.read(&range),
            Apply::Snapshot(meta) => return self.install(id, &meta),
        };
        for entry in &entries {
            assert_eq!(entry.id.index, node.handed.next(), "{id} applies out of order");
            node.handed = entry.id.index;
        }
        for entry in &entries {
            self.checks.applies(id, entry, &self.nodes[&id].disk.durable);
        }
        let texts: Vec<String> = entries.iter().map(print::entry).collect();
        self.say_as(id, &format!("apply {}", texts.join(" ")))
    }

    // ---------------------------------------------------------------- messages

    /// Delivers what waits on a link now. False if there was nothing.
    pub(crate) fn deliver(&mut self, link: Link) -> Result<bool> {
        let parcels = self.network.take(link);
        let has_some = !parcels.is_empty();
        for parcel in parcels {
            self.deliver_one(link, parcel)?;
        }
        Ok(has_some)
    }

    pub(crate) fn deliver_one(&mut self, link: Link, parcel: Parcel) -> Result<()> {
        self.node(link.to)?;
        if !parcel.is_told {
            self.say_message(link, &parcel.message);
        }
        if self.nodes[&link.to].core.is_none() {
            return Ok(());
        }
        self.step(link.to, Input::Message { from: link.from, message: parcel.message })
    }

    /// Delivers everything until nothing is sent any more.
    pub(crate) fn deliver_all(&mut self) -> Result<()> {
        for _ in 0..1_000 {
            let busy = self.network.busy();
            if busy.is_empty() {
                return Ok(());
            }
            for link in busy {
                self.deliver(link)?;
            }
        }
        Err("the nodes do not stop talking".into())
    }

    // ---------------------------------------------------------------- time

    /// Fires, in order, all timers that run out until `time` has passed.
    pub(crate) fn advance(
        &mut self,
        time: Duration,
        names: &[NodeId],
        is_delivering: bool,
    ) -> Result<()> {
        let end = self.now + time;
        for _ in 0..100_000 {
            if is_delivering {
                self.deliver_all()?;
            }
            let Some((at, id)) = self.next_timer(names).filter(|(at, _)| *at <= end) else {
                self.now = end;
                return Ok(());
            };
            self.now = self.now.max(at);
            self.step(id, Input::Timeout)?;
        }
        Err("a timer fires again and again and does not move on".into())
    }

    fn next_timer(&self, names: &[NodeId]) -> Option<(Timestamp, NodeId)> {
        self.nodes
            .iter()
            .filter(|(id, _)| names.is_empty() || names.contains(id))
            .filter_map(|(id, node)| Some((node.core.as_ref()?.next_deadline()?, *id)))
            .min()
    }
}

impl Node {
    fn new(config: Config) -> Self {
        Self {
            config,
            core: None,
            disk: Disk::default(),
            disk_pace: Pace::Fast,
            machine_pace: Pace::Fast,
            cannot_read_back: None,
            handed: Index::ZERO,
            applied: Index::ZERO,
            is_membership_told: false,
            told: SoftState { role: Role::Follower, term: Term::ZERO, leader: None },
        }
    }

    fn describe(&self, batch: &kontiki_raft::WriteBatch) -> String {
        describe(&self.disk.written, batch)
    }

    /// The log, with what is not durable in parentheses.
    pub(crate) fn show_log(&self) -> String {
        let (durable, rest): (Vec<&Entry>, Vec<&Entry>) =
            self.disk.written.entries.iter().partition(|e| self.disk.durable.entries.contains(e));
        let mut text = print::ids(durable);
        if !rest.is_empty() {
            write!(text, " ({})", print::ids(rest)).expect("a string takes everything");
        }
        if self.disk.written.start != EntryId::ZERO {
            text = format!("..{} {text}", self.disk.written.start);
        }
        if text.is_empty() { "-".to_owned() } else { text.trim().to_owned() }
    }
}

/// What a write changes on a disk that holds `before`.
fn describe(before: &Image, batch: &kontiki_raft::WriteBatch) -> String {
    let mut parts = Vec::new();
    if let Some(meta) = &batch.reset_to {
        parts.push(format!("reset to {}", meta.last));
    }
    if let Some(new) = batch.hard_state {
        let old = before.hard_state;
        if new.term != old.term {
            parts.push(format!("term={}", new.term));
        }
        if let Some(vote) = new.voted_for
            && (new.term, new.voted_for) != (old.term, old.voted_for)
        {
            parts.push(format!("vote={vote}"));
        }
        if batch.is_repaired {
            parts.push("repaired".to_owned());
        }
        if parts.is_empty() && batch.entries.is_empty() {
            parts.push(format!("commit={}", new.commit));
        }
    }
    if let Some(first) = batch.entries.first() {
        parts.push(format!("[{}]", print::ids(&batch.entries)));
        let gone = before.read(&(first.id.index..=Index(u64::MAX)));
        if !gone.is_empty() && batch.reset_to.is_none() {
            parts.push(format!("in place of [{}]", print::ids(&gone)));
        }
    }
    parts.join(" ")
}

/// A disk that holds entries of these terms. The commands differ from place to place.
pub(crate) fn image(log: &Log, term: u64, vote: Option<NodeId>, commit: u64) -> Image {
    let entries: Vec<Entry> = (1..)
        .zip(&log.0)
        .map(|(index, &term)| {
            let command = format!("v{index}.{term}").into_bytes();
            Entry::new(EntryId::new(index, term), Payload::Command(command.into()))
        })
        .collect();
    let last_term = log.0.last().copied().unwrap_or_default();
    Image {
        hard_state: HardState {
            term: Term(term.max(last_term)),
            voted_for: vote,
            commit: Index(commit),
        },
        start: EntryId::ZERO,
        membership: None,
        entries,
        damaged: None,
    }
}
