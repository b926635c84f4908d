//! The client's end of a session: it numbers commands, and tries again until there is an answer.

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

/// A command that waits for its answer. When it is dropped nobody waits any more.
struct Turn<'a> {
    numbers: &'a Mutex<Numbers>,
    sequence: u64,
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
            if let Some(why @ Rejection::TooLarge { .. }) = why {
                return Err(SessionError::Rejected(why));
            }
            if deadline <= Instant::now() + PAUSE {
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
        let (turn, lowest_unanswered) = self.begin();
        let command = SessionCommand::Command {
            session: self.id,
            sequence: turn.sequence,
            lowest_unanswered,
            command: command.into(),
        };
        let Applied { at, response } = self.raft.try_until(deadline, &command.encode()).await?;
        match response {
            Reply::Response(response) => Ok(Applied { at, response }),
            Reply::Refused(SessionRefusal::Expired) | Reply::Closed | Reply::Opened(_) => {
                Err(SessionError::Expired)
            }
            Reply::Refused(_) => Err(SessionError::Unknown),
        }
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

    fn begin(&self) -> (Turn<'_>, u64) {
        let mut numbers = lock(&self.numbers);
        let sequence = numbers.next;
        numbers.next += 1;
        numbers.unanswered.insert(sequence);
        let lowest = numbers.unanswered.first().copied().unwrap_or(sequence);
        (Turn { numbers: &self.numbers, sequence }, lowest)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(self.numbers).unanswered.remove(&self.sequence);
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
