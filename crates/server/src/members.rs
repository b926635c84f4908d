//! Who belongs to the cluster, and under which ids clients know them.
//!
//! The membership is Raft's: it stands in the log, and this module follows it. What etcd's
//! clients want to know beside it (a member's id, its name, its peer URLs) is a [record](Record)
//! that travels with each member through the log. The first members are born without one:
//! until somebody has written theirs down, it is derived from the flags, which are the same
//! everywhere. Where clients reach a member it announces itself (see `machine`).
//!
//! etcd derives a member's id from its peer URLs and the cluster's token, and the cluster's id
//! from those of its first members. Ours are the same numbers, so that they mean the same in
//! dashboards and scripts. Raft counts differently: node 1 is the first member by name, and so
//! on, and whoever is added gets the next number.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::SystemTime,
};

use kontiki::{Bytes, Change, MemberRole, Membership, NodeId, Promotion};
use prost::Message as _;
use sha1::{Digest, Sha1};

use crate::{alarms::Alarms, config::host_and_port, proto::etcdserverpb as pb};

/// A member as clients see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) node: NodeId,
    /// Empty until it has said what it is called.
    pub(crate) name: String,
    pub(crate) peer_urls: Vec<String>,
    pub(crate) is_learner: bool,
    /// Whether it waits to be promoted by hand.
    pub(crate) waits: bool,
    /// Whether its record stands in the log.
    pub(crate) is_recorded: bool,
}

/// What the log says of a member beside its role and address. Fields are only ever added.
#[derive(Clone, PartialEq, prost::Message)]
struct Record {
    #[prost(fixed64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, repeated, tag = "3")]
    peer_urls: Vec<String>,
    /// The same for all members: whoever joins does not know the flags of the first ones.
    #[prost(fixed64, tag = "4")]
    cluster_id: u64,
}

/// The cluster of this server.
#[derive(Debug)]
pub(crate) struct Roster {
    /// What the flags call this server.
    name: String,
    token: String,
    /// Names in the flags, by `host:port`.
    names: BTreeMap<String, String>,
    people: RwLock<People>,
}

#[derive(Debug)]
struct People {
    cluster_id: u64,
    me: Member,
    is_removed: bool,
    /// What is wrong with this server.
    own_alarms: Alarms,
    /// Sorted by node.
    members: Vec<Member>,
    /// The newest membership that stands: it was committed, and everything before it applied.
    applied: Option<Membership>,
    /// What members have said of themselves, by id. Not durable: a server that starts asks the
    /// others again.
    heard: BTreeMap<u64, Heard>,
}

#[derive(Clone, Debug, Default)]
struct Heard {
    name: String,
    client_urls: Vec<String>,
    alarms: Alarms,
}

impl Roster {
    /// The cluster that the flags name: `members` (name, peer URLs), of whom one is `me`. To who
    /// does not found the cluster but joins it they only tell names; the rest is learned by
    /// [`set_node`](Self::set_node) and [`follow`](Self::follow).
    pub(crate) fn new(
        members: &[(String, Vec<String>)],
        token: &str,
        me: &str,
        is_founder: bool,
    ) -> Self {
        let mut sorted = members.to_vec();
        sorted.sort();
        let members: Vec<Member> = (1..)
            .zip(sorted)
            .map(|(node, (name, urls))| {
                let peer_urls = canonical(&urls);
                let id = member_id(&peer_urls, token);
                Member { id, node: NodeId(node), name, peer_urls, ..Member::default() }
            })
            .collect();
        let names = members.iter().flat_map(|member| {
            let addresses = member.peer_urls.iter().filter_map(|url| host_and_port(url).ok());
            addresses.map(|address| (address, member.name.clone()))
        });
        let founder = members.iter().find(|member| is_founder && member.name == me).cloned();
        Self {
            name: me.to_owned(),
            token: token.to_owned(),
            names: names.collect(),
            people: RwLock::new(People {
                cluster_id: cluster_id(members.iter().map(|member| member.id).collect()),
                me: founder.unwrap_or_default(),
                is_removed: false,
                own_alarms: Alarms::default(),
                members,
                applied: None,
                heard: BTreeMap::new(),
            }),
        }
    }

