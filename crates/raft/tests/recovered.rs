//! Pitfall D8. What a disk says is not believed blindly: a node starts from it, or says why
//! not, and never panics.

use std::{sync::Arc, time::Duration};

use kontiki_raft::{
    Config, Effects, EntryId, HardState, Index, Input, Membership, NodeId, RaftCore, Recovered,
    RestoreError, Term, Timestamp,
};

const NOW: Timestamp = Timestamp(1);

/// A log of three entries, `1@1 2@1 3@2`, committed and applied up to 2.
fn sound() -> Recovered {
    let genesis = Membership::of_voters([1, 2, 3].map(|id| (NodeId(id), "")));
    Recovered {
        hard_state: HardState { term: Term(2), voted_for: None, commit: Index(2) },
        log_start: EntryId::ZERO,
        term_runs: vec![EntryId::new(1, 1), EntryId::new(3, 2)],
        last: EntryId::new(3, 2),
        memberships: vec![(EntryId::ZERO, Arc::new(genesis))],
        applied: Index(2),
        is_pristine: false,
        ..Recovered::default()
    }
}

fn start(recovered: Recovered) -> Result<RaftCore, RestoreError> {
    RaftCore::new(Config::new(NodeId(1), 7), recovered, NOW)
}

#[test]
fn a_sound_disk_is_taken_as_it_is() {
    let core = start(sound()).unwrap();
    let status = core.status();
    assert_eq!(status.term(), Term(2));
    assert_eq!(status.last, EntryId::new(3, 2));
    assert_eq!(status.commit_index, Index(2));
    assert_eq!(status.durable_index, Index(3));
}

/// The commit index on disk is a hint that may lag behind what the state machine has applied.
#[test]
fn what_was_applied_was_committed() {
    let core = start(Recovered { applied: Index(3), ..sound() }).unwrap();
    assert_eq!(core.status().commit_index, Index(3));
}

#[test]
fn a_log_that_misses_acknowledged_entries_is_refused() {
    let error = start(Recovered { applied: Index(4), ..sound() }).unwrap_err();
    assert!(matches!(error, RestoreError::AppliedBeyondLog { .. }), "{error}");

    let hard_state = HardState { commit: Index(9), ..sound().hard_state };
    let error = start(Recovered { hard_state, ..sound() }).unwrap_err();
    assert!(matches!(error, RestoreError::CommitBeyondLog { .. }), "{error}");
}

/// Pitfall D10: what lies between the state machine and the start of the log is never skipped.
/// Who is alone has nobody to ask for it; who is not waits for a snapshot.
#[test]
fn a_log_that_starts_after_the_state_machine_needs_a_snapshot() {
    let recovered = Recovered {
        log_start: EntryId::new(2, 1),
        term_runs: vec![EntryId::new(3, 2)],
        applied: Index(1),
        ..sound()
    };
    let alone = Membership::of_voters([(NodeId(1), "")]).into();
    let alone = Recovered { memberships: vec![(EntryId::ZERO, alone)], ..recovered.clone() };
    let error = start(alone).unwrap_err();
    assert!(matches!(error, RestoreError::LogStartsAfterApplied { .. }), "{error}");
    assert_eq!(start(recovered).unwrap().status().needs_snapshot, Some(Index(2)));
}

#[test]
fn terms_that_do_not_ascend_are_refused() {
    let runs = [
        vec![EntryId::new(1, 2), EntryId::new(3, 1)],
        vec![EntryId::new(1, 1), EntryId::new(1, 2)],
        vec![EntryId::new(1, 1), EntryId::new(4, 2)],
        vec![EntryId::new(2, 1), EntryId::new(3, 2)],
        vec![],
    ];
    for term_runs in runs {
        let shown = format!("{term_runs:?}");
        let error = start(Recovered { term_runs, ..sound() }).unwrap_err();
        assert!(matches!(error, RestoreError::TermsOutOfOrder { .. }), "{shown}: {error}");
    }
    let hard_state = HardState { term: Term(1), ..sound().hard_state };
    let error = start(Recovered { hard_state, ..sound() }).unwrap_err();
    assert!(matches!(error, RestoreError::TermsOutOfOrder { .. }), "{error}");
}

/// A server that was removed, or that has yet to hear that it was added, starts and waits.
#[test]
fn a_node_that_is_no_member_starts_and_is_passive() {
    let mut core = start(Recovered { memberships: vec![born_of(2..=3)], ..sound() }).unwrap();
    let mut effects = Effects::default();
    for second in 1..60 {
        let now = NOW + Duration::from_secs(second);
        core.step(now, Input::Campaign);
        core.step(now, Input::Timeout);
        core.poll(now, &mut effects);
        assert!(effects.messages.is_empty(), "it asks for votes: {:?}", effects.messages);
    }
    assert_eq!(core.status().term(), Term(2));
}

