//! The transport against strangers, liars and the dead: real sockets, and a test that says the
//! words of the handshake by hand.

use std::time::Duration;

use kontiki_raft::{Body, EntryId, Index, Membership, Message, Proposal, ProposalId, Term};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{handshake::FirstWord, *};
use crate::{
    Backlog, Bytes, Fault, KnownStores, codec,
    transport::{Notice, Outlet},
};

mod members;
mod store;
mod transfer;

const CLUSTER: u64 = 0xc1;
const PATIENCE: Duration = Duration::from_secs(10);

/// A transport under test.
struct Subject {
    links: Box<TcpLinks>,
    outlet: Outlet,
    address: String,
}

/// Starts the transport of `n1`, one of three. `n2` is at `peer`.
async fn subject(peer: &str) -> Subject {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let voters = [(NodeId(1), address.as_str()), (NodeId(2), peer), (NodeId(3), "127.0.0.1:1")];
    start(listener, 1, &Arc::new(Membership::of_voters(voters)), None)
}

/// Starts the transport of node `id`, which has the store `1000 + id`.
fn start(
    listener: TcpListener,
    id: u64,
    membership: &Arc<Membership>,
    snapshots: Option<store::Memory>,
) -> Subject {
    start_with(listener, id, membership, snapshots, TIMES)
}

fn start_with(
    listener: TcpListener,
    id: u64,
    membership: &Arc<Membership>,
    snapshots: Option<store::Memory>,
    times: Times,
) -> Subject {
    let address = listener.local_addr().unwrap().to_string();
    let local = Local {
        id: NodeId(id),
        cluster: CLUSTER,
        store: StoreId(1000 + id),
        listen: address.clone(),
        membership: Arc::clone(membership),
        known_stores: Arc::new(KnownStores::in_memory()),
        snapshots: snapshots.map(|store| Arc::new(store) as _),
        message_bytes_max: 10_000,
    };
    let (inbox, outlet) = Inbox::new();
    let life = getrandom::u64().unwrap();
    let times = Times { grace: Duration::from_millis(50), ..times };
    let links = Box::new(TcpLinks::start(listener, local, inbox, life, times).unwrap());
    Subject { links, outlet, address }
}

impl Subject {
    /// The next notice that `pick` is interested in.
    async fn notice<T>(&mut self, mut pick: impl FnMut(Notice) -> Option<T>) -> T {
        loop {
            let notice = timeout(PATIENCE, self.outlet.notices.recv()).await;
            if let Some(picked) = pick(notice.expect("nothing was said in time").unwrap()) {
                return picked;
            }
        }
    }
}

/// What `n2` says when all is well.
fn hello() -> Hello {
    Hello {
        cluster: CLUSTER,
        from: NodeId(2),
        to: NodeId(1),
        store: StoreId(1002),
        life: 7,
        channel: Channel::Messages(Lane::Control),
        listen: "127.0.0.1:1".into(),
    }
}

async fn greet(subject: &Subject, hello: &Hello) -> Result<TcpStream, HandshakeError> {
    let mut stream = TcpStream::connect(&subject.address).await?;
    handshake::greet(&mut stream, hello, &mut bytes::BytesMut::new()).await?;
    Ok(stream)
}

async fn refusal(subject: &Subject, hello: Hello) -> Refusal {
    match greet(subject, &hello).await {
        Err(HandshakeError::Refused(refusal)) => refusal,
        other => panic!("{hello:?} is not refused: {other:?}"),
    }
}

fn message(batch: u64) -> Message {
    Message { term: Term(1), body: Body::ReadIndex { batch } }
}

fn framed(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put_frame(&mut out, |out| codec::encode(message, out));
    out
}

/// Whether the other end has closed the connection.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.is_ok()
}

#[tokio::test]
async fn a_peer_is_welcome_and_what_it_says_arrives() {
    let mut subject = subject("127.0.0.1:1").await;
    let mut stream = greet(&subject, &hello()).await.unwrap();
    for batch in 0..100 {
        stream.write_all(&framed(&message(batch))).await.unwrap();
    }
    for batch in 0..100 {
        let delivery = subject.outlet.control.recv().await.unwrap();
        assert_eq!((delivery.from, delivery.message), (NodeId(2), message(batch)));
    }
    subject.links.close().await;
    assert!(is_closed(&mut stream).await);
}

