//! A log of one's own: the whole trait, over a vector. Such a node forgets its promises when it
//! stops, so this is for a cluster of one, or for showing how little a log has to do.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::{
    error::Error,
    io,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
};

use kontiki::{
    Command, Entry, EntryId, Identity, IdentityRequest, Index, LogFailure, LogReader, LogStore,
    LogWriter, OpenedLog, Raft, Recovered, StateMachine, WriteBatch,
};

/// Entry number `i` stands at position `i - 1`.
#[derive(Clone, Debug, Default)]
struct VecLog(Arc<Mutex<Vec<Entry>>>);

impl LogStore for VecLog {
    fn open(self: Box<Self>, request: &IdentityRequest) -> Result<OpenedLog, LogFailure> {
        let genesis = Arc::new(request.genesis.clone());
        let recovered = Recovered {
            memberships: vec![(EntryId::ZERO, genesis)],
            is_pristine: true,
            ..Recovered::default()
        };
        let identity = Identity {
            cluster: request.cluster,
            node: request.node,
            store: request.new_store,
            genesis: request.genesis.clone(),
        };
        let reader = Arc::new((*self).clone());
        Ok(OpenedLog { identity, recovered, writer: self, reader, upkeep: None })
    }
}

impl LogWriter for VecLog {
    fn write(&mut self, batches: &[WriteBatch]) -> Result<(), LogFailure> {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for batch in batches {
            // The hard state in the batch belongs on a disk; there is none here.
            for entry in &batch.entries {
                log.truncate(usize::try_from(entry.id.index.prev().get())?);
                log.push(entry.clone());
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogFailure> {
        Ok(())
    }

    fn purge(&mut self, _upto: EntryId) -> Result<EntryId, LogFailure> {
        Ok(EntryId::ZERO)
    }
}

impl LogReader for VecLog {
    fn read(&self, range: RangeInclusive<Index>, _: usize) -> Result<Vec<Entry>, LogFailure> {
        let first = usize::try_from(range.start().prev().get())?;
        let last = usize::try_from(range.end().get())?;
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(log.get(first..last).ok_or("not in the log")?.to_vec())
    }
}

#[derive(Default)]
struct Sum(u64);

impl StateMachine for Sum {
    type Response = u64;
    type Snapshot = Vec<u8>;

    fn apply(&mut self, command: Command<'_>) -> u64 {
        self.0 += command.data.len() as u64;
        self.0
    }

    fn snapshot(&mut self) -> io::Result<Vec<u8>> {
        Ok(self.0.to_le_bytes().to_vec())
    }

    fn restore(&mut self, _: EntryId, from: &mut dyn io::Read) -> io::Result<()> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes)?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let raft = Raft::builder(1, Sum::default())
        .log_store(VecLog::default())
        .bootstrap([(1, "127.0.0.1:0")])
        .start()
        .await?;
    for word in ["a", "log", "of", "one's", "own"] {
        let applied = raft.propose(word).await?;
        println!("entry {}: {} bytes so far", applied.at, applied.response);
    }
    raft.shutdown().await?;
    Ok(())
}