    fn people(&self) -> RwLockReadGuard<'_, People> {
        self.people.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn people_mut(&self) -> RwLockWriteGuard<'_, People> {
        self.people.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cluster_id(&self) -> u64 {
        self.people().cluster_id
    }

    /// This server.
    pub(crate) fn me(&self) -> Member {
        self.people().me.clone()
    }

    /// Cluster and member id, for headers.
    pub(crate) fn ids(&self) -> (u64, u64) {
        let people = self.people();
        (people.cluster_id, people.me.id)
    }

    pub(crate) fn is_learner(&self) -> bool {
        self.people().me.is_learner
    }

    /// Whether this server was a member and is none any more.
    pub(crate) fn is_removed(&self) -> bool {
        self.people().is_removed
    }

    /// What the flags call this server.
    pub(crate) fn own_name(&self) -> &str {
        &self.name
    }

    /// The id of the member that Raft calls `node`, or 0.
    pub(crate) fn id_of(&self, node: Option<NodeId>) -> u64 {
        let people = self.people();
        let member = people.members.iter().find(|member| Some(member.node) == node);
        member.map_or(0, |member| member.id)
    }

    /// What the member is called that Raft calls `node`.
    pub(crate) fn name_of(&self, node: NodeId) -> String {
        let people = self.people();
        let member = people.members.iter().find(|member| member.node == node);
        let name = member.map(|member| people.name_of(member)).filter(|name| !name.is_empty());
        name.unwrap_or_else(|| node.to_string())
    }

    /// The member that clients call `id`.
    pub(crate) fn member(&self, id: u64) -> Option<Member> {
        self.people().members.iter().find(|member| member.id == id).cloned()
    }

    /// Says which node this server is. What the flags say is not asked any more, nor what was
    /// made of it.
    pub(crate) fn set_node(&self, node: NodeId) {
        let mut people = self.people_mut();
        people.me.node = node;
        if let Some(me) = people.members.iter().find(|member| member.node == node) {
            people.me = me.clone();
        }
        people.is_removed = people.applied.as_ref().is_some_and(|known| known.has_removed(node));
    }

    /// The members of `membership`, as clients see them.
    pub(crate) fn read(&self, membership: &Membership) -> Vec<Member> {
        membership.members.iter().filter_map(|member| self.known(member, record(member))).collect()
    }

    /// The members are these from now on, by a decision that stands.
    pub(crate) fn follow(&self, membership: &Membership) {
        self.show(membership);
        let mut people = self.people_mut();
        people.is_removed = membership.has_removed(people.me.node);
        people.applied = Some(membership.clone());
    }

    /// The members are these unless something else has been decided already: what stands in the
    /// log may still be taken back.
    pub(crate) fn expect(&self, membership: &Membership) {
        if self.people().applied.is_none() {
            self.show(membership);
        }
    }

    /// Shows these members to clients. Who is removed is decided elsewhere.
    fn show(&self, membership: &Membership) {
        let members = self.read(membership);
        let mut people = self.people_mut();
        if let Some(record) = membership.members.iter().find_map(record) {
            people.cluster_id = record.cluster_id;
        }
        people.members = members;
        let node = people.me.node;
        if let Some(me) = people.members.iter().find(|member| member.node == node) {
            people.me = me.clone();
        }
        let People { members, heard, .. } = &mut *people;
        heard.retain(|id, _| members.iter().any(|member| member.id == *id));
    }

    /// A member of Raft as clients see it; none if it is on its way out.
    fn known(&self, member: &kontiki::Member, record: Option<Record>) -> Option<Member> {
        let (is_learner, waits) = match member.role {
            MemberRole::Voter => (false, false),
            MemberRole::Learner { promotion } => (true, promotion == Promotion::ByHand),
            _ => return None,
        };
        let is_recorded = record.is_some();
        let Record { id, name, peer_urls, .. } = record.unwrap_or_else(|| {
            let peer_urls = vec![format!("http://{}", member.address)];
            let name = self.names.get(&*member.address).cloned().unwrap_or_default();
            Record { id: member_id(&peer_urls, &self.token), name, peer_urls, cluster_id: 0 }
        });
        let node = member.id;
        Some(Member { id, node, name, peer_urls, is_learner, waits, is_recorded })
    }

