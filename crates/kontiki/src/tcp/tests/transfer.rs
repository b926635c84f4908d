//! Snapshots between two transports, over a cable that breaks.

use kontiki_raft::{EntryId, Session};

use super::{
    store::{CHUNK_BYTES, Cable, Memory, snapshot, snapshot_in_chunks},
    *,
};
use crate::{SnapshotOffer, SnapshotTransfer};

/// `n1`, which sends, and `n2`, which receives, with a cable between.
struct Pair {
    sender: Subject,
    receiver: Subject,
    sent: Memory,
    received: Memory,
    cable: Cable,
    membership: Arc<Membership>,
}

async fn pair() -> Pair {
    let listener_1 = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener_2 = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cable = Cable::to(&listener_2.local_addr().unwrap().to_string()).await;
    let at_1 = listener_1.local_addr().unwrap().to_string();
    let voters = [(NodeId(1), at_1.as_str()), (NodeId(2), &cable.address)];
    let membership = Arc::new(Membership::of_voters(voters));
    let (sent, received) = (Memory::default(), Memory::default());
    let sender = start(listener_1, 1, &membership, Some(sent.clone()));
    let receiver = start(listener_2, 2, &membership, Some(received.clone()));
    Pair { sender, receiver, sent, received, cable, membership }
}

const CHUNKS: usize = 20;

