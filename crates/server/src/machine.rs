//! What the log of this cluster says: commands of the store, and announcements of members.
//!
//! ```text
//!   0       1
//!   │ kind  │ content │     1     a command of the store; the byte is the version of its encoding
//!                         0xa0  a member announces itself: an encoded `Member`
//!                         0xa1  the same, and it asks the others to do so too
//! ```
//!
//! Announcements tell everyone where clients reach a member. They are not part of the replicated
//! state and are on no disk but the log's: a server that starts, or that skips a part of the log
//! by a snapshot, announces itself and asks, so what the others know of themselves it soon knows
//! as well.

use std::{fmt, io, sync::Arc};

use kontiki::{Batch, Command, EntryId, Index, Membership, SnapshotWriter, StateMachine};
use kontiki_store::{Bytes, Request, Response, Store, StoreError, StoreSnapshot};
use prost::Message;
use tokio::sync::Notify;

use crate::{members::Roster, proto::etcdserverpb as pb};

const ANNOUNCE: u8 = 0xa0;
const ANNOUNCE_AND_ASK: u8 = 0xa1;

/// What applying a command returns to the one who proposed it.
pub(crate) enum Reply {
    /// The store's answer.
    Store(Result<Response, StoreError>),
    /// An announcement was heard.
    Announced,
}

/// The state machine of a server: the store, and who the members say they are.
pub(crate) struct KvMachine {
    pub(crate) store: Arc<Store>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) cues: Arc<Cues>,
}

/// What the state machine has for the rest of the server to do.
#[derive(Debug, Default)]
pub(crate) struct Cues {
    /// Another member asks for announcements.
    pub(crate) asked: Notify,
    /// A snapshot was taken, and what was announced before it was missed.
    pub(crate) restored: Notify,
    /// This server is a member no more.
    pub(crate) removed: Notify,
}

impl fmt::Debug for KvMachine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KvMachine").finish_non_exhaustive()
    }
}

/// The command with which the member `id` announces itself.
pub(crate) fn announcement(
    id: u64,
    name: &str,
    client_ur_ls: Vec<String>,
    is_question: bool,
) -> Vec<u8> {
    let mut command = vec![if is_question { ANNOUNCE_AND_ASK } else { ANNOUNCE }];
    let name = name.to_owned();
    let member = pb::Member { id, name, client_ur_ls, ..pb::Member::default() };
    member.encode(&mut command).expect("a vector grows as needed");
    command
}

/// The store at one moment. Who the members are is not in it: Raft keeps that beside.
#[derive(Debug)]
pub(crate) struct KvSnapshot(StoreSnapshot);

impl SnapshotWriter for KvSnapshot {
    fn write_to(self, to: &mut dyn io::Write) -> io::Result<()> {
        self.0.write_to(to)
    }
}

impl StateMachine for KvMachine {
    type Response = Reply;
    type Snapshot = KvSnapshot;

    fn apply(&mut self, _: Command<'_>) -> Reply {
        unreachable!("this machine applies batches")
    }

    fn snapshot(&mut self) -> io::Result<KvSnapshot> {
        self.store.snapshot().map(KvSnapshot).map_err(io::Error::other)
    }

    fn restore(&mut self, at: EntryId, from: &mut dyn io::Read) -> io::Result<()> {
        let at = (at.index.get(), at.term.get());
        self.store.restore(at, from).map_err(io::Error::other)?;
        self.cues.restored.notify_one();
        Ok(())
    }

    fn membership_changed(&mut self, _: EntryId, membership: &Membership) {
        self.roster.follow(membership);
        if self.roster.is_removed() {
            self.cues.removed.notify_one();
        }
    }

    fn durable_applied(&self) -> Option<Index> {
        Some(Index(self.store.durable_applied()))
    }

    fn apply_batch(&mut self, batch: Batch<'_>, respond: &mut dyn FnMut(Reply)) -> io::Result<()> {
        let mut requests = Vec::with_capacity(batch.commands.len());
        let mut announcements = Vec::new();
        for command in batch.commands {
            let (index, term) = (command.id.index.get(), command.id.term.get());
            match command.data.first() {
                Some(&kind @ (ANNOUNCE | ANNOUNCE_AND_ASK)) => {
                    self.hear(kind == ANNOUNCE_AND_ASK, command.data.slice(1..));
                    announcements.push(index);
                }
                _ => {
                    let request = Request::decode(command.data).map_err(|error| {
                        let text = format!("entry {} is no command: {error}", command.id);
                        io::Error::new(io::ErrorKind::InvalidData, text)
                    })?;
                    requests.push((index, term, request));
                }
            }
        }

        let upto = (batch.upto.index.get(), batch.upto.term.get());
        let answers = self.store.apply(&requests, upto).map_err(io::Error::other)?;
        let mut answers = answers.into_iter();
        for command in batch.commands {
            respond(if announcements.contains(&command.id.index.get()) {
                Reply::Announced
            } else {
                Reply::Store(answers.next().expect("the store answers every request"))
            });
        }
        Ok(())
    }
}

impl KvMachine {
    /// Takes note of an announcement. One that cannot be read is of a later version, and is
    /// ignored: it carries nothing that the store depends on.
    fn hear(&self, is_question: bool, content: Bytes) {
        let Ok(member) = pb::Member::decode(content) else { return };
        if is_question && member.id != self.roster.me().id {
            self.cues.asked.notify_one();
        }
        self.roster.hear(member.id, member.name, member.client_ur_ls);
    }
}
