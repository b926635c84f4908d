//! The links between nodes: every directed pair has its own weather.

use std::time::Duration;

use kontiki_raft::{Body, Message, NodeId};

use crate::dice::{Dice, Stream};

/// How messages travel. Rates count in a million.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// How long a message travels.
    pub delay: (Duration, Duration),
    /// How many messages are lost.
    pub loss: u64,
    /// How many messages arrive twice.
    pub duplicates: u64,
    /// How many messages travel for up to a second.
    pub stragglers: u64,
    /// Two thirds of all replies are held back for 0.2 to 2.2 s (the labs' "long reordering").
    pub has_long_reordering: bool,
    /// Messages of a link arrive in the order in which they were sent, as on a TCP connection.
    pub is_ordered: bool,
    /// What is on its way when a link is cut still arrives.
    pub keeps_in_flight: bool,
}

impl NetworkSettings {
    /// The labs' reliable network: 1 to 10 ms, in order, nothing is lost.
    #[must_use]
    pub const fn reliable() -> Self {
        Self {
            delay: (Duration::from_millis(1), Duration::from_millis(10)),
            loss: 0,
            duplicates: 0,
            stragglers: 0,
            has_long_reordering: false,
            is_ordered: true,
            keeps_in_flight: false,
        }
    }

    /// The labs' unreliable network: 10 % are lost, the rest takes 1 to 27 ms in any order.
    #[must_use]
    pub const fn unreliable() -> Self {
        Self {
            delay: (Duration::from_millis(1), Duration::from_millis(27)),
            loss: 100_000,
            is_ordered: false,
            ..Self::reliable()
        }
    }
}

/// All links of a world.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) settings: NetworkSettings,
    dice: Dice,
    /// By sender, then by receiver.
    links: Vec<Vec<Link>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    is_cut: bool,
    sent: u64,
    /// When the last message arrives, so that the next can arrive after it.
    last_arrival: u64,
    bulk_sent: u64,
    last_bulk: u64,
}

/// When a message arrives: not at all, once or twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrivals {
    None,
    Once(u64),
    Twice(u64, u64),
}

impl Network {
    pub(crate) const fn new(settings: NetworkSettings, dice: Dice) -> Self {
        Self { settings, dice, links: Vec::new() }
    }

    /// One more node: its links are whole.
    pub(crate) fn add(&mut self, id: NodeId) {
        let count = place(id) + 1;
        self.links.resize(count, Vec::new());
        for links in &mut self.links {
            links.resize(count, Link::default());
        }
    }

    fn link(&mut self, from: NodeId, to: NodeId) -> &mut Link {
        &mut self.links[place(from)][place(to)]
    }

    /// Cuts or heals one direction. True if that changes anything.
    pub(crate) fn set_cut(&mut self, from: NodeId, to: NodeId, is_cut: bool) -> bool {
        let link = self.link(from, to);
        std::mem::replace(&mut link.is_cut, is_cut) != is_cut
    }

    pub(crate) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.links[place(from)][place(to)].is_cut
    }

    /// Whether a message that is due now is let through.
    pub(crate) fn delivers(&self, from: NodeId, to: NodeId) -> bool {
        self.settings.keeps_in_flight || !self.is_cut(from, to)
    }

    /// Decides what becomes of a message.
    pub(crate) fn send(
        &mut self,
        now: u64,
        from: NodeId,
        to: NodeId,
        message: &Message,
    ) -> Arrivals {
        let key = key(from, to);
        let dice = self.dice;
        let link = self.link(from, to);
        link.sent += 1;
        let count = link.sent;
        if link.is_cut || dice.chance(self.settings.loss, Stream::Loss, key, count) {
            return Arrivals::None;
        }
        let first = self.arrival(now, from, to, is_reply(message), count * 2);
        if dice.chance(self.settings.duplicates, Stream::Duplicate, key, count) {
            let second = self.arrival(now, from, to, is_reply(message), count * 2 + 1);
            return Arrivals::Twice(first, second);
        }
        Arrivals::Once(first)
    }

    /// When a piece on a connection for snapshots arrives: in order, or never.
    pub(crate) fn send_bulk(&mut self, now: u64, from: NodeId, to: NodeId) -> Option<u64> {
        let (dice, key) = (self.dice, key(from, to) << 32);
        let loss = self.settings.loss / 4;
        let delay = nanos(self.settings.delay.0)..=nanos(self.settings.delay.1);
        let link = self.link(from, to);
        link.bulk_sent += 1;
        if link.is_cut || dice.chance(loss, Stream::Loss, key, link.bulk_sent) {
            return None;
        }
        let at = now + dice.within(&delay, Stream::Delay, key, link.bulk_sent);
        link.last_bulk = at.max(link.last_bulk + 1);
        Some(link.last_bulk)
    }

    fn arrival(&mut self, now: u64, from: NodeId, to: NodeId, is_reply: bool, count: u64) -> u64 {
        let (dice, key) = (self.dice, key(from, to));
        let settings = &self.settings;
        let delay = nanos(settings.delay.0)..=nanos(settings.delay.1);
        let mut arrival = now + dice.within(&delay, Stream::Delay, key, count);
        if dice.chance(settings.stragglers, Stream::Delay, !key, count) {
            arrival += dice.below(MAX_STRAGGLE, Stream::Delay, !key, !count);
        }
        if settings.has_long_reordering
            && is_reply
            && dice.below(3, Stream::Reorder, key, count) < 2
        {
            // As in the course's network: 200 ms and up to 2 s more, the longer the rarer.
            let bound = 1 + dice.below(2_000, Stream::Reorder, !key, count);
            let more = 200 + dice.below(bound, Stream::Reorder, key, !count);
            arrival += more * 1_000_000;
        }
        if settings.is_ordered {
            let link = self.link(from, to);
            arrival = arrival.max(link.last_arrival + 1);
            link.last_arrival = arrival;
        }
        arrival
    }
}

/// One second, in nanoseconds.
const MAX_STRAGGLE: u64 = 1_000_000_000;

/// A key for decisions that other links do not share.
const fn key(from: NodeId, to: NodeId) -> u64 {
    from.get() << 16 | to.get()
}

fn place(id: NodeId) -> usize {
    usize::try_from(id.get().saturating_sub(1)).unwrap_or(usize::MAX)
}

fn is_reply(message: &Message) -> bool {
    match &message.body {
        Body::RequestVoteReply(_)
        | Body::AppendEntriesReply(_)
        | Body::ProposeReply(_)
        | Body::ReadIndexReply { .. } => true,
        Body::RequestVote(_)
        | Body::AppendEntries(_)
        | Body::TimeoutNow { .. }
        | Body::Propose(_)
        | Body::ChangeMembership { .. }
        | Body::ReadIndex { .. } => false,
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
