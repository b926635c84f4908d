//! The peers' codec: what is encoded decodes to itself, and nothing else does any harm.

use std::sync::Arc;

use kontiki::{
    Bytes, Change, ChangeError, ChangeSet, Entry, EntryId, Index, Member, MemberRole, Membership,
    Message, NodeId, Payload, Promotion, Rejection, Report, StoreId, Term,
    codec::{DecodeError, decode, encode},
    message_bytes,
};
use kontiki_raft::{
    AppendEntries, AppendEntriesReply, AppendResult, Body, Proposal, ProposalId, Readmission,
    RequestVote, RequestVoteReply, Round, Session, VoteKind,
};
use proptest::{collection::vec, option, prelude::*};

fn encoded(message: &Message) -> Bytes {
    let mut buf = Vec::new();
    encode(message, &mut buf);
    buf.into()
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..300u64, any::<u64>(), Just(u64::MAX)]
}

fn command() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn entry_id() -> impl Strategy<Value = EntryId> {
    (number(), number()).prop_map(|(index, term)| EntryId::new(index, term))
}

fn node() -> impl Strategy<Value = NodeId> {
    (1..u64::MAX).prop_map(NodeId)
}

fn rejection() -> impl Strategy<Value = Rejection> {
    prop_oneof![
        option::of(node()).prop_map(|leader| Rejection::NotLeader { leader }),
        node().prop_map(|to| Rejection::Transferring { to }),
        Just(Rejection::Busy),
        any::<usize>().prop_map(|bytes_max| Rejection::TooLarge { bytes_max }),
        Just(Rejection::NotReady),
        Just(Rejection::NoQuorum),
        Just(Rejection::Stopped),
        entry_id().prop_map(|at| Rejection::MembershipInProgress { at }),
        entry_id().prop_map(|now| Rejection::MembershipChanged { now }),
        change_error().prop_map(Rejection::InvalidChange),
        Just(Rejection::NoSpace),
        Just(Rejection::NoState),
        Just(Rejection::NoSessions),
    ]
}

