//! Servers of one cluster with different settings.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use kontiki_raft::{
    Apply, Bytes, Config, Effects, Entry, EntryId, Input, Membership, Message, NodeId, Outbound,
    Payload, Proposal, ProposalId, RaftCore, ReadId, ReadMode, Recovered, Role, Timestamp,
};

struct Node {
    core: RaftCore,
    applied: Vec<Bytes>,
}

/// As different as settings can be that each alone are sound.
fn config(id: u64) -> Config {
    let mut config = Config::new(NodeId(id), id);
    let times = [(20, 200), (50, 300), (100, 1_000)][usize::try_from(id - 1).expect("few nodes")];
    config.heartbeat_interval = Duration::from_millis(times.0);
    config.election_timeout = Duration::from_millis(times.1);
    if id == 2 {
        config.append_bytes_max = 1;
        config.inflight_messages_max = 1;
        config.log_cache_bytes_max = 0;
        config.priority = 9;
    }
    if id == 3 {
        config.clock_drift_ppm_max = 500;
        config.unapplied_bytes_max = 1;
        config.purge_entries_min = 1;
    }
    config
}

fn cluster() -> Vec<Node> {
    let members = Membership::of_voters([1, 2, 3].map(|id| (NodeId(id), id.to_string())));
    let start = |id| {
        let recovered = Recovered {
            memberships: vec![(EntryId::ZERO, Arc::new(members.clone()))],
            is_pristine: true,
            ..Recovered::default()
        };
        let core =
            RaftCore::new(config(id), recovered, Timestamp(0)).expect("the settings are sound");
        Node { core, applied: Vec::new() }
    };
    [1, 2, 3].map(start).into()
}

/// Carries out what a node asks for, with a disk and a state machine that take no time.
fn settle(node: &mut Node, now: Timestamp, wire: &mut VecDeque<(NodeId, NodeId, Message)>) {
    let id = node.core.status().id;
    let mut effects = Effects::default();
    loop {
        node.core.poll(now, &mut effects);
        let mut inputs = Vec::new();
        inputs.extend(effects.write.take().map(|write| Input::Persisted(write.ticket)));
        for apply in effects.apply.drain(..) {
            let Apply::Entries(entries) = apply else { continue };
            inputs.extend(entries.last().map(|last| Input::Applied {
                upto: last.id.index,
                durable: kontiki_raft::Index::ZERO,
            }));
            node.applied.extend(entries.into_iter().filter_map(command));
        }
        for message in effects.messages.drain(..) {
            if let Outbound::Send(envelope) = message {
                wire.push_back((id, envelope.to, envelope.message));
            }
        }
        if inputs.is_empty() {
            return;
        }
        inputs.into_iter().for_each(|input| node.core.step(now, input));
    }
}

fn command(entry: Entry) -> Option<Bytes> {
    match entry.payload {
        Payload::Command(command) => Some(command),
        _ => None,
    }
}

/// Pitfall B10. No setting changes what a message means, so servers that are being given new
/// settings one by one need no order in which that is done: whoever leads, all follow.
#[test]
fn servers_with_different_settings_understand_each_other() {
    for leads in 0..3 {
        let mut nodes = cluster();
        let mut wire = VecDeque::new();
        let mut now = Timestamp(1);
        nodes[leads].core.step(now, Input::Campaign);
        for round in 0..400_u64 {
            now = Timestamp(now.0 + 10_000_000);
            if round % 20 == 5 {
                let command = Bytes::from(round.to_string());
                let id = ProposalId(round);
                let proposal = Proposal { id, command, is_session: false };
                nodes[(leads + 1) % 3].core.step(now, Input::Propose(vec![proposal]));
                let read = Input::Read { id: ReadId(round), mode: ReadMode::Lease };
                nodes[(leads + 2) % 3].core.step(now, read);
            }
            for node in &mut nodes {
                if node.core.next_deadline().is_some_and(|deadline| deadline <= now) {
                    node.core.step(now, Input::Timeout);
                }
                settle(node, now, &mut wire);
            }
            while let Some((from, to, message)) = wire.pop_front() {
                let to = nodes.iter_mut().find(|node| node.core.status().id == to).unwrap();
                to.core.step(now, Input::Message { from, message });
                settle(to, now, &mut wire);
            }
        }
        let leaders =
            nodes.iter().filter(|node| node.core.status().soft_state.role == Role::Leader);
        assert_eq!(leaders.count(), 1, "n{} was to lead first", leads + 1);
        assert!(15 < nodes[0].applied.len(), "only {} commands", nodes[0].applied.len());
        for node in &nodes {
            assert_eq!(node.applied, nodes[0].applied, "what all have applied");
        }
    }
}
