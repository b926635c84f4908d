//! How messages reach other nodes: the traits that a transport implements, and what it is given.
//!
//! Messages may be lost, late, repeated or overtaken. They must not be altered, and must not
//! reach a node that they are not for.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
};

use kontiki_log::{KnownPeers, PeerError};
use kontiki_raft::{
    Body, Change, Entry, EntryId, Envelope, Membership, Message, NodeId, Proposal, Session,
    SnapshotMeta, StoreId,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

mod snapshots;

pub use snapshots::{
    CHUNK_BYTES_MAX, Reception, SnapshotOffer, SnapshotSink, SnapshotSource, SnapshotStore,
    SnapshotTransfer,
};

use crate::{BoxFuture, Fault, error::with_causes};

/// A way to reach other nodes. Plugged in with
/// [`Builder::transport`](crate::Builder::transport).
pub trait Transport: fmt::Debug + Send + 'static {
    /// Starts to listen and to connect. Called on the runtime that the node runs on.
    ///
    /// Cancel safety: what was started is stopped again.
    fn start(
        self: Box<Self>,
        local: Local,
        inbox: Inbox,
    ) -> BoxFuture<'static, io::Result<Box<dyn Links>>>;
}

/// A transport at work.
pub trait Links: fmt::Debug + Send + 'static {
    /// Sends a message, or drops it and tells [`Inbox::unreachable`], and [`Inbox::not_sent`] if
    /// it is certain that it was not sent. Never blocks.
    fn send(&mut self, envelope: Envelope);

    /// The membership in force has changed to this: whom to connect to, and where. Never blocks.
    fn set_members(&mut self, membership: &Arc<Membership>);

    /// Starts to send a snapshot of [`Local::snapshots`], beside all messages. For each call
    /// [`Inbox::snapshot_sent`] is told once how it ended. Another one to the same peer takes
    /// the place of the first. Never blocks.
    fn send_snapshot(&mut self, transfer: SnapshotTransfer);

    /// Ends the transfer of this session, if it has not ended yet. Never blocks.
    fn cancel_snapshot(&mut self, to: NodeId, session: Session);

    /// What waits to be sent to each peer, for whoever measures. Asked once a second; a transport
    /// that does not know says nothing.
    fn backlogs(&self) -> Vec<PeerBacklog> {
        Vec::new()
    }

    /// Stops everything that was started. When the future is done nothing is left.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// What waits to be sent to one peer, and was not taken to be written to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerBacklog {
    /// Which peer.
    pub peer: NodeId,
    /// Messages of [`Lane::Control`].
    pub control: Backlog,
    /// Messages of [`Lane::Append`].
    pub append: Backlog,
    /// Chunks of a snapshot that it has not written yet.
    pub snapshot: Backlog,
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// How many messages or chunks.
    pub count: u64,
    /// What they take, about.
    pub bytes: u64,
}

/// Who this node is, for those who want to be sure.
#[derive(Clone, Debug)]
pub struct Local {
    /// Its id.
    pub id: NodeId,
    /// Its cluster: nodes of another one are refused.
    pub cluster: u64,
    /// Its data directory.
    pub store: StoreId,
    /// Where it listens.
    pub listen: String,
    /// Everyone, with addresses, until [`Links::set_members`] says otherwise.
    pub membership: Arc<Membership>,
    /// The data directories of its peers.
    pub known_stores: Arc<KnownStores>,
    /// Where snapshots are read and written. Without it none is sent or received.
    pub snapshots: Option<Arc<dyn SnapshotStore>>,
    /// No message is larger than this, encoded.
    pub message_bytes_max: usize,
}

/// The data directories that the peers were seen with: one that comes back with another was
/// wiped, and has forgotten what it promised (pitfall M7).
#[derive(Debug)]
pub struct KnownStores(Mutex<Registry>);

#[derive(Debug)]
enum Registry {
    File(KnownPeers),
    Memory(BTreeMap<NodeId, StoreId>),
}

/// What [`KnownStores::check`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a transport that overlooks one must not compile")]
pub enum StoreCheck {
    /// The peer has the data directory that it always had, or was not seen before.
    Same,
    /// It had another one before.
    Changed {
        /// Which.
        known: StoreId,
    },
    /// It was not seen before, and cannot be remembered: the disk refuses.
    Unrecorded,
}

