//! What can go wrong, one type for each operation and one variant for each thing that a caller
//! would do about it.
//!
//! What a request is answered with tells its reason itself, for it is printed a line at a time.
//! [`StartError`] and [`Fault`], which end something, have sources: [`with_causes`] tells all.

use std::{error::Error, io, path::PathBuf, sync::Arc};

use kontiki_raft::{EntryId, Index, NodeId, Rejection, RestoreError, StoreId};

use crate::DiscoverError;

/// A failure of a log. Which one it is depends on the log that is plugged in; the default one
/// fails with [`kontiki_log::LogError`].
pub type LogFailure = Box<dyn Error + Send + Sync>;

/// Why a node has stopped. All its handles say the same.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It was asked to, or all its handles were dropped.
    #[error("the node was shut down")]
    Shutdown,
    /// Its log failed. What is on the disk is not known any more, and to ask again proves
    /// nothing (pitfall D4): nothing was acknowledged since. Look after the disk, then start
    /// the node anew; it reads back what is there.
    #[error("the log of this node failed, so it has stopped; check the disk and start it anew")]
    Log(#[source] Arc<dyn Error + Send + Sync>),
    /// Its state machine failed to apply entries up to this one.
    #[error("the state machine failed to apply the log up to {upto}")]
    Machine {
        /// The last entry of the batch that failed.
        upto: EntryId,
        /// Why.
        source: Arc<io::Error>,
    },
    /// Its state machine failed to take the snapshot that the leader sent.
    #[error("the state machine failed to take the snapshot of {at}")]
    Restore {
        /// The last entry that the snapshot stands for.
        at: EntryId,
        /// Why.
        source: Arc<io::Error>,
    },
    /// The state machine did not answer each command of a batch once: a bug in its
    /// [`apply_batch`](crate::StateMachine::apply_batch).
    #[error("the state machine gave {responses} responses to {commands} commands")]
    ResponseCount {
        /// How many commands there were.
        commands: usize,
        /// How many responses came.
        responses: usize,
    },
    /// The log holds a command of a client session, and this node was not started with
    /// [`Builder::sessions`](crate::Builder::sessions) as the others were.
    #[error(
        "entry {at} belongs to a client session, and this node keeps none: start it with sessions"
    )]
    SessionsOff {
        /// Which entry.
        at: EntryId,
    },
    /// A response that was kept for a client session cannot be read back: a bug in its
    /// [`SessionResponse`](crate::SessionResponse).
    #[error("the response that was kept for the command of entry {at} cannot be read")]
    ResponseUnreadable {
        /// The entry that asked for it again.
        at: EntryId,
    },
    /// An entry was damaged between the log and the state machine: by the memory of this
    /// computer, most likely.
    #[error("entry {at} does not match its checksum; the memory of this computer is not sound")]
    DamagedEntry {
        /// Which entry.
        at: EntryId,
    },
    /// A peer knows this node under another data directory. The one it has is new or another's,
    /// so votes and acknowledgements that the cluster counts on are forgotten here.
    #[error(
        "{peer} knows this node by another data directory (store {known:016x}, here {ours:016x}): \
         its data was wiped or replaced, so it may have forgotten what it promised; start it \
         with its own data directory, or replace this member by a new one",
        known = known.get(),
        ours = ours.get()
    )]
    StoreChanged {
        /// Who refuses.
        peer: NodeId,
        /// The store that it remembers.
        known: StoreId,
        /// The store of this node.
        ours: StoreId,
    },
    /// A part of the node has panicked. Its message was printed by the panic.
    #[error("a part of this node has panicked: {part}")]
    Panicked {
        /// Which part.
        part: &'static str,
    },
}

/// Why a proposal has no response.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// It was certainly not appended. Safe to try again, here or elsewhere.
    #[error("the proposal was not taken: {0}")]
    Rejected(Rejection),
    /// It was appended, and another leader has put another entry into its place: certainly
    /// lost. Safe to try again.
    #[error("the proposal at {at} was replaced by another leader")]
    Superseded {
        /// Where it stood.
        at: EntryId,
    },
    /// It may or may not be applied, now or later. Only a read can tell; try again only what is
    /// safe to do twice (thesis §6.3).
    #[error("it is not known what became of the proposal")]
    Unknown {
        /// Where it stands, if that much is known.
        at: Option<EntryId>,
    },
    /// The node has stopped. What became of the proposal is not known.
    #[error("the node has stopped: {}", with_causes(.0))]
    Stopped(Fault),
}

/// Why a read was not served.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It could not be shown in time that the answer would be current. Safe to try again.
    #[error("the read was not served: {0}")]
    Rejected(Rejection),
    /// The node has stopped.
    #[error("the node has stopped: {}", with_causes(.0))]
    Stopped(Fault),
}

