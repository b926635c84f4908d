//! Members that come and go, strangers, and nodes that ask who they are.

use kontiki_raft::MemberRole;

use super::*;

fn membership(members: &[(u64, &str)]) -> Arc<Membership> {
    let voters = members.iter().map(|(id, address)| (NodeId(*id), *address));
    Arc::new(Membership::of_voters(voters))
}

fn envelope(to: u64, batch: u64) -> Envelope {
    Envelope { to: NodeId(to), message: message(batch) }
}

/// Sends until the other node has it: what is sent before there is a connection is dropped.
async fn sends(from: &mut Subject, to: u64, receiver: &mut Subject, batch: u64) -> NodeId {
    timeout(PATIENCE, async {
        loop {
            from.links.send(envelope(to, batch));
            let delivery = timeout(Duration::from_millis(20), receiver.outlet.control.recv()).await;
            match delivery {
                Ok(Some(delivery)) if delivery.message == message(batch) => break delivery.from,
                _ => {}
            }
        }
    })
    .await
    .expect("nothing arrives")
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// A node that has been added knows of an older membership at first, so to it the leader is a
/// stranger. It is heard, and it is answered.
#[tokio::test]
async fn a_stranger_of_the_same_cluster_is_heard_and_answered() {
    let ((listener_1, at_1), (listener_4, at_4)) = (listener().await, listener().await);
    let mut leader = start(listener_1, 1, &membership(&[(1, &at_1), (4, &at_4)]), None);
    let mut joiner = start(listener_4, 4, &membership(&[(4, &at_4), (9, "127.0.0.1:1")]), None);
    assert_eq!(sends(&mut leader, 4, &mut joiner, 1).await, NodeId(1));
    assert_eq!(sends(&mut joiner, 1, &mut leader, 2).await, NodeId(4));

    // The stranger becomes a member, and nothing has to be made anew for it.
    joiner.links.set_members(&membership(&[(1, &at_1), (4, &at_4)]));
    assert_eq!(sends(&mut joiner, 1, &mut leader, 3).await, NodeId(4));

    // It is not one any more, and is gone.
    joiner.links.set_members(&membership(&[(4, &at_4)]));
    leader.links.close().await;
    wait_for(|| joiner.links.shared.table().address(NodeId(1)).is_none()).await;
}

async fn wait_for(mut is_so: impl FnMut() -> bool) {
    let poll = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, poll).await.expect("it does not come about");
}

/// Pitfall D15.
#[tokio::test]
async fn strangers_are_not_let_in_without_a_bound() {
    let subject = subject("127.0.0.1:1").await;
    let mut guests = Vec::new();
    let refused = loop {
        let id = NodeId(100 + guests.len() as u64);
        match greet(&subject, &Hello { from: id, ..hello() }).await {
            Ok(stream) => guests.push((id, stream)),
            Err(HandshakeError::Refused(refusal)) => break refusal,
            Err(error) => panic!("{error}"),
        }
        assert!(guests.len() < 100);
    };
    let id = NodeId(100 + guests.len() as u64);
    assert_eq!(refused, Refusal::TooManyStrangers { id });
    greet(&subject, &hello()).await.expect("a member has room");

    // When one goes there is room for another.
    let (gone, stream) = guests.pop().unwrap();
    drop(stream);
    wait_for(|| subject.links.shared.table().address(gone).is_none()).await;
    greet(&subject, &Hello { from: id, ..hello() }).await.unwrap();
}

#[tokio::test]
async fn a_member_that_is_added_is_connected_to_and_one_that_is_removed_is_not_any_more() {
    let mut subject = subject("127.0.0.1:1").await;
    let (peer, address) = Peer::new().await;
    let at = subject.address.clone();
    subject.links.set_members(&membership(&[(1, &at), (2, &address)]));
    let (mut stream, hello) = peer.accept(Lane::Control, &WELCOME).await;
    assert_eq!((hello.to, &*hello.listen), (NodeId(2), at.as_str()));
    receive(&mut subject, &mut stream, &message(1)).await;

    // What was said before it was removed gets out.
    subject.links.send(envelope(2, 2));
    subject.links.set_members(&membership(&[(1, &at)]));
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.ends_with(&framed(&message(2))), "{rest:?}");

    // One that comes back in time is not parted from.
    subject.links.set_members(&membership(&[(1, &at), (2, &address)]));
    let (mut stream, _) = peer.accept(Lane::Control, &WELCOME).await;
    receive(&mut subject, &mut stream, &message(3)).await;
    subject.links.set_members(&membership(&[(1, &at)]));
    subject.links.set_members(&membership(&[(1, &at), (2, &address)]));
    subject.links.shared.end_leave(NodeId(2), 1); // the second leave, and it is over
    subject.links.send(envelope(2, 4));
    let mut received = bytes::BytesMut::new();
    while !received.ends_with(&framed(&message(4))) {
        assert_ne!(stream.read_buf(&mut received).await.unwrap(), 0, "it was parted from");
    }
}

#[tokio::test]
async fn a_member_that_has_moved_is_found() {
    let (old, old_address) = Peer::new().await;
    let mut subject = subject(&old_address).await;
    let (mut stream, _) = old.accept(Lane::Control, &WELCOME).await;
    receive(&mut subject, &mut stream, &message(1)).await;
    let (new, new_address) = Peer::new().await;
    let at = subject.address.clone();
    subject.links.set_members(&membership(&[(1, &at), (2, &new_address)]));
    let (mut stream, _) = new.accept(Lane::Control, &WELCOME).await;
    assert_eq!(receive(&mut subject, &mut stream, &message(2)).await, message(2));
}