    /// What the log is to say of `member`.
    pub(crate) fn record(&self, member: &Member) -> Bytes {
        let record = Record {
            id: member.id,
            name: member.name.clone(),
            peer_urls: member.peer_urls.clone(),
            cluster_id: self.cluster_id(),
        };
        record.encode_to_vec().into()
    }

    /// The changes that write down what only the flags say so far.
    pub(crate) fn unrecorded(&self, members: &[Member]) -> Vec<Change> {
        members.iter().filter(|member| !member.is_recorded).map(|m| self.update(m)).collect()
    }

    /// The change that writes down `member`.
    pub(crate) fn update(&self, member: &Member) -> Change {
        let address = address(&member.peer_urls);
        Change::Update { id: member.node, address, context: self.record(member) }
    }

    /// A new member at `peer_urls`; its number is the cluster's to give.
    pub(crate) fn newcomer(&self, peer_urls: Vec<String>) -> Member {
        // As in etcd, the time tells it from an earlier member at the same place.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let id = (now.as_secs()..)
            .map(|seconds| member_id(&peer_urls, &seconds.to_string()))
            .find(|id| *id != 0 && self.member(*id).is_none());
        Member { id: id.unwrap_or_default(), peer_urls, ..Member::default() }
    }

    /// Takes note of what the member `id` says of itself. One that is no member says nothing.
    pub(crate) fn hear(&self, id: u64, name: String, client_urls: Vec<String>, alarms: Alarms) {
        let mut people = self.people_mut();
        if people.members.iter().any(|member| member.id == id) {
            people.heard.insert(id, Heard { name, client_urls, alarms });
        }
    }

    /// What is wrong with this server.
    pub(crate) fn own_alarms(&self) -> Alarms {
        self.people().own_alarms
    }

    /// Changes what is wrong with this server. Says whether that is news.
    pub(crate) fn change_own_alarms(&self, change: impl FnOnce(&mut Alarms)) -> bool {
        let mut people = self.people_mut();
        let before = people.own_alarms;
        change(&mut people.own_alarms);
        people.own_alarms != before
    }

    /// All alarms of all members: this one's as it knows them, the others' as they told.
    pub(crate) fn alarms(&self) -> Vec<pb::AlarmMember> {
        let people = self.people();
        let of = |member: &Member| match people.heard.get(&member.id) {
            _ if member.id == people.me.id => people.own_alarms,
            Some(heard) => heard.alarms,
            None => Alarms::default(),
        };
        let alarms = people.members.iter().flat_map(|member| {
            let alarm = move |kind| pb::AlarmMember { member_id: member.id, alarm: kind };
            of(member).kinds().map(i32::from).map(alarm)
        });
        alarms.collect()
    }

    /// Forgets an alarm that a member has told of.
    pub(crate) fn disarm(&self, id: u64, kind: i32) {
        if let Some(heard) = self.people_mut().heard.get_mut(&id) {
            heard.alarms = heard.alarms.without(kind);
        }
    }

    /// All members, as `MemberList` answers.
    pub(crate) fn list(&self) -> Vec<pb::Member> {
        let people = self.people();
        people.members.iter().map(|member| people.shown(member)).collect()
    }

    /// One member, as it is shown to clients.
    pub(crate) fn shown(&self, id: u64) -> Option<pb::Member> {
        let people = self.people();
        people.members.iter().find(|member| member.id == id).map(|member| people.shown(member))
    }
}

impl People {
    fn name_of(&self, member: &Member) -> String {
        let heard = self.heard.get(&member.id).map(|heard| &heard.name);
        let name = Some(&member.name).filter(|name| !name.is_empty()).or(heard);
        name.cloned().unwrap_or_default()
    }

    fn shown(&self, member: &Member) -> pb::Member {
        let heard = self.heard.get(&member.id).cloned().unwrap_or_default();
        pb::Member {
            id: member.id,
            name: self.name_of(member),
            peer_ur_ls: member.peer_urls.clone(),
            client_ur_ls: heard.client_urls,
            is_learner: member.is_learner,
        }
    }
}