fn content() -> Vec<u8> {
    (0..CHUNK_BYTES * CHUNKS).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

impl Pair {
    /// A snapshot of twenty chunks that ends at `index`.
    fn offer(&self, index: u64) -> SnapshotOffer {
        let offer = snapshot(index, &self.membership, &content());
        self.sent.add(&offer, &content());
        offer
    }

    fn send(&mut self, last: EntryId, session: u64) {
        let (to, session, term) = (NodeId(2), Session(session), Term(1));
        self.sender.links.send_snapshot(SnapshotTransfer { to, session, term, last });
    }

    async fn sent(&mut self) -> (Session, Option<EntryId>) {
        let told = self.sender.notice(|notice| match notice {
            Notice::SnapshotSent { to: NodeId(2), session, sent } => Some((session, sent)),
            _ => None,
        });
        told.await
    }

    /// Waits until it has arrived, and looks at it.
    async fn assert_arrives(&mut self, offer: &SnapshotOffer, session: u64) {
        let last = offer.meta.last;
        assert_eq!(self.sent().await, (Session(session), Some(last)));
        let (from, meta) = received(&mut self.receiver).await;
        assert_eq!((from, meta), (NodeId(1), offer.meta.clone()));
        assert_eq!(self.received.content(last), Some(content()));
    }
}

async fn received(receiver: &mut Subject) -> (NodeId, kontiki_raft::SnapshotMeta) {
    let told = receiver.notice(|notice| match notice {
        Notice::SnapshotReceived { from, meta } => Some((from, meta)),
        _ => None,
    });
    told.await
}

/// Pitfall M17: messages go on while a snapshot is under way.
#[tokio::test]
async fn a_snapshot_arrives_and_messages_do_not_wait_for_it() {
    let mut pair = pair().await;
    let offer = pair.offer(9);
    pair.send(offer.meta.last, 1);
    let mut batch = 0;
    let mut sent = None;
    while sent.is_none() {
        batch += 1;
        pair.sender.links.send(Envelope { to: NodeId(2), message: message(batch) });
        let told = timeout(Duration::from_millis(1), pair.sender.outlet.notices.recv()).await;
        if let Ok(Some(Notice::SnapshotSent { session, sent: whole, .. })) = told {
            sent = Some((session, whole));
        }
    }
    assert_eq!(sent.unwrap(), (Session(1), Some(offer.meta.last)));
    assert_eq!(received(&mut pair.receiver).await.1, offer.meta);
    assert_eq!(pair.received.content(offer.meta.last), Some(content()));
    assert_eq!(pair.sent.chunks_read(), (0..CHUNKS as u64).collect::<Vec<_>>());
}

/// Chunks as large as they come, so that bounds on frames are right.
#[tokio::test]
async fn large_chunks_arrive_too() {
    let mut pair = pair().await;
    let content: Vec<u8> = (0..9 << 20).map(|at: u32| at.to_le_bytes()[at as usize % 3]).collect();
    let offer = snapshot_in_chunks(9, &pair.membership, &content, crate::CHUNK_BYTES_MAX);
    assert_eq!(offer.chunk_count, 9);
    pair.sent.add(&offer, &content);
    pair.send(offer.meta.last, 1);
    assert_eq!(pair.sent().await, (Session(1), Some(offer.meta.last)));
    assert!(pair.received.content(offer.meta.last) == Some(content));
}

/// A receiver whose disk is slow is not taken for dead: it says that it is alive.
#[tokio::test]
async fn a_receiver_may_take_its_time() {
    let mut pair = pair().await;
    let content = &content()[..3 * CHUNK_BYTES];
    let offer = snapshot(9, &pair.membership, content);
    pair.sent.add(&offer, content);
    let hold = pair.received.hold();
    pair.send(offer.meta.last, 1);
    let all_are_read = async {
        while pair.sent.chunks_read().len() < 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all_are_read).await.unwrap();
    // The clock of both stands still but for the steps of this test, so neither waits for the
    // other for longer than the test says, however busy the machine is.
    tokio::time::pause();
    for _ in 0..2 * TIMES.idle.as_secs() / TIMES.alive.as_secs() {
        let before = pair.cable.answered_bytes();
        // A little more, for timers count in milliseconds.
        tokio::time::advance(TIMES.alive + Duration::from_millis(10)).await;
        let began = Instant::now();
        while pair.cable.answered_bytes() == before {
            assert!(began.elapsed() < PATIENCE, "the receiver does not say that it is alive");
            tokio::task::yield_now().await;
        }
        // The word has left the cable. Each of these looks for what has arrived, so that the
        // sender hears it in this step, or in one of the five after it.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }
    tokio::time::resume();
    drop(hold);
    assert_eq!(pair.sent().await, (Session(1), Some(offer.meta.last)));
    assert_eq!(pair.sent.chunks_read(), [0, 1, 2], "it did not break on the way");
}

/// One that has died without a word is, and is tried again.
#[tokio::test]
async fn a_receiver_that_says_nothing_is_given_up_and_tried_again() {
    let (peer, address) = Peer::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let voters = [(NodeId(1), "127.0.0.1:1"), (NodeId(2), address.as_str())];
    let membership = Arc::new(Membership::of_voters(voters));
    let memory = Memory::default();
    let offer = snapshot(9, &membership, &content());
    memory.add(&offer, &content());
    let times = Times { idle: Duration::from_millis(50), ..TIMES };
    let mut sender = start_with(listener, 1, &membership, Some(memory), times);
    let (to, session, term) = (NodeId(2), Session(1), Term(1));
    sender.links.send_snapshot(SnapshotTransfer { to, session, term, last: offer.meta.last });
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(peer.accept_channel(Channel::Snapshot, &WELCOME).await);
    }
    assert!(is_closed(&mut silent[0].0).await);
}

/// Pitfall M16: each connection carries one chunk before it breaks, and still it ends, and no
/// chunk that was written is written again.
#[tokio::test]
async fn a_transfer_that_breaks_at_every_chunk_goes_on_where_the_receiver_says() {
    let mut pair = pair().await;
    let offer = pair.offer(9);
    pair.cable.cut_after(Some(1));
    pair.send(offer.meta.last, 1);
    pair.assert_arrives(&offer, 1).await;
    assert_eq!(pair.received.put_count(), CHUNKS as u64);
    assert!(CHUNKS as u64 - 1 <= pair.cable.cuts(), "{} cuts", pair.cable.cuts());
}

/// Pitfall M18: what is left of a broken transfer disturbs nothing.
#[tokio::test]
async fn a_receiver_that_restarts_keeps_what_it_has() {
    let mut pair = pair().await;
    let offer = pair.offer(9);
    pair.received.set_room(Some(7));
    pair.send(offer.meta.last, 1);
    wait_for_puts(&pair, 7).await;
    pair.receiver.links.close().await;
    pair.received.set_room(None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    pair.cable.lead_to(&listener.local_addr().unwrap().to_string());
    pair.receiver = start(listener, 2, &pair.membership, Some(pair.received.clone()));
    pair.assert_arrives(&offer, 1).await;
    assert_eq!(pair.received.put_count(), CHUNKS as u64);
}

async fn wait_for_puts(pair: &Pair, count: u64) {
    let poll = async {
        while pair.received.put_count() < count {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, poll).await.unwrap();
}

/// What the receiver has not written waits, and nothing does when the transfer has ended.
#[tokio::test]
async fn the_rest_of_a_snapshot_is_told_while_it_is_on_its_way() {
    let mut pair = pair().await;
    let offer = pair.offer(9);
    pair.received.set_room(Some(7));
    pair.send(offer.meta.last, 1);
    let left = Backlog { count: CHUNKS as u64 - 7, bytes: (CHUNK_BYTES * (CHUNKS - 7)) as u64 };
    let told = async {
        while backlog_of_2(&pair.sender).snapshot != left {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, told).await.unwrap();
    pair.received.set_room(None);
    pair.assert_arrives(&offer, 1).await;
    assert_eq!(backlog_of_2(&pair.sender).snapshot, Backlog::default());

    // Nor does one that is given up.
    pair.received.set_room(Some(3));
    let offer = pair.offer(10);
    pair.send(offer.meta.last, 2);
    wait_for_puts(&pair, CHUNKS as u64 + 3).await;
    pair.sender.links.cancel_snapshot(NodeId(2), Session(2));
    assert_eq!(pair.sent().await, (Session(2), None));
    assert_eq!(backlog_of_2(&pair.sender).snapshot, Backlog::default());
}

#[tokio::test]
async fn a_damaged_chunk_is_fetched_again_and_only_that() {
    let mut pair = pair().await;
    let offer = pair.offer(9);
    pair.cable.damage(4);
    pair.send(offer.meta.last, 1);
    pair.assert_arrives(&offer, 1).await;
    let read = pair.sent.chunks_read();
    assert_eq!(read.iter().filter(|number| **number == 4).count(), 2, "{read:?}");
    assert_eq!(read.iter().filter(|number| **number < 4).count(), 4, "{read:?}");
    assert!(read.len() <= CHUNKS + 5, "more than a window was read again: {read:?}");

    // The same when it is the store that finds the damage.
    let offer = pair.offer(10);
    pair.received.damage_next();
    pair.send(offer.meta.last, 2);
    pair.assert_arrives(&offer, 2).await;
}

#[tokio::test]
async fn what_is_not_what_was_offered_is_not_kept_and_not_sent_for_ever() {
    let mut pair = pair().await;
    let mut offer = pair.offer(9);
    offer.checksum ^= 1;
    pair.sent.add(&offer, &content());
    pair.send(offer.meta.last, 1);
    assert_eq!(pair.sent().await, (Session(1), None));
    assert_eq!(pair.received.content(offer.meta.last), None);
}

#[tokio::test]
async fn a_snapshot_that_is_there_already_is_not_sent() {
    let mut pair = pair().await;
    let offer = pair.offer(9);
    pair.received.add(&offer, &content());
    pair.send(offer.meta.last, 1);
    pair.assert_arrives(&offer, 1).await;
    assert_eq!(pair.sent.chunks_read(), []);
}

#[tokio::test]
async fn a_transfer_can_be_cancelled_and_another_begun() {
    let mut pair = pair().await;
    let offer = pair.offer(9);
    pair.received.set_room(Some(3));
    pair.send(offer.meta.last, 1);
    wait_for_puts(&pair, 3).await;
    pair.sender.links.cancel_snapshot(NodeId(2), Session(7)); // of another one: no effect
    pair.sender.links.cancel_snapshot(NodeId(2), Session(1));
    assert_eq!(pair.sent().await, (Session(1), None));

    pair.received.set_room(None);
    pair.send(offer.meta.last, 2);
    pair.assert_arrives(&offer, 2).await;
    assert_eq!(pair.received.put_count(), CHUNKS as u64, "what was there was not written again");
}

/// A newer snapshot to the same follower takes the place of the one that is under way.
#[tokio::test]
async fn another_transfer_takes_the_place_of_the_first() {
    let mut pair = pair().await;
    let (old, new) = (pair.offer(9), pair.offer(12));
    pair.received.set_room(Some(3));
    pair.send(old.meta.last, 1);
    wait_for_puts(&pair, 3).await;
    pair.received.set_room(None);
    pair.send(new.meta.last, 2);
    assert_eq!(pair.sent().await, (Session(1), None));
    pair.assert_arrives(&new, 2).await;
    assert_eq!(pair.received.content(old.meta.last), None);
}

/// A node sends to one follower while it receives from another, and to two at once.
#[tokio::test]
async fn transfers_beside_each_other_do_not_disturb_each_other() {
    let mut subjects = Vec::new();
    let mut listeners = Vec::new();
    for _ in 0..3 {
        listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
    }
    let addresses: Vec<String> =
        listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect();
    let voters = (1..).map(NodeId).zip(addresses.iter().map(String::as_str));
    let membership = Arc::new(Membership::of_voters(voters));
    let offer = snapshot(9, &membership, &content());
    for (id, listener) in (1..).zip(listeners) {
        let memory = Memory::default();
        if id == 1 {
            memory.add(&offer, &content());
        }
        subjects.push((start(listener, id, &membership, Some(memory.clone())), memory));
    }
    let (term, last) = (Term(1), offer.meta.last);
    for (to, session) in [(NodeId(2), Session(1)), (NodeId(3), Session(2))] {
        subjects[0].0.links.send_snapshot(SnapshotTransfer { to, session, term, last });
    }
    for (subject, memory) in &mut subjects[1..] {
        assert_eq!(received(subject).await, (NodeId(1), offer.meta.clone()));
        assert_eq!(memory.content(last), Some(content()));
    }
}

#[tokio::test]
async fn a_snapshot_that_is_not_there_is_not_sent() {
    let mut pair = pair().await;
    let missing = snapshot(9, &pair.membership, &content()).meta.last;
    pair.send(missing, 1);
    assert_eq!(pair.sent().await, (Session(1), None));
}

/// Pitfall D15: a sender that does not keep to the protocol is cut off, and what it sent is gone.
#[tokio::test]
async fn a_sender_that_breaks_the_rules_is_cut_off() {
    let pair = pair().await;
    let mut chunk = Vec::new();
    frame::put_frame(&mut chunk, |out| out.extend_from_slice(&[1, 0, 1, 7]));
    let mut nonsense = Vec::new();
    frame::put_frame(&mut nonsense, |out| out.extend_from_slice(&[9, 9, 9]));
    for bytes in [chunk, nonsense, vec![0xff; 64]] {
        let mut to = hello();
        (to.from, to.to, to.store, to.life) = (NodeId(3), NodeId(2), StoreId(3), 1);
        to.channel = Channel::Snapshot;
        let mut stream = greet(&pair.receiver, &to).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        assert!(is_closed(&mut stream).await, "{bytes:?}");
    }
    assert_eq!(pair.received.put_count(), 0);
}