/// Why there is no snapshot.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The state machine could not be frozen, or the file not be written.
    #[error("the snapshot failed: {}", with_causes(.0))]
    Failed(Arc<io::Error>),
    /// The node has no data directory to keep it in.
    #[error("a node without a data directory keeps no snapshots")]
    Unsupported,
    /// Too much is on its way. Try again after a pause.
    #[error("too much is on its way")]
    Busy,
    /// The node has stopped.
    #[error("the node has stopped: {}", with_causes(.0))]
    Stopped(Fault),
}

/// What became of a command of a client session.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The node was started without [`Builder::sessions`](crate::Builder::sessions).
    #[error("client sessions are off on this node")]
    Off,
    /// It was certainly not applied: it never will be as it is.
    #[error("the command was not taken: {0}")]
    Rejected(Rejection),
    /// The session has expired: others were used more recently, and there is no room for all.
    /// The command was applied once or not at all.
    #[error("the session has expired; the command may have been applied before")]
    Expired,
    /// The session has gone on: it has the answer to this command, or has given it up. The
    /// command was applied once or not at all, and never will be later.
    #[error("the session has gone on; the command may have been applied before")]
    Answered,
    /// There was no answer in time. The command is applied once or not at all, now or later.
    #[error("it is not known what became of the command")]
    Unknown,
    /// The node has stopped. The command is applied once or not at all. Another node can be asked
    /// the same once more if it has a number: [`Raft::propose_numbered`](crate::Raft::propose_numbered).
    #[error("the node has stopped: {}", with_causes(.0))]
    Stopped(Fault),
}

/// Why a leadership was not handed over.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// This node does not lead.
    #[error("this node does not lead: {}", Rejection::NotLeader { leader: *.leader })]
    NotLeader {
        /// Who does, as far as it knows.
        leader: Option<NodeId>,
    },
    /// The target did not take over in time. This node goes on to lead if it can.
    #[error("the target did not take over in time")]
    TimedOut,
    /// The node has stopped.
    #[error("the node has stopped: {}", with_causes(.0))]
    Stopped(Fault),
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The builder was not told something that it needs, or was told a contradiction.
    #[error("{what}")]
    Setting {
        /// What is missing or wrong.
        what: String,
    },
    /// The log cannot be opened.
    #[error("the log cannot be opened")]
    Log(#[source] LogFailure),
    /// The file of known peers cannot be read.
    #[error("the known peers in {dir} cannot be read", dir = dir.display())]
    Peers {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        source: LogFailure,
    },
    /// What the disk holds contradicts itself or the settings.
    #[error("the node cannot be restored from its disk")]
    Restore(#[source] RestoreError),
    /// The cluster that the node is to join does not answer, or does not know it.
    #[error("this node cannot join")]
    Join(#[source] DiscoverError),
    /// The log starts after an entry that the state machine has not applied, and there is neither
    /// a snapshot to fill the gap nor another server that could send one.
    #[error(
        "the log starts after {log_start}, the state machine holds the log up to index {applied}, \
         and there is neither a snapshot to fill the gap nor another server to send one: what was \
         written before is lost here unless there is a backup"
    )]
    NoSnapshot {
        /// The entry before the first of the log.
        log_start: EntryId,
        /// What the state machine holds.
        applied: Index,
    },
    /// The newest snapshot cannot be read back.
    #[error("the snapshot of {at} cannot be restored")]
    Snapshot {
        /// The last entry that it stands for.
        at: EntryId,
        /// Why.
        source: io::Error,
    },
    /// The transport cannot be started: most often, the address is in use.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The operating system gave no thread or no random number.
    #[error("the operating system refused")]
    System(#[source] io::Error),
}

/// An error and its causes on one line, as the log lines have them.
///
/// ```
/// use kontiki::{StartError, with_causes};
///
/// let source = std::io::Error::other("address in use");
/// let error = StartError::Listen { address: "127.0.0.1:7001".to_owned(), source };
/// assert_eq!(with_causes(&error), "cannot listen on 127.0.0.1:7001: address in use");
/// ```
#[must_use]
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some errors repeat their source.
        if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_its_reason_once() {
        let leads = Rejection::NotLeader { leader: Some(NodeId(2)) };
        let fault = Fault::Log(Arc::new(io::Error::other("no such device")));
        let stopped = "the node has stopped: the log of this node failed, so it has stopped; \
                       check the disk and start it anew: no such device";
        let errors: [(Box<dyn Error>, &str); 6] = [
            (
                ProposeError::Rejected(leads).into(),
                "the proposal was not taken: not the leader, n2 is",
            ),
            (ProposeError::Stopped(fault.clone()).into(), stopped),
            (
                ReadError::Rejected(Rejection::Busy).into(),
                "the read was not served: too much is on its way",
            ),
            (SessionError::Stopped(fault).into(), stopped),
            (
                SnapshotError::Failed(Arc::new(io::Error::other("disk full"))).into(),
                "the snapshot failed: disk full",
            ),
            (
                TransferError::NotLeader { leader: None }.into(),
                "this node does not lead: no leader is known",
            ),
        ];
        for (error, text) in errors {
            assert_eq!(error.to_string(), text);
            assert_eq!(with_causes(&*error), text);
        }
    }
}