/// What the log says of a member, if anything.
fn record(member: &kontiki::Member) -> Option<Record> {
    Record::decode(&*member.context).ok().filter(|record| record.id != 0)
}

/// Peer URLs as they are kept and compared: sorted, and without a slash at the end.
pub(crate) fn canonical(urls: &[String]) -> Vec<String> {
    let mut urls: Vec<String> =
        urls.iter().map(|url| url.strip_suffix('/').unwrap_or(url).to_owned()).collect();
    urls.sort();
    urls
}

/// Where peers connect to.
pub(crate) fn address(peer_urls: &[String]) -> Arc<str> {
    let address = peer_urls.first().and_then(|url| host_and_port(url).ok());
    address.unwrap_or_default().into()
}

/// The first eight bytes of the SHA-1 of the sorted URLs and the token.
fn member_id(sorted_urls: &[String], token: &str) -> u64 {
    first_eight(sorted_urls.iter().fold(Sha1::new(), Sha1::chain_update).chain_update(token))
}

/// The first eight bytes of the SHA-1 of the sorted ids of the members.
fn cluster_id(mut members: Vec<u64>) -> u64 {
    members.sort_unstable();
    let bytes = members.into_iter().map(u64::to_be_bytes);
    first_eight(bytes.fold(Sha1::new(), Sha1::chain_update))
}

