//! The first words on a connection: who are you, and are we to talk?
//!
//! The node that connects says [`Hello`]; the other one answers with its own store id, or with
//! the reason why not, and closes. Both ends then log the same reason. The magic number and the
//! version come first in every version of the protocol, so that two versions can at least tell
//! each other so.

use std::io;

use bytes::{Bytes, BytesMut};
use kontiki_raft::{NodeId, StoreId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frame::{FrameError, put_frame, take_frame};
use crate::{
    Lane,
    codec::{DecodeError, Reader, put},
};

const MAGIC: [u8; 8] = *b"kontiki\0";

/// The version of the peer protocol: of these words and of all messages after them.
pub(crate) const VERSION: u8 = 2;

/// No word of the handshake is nearly as large.
const WORD_BYTES_MAX: usize = 256;

/// What the node that connects says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) cluster: u64,
    pub(crate) from: NodeId,
    /// Who is expected at this address.
    pub(crate) to: NodeId,
    /// The data directory of `from`.
    pub(crate) store: StoreId,
    /// Random, made when the process started: tells a reconnect from a second process.
    pub(crate) life: u64,
    pub(crate) lane: Lane,
}

/// What the other one answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Go on. This is my data directory.
    Welcome { store: StoreId },
    /// No, for this reason.
    Refused(Refusal),
}

/// Why two nodes do not talk. Said to both, so it speaks of neither as "this node".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "they belong to different clusters ({dialer:016x} connects to {acceptor:016x}); were \
         both started with the same list of members?"
    )]
    Cluster { dialer: u64, acceptor: u64 },
    #[error("{wanted} is expected at this address, but it is the address of {found}")]
    WrongNode { wanted: NodeId, found: NodeId },
    #[error("both were started with the id {id}")]
    SameId { id: NodeId },
    #[error("{id} is not a member of the cluster")]
    NotAMember { id: NodeId },
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

/// Says `hello` and returns the data directory of the other node.
pub(crate) async fn greet<S>(stream: &mut S, hello: &Hello) -> Result<StoreId, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    write_word(stream, |buf| hello.encode(buf)).await?;
    let mut received = BytesMut::new();
    match Reply::decode(read_word(stream, &mut received).await?)? {
        Reply::Welcome { store } => Ok(store),
        Reply::Refused(refusal) => Err(HandshakeError::Refused(refusal)),
    }
}

/// Waits for the other node's hello. What it sends after stays in `received`.
///
/// A hello of another version is answered here: the reply needs nothing but our version.
pub(crate) async fn listen<S>(
    stream: &mut S,
    received: &mut BytesMut,
) -> Result<Hello, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let word = read_word(stream, received).await;
    if let Err(HandshakeError::Version { .. }) = &word {
        write_word(stream, put_version).await?;
    }
    Ok(Hello::decode(word?)?)
}

/// Answers a hello.
pub(crate) async fn answer<S>(stream: &mut S, reply: &Reply) -> io::Result<()>
where
    S: AsyncWrite + Unpin,
{
    write_word(stream, |buf| reply.encode(buf)).await
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
async fn read_word<S>(stream: &mut S, received: &mut BytesMut) -> Result<Reader, HandshakeError>
where
    S: AsyncRead + Unpin,
{
    loop {
        if let Some(payload) = take_frame(received, WORD_BYTES_MAX)? {
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

impl Hello {
    fn encode(&self, buf: &mut Vec<u8>) {
        put_version(buf);
        for number in [self.cluster, self.from.get(), self.to.get(), self.store.get(), self.life] {
            put(buf, number);
        }
        buf.push(match self.lane {
            Lane::Control => 0,
            Lane::Append => 1,
        });
    }

    fn decode(mut reader: Reader) -> Result<Self, DecodeError> {
        let hello = Self {
            cluster: reader.number()?,
            from: NodeId(reader.number()?),
            to: NodeId(reader.number()?),
            store: StoreId(reader.number()?),
            life: reader.number()?,
            lane: match reader.u8()? {
                0 => Lane::Control,
                1 => Lane::Append,
                tag => return Err(DecodeError::Tag { what: "lane", tag }),
            },
        };
        reader.finish()?;
        Ok(hello)
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
            tag => return Err(DecodeError::Tag { what: "reply", tag }),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Hello = Hello {
        cluster: u64::MAX,
        from: NodeId(1),
        to: NodeId(2),
        store: StoreId(0xfeed),
        life: 77,
        lane: Lane::Append,
    };

    /// What a dialer is told when the acceptor answers `reply`, and what the acceptor heard.
    async fn converse(reply: &Reply) -> (Result<StoreId, HandshakeError>, Hello) {
        let (mut dialer, mut acceptor) = tokio::io::duplex(1024);
        let serve = async {
            let hello = listen(&mut acceptor, &mut BytesMut::new()).await.unwrap();
            answer(&mut acceptor, reply).await.unwrap();
            hello
        };
        tokio::join!(greet(&mut dialer, &HELLO), serve)
    }

    #[tokio::test]
    async fn a_welcome_names_the_other_store() {
        let (greeted, heard) = converse(&Reply::Welcome { store: StoreId(5) }).await;
        assert_eq!(greeted.unwrap(), StoreId(5));
        assert_eq!(heard, HELLO);
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
