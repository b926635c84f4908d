//! The first words on a connection: who are you, and are we to talk?
//!
//! The node that connects says [`Hello`]; the other one answers with its own store id, or with
//! the reason why not, and closes. Both ends then log the same reason. A node that does not know
//! who it is yet asks instead ([`FirstWord::WhoAmI`]), and is told ([`Introduction`]). The magic
//! number and the version come first in every version of the protocol, so that two versions can
//! at least tell each other so.

use std::{fmt, io, sync::Arc};

use bytes::{Bytes, BytesMut};
use kontiki_log::{decode_membership, encode_membership};
use kontiki_raft::{Membership, NodeId, StoreId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{FrameError, put_frame, take_frame};
use crate::{
    Lane,
    codec::{DecodeError, Reader, put, put_bytes},
};

const MAGIC: [u8; 8] = *b"kontiki\0";

/// The version of the peer protocol: of these words and of all messages after them.
pub(crate) const VERSION: u8 = 3;

/// No first word is as large, and no reply to a hello.
const WORD_BYTES_MAX: usize = 512;
/// No introduction is larger: it holds a membership, with what the application says of members.
const INTRODUCTION_BYTES_MAX: usize = 1 << 20;
/// Longer addresses are not told. A DNS name is shorter.
const ADDRESS_BYTES_MAX: usize = 300;

/// What is said first on a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FirstWord {
    /// A node that knows who it is wants to talk.
    Hello(Hello),
    /// A node that has just been added wants to know its cluster and its id.
    WhoAmI {
        /// Where it listens.
        address: Arc<str>,
    },
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Channel {
    /// Messages, one frame each.
    Messages(Lane),
    /// One snapshot.
    Snapshot,
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Messages(lane) => lane.fmt(f),
            Self::Snapshot => f.write_str("snapshot"),
        }
    }
}

/// What the node that connects says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) cluster: u64,
    pub(crate) from: NodeId,
    /// Who is expected at this address.
    pub(crate) to: NodeId,
    /// The data directory of `from`.
    pub(crate) store: StoreId,
    /// Random, made when the process started: tells a reconnect from a second process.
    pub(crate) life: u64,
    pub(crate) channel: Channel,
    /// Where `from` can be reached, for those whose membership does not name it.
    pub(crate) listen: Arc<str>,
}

/// What the other one answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Go on. This is my data directory.
    Welcome { store: StoreId },
    /// No, for this reason.
    Refused(Refusal),
}

/// What is answered to "who am I?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Introduction {
    /// The newest member at that address that has no data directory yet.
    Member { cluster: u64, id: NodeId, membership: Arc<Membership> },
    /// No member has that address.
    Unknown { cluster: u64 },
    /// The member at that address has a data directory already.
    Bound { cluster: u64, id: NodeId },
}

/// Why two nodes do not talk. Said to both, so it speaks of neither as "this node".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "they belong to different clusters ({dialer:016x} connects to {acceptor:016x}): they were \
         started with different lists of members, or one of them was added to a cluster and has \
         to be started as one that joins it, with an empty data directory"
    )]
    Cluster { dialer: u64, acceptor: u64 },
    #[error("{wanted} is expected at this address, but it is the address of {found}")]
    WrongNode { wanted: NodeId, found: NodeId },
    #[error("both were started with the id {id}")]
    SameId { id: NodeId },
    #[error("{id} is not a member of the cluster, and says no address to answer to")]
    NotAMember { id: NodeId },
    #[error("{id} is not a member of the cluster, and too many others who are not are connected")]
    TooManyStrangers { id: NodeId },
    #[error(
        "another process is connected as {id}; are there two with the same id and copies of one \
         data directory?"
    )]
    AlreadyConnected { id: NodeId },
    #[error(
        "{id} is known by another data directory (store {known:016x}, it comes with {found:016x}): \
         its data was wiped or replaced, or two nodes have the same id",
        known = known.get(),
        found = found.get()
    )]
    StoreChanged { id: NodeId, known: StoreId, found: StoreId },
    #[error("the file of known peers cannot be written")]
    Unrecorded,
}

/// Why a handshake came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the other end does not speak the peer protocol")]
    Magic,
    #[error(
        "the other end speaks version {theirs} of the peer protocol, this node version {VERSION}"
    )]
    Version { theirs: u8 },
    #[error("the other end does not speak the peer protocol")]
    Frame(#[from] FrameError),
    #[error("the other end does not speak the peer protocol")]
    Malformed(#[from] DecodeError),
    #[error(transparent)]
    Refused(Refusal),
}

impl HandshakeError {
    /// Whether it is to be expected while a member is replaced by a new one at its address.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Refused(Refusal::WrongNode { .. }))
    }
}

