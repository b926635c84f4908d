//! The client's end of a session: it numbers commands, and tries again until there is an answer.
//!
//! Only a [`ClientSession`] gives numbers, and each to one command: [`NumberedCommand`] keeps the
//! two together. So whoever tries a command again, through whichever node and in whichever
//! process, cannot take a number for something else, and needs to know nothing of the session.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kontiki_raft::{Bytes, Rejection};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    Applied, ProposeError, Raft, SessionCommand, SessionError, SessionId, SessionRefusal,
    StateMachine, apply_thread::Reply,
};

/// A client whose commands are applied exactly once, however often they have to be tried.
///
/// Made by [`Raft::session`]. Clones share the session. Commands may be proposed at the same
/// time: each is applied once, in no particular order among them.
///
/// A session that is not used expires when the cluster has too many: see
/// [`SessionLimits`](crate::SessionLimits). Nothing is sent to keep it alive.
///
/// A command that must not be lost with this node, or with this process, is numbered first
/// ([`number`](Self::number)) and can then be tried through any node, as often as it takes
/// ([`Raft::propose_numbered`]). For other commands another process opens a session of its own:
/// a session promises nothing about the order of its commands, so two are as good as one.
pub struct ClientSession<S: StateMachine> {
    raft: Raft<S>,
    id: SessionId,
    numbers: Arc<Mutex<Numbers>>,
    patience: Duration,
}

#[derive(Debug)]
struct Numbers {
    next: u64,
    unanswered: BTreeSet<u64>,
}

/// A number that was given and may be asked about. When it is dropped nobody asks any more, and
/// the cluster is told so with the next command.
#[derive(Debug)]
struct Turn {
    numbers: Arc<Mutex<Numbers>>,
    sequence: u64,
}

/// A command with its place in a session: applied at most once, whoever tries it, how often, and
/// through which node.
///
/// Made by [`ClientSession::number`]. As [bytes](Self::to_bytes) it outlives this process: write
/// it down before you [propose it](Raft::propose_numbered), and after a crash propose it again
/// through any node. Several may try the same one at the same time.
///
/// Keep it, or a clone of it, until you have the answer: when the last one in the process of its
/// session is dropped the session gives it up, and from its next command on the cluster refuses
/// it with [`SessionError::Answered`]. While it is kept, the answers to all later commands of the
/// session are kept, too.
#[derive(Clone)]
pub struct NumberedCommand {
    session: SessionId,
    sequence: u64,
    /// What is proposed: [`SessionCommand::Command`] as bytes.
    content: Bytes,
    /// Held for its `Drop`. `None` if it was read back: its session is not in this process.
    _turn: Option<Arc<Turn>>,
}

/// How long a command is tried, if nothing else is said.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two tries: long enough not to add to the load that caused the first to fail.
const PAUSE: Duration = Duration::from_millis(50);

impl<S: StateMachine> Raft<S> {
    /// Opens a client session: commands proposed through it are applied exactly once, for it
    /// tries again by itself what may have been lost, and every node knows what it has applied
    /// already. Needs [`Builder::sessions`](crate::Builder::sessions) on every node.
    ///
    /// # Errors
    ///
    /// When sessions are off, or no leader took it in time.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped a session may be open that nobody uses. It expires.
    pub async fn session(&self) -> Result<ClientSession<S>, SessionError> {
        if !self.has_sessions() {
            return Err(SessionError::Off);
        }
        let deadline = Instant::now() + PATIENCE;
        let applied = self.try_until(deadline, &SessionCommand::Open.encode()).await?;
        let Reply::Opened(id) = applied.response else {
            return Err(SessionError::Unknown);
        };
        let numbers = Numbers { next: 1, unanswered: BTreeSet::new() };
        let numbers = Arc::new(Mutex::new(numbers));
        Ok(ClientSession { raft: self.clone(), id, numbers, patience: PATIENCE })
    }

    /// Has `command` applied exactly once, by this call or by another one, and returns what the
    /// state machine said to it when it was. Any node will do. After an error that is not
    /// certain, and after a crash, call it again, here or on another node, until there is an
    /// answer. It is tried for 30 seconds.
    ///
    /// # Errors
    ///
    /// [`SessionError::Rejected`] is certain of this call only: an earlier one may have had it
    /// applied. After [`SessionError::Expired`] and [`SessionError::Answered`] it is not applied
    /// any more, and whether it was before is not remembered: to try again is in vain.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the command is applied once or not at all, and can be tried
    /// again.
    pub async fn propose_numbered(
        &self,
        command: &NumberedCommand,
    ) -> Result<Applied<S::Response>, SessionError> {
        self.propose_until(Instant::now() + PATIENCE, command).await
    }

    async fn propose_until(
        &self,
        deadline: Instant,
        command: &NumberedCommand,
    ) -> Result<Applied<S::Response>, SessionError> {
        if !self.has_sessions() {
            return Err(SessionError::Off);
        }
        let Applied { at, response } = self.try_until(deadline, &command.content).await?;
        match response {
            Reply::Response(response) => Ok(Applied { at, response }),
            Reply::Refused(SessionRefusal::Expired) | Reply::Closed | Reply::Opened(_) => {
                Err(SessionError::Expired)
            }
            Reply::Refused(SessionRefusal::Answered) => Err(SessionError::Answered),
            Reply::Refused(SessionRefusal::Malformed) => Err(SessionError::Unknown),
        }
    }

