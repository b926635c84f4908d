//! What is said during a transfer, as bytes: one frame each, after the handshake.

use std::fmt;

use kontiki_log::encode_membership;
use kontiki_raft::{EntryId, Session, SnapshotMeta, Term};
use std::sync::Arc;

use crate::{
    Bytes,
    codec::{DecodeError, Reader, put, put_bytes, put_entry_id},
    tcp::frame::put_frame,
    transport::{CHUNK_BYTES_MAX, SnapshotOffer},
};

/// What a sender says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SenderWord {
    /// First of all: this is what I have. `session` is for the log of events alone.
    Offer { session: Session, term: Term, offer: SnapshotOffer },
    /// A chunk that was asked for. The checksum of its frame is the checksum of the chunk.
    Chunk { number: u64, bytes: Bytes },
}

/// What a receiver answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReceiverWord {
    /// All chunks before `next` are written; send those from the last that was sent up to, but
    /// not including, `upto`. The first of these says where to begin. Repeated while the
    /// receiver is busy, so that it is not taken for dead.
    Want { next: u64, upto: u64 },
    /// This chunk was damaged: go back to it.
    Again { number: u64 },
    /// The whole is here, verified and durable: received just now, or before.
    Done,
    /// It is not taken.
    Refused(Refused),
}

/// Why a receiver does not take a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is receiving one from another sender.
    Busy,
    /// It is receiving one from a newer leader.
    Stale,
    /// It cannot write it.
    Disk,
    /// What it received is not what was offered, however often it asked.
    Damaged,
    /// It keeps no snapshots.
    Unsupported,
}

impl Refused {
    /// Whether it may change its mind.
    pub(super) fn is_passing(self) -> bool {
        matches!(self, Self::Busy | Self::Disk)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "the receiver is taking a snapshot from another node",
            Self::Stale => "the receiver is taking a snapshot from a newer leader",
            Self::Disk => "the receiver cannot write it",
            Self::Damaged => "it arrived damaged",
            Self::Unsupported => "the receiver keeps no snapshots",
        })
    }
}

const OFFER: u8 = 0;
const CHUNK: u8 = 1;

/// The frame of a chunk, made without another copy of it.
pub(super) fn chunk_frame(number: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 64);
    put_frame(&mut out, |buf| {
        buf.push(CHUNK);
        put(buf, number);
        put_bytes(buf, bytes);
    });
    out
}

impl SenderWord {
    /// The frame of an offer.
    pub(super) fn offer_frame(session: Session, term: Term, offer: &SnapshotOffer) -> Vec<u8> {
        let mut membership = Vec::new();
        encode_membership(&offer.meta.membership, &mut membership);
        let mut out = Vec::new();
        put_frame(&mut out, |buf| {
            buf.push(OFFER);
            put(buf, session.get());
            put(buf, term.get());
            put_entry_id(buf, offer.meta.last);
            put_bytes(buf, &membership);
            put(buf, offer.bytes);
            put(buf, offer.chunk_count);
            put(buf, u64::from(offer.checksum));
        });
        out
    }

    pub(super) fn decode(payload: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader(payload);
        let word = match reader.u8()? {
            OFFER => {
                let (session, term) = (Session(reader.number()?), Term(reader.number()?));
                Self::Offer { session, term, offer: offer(&mut reader)? }
            }
            CHUNK => Self::Chunk { number: reader.number()?, bytes: reader.bytes()? },
            tag => return Err(DecodeError::Tag { what: "word of a sender", tag }),
        };
        reader.finish()?;
        Ok(word)
    }
}

fn offer(reader: &mut Reader) -> Result<SnapshotOffer, DecodeError> {
    let last: EntryId = reader.entry_id()?;
    let membership = Arc::new(reader.membership()?);
    let (bytes, chunk_count) = (reader.number()?, reader.number()?);
    let checksum = u32::try_from(reader.number()?).map_err(|_| DecodeError::Range)?;
    let chunk_bytes_max = u64::try_from(CHUNK_BYTES_MAX).unwrap_or(u64::MAX);
    let is_possible = bytes.div_ceil(chunk_bytes_max) <= chunk_count && chunk_count <= bytes;
    if !is_possible {
        return Err(DecodeError::Range);
    }
    Ok(SnapshotOffer { meta: SnapshotMeta { last, membership }, bytes, chunk_count, checksum })
}

