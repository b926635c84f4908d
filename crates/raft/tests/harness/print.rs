//! How the scripts show things: one readable line for each.

use std::collections::BTreeMap;

use kontiki_raft::{
    AppendEntries, AppendEntriesReply, AppendResult, Body, Bytes, Change, ChangeSet, Entry,
    EntryId, MemberRole, Membership, Message, NodeId, Payload, Promotion, ProposalId, RequestVote,
    RequestVoteReply, VoteKind,
};

use super::command::Link;

/// `1@1 2@2`, and `3..5@2` for three or more of a term in a row.
pub(crate) fn ids<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> String {
    let mut runs: Vec<(EntryId, EntryId)> = Vec::new();
    for entry in entries {
        match runs.last_mut() {
            Some((_, last))
                if last.term == entry.id.term && last.index.next() == entry.id.index =>
            {
                *last = entry.id;
            }
            Some(_) | None => runs.push((entry.id, entry.id)),
        }
    }
    let texts: Vec<String> = runs
        .into_iter()
        .map(|(first, last)| match last.index.get() - first.index.get() {
            0 => first.to_string(),
            1 => format!("{first} {last}"),
            _ => format!("{}..{last}", first.index),
        })
        .collect();
    texts.join(" ")
}

/// `3@2=a`, or `2@2` for an entry without a command.
pub(crate) fn entry(entry: &Entry) -> String {
    match &entry.payload {
        Payload::Command(bytes) | Payload::Session(bytes) => {
            format!("{}={}", entry.id, command(bytes))
        }
        Payload::Blank => entry.id.to_string(),
        Payload::Membership(members) => format!("{}={}", entry.id, membership(members)),
    }
}

/// `{n1 n2 n3 +n4}`: voters, and with a plus learners, with one more those that are promoted
/// when they have caught up. `{n1 n2 n4 & n1 n2 n3}` is joint, the outgoing voters come last.
pub(crate) fn membership(membership: &Membership) -> String {
    let mut words: Vec<String> = membership.voters().map(|id| id.to_string()).collect();
    for member in &membership.members {
        let id = member.id;
        match member.role {
            MemberRole::Learner { promotion: Promotion::ByHand } => words.push(format!("+{id}")),
            MemberRole::Learner { promotion: Promotion::WhenCaughtUp } => {
                words.push(format!("++{id}"));
            }
            MemberRole::Learner { promotion: Promotion::Replacing(old) } => {
                words.push(format!("++{id} for {old}"));
            }
            _ => {}
        }
    }
    if membership.is_joint() {
        words.push("&".to_owned());
        words.extend(membership.outgoing.iter().map(NodeId::to_string));
    }
    format!("{{{}}}", words.join(" "))
}

/// What is asked for, as a script would.
fn change(change: &ChangeSet) -> String {
    let step = |step: &Change| match step {
        Change::AddLearner { address, auto_promote: false, .. } => format!("add={address}"),
        Change::AddLearner { address, auto_promote: true, .. } => format!("join={address}"),
        Change::Promote(id) => format!("promote={id}"),
        Change::Demote(id) => format!("demote={id}"),
        Change::Remove(id) => format!("remove={id}"),
        Change::Replace { old, address, .. } => format!("replace={old} by={address}"),
        Change::Update { id, .. } => format!("update={id}"),
    };
    change.changes.iter().map(step).collect::<Vec<_>>().join(" ")
}

/// The command, or its size when it is long.
pub(crate) fn command(bytes: &Bytes) -> String {
    if 16 < bytes.len() {
        return format!("{}-bytes", bytes.len());
    }
    String::from_utf8_lossy(bytes).into_owned()
}

/// Names for the numbers on the wire, which start at random in each life of a node.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Batches of reads, by the order in which they were seen.
    batches: Vec<u64>,
    /// Forwarded proposals, by their commands.
    proposals: BTreeMap<ProposalId, String>,
}

impl Names {
    /// A message with its sender, the term it was made in, and its receiver.
    pub(crate) fn show(&mut self, link: Link, message: &Message) -> String {
        format!("{}/{} -> {} {}", link.from, message.term, link.to, self.body(&message.body))
    }

    /// What a message says. Rounds and sessions are left out: they are for the machine.
    fn body(&mut self, body: &Body) -> String {
        match body {
            Body::RequestVote(RequestVote { kind, for_term, last }) => {
                format!("{} for={for_term} last={last}", vote_kind(*kind))
            }
            Body::RequestVoteReply(RequestVoteReply { kind, for_term, granted }) => {
                let answer = if *granted { "granted" } else { "refused" };
                format!("{}Reply for={for_term} {answer}", vote_kind(*kind))
            }
            Body::AppendEntries(AppendEntries { prev, commit, entries, readmission, .. }) => {
                let ids = ids(entries);
                let entries = if ids.is_empty() { ids } else { format!(" [{ids}]") };
                let readmission =
                    readmission.map(|it| format!(" readmit-at={}", it.upto)).unwrap_or_default();
                format!("AppendEntries prev={prev}{entries} commit={commit}{readmission}")
            }
            Body::AppendEntriesReply(AppendEntriesReply { received, result, report, .. }) => {
                let result = match result {
                    AppendResult::Match(index) if index < received => {
                        format!("match={index} received={received}")
                    }
                    AppendResult::Match(index) => format!("match={index}"),
                    AppendResult::Conflict { prev, hint } => {
                        format!("conflict prev={prev} hint={hint}")
                    }
                };
                let full = if report.is_full { " full" } else { "" };
                let damaged = if report.damaged.is_some() { " damaged" } else { "" };
                let needs = report.needs_snapshot;
                let needs = needs.map_or(String::new(), |at| format!(" needs-snapshot={at}"));
                format!("AppendEntriesReply {result}{full}{damaged}{needs}")
            }
            Body::TimeoutNow { last } => format!("TimeoutNow last={last}"),
            Body::Propose(proposals) => {
                let named = proposals.iter().map(|p| (p.id, command(&p.command)));
                self.proposals.extend(named);
                let commands: Vec<String> = proposals.iter().map(|p| command(&p.command)).collect();
                format!("Propose [{}]", commands.join(" "))
            }
            Body::ChangeMembership { id, change: wanted } => {
                self.proposals.insert(*id, "change".to_owned());
                format!("ChangeMembership {}", change(wanted))
            }
            Body::ProposeReply(results) => {
                let results: Vec<String> = results
                    .iter()
                    .map(|(id, result)| {
                        let name = self.proposals.get(id).map_or("?", String::as_str);
                        match result {
                            Ok(at) => format!("{name} appended {at}"),
                            Err(why) => format!("{name} rejected: {why}"),
                        }
                    })
                    .collect();
                format!("ProposeReply [{}]", results.join("; "))
            }
            Body::ReadIndex { batch } => format!("ReadIndex batch={}", self.batch(*batch)),
            Body::ReadIndexReply { batch, result } => {
                let batch = self.batch(*batch);
                match result {
                    Ok(index) => format!("ReadIndexReply batch={batch} index={index}"),
                    Err(why) => format!("ReadIndexReply batch={batch} rejected: {why}"),
                }
            }
        }
    }

    fn batch(&mut self, number: u64) -> usize {
        let known = self.batches.iter().position(|&batch| batch == number);
        1 + known.unwrap_or_else(|| {
            self.batches.push(number);
            self.batches.len() - 1
        })
    }
}

fn vote_kind(kind: VoteKind) -> &'static str {
    match kind {
        VoteKind::PreVote => "PreVote",
        VoteKind::Vote => "RequestVote",
        VoteKind::Transfer => "TransferVote",
    }
}
