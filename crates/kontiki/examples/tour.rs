//! A tour of what a cluster can do beside proposing and reading: three nodes in this process,
//! and a fourth that joins.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{error::Error, io, net::TcpListener, path::Path, time::Duration};

use kontiki::{
    Builder, Bytes, Change, ChangeSet, Command, Compaction, EntryId, LogOptions, Raft, ReadMode,
    Role, StateMachine,
};

/// Remembers lines. The response is how many there are.
#[derive(Default)]
struct Journal(Vec<String>);

impl StateMachine for Journal {
    type Response = usize;
    type Snapshot = Vec<u8>;

    fn apply(&mut self, command: Command<'_>) -> usize {
        self.0.push(String::from_utf8_lossy(command.data).into_owned());
        self.0.len()
    }

    fn snapshot(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.0.join("\n").into_bytes())
    }

    fn restore(&mut self, _: EntryId, from: &mut dyn io::Read) -> io::Result<()> {
        self.0 = io::read_to_string(from)?.lines().map(str::to_owned).collect();
        Ok(())
    }
}

/// What all nodes have in common.
fn describe(builder: Builder<Journal>, dir: &Path) -> Builder<Journal> {
    builder
        .data_dir(dir)
        .log_options(LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() })
        .compaction(Compaction { snapshot_after_bytes: 1 << 20, ..Compaction::default() })
        .lease_reads(500)
        .sessions()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let first = [(1, free_address()?), (2, free_address()?), (3, free_address()?)];
    let mut nodes = Vec::new();
    for (id, _) in &first {
        let builder = Raft::builder(*id, Journal::default()).bootstrap(first.iter().cloned());
        nodes.push(describe(builder, &dir.path().join(id.to_string())).start().await?);
    }
    let leader = leader(&nodes).await;
    let follower = &nodes[(leader + 1) % 3];

    // Many commands at once: one write and one message carry them all.
    let results = follower.propose_many(["one", "two", "three"]).await;
    println!("{} lines were proposed on a follower", results.iter().flatten().count());

    // Three ways to read, each with its guarantee in its name.
    let current = follower.read(|journal| journal.0.len()).await?;
    let leased = nodes[leader].read_with(ReadMode::Lease, |journal| journal.0.len()).await?;
    let stale = follower.read_stale(|journal| journal.0.len()).await?;
    println!("current: {current}, by lease: {leased}, whatever is here: {stale}");

    // A session: a command that has to be tried twice is applied once.
    let session = follower.session().await?;
    let applied = session.propose("exactly once").await?;
    println!("line {} was written in session {}", applied.response, session.id());
    session.close().await?;

    // A snapshot by hand; usually the node knows when.
    let snapshot = nodes[leader].snapshot_now().await?;
    println!("a snapshot stands for the log up to {}", snapshot.last);

    // A fourth server: a learner first, a voter as soon as it has caught up.
    let address = free_address()?;
    let add = Change::AddLearner {
        address: address.as_str().into(),
        context: Bytes::new(),
        auto_promote: true,
    };
    nodes[leader].change_membership(ChangeSet::one(add)).await?;
    let peers = first.iter().map(|(_, address)| address.clone());
    let fourth = Raft::joiner(Journal::default()).listen(address).join(peers);
    let fourth = describe(fourth, &dir.path().join("fourth")).start().await?;
    let mut status = nodes[leader].watch_status().await?;
    status.wait_for(|status| status.membership.voters().count() == 4).await?;
    println!("{} is a voter now", fourth.identity().id);

    // The leader steps aside, in favour of whoever is best prepared.
    let next = nodes[leader].transfer_leadership(None).await?;
    let gone = Change::Remove(nodes[leader].identity().id);
    let membership = fourth.change_membership(ChangeSet::one(gone)).await?;
    println!("{next} leads, and {} members are left", membership.members.len());

    let lines = fourth.read(|journal| journal.0.clone()).await?;
    println!("the fourth has it all: {lines:?}");
    Ok(())
}

async fn leader(nodes: &[Raft<Journal>]) -> usize {
    loop {
        let at = nodes.iter().position(|node| node.watch().borrow().role == Role::Leader);
        if let Some(at) = at {
            return at;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn free_address() -> io::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
