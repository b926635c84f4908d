//! The core: one node's share of the protocol.

use crate::{Config, Effects, Input, Recovered, RestoreError, Status, Timestamp};

/// One node's share of the protocol, as a value: inputs in, effects out.
#[derive(Debug)]
pub struct RaftCore {
    config: Config,
}

impl RaftCore {
    /// Restores a node from what its disk holds.
    ///
    /// # Errors
    ///
    /// When the settings or what was recovered contradict themselves.
    pub fn new(config: Config, recovered: Recovered, now: Timestamp) -> Result<Self, RestoreError> {
        let _ = (recovered, now);
        config.validate().map_err(RestoreError::Config)?;
        Ok(Self { config })
    }

    /// Takes in one thing that happened. Cheap, cannot fail, asks for nothing: call it for all
    /// that waits, then [`poll`](Self::poll) once.
    pub fn step(&mut self, now: Timestamp, input: Input) {
        let _ = (now, input, &self.config);
    }

    /// Puts everything that has to be done since the last call into `effects`, coalesced.
    pub fn poll(&mut self, now: Timestamp, effects: &mut Effects) {
        let _ = now;
        effects.clear();
    }

    /// Step [`Input::Timeout`] at or after this moment. Being late costs liveness, never safety.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        None
    }

    /// What this node would say of itself.
    pub fn status(&self) -> Status<'_> {
        unreachable!()
    }
}
