//! Snapshots in memory with chunks of a few bytes, and a cable between two nodes that can be cut
//! and that can damage what goes over it.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use kontiki_raft::{EntryId, Index, Membership, SnapshotMeta, Term};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{Bytes, Reception, SnapshotOffer, SnapshotSink, SnapshotSource, SnapshotStore};

/// Bytes of a chunk.
pub(super) const CHUNK_BYTES: usize = 5;

/// The snapshots of one node. Cloned: the same ones, as another process would find them.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<State>);

#[derive(Debug, Default)]
struct State {
    whole: Mutex<BTreeMap<Index, (SnapshotOffer, Vec<u8>)>>,
    partial: Mutex<Option<(SnapshotOffer, Vec<u8>)>>,
    /// The numbers of all chunks that were read, in order.
    read: Mutex<Vec<u64>>,
    put_count: AtomicU64,
    /// The next chunk that is put is found to be damaged.
    is_next_damaged: AtomicBool,
    /// Chunks that may be put before the disk is full.
    room: Mutex<Option<u64>>,
    sinks: AtomicU64,
    is_held: Mutex<bool>,
    is_let_go: Condvar,
}

/// While this is there no chunk is written.
#[derive(Debug)]
pub(super) struct Hold(Arc<State>);

impl Drop for Hold {
    fn drop(&mut self) {
        *self.0.is_held.lock().unwrap() = false;
        self.0.is_let_go.notify_all();
    }
}

pub(super) fn snapshot(index: u64, membership: &Arc<Membership>, content: &[u8]) -> SnapshotOffer {
    snapshot_in_chunks(index, membership, content, CHUNK_BYTES)
}

pub(super) fn snapshot_in_chunks(
    index: u64,
    membership: &Arc<Membership>,
    content: &[u8],
    chunk_bytes: usize,
) -> SnapshotOffer {
    let last = EntryId { index: Index(index), term: Term(1) };
    SnapshotOffer {
        meta: SnapshotMeta { last, membership: Arc::clone(membership) },
        bytes: content.len() as u64,
        chunk_count: content.len().div_ceil(chunk_bytes) as u64,
        checksum: crc32c::crc32c(content),
    }
}

/// All chunks but the last are as long.
fn chunk_bytes(offer: &SnapshotOffer) -> usize {
    usize::try_from(offer.bytes.div_ceil(offer.chunk_count)).unwrap()
}

impl Memory {
    /// The next chunk is not written before the hold is dropped.
    pub(super) fn hold(&self) -> Hold {
        *self.0.is_held.lock().unwrap() = true;
        Hold(Arc::clone(&self.0))
    }

    pub(super) fn add(&self, offer: &SnapshotOffer, content: &[u8]) {
        let whole = (offer.clone(), content.to_vec());
        self.0.whole.lock().unwrap().insert(offer.meta.last.index, whole);
    }

    pub(super) fn content(&self, last: EntryId) -> Option<Vec<u8>> {
        self.0.whole.lock().unwrap().get(&last.index).map(|(_, content)| content.clone())
    }

    pub(super) fn chunks_read(&self) -> Vec<u64> {
        self.0.read.lock().unwrap().clone()
    }

    pub(super) fn put_count(&self) -> u64 {
        self.0.put_count.load(Ordering::Relaxed)
    }

    pub(super) fn damage_next(&self) {
        self.0.is_next_damaged.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_room(&self, chunks: Option<u64>) {
        *self.0.room.lock().unwrap() = chunks;
    }
}

impl SnapshotStore for Memory {
    fn source(&self, last: EntryId) -> io::Result<Box<dyn SnapshotSource>> {
        let whole = self.0.whole.lock().unwrap();
        let (offer, content) = whole.get(&last.index).ok_or(io::ErrorKind::NotFound)?.clone();
        Ok(Box::new(Source { state: Arc::clone(&self.0), offer, content }))
    }

    fn receive(&self, offer: &SnapshotOffer) -> io::Result<Reception> {
        if self.0.whole.lock().unwrap().contains_key(&offer.meta.last.index) {
            return Ok(Reception::Here);
        }
        let mut partial = self.0.partial.lock().unwrap();
        if partial.as_ref().is_none_or(|(other, _)| other != offer) {
            *partial = Some((offer.clone(), Vec::new()));
        }
        assert_eq!(self.0.sinks.fetch_add(1, Ordering::Relaxed), 0, "two sinks at a time");
        Ok(Reception::Wanted(Box::new(Sink(Arc::clone(&self.0)))))
    }
}

#[derive(Debug)]
struct Source {
    state: Arc<State>,
    offer: SnapshotOffer,
    content: Vec<u8>,
}

impl SnapshotSource for Source {
    fn offer(&self) -> &SnapshotOffer {
        &self.offer
    }