/// Pitfall M7: what stands in the membership counts, whatever was seen or not seen before.
#[tokio::test]
async fn a_member_with_another_store_than_the_membership_says_is_refused() {
    let mut subject = subject("127.0.0.1:1").await;
    greet(&subject, &hello()).await.unwrap(); // seen with store 1002
    let mut members = (*membership(&[(1, &subject.address), (2, "127.0.0.1:1")])).clone();
    members.members[1].store = Some(StoreId(7));
    subject.links.set_members(&Arc::new(members));
    let (known, found) = (StoreId(7), StoreId(1002));
    assert_eq!(
        refusal(&subject, hello()).await,
        Refusal::StoreChanged { id: NodeId(2), known, found }
    );
    let rightful = Hello { store: known, life: 8, ..hello() };
    timeout(PATIENCE, async {
        // Refused for a while: another process was heard of a moment ago.
        while greet(&subject, &rightful).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

/// Pitfall M7: the node learns the stores of those that have none in the membership.
#[tokio::test]
async fn the_node_is_told_with_which_store_a_peer_came() {
    let (peer, address) = Peer::new().await;
    let mut subject = subject(&address).await;
    let pick = |notice| match notice {
        Notice::PeerStore { id, store } => Some((id, store)),
        _ => None,
    };
    peer.accept(Lane::Control, &WELCOME).await; // we have connected
    assert_eq!(subject.notice(pick).await, (NodeId(2), StoreId(1002)));
    let _stream = greet(&subject, &Hello { from: NodeId(3), ..hello() }).await.unwrap();
    let told = subject.notice(|notice| pick(notice).filter(|(id, _)| *id == NodeId(3)));
    assert_eq!(told.await, (NodeId(3), StoreId(1002)));
}

/// While a member is replaced by a new one at the same address, the old one is looked for where
/// the new one is.
#[tokio::test]
async fn who_is_at_the_address_of_another_is_not_taken_for_it() {
    let ((listener_1, at_1), (listener_4, at_4)) = (listener().await, listener().await);
    let both = membership(&[(1, &at_1), (2, &at_4), (4, &at_4)]);
    let mut leader = start(listener_1, 1, &both, None);
    let mut new = start(listener_4, 4, &both, None);
    assert_eq!(sends(&mut leader, 4, &mut new, 1).await, NodeId(1));
    leader.links.send(envelope(2, 2));
    assert_eq!(sends(&mut leader, 4, &mut new, 3).await, NodeId(1), "and nothing for n2 came");
}

#[tokio::test]
async fn a_node_that_was_added_learns_who_it_is() {
    let patience = Duration::from_secs(5);
    let mut subject = subject("127.0.0.1:1").await;
    let peers = ["127.0.0.1:1".to_owned(), subject.address.clone()];
    let unknown = discover(&peers, "n4:1", Duration::ZERO).await.unwrap_err();
    assert_eq!(unknown, DiscoverError::NotAMember { address: "n4:1".into() });
    assert!(unknown.to_string().contains("add it first"), "{unknown}");
    let nobody = discover(&peers[..1], "n4:1", Duration::ZERO).await.unwrap_err();
    assert!(matches!(nobody, DiscoverError::Unreachable { .. }), "{nobody}");

    let mut members = (*membership(&[(1, &subject.address), (4, "n4:1"), (5, "n4:1")])).clone();
    members.members[1].store = Some(StoreId(7)); // it is replaced by n5
    members.members[2].role =
        MemberRole::Learner { promotion: kontiki_raft::Promotion::Replacing(NodeId(4)) };
    let members = Arc::new(members);
    // It is asked before the membership is there, and goes on to ask.
    let (discovered, ()) = tokio::join!(discover(&peers, "n4:1", patience), async {
        tokio::task::yield_now().await;
        subject.links.set_members(&members);
    });
    let expected = Discovered { cluster: CLUSTER, id: NodeId(5), membership: members };
    assert_eq!(discovered.unwrap(), expected);
}

#[tokio::test]
async fn a_wiped_member_is_told_to_be_replaced_and_a_wrong_list_is_noticed() {
    let mut subject = subject("127.0.0.1:1").await;
    let mut members = (*membership(&[(1, &subject.address), (4, "n4:1")])).clone();
    members.members[1].store = Some(StoreId(7));
    subject.links.set_members(&Arc::new(members));
    let peers = [subject.address.clone()];
    let bound = discover(&peers, "n4:1", Duration::ZERO).await.unwrap_err();
    assert_eq!(bound, DiscoverError::Bound { address: "n4:1".into(), id: NodeId(4) });

    let (other, other_address) = Peer::new().await;
    let answer = async {
        let (mut stream, _) = other.0.accept().await.unwrap();
        handshake::listen(&mut stream, &mut bytes::BytesMut::new()).await.unwrap();
        let unknown = handshake::Introduction::Unknown { cluster: 5 };
        handshake::introduce(&mut stream, &unknown).await.unwrap();
    };
    let peers = [subject.address.clone(), other_address];
    let (told, ()) = tokio::join!(discover(&peers, "n4:1", PATIENCE), answer);
    assert!(matches!(told, Err(DiscoverError::Clusters(..))), "{told:?}");
}