fn born_of(ids: impl IntoIterator<Item = u64>) -> (EntryId, Arc<Membership>) {
    (EntryId::ZERO, Arc::new(Membership::of_voters(ids.into_iter().map(|id| (NodeId(id), "")))))
}

#[test]
fn a_membership_that_could_decide_nothing_is_refused() {
    let error = start(Recovered { memberships: Vec::new(), ..sound() }).unwrap_err();
    assert_eq!(error, RestoreError::NoVoters);
    let error = start(Recovered { memberships: vec![born_of([])], ..sound() }).unwrap_err();
    assert_eq!(error, RestoreError::NoVoters);
    let error = start(Recovered { memberships: vec![born_of(1..=8)], ..sound() }).unwrap_err();
    assert_eq!(error, RestoreError::TooManyVoters { count: 8 });
}

#[test]
fn a_membership_that_is_not_of_this_log_is_refused() {
    let (_, membership) = born_of(1..=3);
    let mut no_ids_left = Membership::clone(&membership);
    no_ids_left.next_id = NodeId(3);
    let cases = [
        vec![(EntryId::ZERO, Arc::new(no_ids_left))],
        // After the end of the log; twice; only of what may still be taken back.
        vec![born_of(1..=3), (EntryId::new(4, 2), Arc::clone(&membership))],
        vec![born_of(1..=3), born_of(1..=3)],
        vec![(EntryId::new(3, 2), membership)],
    ];
    for memberships in cases {
        let shown = format!("{memberships:?}");
        let error = start(Recovered { memberships, ..sound() }).unwrap_err();
        assert!(matches!(error, RestoreError::MembershipImpossible { .. }), "{shown}: {error}");
    }
}

/// What is left of a damaged log is less than what was committed and applied.
#[test]
fn a_damaged_log_may_end_before_what_was_applied() {
    let damaged = Recovered {
        hard_state: HardState { commit: Index(9), ..sound().hard_state },
        applied: Index(8),
        damaged: Some(Index(4)..=Index(12)),
        ..sound()
    };
    let core = start(damaged).unwrap();
    let status = core.status();
    assert_eq!(status.damaged, Some(Index(4)..=Index(12)));
    assert_eq!(status.commit_index, Index(3));
    assert_eq!(status.applied_index, Index(8));
}

#[test]
fn a_lone_voter_cannot_be_helped() {
    let damaged = Some(Index(4)..=Index(12));
    let memberships = vec![born_of(1..=1)];
    let error = start(Recovered { memberships, damaged, ..sound() }).unwrap_err();
    assert!(matches!(error, RestoreError::DamagedAlone { .. }), "{error}");
}

#[test]
fn the_size_of_the_log_is_told() {
    let log_sizes = vec![(Index(1), 1_000), (Index(3), 500)];
    let core = start(Recovered { log_sizes, ..sound() }).unwrap();
    assert_eq!(core.status().log_bytes, 1_500);
}

/// Numbers near to the sound ones, zero, and the largest.
fn any(random: &mut u64) -> u64 {
    *random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    match *random >> 56 {
        0..=3 => u64::MAX,
        4..=7 => u64::MAX / 2,
        drawn => drawn % 5,
    }
}

#[test]
fn whatever_a_disk_says_a_node_starts_or_says_why_not() {
    let mut random = 1;
    let mut started = 0;
    for _ in 0..100_000 {
        let has_runs = any(&mut random) < 2;
        let mut id = || EntryId::new(any(&mut random), any(&mut random));
        let recovered = Recovered {
            log_start: id(),
            last: id(),
            term_runs: if has_runs { vec![id(), id()] } else { Vec::new() },
            ..sound()
        };
        let is_damaged = any(&mut random) == 0;
        let damaged = Index(any(&mut random))..=Index(any(&mut random));
        let log_sizes = vec![
            (Index(any(&mut random)), any(&mut random)),
            (Index(any(&mut random)), any(&mut random)),
        ];
        let damaged = is_damaged.then_some(damaged);
        let recovered = Recovered { damaged, log_sizes, ..recovered };
        let hard_state = HardState {
            term: Term(any(&mut random)),
            voted_for: Some(NodeId(any(&mut random))),
            commit: Index(any(&mut random)),
        };
        let recovered = Recovered { hard_state, applied: Index(any(&mut random)), ..recovered };
        // What starts also runs.
        if let Ok(mut core) = start(recovered) {
            started += 1;
            let later = NOW + Duration::from_secs(3);
            core.step(later, Input::Timeout);
            core.poll(later, &mut Effects::default());
        }
    }
    assert!(100 < started, "only {started} of them started: the cases are too wild");
}