fn member() -> impl Strategy<Value = Member> {
    let role = prop_oneof![
        Just(MemberRole::Voter),
        Just(MemberRole::Leaving),
        Just(MemberRole::Learner { promotion: Promotion::ByHand }),
        Just(MemberRole::Learner { promotion: Promotion::WhenCaughtUp }),
        node().prop_map(|old| MemberRole::Learner { promotion: Promotion::Replacing(old) }),
    ];
    (node(), role, ".{0,30}", option::of(number()), command()).prop_map(
        |(id, role, address, store, context)| Member {
            id,
            role,
            address: address.into(),
            store: store.map(StoreId),
            context,
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    let text = || ".{0,30}".prop_map(Arc::from);
    prop_oneof![
        (text(), command(), any::<bool>()).prop_map(|(address, context, auto_promote)| {
            Change::AddLearner { address, context, auto_promote }
        }),
        node().prop_map(Change::Promote),
        node().prop_map(Change::Demote),
        node().prop_map(Change::Remove),
        (node(), text(), command()).prop_map(|(old, address, context)| Change::Replace {
            old,
            address,
            context
        }),
        (node(), text(), command()).prop_map(|(id, address, context)| Change::Update {
            id,
            address,
            context
        }),
    ]
}

fn change_set() -> impl Strategy<Value = ChangeSet> {
    (vec(change(), 0..4), option::of(entry_id()))
        .prop_map(|(changes, expect)| ChangeSet { changes, expect })
}

fn change_error() -> impl Strategy<Value = ChangeError> {
    prop_oneof![
        Just(ChangeError::Empty),
        node().prop_map(ChangeError::NoSuchMember),
        node().prop_map(ChangeError::NotALearner),
        node().prop_map(ChangeError::NotAVoter),
        node().prop_map(ChangeError::NotCaughtUp),
        Just(ChangeError::NoVoters),
        any::<usize>().prop_map(|count| ChangeError::TooManyVoters { count }),
        node().prop_map(ChangeError::AddressInUse),
    ]
}

fn report() -> impl Strategy<Value = Report> {
    (any::<u8>(), any::<bool>(), option::of(number()), option::of(number().prop_map(Index)))
        .prop_map(|(priority, is_full, damaged, needs_snapshot)| Report {
            priority,
            is_full,
            damaged,
            needs_snapshot,
        })
}

fn membership() -> impl Strategy<Value = Membership> {
    (vec(member(), 0..5), vec(node(), 0..4), node()).prop_map(
        |(mut members, mut outgoing, next_id)| {
            members.sort_by_key(|member| member.id);
            members.dedup_by_key(|member| member.id);
            outgoing.sort();
            outgoing.dedup();
            Membership { members, outgoing, next_id }
        },
    )
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        Just(Payload::Blank),
        command().prop_map(Payload::Command),
        command().prop_map(Payload::Session),
        membership().prop_map(|membership| Payload::Membership(membership.into())),
    ]
}

fn append() -> impl Strategy<Value = AppendEntries> {
    let prev = (0..u64::MAX / 2, number()).prop_map(|(index, term)| EntryId::new(index, term));
    let entries = vec((number(), payload()), 0..8);
    let readmission = option::of(
        (number(), number()).prop_map(|(life, upto)| Readmission { life, upto: Index(upto) }),
    );
    (number(), number(), prev, number(), number(), readmission, entries).prop_map(
        |(session, round, prev, commit, held_by_all, readmission, entries)| AppendEntries {
            session: Session(session),
            round: Round(round),
            prev,
            commit: Index(commit),
            held_by_all: Index(held_by_all),
            readmission,
            entries: (prev.index.get() + 1..)
                .zip(entries)
                .map(|(index, (term, payload))| Entry::new(EntryId::new(index, term), payload))
                .collect(),
        },
    )
}

fn vote_kind() -> impl Strategy<Value = VoteKind> {
    prop_oneof![Just(VoteKind::PreVote), Just(VoteKind::Vote), Just(VoteKind::Transfer)]
}

fn append_reply() -> impl Strategy<Value = AppendEntriesReply> {
    let result = prop_oneof![
        number().prop_map(|index| AppendResult::Match(Index(index))),
        (entry_id(), entry_id()).prop_map(|(prev, hint)| AppendResult::Conflict { prev, hint }),
    ];
    (number(), number(), number(), result, report()).prop_map(
        |(session, round, received, result, report)| AppendEntriesReply {
            session: Session(session),
            round: Round(round),
            received: Index(received),
            result,
            report,
        },
    )
}

fn body() -> impl Strategy<Value = Body> {
    let proposal = (number(), command(), any::<bool>())
        .prop_map(|(id, command, is_session)| Proposal { id: ProposalId(id), command, is_session });
    let appended = prop_oneof![entry_id().prop_map(Ok), rejection().prop_map(Err)];
    let reply = (number().prop_map(ProposalId), appended);
    let index = prop_oneof![number().prop_map(|index| Ok(Index(index))), rejection().prop_map(Err)];
    prop_oneof![
        (vote_kind(), number(), entry_id()).prop_map(|(kind, for_term, last)| {
            Body::RequestVote(RequestVote { kind, for_term: Term(for_term), last })
        }),
        (vote_kind(), number(), any::<bool>()).prop_map(|(kind, for_term, granted)| {
            Body::RequestVoteReply(RequestVoteReply { kind, for_term: Term(for_term), granted })
        }),
        append().prop_map(Body::AppendEntries),
        append_reply().prop_map(Body::AppendEntriesReply),
        entry_id().prop_map(|last| Body::TimeoutNow { last }),
        vec(proposal, 0..8).prop_map(Body::Propose),
        (number(), change_set())
            .prop_map(|(id, change)| Body::ChangeMembership { id: ProposalId(id), change }),
        vec(reply, 0..8).prop_map(Body::ProposeReply),
        number().prop_map(|batch| Body::ReadIndex { batch }),
        (number(), index).prop_map(|(batch, result)| Body::ReadIndexReply { batch, result }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    (number(), body()).prop_map(|(term, body)| Message { term: Term(term), body })
}

proptest! {
    #[test]
    fn what_is_encoded_decodes_to_itself(message in message()) {
        prop_assert_eq!(decode(encoded(&message)), Ok(message));
    }

    /// Pitfall D15.
    /// Queues are bounded by what messages take, frames by what they are encoded to.
    #[test]
    fn what_a_message_takes_is_not_far_below_its_encoded_size(message in message()) {
        let (bytes, taken) = (encoded(&message).len(), message_bytes(&message));
        prop_assert!(bytes <= 2 * taken, "{bytes} bytes take {taken}");
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..300)) {
        // The result does not matter; that there is one does.
        drop(decode(bytes.into()));
    }

    /// Arbitrary bytes rarely get beyond the first few; damaged messages do. Pitfall D15.
    #[test]
    fn damaged_messages_do_no_harm(
        message in message(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encoded(&message).to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        drop(decode(bytes.into()));
    }

    #[test]
    fn a_part_of_a_message_is_no_message(message in message(), cut in any::<prop::sample::Index>()) {
        let whole = encoded(&message);
        prop_assert!(decode(whole.slice(..cut.index(whole.len()))).is_err());
    }
}

fn message_with(command: &'static [u8]) -> Message {
    let entry = Entry::new(EntryId::new(8, 3), Payload::Command(Bytes::from_static(command)));
    let append = AppendEntries {
        session: Session(1),
        round: Round(2),
        prev: EntryId::new(7, 3),
        commit: Index(6),
        held_by_all: Index(5),
        readmission: None,
        entries: vec![entry],
    };
    Message { term: Term(3), body: Body::AppendEntries(append) }
}

/// The bytes are a contract between versions: a change of them needs a new version number.
#[test]
fn the_bytes_of_a_message_are_these() {
    let hex: Vec<String> =
        encoded(&message_with(b"hello")).iter().map(|byte| format!("{byte:02x}")).collect();
    // version, kind, term │ session, round, prev, commit, held_by_all, no readmission │ one
    // entry: term, checksum, a command, its length, the command
    assert_eq!(
        hex.join(" "),
        "03 03 03 01 02 07 03 06 05 00 01 03 4c bb 71 9a 01 05 68 65 6c 6c 6f"
    );
}

#[test]
fn a_command_that_was_damaged_on_its_way_is_refused() {
    let mut bytes = encoded(&message_with(b"hello")).to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(decode(bytes.into()), Err(DecodeError::Checksum { at: EntryId::new(8, 3) }));
}

#[test]
fn commands_are_not_copied() {
    let bytes = encoded(&message_with(b"hello"));
    let message = decode(bytes.clone()).unwrap();
    let Body::AppendEntries(append) = message.body else { panic!("not what was sent") };
    let Payload::Command(command) = &append.entries[0].payload else { panic!("not a command") };
    assert!(bytes.as_ptr_range().contains(&command.as_ptr()));
}

#[test]
fn a_count_that_lies_is_refused_before_anything_is_allocated() {
    // A proposal message that claims 2⁶³ proposals.
    let mut bytes = vec![3, 6, 0];
    bytes.extend([0x80; 9]);
    bytes.push(1);
    assert_eq!(decode(bytes.into()), Err(DecodeError::Truncated));
}

#[test]
fn another_version_is_refused() {
    let mut bytes = encoded(&message_with(b"hello")).to_vec();
    bytes[0] = 2;
    assert_eq!(decode(bytes.into()), Err(DecodeError::Version { found: 2 }));
}

/// Pitfall M14.
#[test]
#[should_panic(expected = "entries that are sent follow each other")]
fn a_hole_in_the_log_is_never_sent() {
    let mut message = message_with(b"hello");
    let Body::AppendEntries(append) = &mut message.body else { unreachable!() };
    append.prev = EntryId::new(6, 3);
    encoded(&message);
}
