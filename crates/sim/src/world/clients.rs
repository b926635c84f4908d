//! What clients and operators ask of a world.

use std::time::Duration;

use kontiki::{Event, RequestId};
use kontiki_raft::{NodeId, ReadMode, Timestamp};

use super::{World, nanos, place};
use crate::{
    command::{Action, Command, Stamp, number},
    node::Happening,
    requests::Ask,
    trace::{Failure, Note},
};

impl World {
    /// A client proposes a command at a node. Returns the number of the request.
    ///
    /// # Errors
    ///
    /// When an invariant breaks.
    pub fn write(
        &mut self,
        id: NodeId,
        key: Option<u64>,
        value: u64,
        padding: usize,
    ) -> Result<u64, Failure> {
        let action = match key {
            None => Action::Note { value, padding },
            Some(key) => {
                let mut bytes = number(value).to_vec();
                bytes.resize(bytes.len() + padding, 0x5a);
                Action::Put { key, value: bytes.into() }
            }
        };
        self.call(id, action, None)
    }

    /// A client asks a node for an operation, once more perhaps. Returns the number of the request.
    ///
    /// # Errors
    ///
    /// When an invariant breaks.
    pub fn call(
        &mut self,
        id: NodeId,
        action: Action,
        stamp: Option<Stamp>,
    ) -> Result<u64, Failure> {
        let request = self.requests.next_number();
        let encoded = Command { request, stamp, action: action.clone() }.encode();
        self.ask(id, Ask::Write { action, stamp }, |request, deadline| Event::Propose {
            id: request,
            command: encoded,
            is_session: stamp.is_some(),
            deadline,
        })
    }

    /// A client reads a register at a node. Returns the number of the request.
    ///
    /// # Errors
    ///
    /// When an invariant breaks.
    pub fn read(&mut self, id: NodeId, key: u64) -> Result<u64, Failure> {
        self.read_with(id, key, ReadMode::ReadIndex)
    }

    /// As [`read`](Self::read), by the means that are named.
    ///
    /// # Errors
    ///
    /// When an invariant breaks.
    pub fn read_with(&mut self, id: NodeId, key: u64, mode: ReadMode) -> Result<u64, Failure> {
        self.ask(id, Ask::Read { key }, |request, deadline| Event::Read {
            id: request,
            mode,
            deadline,
        })
    }

    pub(super) fn ask(
        &mut self,
        id: NodeId,
        ask: Ask,
        event: impl FnOnce(RequestId, Timestamp) -> Event,
    ) -> Result<u64, Failure> {
        let deadline = self.now + nanos(self.setup.request_timeout);
        let is_read = matches!(ask, Ask::Read { .. });
        let number = self.requests.ask(id, self.now(), Duration::from_nanos(deadline), ask);
        self.note(Note::Asked { node: id, request: number, is_read });
        let Some(process) = &self.nodes[place(id)].process else {
            // Nobody listens there.
            self.requests.on_down(id, self.now());
            return Ok(number);
        };
        let event = event(RequestId(number), process.clock.at(deadline));
        let life = process.life;
        self.happen(id, Happening::Event { life, event }).map_err(|broken| self.failure(broken))?;
        Ok(number)
    }

    /// Tells a node to hand its leadership over.
    ///
    /// # Errors
    ///
    /// When an invariant breaks.
    pub fn transfer_leadership(&mut self, id: NodeId, to: Option<NodeId>) -> Result<(), Failure> {
        let Some(process) = &self.nodes[place(id)].process else { return Ok(()) };
        let life = process.life;
        let event = Event::TransferLeadership { to };
        self.happen(id, Happening::Event { life, event }).map_err(|broken| self.failure(broken))
    }
}
