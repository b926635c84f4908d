//! Changes of the membership, and why they are refused, as bytes.

use std::sync::Arc;

use kontiki_raft::{Change, ChangeError, ChangeSet, NodeId};

use super::{DecodeError, Reader, put, put_bytes, put_entry_id, put_len};

pub(super) fn put_change_set(buf: &mut Vec<u8>, set: &ChangeSet) {
    match set.expect {
        None => buf.push(0),
        Some(at) => {
            buf.push(1);
            put_entry_id(buf, at);
        }
    }
    put_len(buf, set.changes.len());
    for change in &set.changes {
        put_change(buf, change);
    }
}

fn put_change(buf: &mut Vec<u8>, change: &Change) {
    match change {
        Change::AddLearner { address, context, auto_promote } => {
            buf.push(0);
            put_bytes(buf, address.as_bytes());
            put_bytes(buf, context);
            buf.push(u8::from(*auto_promote));
        }
        Change::Promote(id) => put_numbered(buf, 1, *id),
        Change::Demote(id) => put_numbered(buf, 2, *id),
        Change::Remove(id) => put_numbered(buf, 3, *id),
        Change::Replace { old, address, context } => {
            put_numbered(buf, 4, *old);
            put_bytes(buf, address.as_bytes());
            put_bytes(buf, context);
        }
        Change::Update { id, address, context } => {
            put_numbered(buf, 5, *id);
            put_bytes(buf, address.as_bytes());
            put_bytes(buf, context);
        }
    }
}

fn put_numbered(buf: &mut Vec<u8>, tag: u8, id: NodeId) {
    buf.push(tag);
    put(buf, id.get());
}

pub(super) fn put_change_error(buf: &mut Vec<u8>, why: &ChangeError) {
    match why {
        ChangeError::Empty => buf.push(0),
        ChangeError::NoSuchMember(id) => put_numbered(buf, 1, *id),
        ChangeError::NotALearner(id) => put_numbered(buf, 2, *id),
        ChangeError::NotAVoter(id) => put_numbered(buf, 3, *id),
        ChangeError::NotCaughtUp(id) => put_numbered(buf, 4, *id),
        ChangeError::NoVoters => buf.push(5),
        ChangeError::TooManyVoters { count } => {
            buf.push(6);
            put_len(buf, *count);
        }
        ChangeError::AddressInUse(id) => put_numbered(buf, 7, *id),
    }
}

impl Reader {
    pub(super) fn change_set(&mut self) -> Result<ChangeSet, DecodeError> {
        let expect = match self.bool()? {
            false => None,
            true => Some(self.entry_id()?),
        };
        Ok(ChangeSet { changes: self.list(Self::change)?, expect })
    }

    fn change(&mut self) -> Result<Change, DecodeError> {
        Ok(match self.u8()? {
            0 => Change::AddLearner {
                address: self.text()?,
                context: self.bytes()?,
                auto_promote: self.bool()?,
            },
            1 => Change::Promote(self.node()?),
            2 => Change::Demote(self.node()?),
            3 => Change::Remove(self.node()?),
            4 => {
                Change::Replace { old: self.node()?, address: self.text()?, context: self.bytes()? }
            }
            5 => Change::Update { id: self.node()?, address: self.text()?, context: self.bytes()? },
            tag => return Err(DecodeError::Tag { what: "change", tag }),
        })
    }

    pub(super) fn change_error(&mut self) -> Result<ChangeError, DecodeError> {
        Ok(match self.u8()? {
            0 => ChangeError::Empty,
            1 => ChangeError::NoSuchMember(self.node()?),
            2 => ChangeError::NotALearner(self.node()?),
            3 => ChangeError::NotAVoter(self.node()?),
            4 => ChangeError::NotCaughtUp(self.node()?),
            5 => ChangeError::NoVoters,
            6 => ChangeError::TooManyVoters { count: self.len()? },
            7 => ChangeError::AddressInUse(self.node()?),
            tag => return Err(DecodeError::Tag { what: "refusal of a change", tag }),
        })
    }

    fn node(&mut self) -> Result<NodeId, DecodeError> {
        Ok(NodeId(self.number()?))
    }

    pub(crate) fn text(&mut self) -> Result<Arc<str>, DecodeError> {
        Ok(std::str::from_utf8(&self.bytes()?).map_err(|_| DecodeError::Text)?.into())
    }
}