impl KnownStores {
    /// Remembered in a file, over restarts.
    #[must_use]
    pub fn in_file(peers: KnownPeers) -> Self {
        Self(Mutex::new(Registry::File(peers)))
    }

    /// Remembered until this process ends, for nodes without a data directory.
    #[must_use]
    pub fn in_memory() -> Self {
        Self(Mutex::new(Registry::Memory(BTreeMap::new())))
    }

    /// The data directory that `id` was seen with first, if it is remembered.
    #[must_use]
    pub fn known(&self, id: NodeId) -> Option<StoreId> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Registry::File(peers) => peers.store(id),
            Registry::Memory(stores) => stores.get(&id).copied(),
        }
    }

    /// Whether `id` may come with the data directory `found`. Remembers a peer that is seen for
    /// the first time, durably before this returns: so it may block.
    #[must_use]
    pub fn check(&self, id: NodeId, found: StoreId) -> StoreCheck {
        // A change that panicked half-way has remembered nothing yet.
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Registry::File(peers) => match peers.check_or_remember(id, found) {
                Ok(()) => StoreCheck::Same,
                Err(PeerError::StoreChanged(changed)) => {
                    StoreCheck::Changed { known: changed.known }
                }
                Err(error) => {
                    tracing::error!(peer = %id, error = with_causes(&error), "cannot remember a peer");
                    StoreCheck::Unrecorded
                }
            },
            Registry::Memory(stores) => match *stores.entry(id).or_insert(found) {
                known if known == found => StoreCheck::Same,
                known => StoreCheck::Changed { known },
            },
        }
    }
}

/// The part of a message's way that is kept apart from the other, so that what is urgent never
/// waits behind what is large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a transport has a queue for each")]
pub enum Lane {
    /// Heartbeats, votes, acknowledgements, read indexes, answers to what was passed on: small,
    /// and late ones cost leaders, or leave clients without an outcome. Of answers to proposals a
    /// copy goes by the other lane, too: ahead of what commits the entry, wherever that goes.
    Control,
    /// Entries and proposals.
    Append,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Control, Self::Append];

    /// The lane of a message.
    #[must_use]
    pub fn of(message: &Message) -> Self {
        if message.is_bulk() { Self::Append } else { Self::Control }
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Control => "control",
            Self::Append => "append",
        })
    }
}

/// What a message takes of every bound, in bytes. About its encoded size.
#[must_use]
pub fn message_bytes(message: &Message) -> usize {
    const HEAD_BYTES: usize = 128;
    let body = match &message.body {
        Body::AppendEntries(append) => append.entries.iter().map(Entry::byte_len).sum(),
        Body::Propose(proposals) => {
            proposals.iter().map(|proposal: &Proposal| 16 + proposal.command.len()).sum()
        }
        Body::ChangeMembership { change, .. } => change.changes.iter().map(change_bytes).sum(),
        Body::ProposeReply(replies) => 32 * replies.len(),
        Body::RequestVote(_)
        | Body::RequestVoteReply(_)
        | Body::AppendEntriesReply(_)
        | Body::TimeoutNow { .. }
        | Body::ReadIndex { .. }
        | Body::ReadIndexReply { .. } => 0,
    };
    HEAD_BYTES + body
}

fn change_bytes(change: &Change) -> usize {
    const HEAD_BYTES: usize = 32;
    let body = match change {
        Change::AddLearner { address, context, .. }
        | Change::Replace { address, context, .. }
        | Change::Update { address, context, .. } => address.len() + context.len(),
        Change::Promote(_) | Change::Demote(_) | Change::Remove(_) => 0,
    };
    HEAD_BYTES + body
}

/// Where a transport puts what arrives.
#[derive(Clone, Debug)]
pub struct Inbox {
    control: mpsc::Sender<Delivery>,
    append: mpsc::Sender<Delivery>,
    append_bytes: Arc<Semaphore>,
    notices: mpsc::UnboundedSender<Notice>,
}

/// A message that has arrived, and the room that it takes in the inbox.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) from: NodeId,
    pub(crate) message: Message,
    /// Given back when this is dropped.
    pub(crate) _room: Option<OwnedSemaphorePermit>,
}

/// What a transport has to say beside messages.
#[derive(Debug)]
pub(crate) enum Notice {
    Unreachable(NodeId),
    NotSent(Envelope),
    Fault(Fault),
    SnapshotReceived { from: NodeId, meta: SnapshotMeta },
    SnapshotSent { to: NodeId, session: Session, sent: Option<EntryId> },
    PeerStore { id: NodeId, store: StoreId },
}

