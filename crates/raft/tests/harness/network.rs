//! The network of a script: one queue for each direction between two nodes, moved by hand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kontiki_raft::{Body, Message};

use super::command::Link;

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Parcel {
    pub(crate) message: Message,
    /// The reader of the script has seen it. One that was sent in silence is shown when it is
    /// delivered.
    pub(crate) is_told: bool,
}

/// All links. Order is fixed: by sender, then by receiver.
#[derive(Debug, Default)]
pub(crate) struct Network {
    queues: BTreeMap<Link, VecDeque<Parcel>>,
    held: BTreeMap<Link, VecDeque<Parcel>>,
    cut: BTreeSet<Link>,
}

impl Network {
    /// Puts a message on its link. False if the link is cut, and the message lost.
    pub(crate) fn send(&mut self, link: Link, parcel: Parcel) -> bool {
        let is_sent = !self.cut.contains(&link);
        if is_sent {
            self.queues.entry(link).or_default().push_back(parcel);
        }
        is_sent
    }

    /// The links on which something waits.
    pub(crate) fn busy(&self) -> Vec<Link> {
        self.queues.iter().filter(|(_, queue)| !queue.is_empty()).map(|(link, _)| *link).collect()
    }

    /// Everything that waits on a link.
    pub(crate) fn take(&mut self, link: Link) -> VecDeque<Parcel> {
        self.queues.remove(&link).unwrap_or_default()
    }

    /// What waits on a link and is about votes. The rest stays.
    pub(crate) fn take_votes(&mut self, link: Link) -> Vec<Parcel> {
        let (votes, rest) = self.take(link).into_iter().partition(|p| {
            matches!(p.message.body, Body::RequestVote(_) | Body::RequestVoteReply(_))
        });
        self.queues.insert(link, rest);
        Vec::from_iter::<VecDeque<Parcel>>(votes)
    }

    pub(crate) fn waiting(&self, link: Link) -> impl Iterator<Item = &Parcel> {
        self.queues.get(&link).into_iter().flatten()
    }

    pub(crate) fn duplicate(&mut self, link: Link) {
        let doubled = self.take(link).into_iter().flat_map(|parcel| [parcel.clone(), parcel]);
        self.queues.insert(link, doubled.collect());
    }

    pub(crate) fn reverse(&mut self, link: Link) {
        let reversed = self.take(link).into_iter().rev().collect();
        self.queues.insert(link, reversed);
    }

    pub(crate) fn hold(&mut self, link: Link) {
        let parcels = self.take(link);
        self.held.entry(link).or_default().extend(parcels);
    }

    pub(crate) fn copy(&mut self, link: Link) {
        let copies = self.queues.get(&link).cloned().unwrap_or_default();
        self.held.entry(link).or_default().extend(copies);
    }

    pub(crate) fn release(&mut self, link: Link) {
        let parcels = self.held.remove(&link).unwrap_or_default();
        self.queues.entry(link).or_default().extend(parcels);
    }

    /// From here on the link loses everything, what waits on it included.
    pub(crate) fn cut(&mut self, link: Link) {
        self.cut.insert(link);
        self.queues.remove(&link);
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }
}
