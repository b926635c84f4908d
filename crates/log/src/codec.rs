//! Memberships as bytes, in the log, in the identity file and wherever else they are kept.
//!
//! Layout: `docs/log-format.md`, "Membership". Decoding takes any bytes and never panics.

use std::sync::Arc;

use kontiki_disk::ByteReader;
use kontiki_raft::{Bytes, Member, MemberRole, Membership, NodeId, Promotion, StoreId};

const VERSION: u8 = 2;
const VOTER: u8 = 1;
const LEARNER: u8 = 2;
const LEARNER_PROMOTED_WHEN_CAUGHT_UP: u8 = 3;
const LEARNER_REPLACING: u8 = 4;
const LEAVING: u8 = 5;

/// Appends the encoding of a membership to `buf`.
///
/// # Panics
///
/// If it has a role that this format does not know, or more than 2³² of anything.
pub fn encode_membership(membership: &Membership, buf: &mut Vec<u8>) {
    buf.push(VERSION);
    put_u64(buf, membership.next_id.get());
    put_len(buf, membership.members.len());
    for member in &membership.members {
        put_u64(buf, member.id.get());
        put_role(member.role, buf);
        buf.push(u8::from(member.store.is_some()));
        put_u64(buf, member.store.unwrap_or_default().get());
        put_len(buf, member.address.len());
        buf.extend_from_slice(member.address.as_bytes());
        put_len(buf, member.context.len());
        buf.extend_from_slice(&member.context);
    }
    put_len(buf, membership.outgoing.len());
    for id in &membership.outgoing {
        put_u64(buf, id.get());
    }
}

fn put_role(role: MemberRole, buf: &mut Vec<u8>) {
    let promotion = match role {
        MemberRole::Voter => return buf.push(VOTER),
        MemberRole::Leaving => return buf.push(LEAVING),
        MemberRole::Learner { promotion } => promotion,
        role => unreachable!("the log format does not know the role {role:?}"),
    };
    match promotion {
        Promotion::ByHand => buf.push(LEARNER),
        Promotion::WhenCaughtUp => buf.push(LEARNER_PROMOTED_WHEN_CAUGHT_UP),
        Promotion::Replacing(old) => {
            buf.push(LEARNER_REPLACING);
            put_u64(buf, old.get());
        }
    }
}

/// Reads a membership. `None` if the bytes are not exactly one.
#[must_use]
pub fn decode_membership(bytes: &[u8]) -> Option<Membership> {
    let mut reader = ByteReader::new(bytes);
    if reader.u8()? != VERSION {
        return None;
    }
    let next_id = NodeId(reader.u64()?);
    // Nothing is reserved by a count that may be a lie: each element proves itself.
    let mut members: Vec<Member> = Vec::new();
    for _ in 0..reader.u32()? {
        members.push(decode_member(&mut reader)?);
    }
    let mut outgoing = Vec::new();
    for _ in 0..reader.u32()? {
        outgoing.push(NodeId(reader.u64()?));
    }
    let is_sorted = members.is_sorted_by(|a, b| a.id < b.id) && outgoing.is_sorted_by(|a, b| a < b);
    let is_whole = reader.rest().is_empty();
    (is_sorted && is_whole).then_some(Membership { members, outgoing, next_id })
}

fn decode_member(reader: &mut ByteReader<'_>) -> Option<Member> {
    let id = NodeId(reader.u64()?);
    let role = match reader.u8()? {
        VOTER => MemberRole::Voter,
        LEAVING => MemberRole::Leaving,
        LEARNER => MemberRole::Learner { promotion: Promotion::ByHand },
        LEARNER_PROMOTED_WHEN_CAUGHT_UP => {
            MemberRole::Learner { promotion: Promotion::WhenCaughtUp }
        }
        LEARNER_REPLACING => {
            MemberRole::Learner { promotion: Promotion::Replacing(NodeId(reader.u64()?)) }
        }
        _ => return None,
    };
    let has_store = match reader.u8()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let store = has_store.then_some(StoreId(reader.u64()?));
    let len = usize::try_from(reader.u32()?).ok()?;
    let address: Arc<str> = std::str::from_utf8(reader.bytes(len)?).ok()?.into();
    let len = usize::try_from(reader.u32()?).ok()?;
    let context = Bytes::copy_from_slice(reader.bytes(len)?);
    Some(Member { id, role, address, store, context })
}

pub(crate) fn put_u32(buf: &mut Vec<u8>, value: u32) {
    buf.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(buf: &mut Vec<u8>, value: u64) {
    buf.extend_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_len(buf: &mut Vec<u8>, len: usize) {
    put_u32(buf, u32::try_from(len).expect("shorter than 4 GiB"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joint() -> Membership {
        let mut membership =
            Membership::of_voters([(NodeId(1), "a:1"), (NodeId(2), "b:2"), (NodeId(9), "")]);
        membership.members[1].role =
            MemberRole::Learner { promotion: Promotion::Replacing(NodeId(9)) };
        membership.members[1].context = Bytes::from_static(b"named");
        membership.members[2].store = Some(StoreId(77));
        membership.members[2].role = MemberRole::Leaving;
        membership.outgoing = vec![NodeId(1), NodeId(9)];
        membership
    }

    fn encoded(membership: &Membership) -> Vec<u8> {
        let mut buf = Vec::new();
        encode_membership(membership, &mut buf);
        buf
    }

    #[test]
    fn what_is_encoded_reads_back() {
        for membership in [joint(), Membership::default()] {
            assert_eq!(decode_membership(&encoded(&membership)), Some(membership));
        }
    }

    /// Pitfall D15, for the disk's bytes: whatever they are, there is an answer.
    #[test]
    fn hostile_bytes_are_refused_and_never_panic() {
        let bytes = encoded(&joint());
        for len in 0..bytes.len() {
            assert_eq!(decode_membership(&bytes[..len]), None, "cut to {len}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 2, 0x7F, 0x80, 0xFF] {
                let mut hostile = bytes.clone();
                hostile[at] = value;
                drop(decode_membership(&hostile));
            }
        }
    }
}