    fn chunk(&mut self, number: u64) -> io::Result<Bytes> {
        self.state.read.lock().unwrap().push(number);
        let mut chunks = self.content.chunks(chunk_bytes(&self.offer));
        let chunk = chunks.nth(usize::try_from(number).unwrap()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Bytes::copy_from_slice(chunk))
    }
}

#[derive(Debug)]
struct Sink(Arc<State>);

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.sinks.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SnapshotSink for Sink {
    fn next_chunk(&self) -> u64 {
        let partial = self.0.partial.lock().unwrap();
        let (offer, content) = partial.as_ref().unwrap();
        content.len().div_ceil(chunk_bytes(offer)) as u64
    }

    fn put(&mut self, number: u64, chunk: &[u8]) -> io::Result<()> {
        assert_eq!(number, self.next_chunk());
        if self.0.is_next_damaged.swap(false, Ordering::Relaxed) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let held = self.0.is_held.lock().unwrap();
        drop(self.0.is_let_go.wait_while(held, |is_held| *is_held).unwrap());
        match &mut *self.0.room.lock().unwrap() {
            Some(0) => return Err(io::ErrorKind::StorageFull.into()),
            Some(room) => *room -= 1,
            None => {}
        }
        self.0.put_count.fetch_add(1, Ordering::Relaxed);
        self.0.partial.lock().unwrap().as_mut().unwrap().1.extend_from_slice(chunk);
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        let (offer, content) = self.0.partial.lock().unwrap().take().unwrap();
        if crc32c::crc32c(&content) != offer.checksum {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.0.whole.lock().unwrap().insert(offer.meta.last.index, (offer, content));
        Ok(())
    }
}

/// Forwards connections to a node. What flows towards it can be cut or damaged on the way.
#[derive(Debug)]
pub(super) struct Cable {
    pub(super) address: String,
    faults: Arc<Faults>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Faults {
    /// Where the node is that this leads to.
    target: Mutex<String>,
    /// Frames that carry a chunk are let through until this many have passed on a connection.
    cut_after: Mutex<Option<u64>>,
    /// The chunk with this number is damaged, once.
    damaged: Mutex<Option<u64>>,
    cuts: AtomicU64,
    /// What came back from the node, on all connections.
    answered_bytes: AtomicU64,
}

impl Cable {
    pub(super) async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let faults =
            Arc::new(Faults { target: Mutex::new(target.to_owned()), ..Faults::default() });
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&faults);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (inlet, _) = listener.accept().await.unwrap();
                let target = shared.target.lock().unwrap().clone();
                let Ok(outlet) = TcpStream::connect(target).await else { continue };
                // What is said is passed on at once, and not when more has been said.
                inlet.set_nodelay(true).unwrap();
                outlet.set_nodelay(true).unwrap();
                connections.spawn(forward(inlet, outlet, Arc::clone(&shared)));
            }
        });
        Self { address, faults, _tasks: tasks }
    }

    pub(super) fn lead_to(&self, target: &str) {
        target.clone_into(&mut self.faults.target.lock().unwrap());
    }

    /// Every connection is cut when it has carried this many chunks.
    pub(super) fn cut_after(&self, chunks: Option<u64>) {
        *self.faults.cut_after.lock().unwrap() = chunks;
    }

    pub(super) fn damage(&self, number: u64) {
        *self.faults.damaged.lock().unwrap() = Some(number);
    }

    pub(super) fn answered_bytes(&self) -> u64 {
        self.faults.answered_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn cuts(&self) -> u64 {
        self.faults.cuts.load(Ordering::Relaxed)
    }
}

/// A frame of a chunk with a number below 128, of [`CHUNK_BYTES`].
const CHUNK_FRAME_BYTES: usize = 8 + 3 + CHUNK_BYTES;

async fn forward(mut inlet: TcpStream, mut outlet: TcpStream, faults: Arc<Faults>) {
    let ((mut from, mut back), (mut answers, mut to)) = (inlet.split(), outlet.split());
    let there = async {
        let mut chunks = 0;
        loop {
            let mut header = [0; 8];
            from.read_exact(&mut header).await?;
            let length = u32::from_le_bytes(header[..4].try_into().unwrap());
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            from.read_exact(&mut payload).await?;
            let is_chunk = 8 + payload.len() == CHUNK_FRAME_BYTES && payload[0] == 1;
            if is_chunk {
                let number = u64::from(payload[1]);
                faults
                    .damaged
                    .lock()
                    .unwrap()
                    .take_if(|damaged| *damaged == number)
                    .is_some()
                    .then(|| payload[5] ^= 0x40);
                if faults.cut_after.lock().unwrap().is_some_and(|most| most <= chunks) {
                    faults.cuts.fetch_add(1, Ordering::Relaxed);
                    return Err(io::Error::from(io::ErrorKind::ConnectionReset));
                }
                chunks += 1;
            }
            to.write_all(&header).await?;
            to.write_all(&payload).await?;
        }
    };
    let here = async {
        let mut bytes = [0; 4096];
        loop {
            let count = answers.read(&mut bytes).await?;
            if count == 0 {
                return Ok(());
            }
            back.write_all(&bytes[..count]).await?;
            faults.answered_bytes.fetch_add(count as u64, Ordering::Relaxed);
        }
    };
    let end: io::Result<()> = tokio::select! {
        end = there => end,
        end = here => end,
    };
    drop(end); // both sides see that it has ended
}