fn first_eight(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    digest.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str) -> (String, Vec<String>) {
        (name.to_owned(), vec![format!("http://{name}:2380")])
    }

    fn members(roster: &Roster) -> Vec<Member> {
        roster.people().members.clone()
    }

    /// Every etcd that was ever started without flags has these two ids.
    #[test]
    fn the_default_member_has_the_ids_that_etcd_gives_it() {
        let members = [("default".to_owned(), vec!["http://localhost:2380".to_owned()])];
        let roster = Roster::new(&members, "etcd-cluster", "default", true);
        assert_eq!(roster.ids(), (0xcdf8_1819_4e3a_8c32, 0x8e9e_05c5_2164_694d));
    }

    #[test]
    fn nodes_are_numbered_by_name_wherever_they_stand_in_the_flag() {
        let there = Roster::new(&[member("b"), member("c"), member("a")], "t", "b", true);
        let here = Roster::new(&[member("a"), member("b"), member("c")], "t", "b", true);
        assert_eq!(members(&there), members(&here));
        assert_eq!(there.cluster_id(), here.cluster_id());
        assert_eq!(there.me().node, NodeId(2));
        assert_eq!(there.id_of(Some(NodeId(2))), there.me().id);
        assert_eq!(there.id_of(None), 0);
    }

    #[test]
    fn another_token_makes_another_cluster() {
        let one = Roster::new(&[member("a")], "one", "a", true);
        let two = Roster::new(&[member("a")], "two", "a", true);
        assert_ne!(one.cluster_id(), two.cluster_id());
    }

    fn founded() -> (Roster, Membership) {
        let roster = Roster::new(&[member("a"), member("b")], "t", "a", true);
        let membership = Membership::of_voters([(NodeId(1), "a:2380"), (NodeId(2), "b:2380")]);
        (roster, membership)
    }

    /// What the flags say and what is derived from the membership are the same members.
    #[test]
    fn the_first_members_keep_their_ids_when_they_are_followed() {
        let (roster, membership) = founded();
        let (before, ids) = (members(&roster), roster.ids());
        roster.follow(&membership);
        assert_eq!((members(&roster), roster.ids()), (before, ids));
    }

    /// Each member tells of its own alarms; this one's are what it knows itself.
    #[test]
    fn alarms_are_those_that_each_member_has_told_of() {
        let (roster, _) = founded();
        let (me, other) = (roster.me().id, members(&roster)[1].id);
        let corrupt = Alarms { corrupt: true, ..Alarms::default() };
        for id in [me, other, 7] {
            roster.hear(id, String::new(), Vec::new(), corrupt);
        }
        let alarm = |member_id, alarm| pb::AlarmMember { member_id, alarm };
        assert_eq!(roster.alarms(), [alarm(other, 2)], "what this one said is over");
        assert!(roster.change_own_alarms(|alarms| alarms.no_space = true));
        assert!(!roster.change_own_alarms(|alarms| alarms.no_space = true));
        assert_eq!(roster.alarms(), [alarm(me, 1), alarm(other, 2)]);
        roster.disarm(other, 1);
        assert_eq!(roster.alarms().len(), 2, "another one");
        roster.disarm(other, 2);
        roster.disarm(me, 1);
        assert_eq!(roster.alarms(), [alarm(me, 1)], "it is still true");
    }

    /// A server that joins knows neither the token nor who the first members were.
    #[test]
    fn records_tell_a_newcomer_who_everyone_is() {
        let (roster, mut membership) = founded();
        for change in roster.unrecorded(&members(&roster)) {
            let Change::Update { id, context, .. } = change else { panic!("{change:?}") };
            let member = membership.members.iter_mut().find(|member| member.id == id);
            member.unwrap().context = context;
        }
        roster.follow(&membership);
        assert!(roster.unrecorded(&members(&roster)).is_empty());
        let newcomer = Roster::new(&[member("z")], "another token", "z", false);
        newcomer.set_node(NodeId(3));
        newcomer.follow(&membership);
        assert_eq!(members(&newcomer), members(&roster));
        assert_eq!(newcomer.cluster_id(), roster.cluster_id());
        assert!(!newcomer.is_removed(), "it is not known yet");
    }

    #[test]
    fn whoever_is_missing_from_a_later_membership_was_removed() {
        let (roster, membership) = founded();
        roster.follow(&membership);
        let mut later = membership;
        later.members.remove(0);
        roster.follow(&later);
        assert!(roster.is_removed());
        assert_eq!(roster.me().name, "a", "it still knows who it was");
        let restarted = Roster::new(&[member("z")], "t", "z", false);
        restarted.follow(&later);
        assert!(!restarted.is_removed(), "it does not know who it is");
        restarted.set_node(NodeId(1));
        assert!(restarted.is_removed());
    }

    /// Until the joint membership is left its quorum needs both halves: a server that stopped
    /// when it read that it is to go could take the quorum with it.
    #[test]
    fn whoever_is_leaving_is_not_removed_yet() {
        let (roster, membership) = founded();
        roster.follow(&membership);
        let mut joint = membership;
        joint.outgoing = vec![NodeId(1), NodeId(2)];
        joint.members[0].role = MemberRole::Leaving;
        roster.follow(&joint);
        assert!(!roster.is_removed());
        assert_eq!(members(&roster).len(), 1, "clients see where it goes");
        roster.set_node(NodeId(1));
        assert!(!roster.is_removed(), "nor after a restart");
        joint.outgoing.clear();
        joint.members.remove(0);
        roster.follow(&joint);
        assert!(roster.is_removed());
    }

    /// What is only in the log may be cut from it.
    #[test]
    fn a_removal_that_is_not_committed_removes_nobody() {
        let (roster, membership) = founded();
        let mut later = membership.clone();
        later.members.remove(0);
        roster.expect(&later);
        roster.set_node(NodeId(1));
        assert!(!roster.is_removed());
        roster.follow(&membership);
        assert_eq!(members(&roster).len(), 2);
        roster.expect(&later);
        assert_eq!(members(&roster).len(), 2, "what stands is known by now");
        assert!(!roster.is_removed());
    }

    #[test]
    fn a_member_is_called_what_it_says_until_the_log_knows() {
        let (roster, mut membership) = founded();
        let newcomer = roster.newcomer(vec!["http://c:2380".to_owned()]);
        let mut third = membership.members[0].clone();
        (third.id, third.address) = (NodeId(3), address(&newcomer.peer_urls));
        third.context = roster.record(&newcomer);
        membership.members.push(third);
        roster.follow(&membership);
        assert_eq!(roster.name_of(NodeId(3)), NodeId(3).to_string());
        roster.hear(
            newcomer.id,
            "c".to_owned(),
            vec!["http://c:2379".to_owned()],
            Alarms::default(),
        );
        assert_eq!(roster.name_of(NodeId(3)), "c");
        let shown = roster.shown(newcomer.id).unwrap();
        assert_eq!((shown.name.as_str(), shown.client_ur_ls.len()), ("c", 1));
    }
}