/// Pitfall M7 is the last of these.
#[tokio::test]
async fn who_does_not_belong_here_is_told_why() {
    let subject = subject("127.0.0.1:1").await;
    let dialer = 0xc2;
    assert_eq!(
        refusal(&subject, Hello { cluster: dialer, ..hello() }).await,
        Refusal::Cluster { dialer, acceptor: CLUSTER }
    );
    assert_eq!(
        refusal(&subject, Hello { to: NodeId(3), ..hello() }).await,
        Refusal::WrongNode { wanted: NodeId(3), found: NodeId(1) }
    );
    assert_eq!(
        refusal(&subject, Hello { from: NodeId(1), ..hello() }).await,
        Refusal::SameId { id: NodeId(1) }
    );
    assert_eq!(
        refusal(&subject, Hello { from: NodeId(9), listen: "".into(), ..hello() }).await,
        Refusal::NotAMember { id: NodeId(9) }
    );

    let first = greet(&subject, &hello()).await.unwrap();
    assert_eq!(
        refusal(&subject, Hello { life: 8, ..hello() }).await,
        Refusal::AlreadyConnected { id: NodeId(2) }
    );
    drop(first);
    let (known, found) = (StoreId(1002), StoreId(1003));
    assert_eq!(
        refusal(&subject, Hello { store: found, ..hello() }).await,
        Refusal::StoreChanged { id: NodeId(2), known, found }
    );
}

