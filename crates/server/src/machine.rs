//! What the log of this cluster says: commands of the store, and announcements of members.
//!
//! ```text
//!   0       1
//!   │ kind  │ content │     1     a command of the store; the byte is the version of its encoding
//!                         0xa0  a member announces itself: an encoded `Member`
//!                         0xa1  the same, and it asks the others to do so too
//!                         0xa2  an alarm is to be forgotten: an encoded `AlarmMember`
//! ```
//!
//! Announcements tell everyone where clients reach a member, and what is wrong with it. They are not part of the replicated
//! state and are on no disk but the log's: a server that starts, or that skips a part of the log
//! by a snapshot, announces itself and asks, so what the others know of themselves it soon knows
//! as well.

use std::{fmt, io, sync::Arc};

use kontiki::{Batch, Command, EntryId, Index, Membership, SnapshotWriter, StateMachine};
use kontiki_store::{
    Bytes, Fatal, Request, Response, RestoreError, Store, StoreError, StoreSnapshot,
};
use prost::Message;
use tokio::sync::{Notify, watch};

use crate::{alarms::Alarms, members::Roster, proto::etcdserverpb as pb, repair};

const ANNOUNCE: u8 = 0xa0;
const ANNOUNCE_AND_ASK: u8 = 0xa1;
const DISARM: u8 = 0xa2;

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
#[derive(Debug)]
pub(crate) struct Cues {
    /// Another member asks for announcements.
    pub(crate) asked: Notify,
    /// A snapshot was taken, and what was announced before it was missed.
    pub(crate) restored: Notify,
    /// This server is a member no more.
    pub(crate) removed: Notify,
    /// The store has given back something that is damaged, at a place where nobody else would
    /// hear of it.
    pub(crate) store_fault: watch::Sender<Option<Fatal>>,
}

impl Cues {
    pub(crate) fn new() -> Self {
        let (asked, restored, removed) = (Notify::new(), Notify::new(), Notify::new());
        Self { asked, restored, removed, store_fault: watch::Sender::new(None) }
    }
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
    client_urls: Vec<String>,
    alarms: Alarms,
    is_question: bool,
) -> Vec<u8> {
    let mut command = vec![if is_question { ANNOUNCE_AND_ASK } else { ANNOUNCE }];
    let (name, alarms) = (name.to_owned(), alarms.numbers());
    let announced = Announcement { id, name, client_urls, alarms };
    announced.encode(&mut command).expect("a vector grows as needed");
    command
}

/// The command with which everyone forgets an alarm. Whose it is raises it again if it is true.
pub(crate) fn disarming(alarm: &pb::AlarmMember) -> Vec<u8> {
    let mut command = vec![DISARM];
    alarm.encode(&mut command).expect("a vector grows as needed");
    command
}

/// What a member says of itself: etcd's `Member`, as far as it has a use here, and more. Fields
/// are only ever added.
#[derive(Clone, PartialEq, prost::Message)]
struct Announcement {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, repeated, tag = "4")]
    client_urls: Vec<String>,
    /// Numbers of etcd's `AlarmType`.
    #[prost(int32, repeated, tag = "16")]
    alarms: Vec<i32>,
}

/// The store at one moment. Who the members are is not in it: Raft keeps that beside.
#[derive(Debug)]
pub(crate) struct KvSnapshot(StoreSnapshot, Arc<Cues>);

impl SnapshotWriter for KvSnapshot {
    fn write_to(self, to: &mut dyn io::Write) -> io::Result<()> {
        let Self(snapshot, cues) = self;
        snapshot.write_to(to).inspect_err(|error| {
            if let Some(fatal) = repair::damage_in(error) {
                cues.store_fault.send_replace(Some(fatal));
            }
        })
    }
}

impl StateMachine for KvMachine {
    type Response = Reply;
    type Snapshot = KvSnapshot;

    fn apply(&mut self, _: Command<'_>) -> Reply {
        unreachable!("this machine applies batches")
    }

    fn snapshot(&mut self) -> io::Result<KvSnapshot> {
        let snapshot = self.store.snapshot().map_err(io::Error::other)?;
        Ok(KvSnapshot(snapshot, Arc::clone(&self.cues)))
    }

    fn restore(&mut self, at: EntryId, from: &mut dyn io::Read) -> io::Result<()> {
        let at = (at.index.get(), at.term.get());
        self.store.restore(at, from).map_err(restore_failed)?;
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

    fn is_storage_full(&self) -> bool {
        self.store.is_full()
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
                Some(&DISARM) => {
                    self.disarm(command.data.slice(1..));
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

/// What the store says of a snapshot, as Raft wants to hear it: a full disk by its kind, and
/// what the store itself has met without more around it.
fn restore_failed(error: RestoreError) -> io::Error {
    let RestoreError::Fatal(fatal) = error else { return io::Error::other(error) };
    let kind = match &fatal {
        Fatal::Io { source, .. } => source.downcast_ref().map(io::Error::kind),
        _ => None,
    };
    io::Error::new(kind.unwrap_or(io::ErrorKind::Other), fatal)
}

impl KvMachine {
    /// Takes note of an announcement. One that cannot be read is of a later version, and is
    /// ignored: it carries nothing that the store depends on.
    fn hear(&self, is_question: bool, content: Bytes) {
        let Ok(Announcement { id, name, client_urls, alarms }) = Announcement::decode(content)
        else {
            return;
        };
        if is_question && id != self.roster.me().id {
            self.cues.asked.notify_one();
        }
        self.roster.hear(id, name, client_urls, Alarms::from_numbers(&alarms));
    }

    fn disarm(&self, content: Bytes) {
        let Ok(pb::AlarmMember { member_id, alarm }) = pb::AlarmMember::decode(content) else {
            return;
        };
        self.roster.disarm(member_id, alarm);
        if member_id == self.roster.me().id {
            self.cues.asked.notify_one(); // what is true is said again
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn what_stops_a_restore_keeps_its_kind_and_its_damage() {
        let full = Arc::new(io::Error::from(ErrorKind::StorageFull));
        let full = Fatal::Io { op: "restore", source: full };
        assert_eq!(restore_failed(full.into()).kind(), ErrorKind::StorageFull);
        let corrupt = Fatal::Corrupt { file: "1.seg".into(), offset: 7, what: String::new() };
        assert!(repair::damage_in(&restore_failed(corrupt.into())).is_some());
        let other = restore_failed(RestoreError::Truncated);
        assert!(repair::damage_in(&other).is_none());
        assert_eq!(other.kind(), ErrorKind::Other);
    }
}
