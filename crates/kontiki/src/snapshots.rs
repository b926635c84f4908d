//! Snapshots of the state machine: what their stream holds, who writes it, and who reads it back.
//!
//! ```text
//!   length │ sessions │ state …        `length` of the sessions: 8 bytes, little-endian;
//!                                      0 when this cluster keeps none
//! ```
//!
//! The state machine freezes a view on its own thread, which is quick; the view is written to a
//! file on another, while commands are applied on. A file counts only when it is whole and
//! durable.

use std::{
    fmt,
    io::{self, BufWriter, Read, Write},
    sync::{Arc, mpsc::Receiver},
};

use kontiki_raft::{Bytes, EntryId, Index, SnapshotMeta};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    SessionLimits, SessionResponse, SessionStep, SessionTable, SnapshotStore, SnapshotWriter,
    StateMachine,
};

/// The snapshot files of a node, as it writes and reads them itself.
pub(crate) trait SnapshotFiles: SnapshotStore {
    /// The newest one that is whole.
    fn newest(&self) -> Option<SnapshotMeta>;

    /// The newest of those that are usable and intact, which is all read for that. Those that
    /// are not usable are removed. Asked once, at the start.
    fn recover(
        &self,
        is_usable: &mut dyn FnMut(&SnapshotMeta) -> bool,
    ) -> io::Result<Option<SnapshotMeta>>;

    /// The log is durable up to here. What was received and is behind that is not removed, nor
    /// what the log needs as it is.
    fn settle(&self, durable: Index);

    /// Starts to write one. It counts when it is finished; dropped before, it leaves nothing.
    fn create(&self, meta: &SnapshotMeta) -> io::Result<Box<dyn SnapshotFile>>;

    /// The one that ends at `last`, which stays readable for as long as that is kept.
    fn open(&self, last: EntryId) -> io::Result<Kept>;
}

/// A snapshot that can be read from its beginning, as often as need be. Every byte is checked.
pub(crate) type Kept = Box<dyn Fn() -> Box<dyn Read + Send> + Send>;

/// A snapshot file that is being written.
pub(crate) trait SnapshotFile: Write + Send {
    /// Makes it durable under its name.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// Client sessions of a state machine, and how its responses are kept.
pub(crate) struct Sessions<R> {
    pub(crate) table: SessionTable,
    codec: SessionCodec<R>,
}

/// How the responses of a state machine become bytes, and come back.
pub(crate) struct SessionCodec<R> {
    to_bytes: fn(&R) -> Bytes,
    from_bytes: fn(&Bytes) -> Option<R>,
}

impl<R> Clone for SessionCodec<R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<R> Copy for SessionCodec<R> {}

impl<R: SessionResponse> SessionCodec<R> {
    pub(crate) fn new() -> Self {
        Self { to_bytes: R::to_bytes, from_bytes: R::from_bytes }
    }
}

impl<R> Sessions<R> {
    pub(crate) fn new(codec: SessionCodec<R>) -> Self {
        Self { table: SessionTable::new(SessionLimits::default()), codec }
    }

    pub(crate) fn step(&mut self, at: EntryId, content: &Bytes) -> SessionStep {
        self.table.step(at.index, content)
    }

    /// What the state machine said to a fresh command.
    pub(crate) fn record(&mut self, session: crate::SessionId, sequence: u64, response: &R) {
        self.table.record(session, sequence, (self.codec.to_bytes)(response));
    }

    /// The response that was kept as `bytes`.
    pub(crate) fn response(&self, bytes: &Bytes) -> Option<R> {
        (self.codec.from_bytes)(bytes)
    }
}

/// A frozen state and what goes with it, to be written to a file.
pub(crate) struct Frozen<W> {
    pub(crate) meta: SnapshotMeta,
    /// The table of sessions, encoded. Empty if there is none.
    pub(crate) sessions: Vec<u8>,
    pub(crate) state: W,
}

/// What came of a snapshot that was asked for.
#[derive(Debug)]
pub(crate) struct SnapshotEvent {
    pub(crate) result: Result<SnapshotMeta, io::Error>,
}

/// Writes snapshots until there is nobody left to ask.
pub(crate) fn run_snapshots<W, E>(
    files: &Arc<dyn SnapshotFiles>,
    jobs: &Receiver<Frozen<W>>,
    events: &UnboundedSender<E>,
) where
    W: SnapshotWriter,
    E: From<SnapshotEvent>,
{
    while let Ok(frozen) = jobs.recv() {
        let meta = frozen.meta.clone();
        let result = write(&**files, frozen).map(|()| meta);
        if events.send(E::from(SnapshotEvent { result })).is_err() {
            return;
        }
    }
}

fn write<W: SnapshotWriter>(files: &dyn SnapshotFiles, frozen: Frozen<W>) -> io::Result<()> {
    let mut file = files.create(&frozen.meta)?;
    let mut buffered = BufWriter::with_capacity(WRITE_BYTES, &mut file);
    let sessions_bytes = u64::try_from(frozen.sessions.len()).map_err(io::Error::other)?;
    buffered.write_all(&sessions_bytes.to_le_bytes())?;
    buffered.write_all(&frozen.sessions)?;
    frozen.state.write_to(&mut buffered)?;
    buffered.flush()?;
    drop(buffered);
    file.finish()
}

/// State machines write small pieces; files take large ones.
const WRITE_BYTES: usize = 64 << 10;

/// Replaces the state of `machine`, and of its sessions, by that of a snapshot.
pub(crate) fn restore<S: StateMachine>(
    machine: &mut S,
    sessions: Option<&mut Sessions<S::Response>>,
    snapshot: &Kept,
    meta: &SnapshotMeta,
) -> io::Result<()> {
    let mut stream = snapshot();
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let mut encoded = Vec::new();
    (&mut stream).take(length).read_to_end(&mut encoded)?;
    if u64::try_from(encoded.len()).ok() != Some(length) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let table = match &sessions {
        None if encoded.is_empty() => None,
        None => return Err(invalid("the snapshot holds client sessions, and they are off here")),
        Some(_) if encoded.is_empty() => Some(SessionTable::new(SessionLimits::default())),
        Some(_) => Some(
            SessionTable::decode(&encoded, SessionLimits::default())
                .ok_or_else(|| invalid("the snapshot holds no table of client sessions"))?,
        ),
    };
    machine.restore(meta.last, &mut stream)?;
    if let (Some(sessions), Some(table)) = (sessions, table) {
        sessions.table = table;
    }
    machine.membership_changed(meta.last, &meta.membership);
    Ok(())
}

/// Whether there was no room to write, so that to try again may help.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R> fmt::Debug for Sessions<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("table", &self.table).finish_non_exhaustive()
    }
}

impl<W> fmt::Debug for Frozen<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frozen").field("meta", &self.meta).finish_non_exhaustive()
    }
}