impl ReceiverWord {
    pub(super) fn frame(self) -> Vec<u8> {
        let mut out = Vec::new();
        put_frame(&mut out, |buf| match self {
            Self::Want { next, upto } => {
                buf.push(0);
                put(buf, next);
                put(buf, upto);
            }
            Self::Again { number } => {
                buf.push(1);
                put(buf, number);
            }
            Self::Done => buf.push(2),
            Self::Refused(why) => {
                buf.push(3);
                buf.push(match why {
                    Refused::Busy => 0,
                    Refused::Stale => 1,
                    Refused::Disk => 2,
                    Refused::Damaged => 3,
                    Refused::Unsupported => 4,
                });
            }
        });
        out
    }

    pub(super) fn decode(payload: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader(payload);
        let word = match reader.u8()? {
            0 => Self::Want { next: reader.number()?, upto: reader.number()? },
            1 => Self::Again { number: reader.number()? },
            2 => Self::Done,
            3 => Self::Refused(match reader.u8()? {
                0 => Refused::Busy,
                1 => Refused::Stale,
                2 => Refused::Disk,
                3 => Refused::Damaged,
                4 => Refused::Unsupported,
                tag => return Err(DecodeError::Tag { what: "refusal of a snapshot", tag }),
            }),
            tag => return Err(DecodeError::Tag { what: "word of a receiver", tag }),
        };
        reader.finish()?;
        Ok(word)
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kontiki_raft::{Index, Membership, NodeId};

    use super::*;
    use crate::tcp::frame::take_frame;

    fn payload(frame: &[u8]) -> Bytes {
        take_frame(&mut BytesMut::from(frame), 10_000).unwrap().unwrap()
    }

    fn an_offer() -> SnapshotOffer {
        let membership = Arc::new(Membership::of_voters([(NodeId(1), "a"), (NodeId(7), "b")]));
        let last = EntryId { index: Index(1000), term: Term(4) };
        let meta = SnapshotMeta { last, membership };
        SnapshotOffer { meta, bytes: 3_000_000, chunk_count: 3, checksum: u32::MAX }
    }

    fn sender_words() -> Vec<(Vec<u8>, SenderWord)> {
        let (session, term, offer) = (Session(u64::MAX), Term(9), an_offer());
        let bytes = Bytes::from_static(b"some of it");
        vec![
            (
                SenderWord::offer_frame(session, term, &offer),
                SenderWord::Offer { session, term, offer },
            ),
            (chunk_frame(300, &bytes), SenderWord::Chunk { number: 300, bytes }),
        ]
    }

    fn receiver_words() -> Vec<ReceiverWord> {
        let refusals =
            [Refused::Busy, Refused::Stale, Refused::Disk, Refused::Damaged, Refused::Unsupported];
        let mut words = vec![
            ReceiverWord::Want { next: 5, upto: u64::MAX },
            ReceiverWord::Again { number: 128 },
            ReceiverWord::Done,
        ];
        words.extend(refusals.map(ReceiverWord::Refused));
        words
    }

    #[test]
    fn words_come_out_as_they_went_in() {
        for (frame, word) in sender_words() {
            assert_eq!(SenderWord::decode(payload(&frame)).unwrap(), word);
        }
        for word in receiver_words() {
            assert_eq!(ReceiverWord::decode(payload(&word.frame())).unwrap(), word);
        }
    }

    /// Pitfall D15: whatever arrives, it is an error or a word, and never a panic.
    #[test]
    fn damaged_words_do_no_harm() {
        for (frame, _) in sender_words() {
            damage(&frame, |bytes| SenderWord::decode(bytes).is_ok());
        }
        for word in receiver_words() {
            damage(&word.frame(), |bytes| ReceiverWord::decode(bytes).is_ok());
        }
    }

    fn damage(frame: &[u8], is_word: impl Fn(Bytes) -> bool) {
        let whole = payload(frame);
        for len in 0..whole.len() {
            assert!(!is_word(whole.slice(..len)), "cut to {len} of {whole:?}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            is_word(flipped.into()); // it may well be another one
        }
    }

    #[test]
    fn an_offer_that_cannot_be_is_refused() {
        for (bytes, chunk_count) in [(10, 11), (1 << 40, 3), (u64::MAX, 1)] {
            let offer = SnapshotOffer { bytes, chunk_count, ..an_offer() };
            let frame = SenderWord::offer_frame(Session(1), Term(1), &offer);
            assert_eq!(SenderWord::decode(payload(&frame)), Err(DecodeError::Range));
        }
    }
}