/// Says `hello` and returns the data directory of the other node. What that one says after its
/// welcome stays in `received`.
pub(crate) async fn greet<S>(
    stream: &mut S,
    hello: &Hello,
    received: &mut BytesMut,
) -> Result<StoreId, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    write_word(stream, |buf| hello.encode(buf)).await?;
    match Reply::decode(read_word(stream, received, WORD_BYTES_MAX).await?)? {
        Reply::Welcome { store } => Ok(store),
        Reply::Refused(refusal) => Err(HandshakeError::Refused(refusal)),
    }
}

/// Asks who is at `address`.
pub(crate) async fn ask<S>(stream: &mut S, address: &str) -> Result<Introduction, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    write_word(stream, |buf| {
        put_version(buf);
        buf.push(WHO_AM_I);
        put_address(buf, address);
    })
    .await?;
    let word = read_word(stream, &mut BytesMut::new(), INTRODUCTION_BYTES_MAX).await?;
    Ok(Introduction::decode(word)?)
}

/// Waits for the other node's first word. What it sends after stays in `received`.
///
/// A word of another version is answered here: the reply needs nothing but our version.
pub(crate) async fn listen<S>(
    stream: &mut S,
    received: &mut BytesMut,
) -> Result<FirstWord, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let word = read_word(stream, received, WORD_BYTES_MAX).await;
    if let Err(HandshakeError::Version { .. }) = &word {
        write_word(stream, put_version).await?;
    }
    Ok(FirstWord::decode(word?)?)
}

/// Answers a hello.
pub(crate) async fn answer<S>(stream: &mut S, reply: &Reply) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    write_word(stream, |buf| reply.encode(buf)).await
}

/// Answers "who am I?".
pub(crate) async fn introduce<S>(stream: &mut S, introduction: &Introduction) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    write_word(stream, |buf| introduction.encode(buf)).await
}

async fn write_word<S>(stream: &mut S, encode: impl FnOnce(&mut Vec<u8>)) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    let mut out = Vec::with_capacity(WORD_BYTES_MAX);
    put_frame(&mut out, encode);
    stream.write_all(&out).await
}