/// Pitfall D15.
#[tokio::test]
async fn strangers_and_liars_do_no_harm() {
    let mut subject = subject("127.0.0.1:1").await;
    let noise: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", &[0; 100], &[0xff; 100], b"\x10\0\0\0abcd"];
    for bytes in noise {
        let mut stream = TcpStream::connect(&subject.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        assert!(is_closed(&mut stream).await);
    }

    let mut wrong_checksum = framed(&message(1));
    *wrong_checksum.last_mut().unwrap() ^= 1;
    let huge = [0xff; 64].to_vec();
    let mut no_message = Vec::new();
    frame::put_frame(&mut no_message, |out| out.extend_from_slice(&[1, 99, 0]));
    for bytes in [wrong_checksum, huge, no_message] {
        let mut stream = greet(&subject, &hello()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        assert!(is_closed(&mut stream).await, "{bytes:?}");
    }

    let mut stream = greet(&subject, &hello()).await.unwrap();
    stream.write_all(&framed(&message(5))).await.unwrap();
    let delivery = subject.outlet.control.recv().await.unwrap();
    assert_eq!(delivery.message, message(5), "nothing of the noise came through");
}

/// The acceptor of the test, in the place of `n2`.
struct Peer(TcpListener);

impl Peer {
    async fn new() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (Self(listener), address)
    }

    /// Accepts the next connection of `lane` and answers it.
    async fn accept(&self, lane: Lane, reply: &handshake::Reply) -> (TcpStream, Hello) {
        self.accept_channel(Channel::Messages(lane), reply).await
    }

    async fn accept_channel(
        &self,
        channel: Channel,
        reply: &handshake::Reply,
    ) -> (TcpStream, Hello) {
        loop {
            let (mut stream, _) = timeout(PATIENCE, self.0.accept()).await.unwrap().unwrap();
            let heard = handshake::listen(&mut stream, &mut bytes::BytesMut::new()).await;
            let Ok(FirstWord::Hello(hello)) = heard else { continue };
            handshake::answer(&mut stream, reply).await.unwrap();
            if hello.channel == channel {
                return (stream, hello);
            }
        }
    }
}

const WELCOME: handshake::Reply = handshake::Reply::Welcome { store: StoreId(1002) };

/// Sends until something arrives: what is sent before the lane is connected is dropped.
async fn receive(subject: &mut Subject, stream: &mut TcpStream, message: &Message) -> Message {
    let mut received = bytes::BytesMut::new();
    loop {
        subject.links.send(Envelope { to: NodeId(2), message: message.clone() });
        let read = timeout(Duration::from_millis(20), stream.read_buf(&mut received)).await;
        if let Ok(read) = read {
            assert_ne!(read.unwrap(), 0, "the connection was closed");
        }
        if let Some(payload) = frame::take_frame(&mut received, 10_000).unwrap() {
            return codec::decode(payload).unwrap();
        }
    }
}

#[tokio::test]
async fn a_broken_connection_is_reported_and_made_anew() {
    let (peer, address) = Peer::new().await;
    let mut subject = subject(&address).await;
    for round in 0..3 {
        let (mut stream, hello) = peer.accept(Lane::Control, &WELCOME).await;
        assert_eq!((hello.from, hello.to), (NodeId(1), NodeId(2)));
        assert_eq!(receive(&mut subject, &mut stream, &message(round)).await, message(round));
        drop(stream);
        let lost = subject.notice(|notice| match notice {
            Notice::Unreachable(id) => Some(id),
            Notice::PeerStore { .. } => None,
            other => panic!("{other:?}"),
        });
        assert_eq!(lost.await, NodeId(2));
    }
}

#[tokio::test]
async fn bulk_takes_another_connection_than_what_is_urgent() {
    let (peer, address) = Peer::new().await;
    let mut subject = subject(&address).await;
    let proposal =
        Proposal { id: ProposalId(1), command: Bytes::from_static(b"bulk"), is_session: false };
    let bulk = Message { term: Term(1), body: Body::Propose(vec![proposal]) };
    let (mut stream, _) = peer.accept(Lane::Append, &WELCOME).await;
    assert_eq!(receive(&mut subject, &mut stream, &bulk).await, bulk);
}

/// Pitfall M7: the wiped node itself learns it and stops.
#[tokio::test]
async fn a_node_that_is_known_by_another_store_is_told_to_stop() {
    let (peer, address) = Peer::new().await;
    let mut subject = subject(&address).await;
    let (known, found) = (StoreId(5), StoreId(1001));
    let changed = Refusal::StoreChanged { id: NodeId(1), known, found };
    peer.accept(Lane::Control, &handshake::Reply::Refused(changed)).await;
    let fault = subject.notice(|notice| match notice {
        Notice::Fault(Fault::StoreChanged { peer, known, ours }) => Some((peer, known, ours)),
        Notice::Fault(fault) => panic!("{fault}"),
        _ => None,
    });
    assert_eq!(fault.await, (NodeId(2), known, found));
}

/// A wiped peer is not sent to either: it would be given a log that it has lost before.
#[tokio::test]
async fn a_wiped_peer_gets_no_messages() {
    let (peer, address) = Peer::new().await;
    let mut subject = subject(&address).await;
    let (mut stream, _) = peer.accept(Lane::Control, &WELCOME).await;
    receive(&mut subject, &mut stream, &message(0)).await; // its store is known by now
    drop(stream);
    let wiped = handshake::Reply::Welcome { store: StoreId(1003) };
    let (mut stream, _) = peer.accept(Lane::Control, &wiped).await;
    subject.links.send(Envelope { to: NodeId(2), message: message(1) });
    assert!(is_closed(&mut stream).await);
}

/// Pitfall D14.
#[tokio::test]
async fn what_has_no_room_is_dropped_and_reported() {
    let (peer, address) = Peer::new().await;
    let mut subject = subject(&address).await;
    let (mut stream, _) = peer.accept(Lane::Append, &WELCOME).await;
    let small = Message {
        term: Term(1),
        body: Body::Propose(vec![Proposal {
            id: ProposalId(1),
            command: Bytes::new(),
            is_session: false,
        }]),
    };
    receive(&mut subject, &mut stream, &small).await; // connected
    while subject.outlet.notices.try_recv().is_ok() {}
    let proposal =
        Proposal { id: ProposalId(1), command: Bytes::from(vec![0; 9000]), is_session: false };
    let large = Message { term: Term(1), body: Body::Propose(vec![proposal]) };
    for _ in 0..3 {
        // The sending task has no chance to run between these.
        subject.links.send(Envelope { to: NodeId(2), message: large.clone() });
    }
    match subject.outlet.notices.try_recv() {
        Ok(Notice::Unreachable(id)) => assert_eq!(id, NodeId(2)),
        other => panic!("nothing was said: {other:?}"),
    }
    // What had room arrives.
    let mut received = bytes::BytesMut::new();
    let mut count = 0;
    while count < 2 {
        stream.read_buf(&mut received).await.unwrap();
        while let Some(payload) = frame::take_frame(&mut received, 10_000).unwrap() {
            count += usize::from(codec::decode(payload).unwrap() == large);
        }
    }
}

fn backlog_of_2(subject: &Subject) -> PeerBacklog {
    let backlogs = subject.links.backlogs();
    *backlogs.iter().find(|backlog| backlog.peer == NodeId(2)).unwrap()
}

#[tokio::test]
async fn what_waits_in_a_lane_is_told_and_what_is_on_its_way_is_not() {
    let (peer, address) = Peer::new().await;
    let mut subject = subject(&address).await;
    let (mut stream, _) = peer.accept(Lane::Control, &WELCOME).await;
    subject.links.send(Envelope { to: NodeId(2), message: message(7) });
    let nothing = Backlog::default();
    assert_eq!(backlog_of_2(&subject).control, nothing, "there is no connection yet");
    receive(&mut subject, &mut stream, &message(0)).await;
    tokio::task::yield_now().await; // what was sent meanwhile is taken
    for batch in 1..=3 {
        // The sending task has no chance to run between these.
        subject.links.send(Envelope { to: NodeId(2), message: message(batch) });
    }
    let bytes = 3 * u64::try_from(crate::message_bytes(&message(1))).unwrap();
    let expected = PeerBacklog {
        peer: NodeId(2),
        control: Backlog { count: 3, bytes },
        append: nothing,
        snapshot: nothing,
    };
    assert_eq!(backlog_of_2(&subject), expected);
    let taken = async {
        while backlog_of_2(&subject).control != nothing {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, taken).await.unwrap();
}

/// Each lane is connected by itself. A follower that hears its leader over one of them may pass
/// something on, and the answer must not be lost because the other has no connection yet.
#[tokio::test]
async fn what_is_urgent_takes_the_other_lane_while_its_own_has_no_connection() {
    let (peer, address) = Peer::new().await;
    let mut subject = subject(&address).await;
    let mut unanswered = Vec::new();
    let mut stream = loop {
        let (mut stream, _) = timeout(PATIENCE, peer.0.accept()).await.unwrap().unwrap();
        let heard = handshake::listen(&mut stream, &mut bytes::BytesMut::new()).await;
        match heard {
            Ok(FirstWord::Hello(hello)) if hello.channel == Channel::Messages(Lane::Append) => {
                handshake::answer(&mut stream, &WELCOME).await.unwrap();
                break stream;
            }
            _ => unanswered.push(stream),
        }
    };
    let results = vec![(ProposalId(1), Ok(EntryId::new(7, 1)))];
    let answer = Message { term: Term(1), body: Body::ProposeReply(results) };
    assert_eq!(Lane::of(&answer), Lane::Control);
    assert_eq!(receive(&mut subject, &mut stream, &answer).await, answer);
}

/// Entries are told of as committed over either lane, and the one to whom an entry belongs has to
/// know that before he applies it.
#[tokio::test]
async fn an_answer_to_a_proposal_goes_ahead_in_both_lanes() {
    let (peer, address) = Peer::new().await;
    let mut subject = subject(&address).await;
    let results = vec![(ProposalId(1), Ok(EntryId::new(7, 1)))];
    let answer = Message { term: Term(1), body: Body::ProposeReply(results) };
    let proposal =
        Proposal { id: ProposalId(1), command: Bytes::from_static(b"x"), is_session: false };
    let bulk = Message { term: Term(1), body: Body::Propose(vec![proposal]) };
    let mut streams = Vec::new();
    for _ in Lane::ALL {
        let (mut stream, _) = timeout(PATIENCE, peer.0.accept()).await.unwrap().unwrap();
        let heard = handshake::listen(&mut stream, &mut bytes::BytesMut::new()).await;
        handshake::answer(&mut stream, &WELCOME).await.unwrap();
        let Ok(FirstWord::Hello(hello)) = heard else { panic!("{heard:?}") };
        let is_control = hello.channel == Channel::Messages(Lane::Control);
        let greeting = if is_control { message(0) } else { bulk.clone() };
        streams.push((stream, greeting));
    }
    for (stream, greeting) in &mut streams {
        receive(&mut subject, stream, greeting).await; // each is connected
    }
    for (stream, _) in &mut streams {
        let heard = async { while receive(&mut subject, stream, &answer).await != answer {} };
        timeout(PATIENCE, heard).await.unwrap();
    }
}

/// A follower that has just started hears its leader before its own connection to it is made.
#[tokio::test]
async fn a_proposal_for_which_there_is_no_connection_is_given_back() {
    let (peer, address) = Peer::new().await;
    let mut subject = subject(&address).await;
    let proposal =
        Proposal { id: ProposalId(1), command: Bytes::from_static(b"x"), is_session: false };
    let forward = Message { term: Term(1), body: Body::Propose(vec![proposal]) };
    for to in [NodeId(2), NodeId(77)] {
        let envelope = Envelope { to, message: forward.clone() };
        subject.links.send(envelope.clone());
        subject.links.send(Envelope { to, message: message(1) }); // it is repeated anyway
        match subject.outlet.notices.try_recv() {
            Ok(Notice::NotSent(unsent)) => assert_eq!(unsent, envelope),
            other => panic!("it is not given back: {other:?}"),
        }
        assert!(subject.outlet.notices.try_recv().is_err());
    }

    // The same when the connection is known to be broken.
    let (mut stream, _) = peer.accept(Lane::Append, &WELCOME).await;
    receive(&mut subject, &mut stream, &forward).await;
    while subject.outlet.notices.try_recv().is_ok() {}
    drop(stream);
    let given_back = async {
        loop {
            subject.links.send(Envelope { to: NodeId(2), message: forward.clone() });
            if let Ok(Notice::NotSent(unsent)) = subject.outlet.notices.try_recv() {
                return unsent.message;
            }
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(timeout(PATIENCE, given_back).await.unwrap(), forward);
}

#[tokio::test]
async fn a_message_to_someone_unknown_is_dropped() {
    let mut subject = subject("127.0.0.1:1").await;
    let reply = Body::ReadIndexReply { batch: 1, result: Ok(Index(1)) };
    subject
        .links
        .send(Envelope { to: NodeId(77), message: Message { term: Term(1), body: reply } });
    assert!(subject.outlet.notices.try_recv().is_err());
}
