//! Three nodes in one process. Three times over, the leader is killed; you see who takes over,
//! what the two that are left can still do, and that the third has it all when it is back.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{error::Error, io, net::TcpListener, path::Path, time::Duration};

use kontiki::{Command, EntryId, LogOptions, Raft, Role, StateMachine};

/// Remembers who said what.
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

type Node = Raft<Journal>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let members = [(1, free_address()?), (2, free_address()?), (3, free_address()?)];
    let mut nodes = Vec::new();
    for (id, _) in &members {
        nodes.push(start(*id, dir.path(), &members).await?);
    }

    for round in 1..=3 {
        let at = leader(&nodes).await;
        let old = nodes.swap_remove(at);
        let id = old.identity().id;
        println!("round {round}: {id} leads term {}, and is killed", old.watch().borrow().term);
        drop(old); // no good-bye: the others have to notice

        let at = leader(&nodes).await;
        let new = nodes[at].identity().id;
        let term = nodes[at].watch().borrow().term;
        let line = nodes[at].propose(format!("round {round}: {new} took over")).await?.response;
        println!("         {new} leads term {term} and has written line {line}");

        let back = restart(id.get(), dir.path(), &members).await?;
        let lines = back.read(|journal| journal.0.len()).await?;
        println!("         {id} is back and has {lines} lines");
        nodes.push(back);
    }
    let journal = nodes[0].read(|journal| journal.0.clone()).await?;
    println!("all of it: {journal:?}");
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(())
}

async fn start(
    id: u64,
    dir: &Path,
    members: &[(u64, String)],
) -> Result<Node, kontiki::StartError> {
    Raft::builder(id, Journal::default())
        .data_dir(dir.join(id.to_string()))
        .bootstrap(members.iter().cloned())
        .log_options(LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() })
        .start()
        .await
}

/// The earlier life of the node may need a moment to let go of its directory.
async fn restart(id: u64, dir: &Path, members: &[(u64, String)]) -> Result<Node, Box<dyn Error>> {
    for _ in 0..100 {
        if let Ok(node) = start(id, dir, members).await {
            return Ok(node);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(start(id, dir, members).await?)
}

async fn leader(nodes: &[Node]) -> usize {
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
