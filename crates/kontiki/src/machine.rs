//! What a user of the library writes: the state machine that is replicated.

use std::io;

use kontiki_raft::{Bytes, EntryId, Index, Membership};

/// A replicated state. Every node applies the same commands in the same order, and so holds the
/// same state.
///
/// It runs alone on a thread of its own: it may block, and it need not be `Sync`. A newcomer
/// writes [`apply`](Self::apply), [`snapshot`](Self::snapshot) and [`restore`](Self::restore); a
/// machine that keeps its state on disk overrides the others.
pub trait StateMachine: Send + 'static {
    /// What [`Raft::propose`](crate::Raft::propose) returns to the one who asked. It is not
    /// replicated.
    type Response: Send + 'static;

    /// The state at one moment, to be written to a file while the machine goes on. A vector of
    /// bytes will do while the state is small.
    type Snapshot: SnapshotWriter;

    /// Carries out one command. Must depend on nothing but the state and the command: no clock,
    /// no chance, no order of a hash map.
    fn apply(&mut self, command: Command<'_>) -> Self::Response;

    /// Takes a frozen view of the whole state. Nothing is applied until this returns, so it
    /// should be quick: copy what is small, share what is not. What takes time belongs into
    /// [`SnapshotWriter::write_to`], which runs on another thread.
    ///
    /// # Errors
    ///
    /// When there can be no view now. The node goes on, and tries again later.
    fn snapshot(&mut self) -> io::Result<Self::Snapshot>;

    /// Replaces the whole state by what a [`Snapshot`](Self::Snapshot) has written, perhaps on
    /// another node. It stands for the log up to `at`. `from` ends where the writer ended.
    ///
    /// A machine that keeps its state on disk has it there when this returns, with `at` as
    /// [`durable_applied`](Self::durable_applied), and after a crash in between holds either the
    /// old state or the new one.
    ///
    /// # Errors
    ///
    /// When the state cannot be read or kept: the node stops with
    /// [`Fault::Restore`](crate::Fault::Restore). But if the kind of the error is
    /// [`StorageFull`](io::ErrorKind::StorageFull) or
    /// [`QuotaExceeded`](io::ErrorKind::QuotaExceeded), and the node runs already, it is tried
    /// again until there is space; meanwhile reads are of the state that was, so it must be there
    /// still.
    fn restore(&mut self, at: EntryId, from: &mut dyn io::Read) -> io::Result<()>;

    /// The last index whose effects will still be here after power loss.
    ///
    /// `None` is for machines in memory: they are restored from the newest snapshot at every
    /// start, and given the log after it. A machine that keeps its state on disk must store
    /// [`Batch::upto`] *in one transaction with the data* and return it here (pitfall D9); it
    /// is then given what comes after.
    fn durable_applied(&self) -> Option<Index> {
        None
    }

    /// Whether the machine cannot write because its disk is full. Asked after each batch, and every
    /// second of a machine that keeps its state on disk. While it says so the node takes no
    /// proposals and hands its leadership over; when it does no more, all goes on by itself.
    fn is_storage_full(&self) -> bool {
        false
    }

    /// Carries out a batch, for machines that commit transactions. `respond` must be called
    /// once for each command, in order.
    ///
    /// # Errors
    ///
    /// When the state cannot be kept: the node stops with
    /// [`Fault::Machine`](crate::Fault::Machine). A command that makes no sense is not an error
    /// here, but a response.
    fn apply_batch(
        &mut self,
        batch: Batch<'_>,
        respond: &mut dyn FnMut(Self::Response),
    ) -> io::Result<()> {
        for &command in batch.commands {
            respond(self.apply(command));
        }
        Ok(())
    }

    /// Told that the members of the cluster are these from `at` on, in order with the commands.
    /// The membership is in force already: there is nothing to decide here.
    fn membership_changed(&mut self, at: EntryId, membership: &Membership) {
        let (_, _) = (at, membership);
    }
}

/// A frozen state that can be written to a file, once.
pub trait SnapshotWriter: Send + 'static {
    /// Writes the state, as [`StateMachine::restore`] reads it. Runs beside the state machine.
    ///
    /// # Errors
    ///
    /// Those of `to`, and any of its own: there is no snapshot then.
    fn write_to(self, to: &mut dyn io::Write) -> io::Result<()>;
}

impl SnapshotWriter for Vec<u8> {
    fn write_to(self, to: &mut dyn io::Write) -> io::Result<()> {
        to.write_all(&self)
    }
}

/// A committed command.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// Its place in the log. The same on every node, and never used again.
    pub id: EntryId,
    /// What was proposed.
    pub data: &'a Bytes,
}

/// Committed commands, in order. There may be none of them: then only `upto` moves.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// What to carry out.
    pub commands: &'a [Command<'a>],
    /// With this batch the machine has seen the log up to here. It may be after the last
    /// command, for not every entry carries one.
    pub upto: EntryId,
}
