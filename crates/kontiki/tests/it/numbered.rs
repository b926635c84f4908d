//! Commands with a number outlive the node and the process of their session: what is tried again
//! elsewhere is applied once.

use std::{io, sync::mpsc};

use kontiki::{Command, EntryId, NumberedCommand, Raft, SessionError, StateMachine};

use crate::common::{Cluster, List, eventually, leader, quick, small_log};

/// A list that stands still at the command `held`, if it has a gate, until the gate is dropped.
#[derive(Default)]
struct Gated {
    list: List,
    gate: Option<mpsc::Receiver<()>>,
}

impl StateMachine for Gated {
    type Response = usize;
    type Snapshot = Vec<u8>;

    fn apply(&mut self, command: Command<'_>) -> usize {
        if command.data[..] == *b"held"
            && let Some(gate) = self.gate.take()
        {
            gate.recv().expect_err("nothing is ever sent");
        }
        self.list.apply(command)
    }

    fn snapshot(&mut self) -> io::Result<Vec<u8>> {
        self.list.snapshot()
    }

    fn restore(&mut self, at: EntryId, from: &mut dyn io::Read) -> io::Result<()> {
        self.list.restore(at, from)
    }
}

async fn start(cluster: &Cluster, id: u64, gate: Option<mpsc::Receiver<()>>) -> Raft<Gated> {
    Raft::builder(id, Gated { gate, ..Gated::default() })
        .data_dir(cluster.data_dir(id))
        .bootstrap(cluster.members.clone())
        .log_options(small_log())
        .tune(quick)
        .sessions()
        .start()
        .await
        .unwrap()
}

async fn list_of(node: &Raft<Gated>) -> Vec<Vec<u8>> {
    node.read(|gated| gated.list.0.clone()).await.unwrap()
}

/// The node of the session dies when the command is committed and applied by the others, and has
/// not answered. What is left of the client is what it had written down.
async fn retried_elsewhere(is_through_leader: bool) {
    let cluster = Cluster::new(3);
    let (mut nodes, mut gates) = (Vec::new(), Vec::new());
    for id in 1..=3 {
        let (hold, gate) = mpsc::channel::<()>();
        gates.push(Some(hold));
        nodes.push(start(&cluster, id, Some(gate)).await);
    }
    let leads = leader(&nodes).await;
    let dies = if is_through_leader { leads } else { (leads + 1) % 3 };
    let [first, second] = [(dies + 1) % 3, (dies + 2) % 3];
    (gates[first], gates[second]) = (None, None);

    let session = nodes[dies].session().await.unwrap();
    let command = session.number("held");
    let written_down = command.to_bytes();
    let node = nodes[dies].clone();
    let client = tokio::spawn(async move { node.propose_numbered(&command).await });
    for at in [first, second] {
        eventually("it is applied where it is not answered", || async {
            let len = nodes[at].read_stale(|gated| gated.list.0.len()).await.unwrap();
            (len == 1).then_some(())
        })
        .await;
    }
    let death = tokio::spawn(nodes[dies].clone().shutdown());
    let error = client.await.unwrap().unwrap_err();
    assert!(matches!(error, SessionError::Stopped(_)), "{error:?}");
    gates[dies] = None;
    death.await.unwrap().unwrap();
    drop(session);

    let command = NumberedCommand::from_bytes(written_down).unwrap();
    for at in [first, second, first] {
        assert_eq!(nodes[at].propose_numbered(&command).await.unwrap().response, 1);
    }
    let next = nodes[second].session().await.unwrap().propose("next").await.unwrap();
    assert_eq!(next.response, 2);
    nodes[dies] = start(&cluster, u64::try_from(dies).unwrap() + 1, None).await;
    for node in &nodes {
        assert_eq!(list_of(node).await, [b"held", b"next"]);
    }
}

#[tokio::test]
async fn a_command_is_applied_once_when_the_follower_that_took_it_dies_before_it_answers() {
    retried_elsewhere(false).await;
}

#[tokio::test]
async fn a_command_is_applied_once_when_the_leader_that_took_it_dies_before_it_answers() {
    retried_elsewhere(true).await;
}

/// Its node has died before it could say anything of it to the others.
#[tokio::test]
async fn a_command_that_never_left_its_node_is_applied_once_elsewhere() {
    let cluster = Cluster::new(3);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(start(&cluster, id, None).await);
    }
    let dies = (leader(&nodes).await + 1) % 3;
    let session = nodes[dies].session().await.unwrap();
    let command = session.number("once");
    nodes.remove(dies).shutdown().await.unwrap();
    let error = session.propose("to nobody").await.unwrap_err();
    assert!(matches!(error, SessionError::Stopped(_)), "{error:?}");

    // The session lives on through another node, and so does what it has numbered. Both nodes
    // try it at the same time.
    let session = session.through(nodes[0].clone());
    let (one, other) =
        tokio::join!(nodes[0].propose_numbered(&command), nodes[1].propose_numbered(&command));
    assert_eq!((one.unwrap().response, other.unwrap().response), (1, 1));
    assert_eq!(session.propose("next").await.unwrap().response, 2);
    assert_eq!(nodes[1].propose_numbered(&command).await.unwrap().response, 1);
    assert_eq!(list_of(&nodes[1]).await, [b"once", b"next"]);
}

/// Whether it was applied is not remembered, so it is refused by name and not applied.
#[tokio::test]
async fn a_numbered_command_of_a_session_that_is_gone_is_refused() {
    let cluster = Cluster::new(1);
    let node = start(&cluster, 1, None).await;
    let session = node.session().await.unwrap();
    let command = session.number("late");
    session.close().await.unwrap();
    let error = node.propose_numbered(&command).await.unwrap_err();
    assert!(matches!(error, SessionError::Expired), "{error:?}");
    assert_eq!(list_of(&node).await, Vec::<Vec<u8>>::new());
}

/// A number that is kept may be asked about for ever; once it is dropped the session goes on.
#[tokio::test]
async fn a_numbered_command_is_refused_when_its_session_has_given_it_up() {
    let cluster = Cluster::new(1);
    let node = start(&cluster, 1, None).await;
    let session = node.session().await.unwrap();
    let kept = session.number("kept");
    assert_eq!((kept.session(), kept.sequence()), (session.id(), 1));
    session.propose("in between").await.unwrap();
    let written_down = kept.to_bytes();
    assert_eq!(node.propose_numbered(&kept).await.unwrap().response, 2);
    session.propose("after it").await.unwrap();
    assert_eq!(node.propose_numbered(&kept).await.unwrap().response, 2);

    drop(kept);
    session.propose("the last").await.unwrap();
    let late = NumberedCommand::from_bytes(written_down).unwrap();
    let error = node.propose_numbered(&late).await.unwrap_err();
    assert!(matches!(error, SessionError::Answered), "{error:?}");
    assert_eq!(list_of(&node).await.len(), 4);
}

#[test]
fn what_is_no_numbered_command_is_not_read_as_one() {
    let open = kontiki::SessionCommand::Open.encode();
    for bytes in [&b""[..], b"\x03", &[3; 24], &open, b"hello"] {
        assert!(NumberedCommand::from_bytes(bytes.to_vec()).is_none(), "{bytes:?}");
    }
}