/// The node's end of an [`Inbox`].
#[derive(Debug)]
pub(crate) struct Outlet {
    pub(crate) control: mpsc::Receiver<Delivery>,
    pub(crate) append: mpsc::Receiver<Delivery>,
    pub(crate) notices: mpsc::UnboundedReceiver<Notice>,
}

/// Messages of the control lane that wait for the node. They are small: a megabyte at most.
const CONTROL_MAX: usize = 4096;
/// Messages of the append lane that wait for the node, beside the bound in bytes.
const APPEND_MAX: usize = 4096;
/// Bytes of the append lane that wait for the node: room for two full windows.
const APPEND_BYTES_MAX: u32 = 32 << 20;

impl Inbox {
    pub(crate) fn new() -> (Self, Outlet) {
        let (control, control_outlet) = mpsc::channel(CONTROL_MAX);
        let (append, append_outlet) = mpsc::channel(APPEND_MAX);
        let (notices, notices_outlet) = mpsc::unbounded_channel();
        let bytes = usize::try_from(APPEND_BYTES_MAX).expect("32 MiB fit in a usize");
        let inbox =
            Self { control, append, append_bytes: Arc::new(Semaphore::new(bytes)), notices };
        let outlet =
            Outlet { control: control_outlet, append: append_outlet, notices: notices_outlet };
        (inbox, outlet)
    }

    /// Hands a message to the node. Waits while the node has too much to do: that is how
    /// back-pressure reaches the sender.
    ///
    /// Cancel safety: when the future is dropped the message is not delivered.
    ///
    /// # Errors
    ///
    /// When the node has stopped.
    pub async fn deliver(&self, from: NodeId, message: Message) -> Result<(), Closed> {
        let (lane, room) = match Lane::of(&message) {
            Lane::Control => (&self.control, None),
            Lane::Append => {
                let bytes = u32::try_from(message_bytes(&message)).unwrap_or(u32::MAX);
                let room = Arc::clone(&self.append_bytes)
                    .acquire_many_owned(bytes.min(APPEND_BYTES_MAX))
                    .await
                    .map_err(|_| Closed)?;
                (&self.append, Some(room))
            }
        };
        lane.send(Delivery { from, message, _room: room }).await.map_err(|_| Closed)
    }

    /// A connection to this peer broke, or a message to it was dropped. A hint: the protocol
    /// sends again sooner than it would otherwise.
    pub fn unreachable(&self, id: NodeId) {
        // A node that has stopped has no use for the hint.
        drop(self.notices.send(Notice::Unreachable(id)));
    }

    /// This message was certainly not sent to this peer, and will not be. What was passed on to the
    /// leader for a client can then be tried again, instead of being unknown when it is not
    /// answered. Other messages are repeated anyway, and need not be spoken of.
    pub fn not_sent(&self, to: NodeId, message: Message) {
        if matches!(message.body, Body::Propose(_) | Body::ChangeMembership { .. }) {
            // A node that has stopped has answered its clients.
            drop(self.notices.send(Notice::NotSent(Envelope { to, message })));
        }
    }

    /// A peer knows this node by another data directory. The node stops.
    pub fn refused(&self, fault: Fault) {
        // A node that has stopped cannot stop again.
        drop(self.notices.send(Notice::Fault(fault)));
    }

    /// A snapshot from this peer is whole, verified and durable in [`Local::snapshots`].
    pub fn snapshot_received(&self, from: NodeId, meta: SnapshotMeta) {
        // A node that has stopped finds it when it starts again.
        drop(self.notices.send(Notice::SnapshotReceived { from, meta }));
    }

    /// The transfer of this session has ended: `sent` is the last entry of the snapshot if the
    /// peer has all of it, durably.
    pub fn snapshot_sent(&self, to: NodeId, session: Session, sent: Option<EntryId>) {
        // A node that has stopped sends nothing any more.
        drop(self.notices.send(Notice::SnapshotSent { to, session, sent }));
    }

    /// A peer was met with this data directory. Told for each new connection, until the
    /// membership says which one it is.
    pub fn peer_store(&self, id: NodeId, store: StoreId) {
        // A node that has stopped binds nothing.
        drop(self.notices.send(Notice::PeerStore { id, store }));
    }
}

/// The node has stopped: there is nobody to deliver to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node has stopped")]
pub struct Closed;