/// Reads one frame and returns what follows magic number and version.
async fn read_word<S>(
    stream: &mut S,
    received: &mut BytesMut,
    bytes_max: usize,
) -> Result<Reader, HandshakeError>
where
    S: AsyncRead + Unpin,
{
    loop {
        if let Some(payload) = take_frame(received, bytes_max)? {
            return open_word(payload);
        }
        if stream.read_buf(received).await? == 0 {
            return Err(HandshakeError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

fn open_word(payload: Bytes) -> Result<Reader, HandshakeError> {
    let mut reader = Reader(payload);
    if reader.array()? != MAGIC {
        return Err(HandshakeError::Magic);
    }
    match reader.u8()? {
        VERSION => Ok(reader),
        theirs => Err(HandshakeError::Version { theirs }),
    }
}

fn put_version(buf: &mut Vec<u8>) {
    buf.extend_from_slice(&MAGIC);
    buf.push(VERSION);
}

const HELLO: u8 = 0;
const WHO_AM_I: u8 = 1;

impl FirstWord {
    fn decode(mut reader: Reader) -> Result<Self, DecodeError> {
        let word = match reader.u8()? {
            HELLO => Self::Hello(Hello::decode(&mut reader)?),
            WHO_AM_I => Self::WhoAmI { address: address(&mut reader)? },
            tag => return Err(DecodeError::Tag { what: "first word", tag }),
        };
        reader.finish()?;
        Ok(word)
    }
}

impl Hello {
    fn encode(&self, buf: &mut Vec<u8>) {
        put_version(buf);
        buf.push(HELLO);
        for number in [self.cluster, self.from.get(), self.to.get(), self.store.get(), self.life] {
            put(buf, number);
        }
        buf.push(match self.channel {
            Channel::Messages(Lane::Control) => 0,
            Channel::Messages(Lane::Append) => 1,
            Channel::Snapshot => 2,
        });
        put_address(buf, &self.listen);
    }

    fn decode(reader: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            cluster: reader.number()?,
            from: NodeId(reader.number()?),
            to: NodeId(reader.number()?),
            store: StoreId(reader.number()?),
            life: reader.number()?,
            channel: match reader.u8()? {
                0 => Channel::Messages(Lane::Control),
                1 => Channel::Messages(Lane::Append),
                2 => Channel::Snapshot,
                tag => return Err(DecodeError::Tag { what: "channel", tag }),
            },
            listen: address(reader)?,
        })
    }
}

/// One that is too long is as good as none: nobody could connect to it.
fn put_address(buf: &mut Vec<u8>, address: &str) {
    let told = if address.len() <= ADDRESS_BYTES_MAX { address } else { "" };
    put_bytes(buf, told.as_bytes());
}

fn address(reader: &mut Reader) -> Result<Arc<str>, DecodeError> {
    let address = reader.text()?;
    if ADDRESS_BYTES_MAX < address.len() {
        return Err(DecodeError::Range);
    }
    Ok(address)
}

impl Introduction {
    /// The cluster of the node that answers.
    pub(crate) fn cluster(&self) -> u64 {
        match self {
            Self::Member { cluster, .. }
            | Self::Unknown { cluster }
            | Self::Bound { cluster, .. } => *cluster,
        }
    }

    fn encode(&self, buf: &mut Vec<u8>) {
        put_version(buf);
        match self {
            Self::Member { cluster, id, membership } => {
                buf.push(0);
                put(buf, *cluster);
                put(buf, id.get());
                let mut encoded = Vec::new();
                encode_membership(membership, &mut encoded);
                put_bytes(buf, &encoded);
            }
            Self::Unknown { cluster } => {
                buf.push(1);
                put(buf, *cluster);
            }
            Self::Bound { cluster, id } => {
                buf.push(2);
                put(buf, *cluster);
                put(buf, id.get());
            }
        }
    }

    fn decode(mut reader: Reader) -> Result<Self, DecodeError> {
        let tag = reader.u8()?;
        let cluster = reader.number()?;
        let introduction = match tag {
            0 => {
                let id = NodeId(reader.number()?);
                let membership =
                    decode_membership(&reader.bytes()?).ok_or(DecodeError::Membership)?;
                Self::Member { cluster, id, membership: Arc::new(membership) }
            }
            1 => Self::Unknown { cluster },
            2 => Self::Bound { cluster, id: NodeId(reader.number()?) },
            tag => return Err(DecodeError::Tag { what: "introduction", tag }),
        };
        reader.finish()?;
        Ok(introduction)
    }
}

impl Reply {
    fn encode(&self, buf: &mut Vec<u8>) {
        put_version(buf);
        let (tag, numbers): (u8, [u64; 3]) = match *self {
            Self::Welcome { store } => (0, [store.get(), 0, 0]),
            Self::Refused(ref refusal) => match *refusal {
                Refusal::Cluster { dialer, acceptor } => (1, [dialer, acceptor, 0]),
                Refusal::WrongNode { wanted, found } => (2, [wanted.get(), found.get(), 0]),
                Refusal::SameId { id } => (3, [id.get(), 0, 0]),
                Refusal::NotAMember { id } => (4, [id.get(), 0, 0]),
                Refusal::AlreadyConnected { id } => (5, [id.get(), 0, 0]),
                Refusal::StoreChanged { id, known, found } => {
                    (6, [id.get(), known.get(), found.get()])
                }
                Refusal::Unrecorded => (7, [0; 3]),
                Refusal::TooManyStrangers { id } => (8, [id.get(), 0, 0]),
            },
        };
        buf.push(tag);
        numbers.into_iter().for_each(|number| put(buf, number));
    }

    fn decode(mut reader: Reader) -> Result<Self, DecodeError> {
        let tag = reader.u8()?;
        let numbers = [reader.number()?, reader.number()?, reader.number()?];
        reader.finish()?;
        let [a, b, c] = numbers;
        Ok(Self::Refused(match tag {
            0 => return Ok(Self::Welcome { store: StoreId(a) }),
            1 => Refusal::Cluster { dialer: a, acceptor: b },
            2 => Refusal::WrongNode { wanted: NodeId(a), found: NodeId(b) },
            3 => Refusal::SameId { id: NodeId(a) },
            4 => Refusal::NotAMember { id: NodeId(a) },
            5 => Refusal::AlreadyConnected { id: NodeId(a) },
            6 => Refusal::StoreChanged { id: NodeId(a), known: StoreId(b), found: StoreId(c) },
            7 => Refusal::Unrecorded,
            8 => Refusal::TooManyStrangers { id: NodeId(a) },
            tag => return Err(DecodeError::Tag { what: "reply", tag }),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(channel: Channel) -> Hello {
        Hello {
            cluster: u64::MAX,
            from: NodeId(1),
            to: NodeId(2),
            store: StoreId(0xfeed),
            life: 77,
            channel,
            listen: "n1.example:7001".into(),
        }
    }

    /// What a dialer is told when the acceptor answers `reply`, and what the acceptor heard.
    async fn converse(reply: &Reply) -> (Result<StoreId, HandshakeError>, FirstWord) {
        let hello = hello(Channel::Messages(Lane::Append));
        let (mut dialer, mut acceptor) = tokio::io::duplex(1024);
        let serve = async {
            let heard = listen(&mut acceptor, &mut BytesMut::new()).await.unwrap();
            answer(&mut acceptor, reply).await.unwrap();
            heard
        };
        let mut received = BytesMut::new();
        tokio::join!(greet(&mut dialer, &hello, &mut received), serve)
    }

    #[tokio::test]
    async fn a_welcome_names_the_other_store() {
        let (greeted, heard) = converse(&Reply::Welcome { store: StoreId(5) }).await;
        assert_eq!(greeted.unwrap(), StoreId(5));
        assert_eq!(heard, FirstWord::Hello(hello(Channel::Messages(Lane::Append))));
    }

    #[tokio::test]
    async fn who_asks_who_it_is_is_told() {
        let membership = Arc::new(Membership::of_voters([(NodeId(1), "a"), (NodeId(2), "b")]));
        for told in [
            Introduction::Member { cluster: 5, id: NodeId(2), membership },
            Introduction::Unknown { cluster: u64::MAX },
            Introduction::Bound { cluster: 0, id: NodeId(2) },
        ] {
            let (mut dialer, mut acceptor) = tokio::io::duplex(1024);
            let serve = async {
                let heard = listen(&mut acceptor, &mut BytesMut::new()).await.unwrap();
                introduce(&mut acceptor, &told).await.unwrap();
                heard
            };
            let (answer, heard) = tokio::join!(ask(&mut dialer, "here:1"), serve);
            assert_eq!(heard, FirstWord::WhoAmI { address: "here:1".into() });
            assert_eq!(answer.unwrap(), told);
        }
    }

    /// Pitfall D15: whatever arrives in the place of a word, it is an error and never a panic.
    #[test]
    fn damaged_words_are_refused() {
        for channel in [Channel::Messages(Lane::Control), Channel::Snapshot] {
            damage(|buf| hello(channel).encode(buf), |reader| FirstWord::decode(reader).is_ok());
        }
        let membership = Arc::new(Membership::of_voters([(NodeId(1), "a"), (NodeId(2), "b")]));
        for told in [
            Introduction::Member { cluster: 5, id: NodeId(2), membership },
            Introduction::Bound { cluster: 5, id: NodeId(2) },
        ] {
            damage(|buf| told.encode(buf), |reader| Introduction::decode(reader).is_ok());
        }
    }

    fn damage(encode: impl Fn(&mut Vec<u8>), is_word: impl Fn(Reader) -> bool) {
        let mut word = Vec::new();
        encode(&mut word);
        let is_word = |bytes: &[u8]| open_word(Bytes::copy_from_slice(bytes)).is_ok_and(&is_word);
        assert!(is_word(&word));
        for len in 0..word.len() {
            assert!(!is_word(&word[..len]), "cut to {len}");
        }
        for bit in 0..word.len() * 8 {
            let mut flipped = word.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            is_word(&flipped); // it may well be another one
        }
    }

    #[tokio::test]
    async fn every_refusal_reaches_the_dialer_as_it_was_meant() {
        let id = NodeId(3);
        for refusal in [
            Refusal::Cluster { dialer: 1, acceptor: 2 },
            Refusal::WrongNode { wanted: NodeId(1), found: NodeId(2) },
            Refusal::SameId { id },
            Refusal::NotAMember { id },
            Refusal::AlreadyConnected { id },
            Refusal::StoreChanged { id, known: StoreId(8), found: StoreId(9) },
            Refusal::Unrecorded,
            Refusal::TooManyStrangers { id },
        ] {
            let (greeted, _) = converse(&Reply::Refused(refusal.clone())).await;
            match greeted {
                Err(HandshakeError::Refused(told)) => assert_eq!(told, refusal),
                other => panic!("{refusal}: {other:?}"),
            }
        }
    }

    /// Both ends of two versions learn that there are two.
    #[tokio::test]
    async fn another_version_is_told_so_on_both_sides() {
        let (mut dialer, mut acceptor) = tokio::io::duplex(1024);
        write_word(&mut dialer, |buf| {
            buf.extend_from_slice(&MAGIC);
            buf.extend_from_slice(b"\x09whatever version nine says");
        })
        .await
        .unwrap();
        let heard = listen(&mut acceptor, &mut BytesMut::new()).await;
        assert!(matches!(heard, Err(HandshakeError::Version { theirs: 9 })), "{heard:?}");

        // Read as version nine would: magic number, then the version.
        let mut told = [0; 17];
        dialer.read_exact(&mut told).await.unwrap();
        assert_eq!(told[8..16], MAGIC);
        assert_eq!(told[16], VERSION);
    }

    #[tokio::test]
    async fn something_else_that_connects_is_noticed() {
        for noise in [&b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n"[..], &[0; 64], &[0xff; 64]] {
            let (mut dialer, mut acceptor) = tokio::io::duplex(1024);
            dialer.write_all(noise).await.unwrap();
            drop(dialer);
            assert!(listen(&mut acceptor, &mut BytesMut::new()).await.is_err());
        }
    }
}
