//! What a user of the library writes: the state machine that is replicated.

use std::io;

use kontiki_raft::{Bytes, EntryId, Index};

/// A replicated state. Every node applies the same commands in the same order, and so holds the
/// same state.
///
/// It runs alone on a thread of its own: it may block, and it need not be `Sync`. A newcomer
/// writes [`apply`](Self::apply); a machine that keeps its state on disk overrides the other two.
pub trait StateMachine: Send + 'static {
    /// What [`Raft::propose`](crate::Raft::propose) returns to the one who asked. It is not
    /// replicated.
    type Response: Send + 'static;

    /// Carries out one command. Must depend on nothing but the state and the command: no clock,
    /// no chance, no order of a hash map.
    fn apply(&mut self, command: Command<'_>) -> Self::Response;

    /// The last index whose effects will still be here after power loss.
    ///
    /// `None` is for machines in memory: they are given the whole log anew at every start, and
    /// so the log is never purged. A machine that keeps its state on disk must store
    /// [`Batch::upto`] *in one transaction with the data* and return it here (pitfall D9); it
    /// is then given what comes after.
    fn durable_applied(&self) -> Option<Index> {
        None
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
