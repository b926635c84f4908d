//! A replicated counter. Start it three times, as `counter 1`, `counter 2` and `counter 3`: each
//! adds one every second. Kill any of them with `kill -9` and start it again: the count goes on.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{env, error::Error, io, time::Duration};

use kontiki::{Command, EntryId, Raft, StateMachine};

#[derive(Default)]
struct Counter(u64);

impl StateMachine for Counter {
    type Response = u64;
    type Snapshot = Vec<u8>;

    fn apply(&mut self, command: Command<'_>) -> u64 {
        let step = command.data[..].try_into().map_or(0, u64::from_le_bytes);
        self.0 = self.0.wrapping_add(step);
        self.0
    }

    fn snapshot(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.0.to_string().into_bytes())
    }

    fn restore(&mut self, _: EntryId, from: &mut dyn io::Read) -> io::Result<()> {
        self.0 = io::read_to_string(from)?.parse().map_err(io::Error::other)?;
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let id: u64 = env::args().nth(1).ok_or("usage: counter 1|2|3 [PORT]")?.parse()?;
    let port: u64 = env::args().nth(2).map_or(Ok(7000), |port| port.parse())?;

    let raft = Raft::builder(id, Counter::default())
        .data_dir(format!("counter-data/{id}"))
        .bootstrap([1, 2, 3].map(|id| (id, format!("127.0.0.1:{}", port + id))))
        .start()
        .await?;
    loop {
        match raft.propose(1u64.to_le_bytes().to_vec()).await {
            Ok(applied) => println!("{} (entry {})", applied.response, applied.at),
            Err(error) => println!("{error}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