    /// Proposes `content` until it is applied once, at least.
    async fn try_until(
        &self,
        deadline: Instant,
        content: &Bytes,
    ) -> Result<Applied<Reply<S::Response>>, SessionError> {
        let mut is_certain = true;
        loop {
            let attempt = self.propose_session(content.clone());
            let why = match timeout_at(deadline, attempt).await {
                Ok(Ok(applied)) => return Ok(applied),
                Ok(Err(ProposeError::Rejected(why))) => Some(why),
                Ok(Err(ProposeError::Stopped(fault))) => return Err(SessionError::Stopped(fault)),
                Ok(Err(ProposeError::Superseded { .. })) => None,
                Ok(Err(ProposeError::Unknown { .. })) | Err(_) => {
                    is_certain = false;
                    None
                }
            };
            let is_vain = match why {
                Some(why @ Rejection::TooLarge { .. }) => return Err(SessionError::Rejected(why)),
                Some(Rejection::NoSessions) => true,
                _ => false,
            };
            if is_vain || deadline <= Instant::now() + PAUSE {
                return Err(match why {
                    Some(why) if is_certain => SessionError::Rejected(why),
                    _ => SessionError::Unknown,
                });
            }
            sleep(PAUSE).await;
        }
    }
}

impl<S: StateMachine> ClientSession<S> {
    /// Commands are tried for so long, 30 seconds if nothing is said.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The same session through another node of the cluster: when the first one has stopped,
    /// for example.
    #[must_use]
    pub fn through(&self, raft: Raft<S>) -> Self {
        Self { raft, ..self.clone() }
    }

    /// Which session it is.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Has `command` applied exactly once, and returns what the state machine said to it.
    /// [`Applied::at`] is where it stood when it was answered: if it had to be tried again, it may
    /// have been applied further up.
    ///
    /// # Errors
    ///
    /// Only [`SessionError::Rejected`] and [`SessionError::Off`] are certain.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the command is applied once or not at all.
    pub async fn propose(
        &self,
        command: impl Into<Bytes>,
    ) -> Result<Applied<S::Response>, SessionError> {
        let deadline = Instant::now() + self.patience;
        self.raft.propose_until(deadline, &self.number(command)).await
    }

    /// Gives `command` the next number of the session, and proposes nothing yet:
    /// [`Raft::propose_numbered`] does, on any node. For commands that have to be tried again
    /// when this node or this process is gone.
    #[must_use]
    pub fn number(&self, command: impl Into<Bytes>) -> NumberedCommand {
        let (turn, lowest_unanswered) = self.begin();
        let (session, sequence) = (self.id, turn.sequence);
        let command = command.into();
        let content =
            SessionCommand::Command { session, sequence, lowest_unanswered, command }.encode();
        NumberedCommand { session, sequence, content, _turn: Some(Arc::new(turn)) }
    }

    /// Ends the session: its answers need not be kept any more.
    ///
    /// # Errors
    ///
    /// When no leader took it in time. The session expires some time.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the session may or may not have ended.
    pub async fn close(self) -> Result<(), SessionError> {
        let deadline = Instant::now() + self.patience;
        let close = SessionCommand::Close { session: self.id }.encode();
        self.raft.try_until(deadline, &close).await.map(|_| ())
    }

    fn begin(&self) -> (Turn, u64) {
        let mut numbers = lock(&self.numbers);
        let sequence = numbers.next;
        numbers.next += 1;
        numbers.unanswered.insert(sequence);
        let lowest = numbers.unanswered.first().copied().unwrap_or(sequence);
        drop(numbers);
        (Turn { numbers: Arc::clone(&self.numbers), sequence }, lowest)
    }
}

impl NumberedCommand {
    /// The session that it belongs to.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.session
    }

    /// Its number in the session, from 1 on.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// All of it as bytes, the command included, for [`from_bytes`](Self::from_bytes): those of
    /// [`SessionCommand::encode`].
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.content.clone()
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote. `None` if it is anything else.
    #[must_use]
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Option<Self> {
        let content = bytes.into();
        match SessionCommand::decode(&content)? {
            SessionCommand::Command { session, sequence, .. } => {
                Some(Self { session, sequence, content, _turn: None })
            }
            SessionCommand::Open | SessionCommand::Close { .. } => None,
        }
    }
}

impl fmt::Debug for NumberedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NumberedCommand")
            .field("session", &self.session)
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.numbers).unanswered.remove(&self.sequence);
    }
}

fn lock(numbers: &Mutex<Numbers>) -> MutexGuard<'_, Numbers> {
    // Nothing panics while it is held.
    numbers.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: StateMachine> Clone for ClientSession<S> {
    fn clone(&self) -> Self {
        let (raft, numbers) = (self.raft.clone(), Arc::clone(&self.numbers));
        Self { raft, id: self.id, numbers, patience: self.patience }
    }
}

impl<S: StateMachine> fmt::Debug for ClientSession<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSession").field("id", &self.id).finish_non_exhaustive()
    }
}
