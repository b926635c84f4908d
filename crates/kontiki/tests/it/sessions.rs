//! The table of sessions: what is proposed twice is applied once, and what is forgotten is
//! refused.

use kontiki::{
    Bytes, Index, SessionCommand, SessionId, SessionLimits, SessionRefusal, SessionStep,
    SessionTable,
};
use proptest::prelude::*;

fn command(session: SessionId, sequence: u64, lowest_unanswered: u64) -> Bytes {
    let command = Bytes::from(format!("{session} {sequence}"));
    SessionCommand::Command { session, sequence, lowest_unanswered, command }.encode()
}

/// Takes a step, and answers a fresh command with itself in capitals.
fn step(table: &mut SessionTable, at: u64, content: &Bytes) -> SessionStep {
    let step = table.step(Index(at), content);
    if let SessionStep::Fresh { session, sequence, command } = &step {
        table.record(*session, *sequence, command.to_ascii_uppercase().into());
    }
    step
}

fn open(table: &mut SessionTable, at: u64) -> SessionId {
    match step(table, at, &SessionCommand::Open.encode()) {
        SessionStep::Opened(session) => session,
        other => panic!("not opened: {other:?}"),
    }
}

#[test]
fn a_command_that_comes_again_gets_the_first_answer() {
    let mut table = SessionTable::new(SessionLimits::default());
    let session = open(&mut table, 7);
    assert_eq!(session, SessionId(7));
    assert!(matches!(step(&mut table, 8, &command(session, 1, 1)), SessionStep::Fresh { .. }));
    let again = step(&mut table, 9, &command(session, 1, 1));
    assert_eq!(again, SessionStep::Repeated(Bytes::from_static(b"S7 1")));
    // Out of order is fine: each number is its own.
    assert!(matches!(step(&mut table, 10, &command(session, 3, 1)), SessionStep::Fresh { .. }));
    assert!(matches!(step(&mut table, 11, &command(session, 2, 1)), SessionStep::Fresh { .. }));
}

#[test]
fn what_the_client_has_the_answer_to_is_forgotten_and_not_applied_again() {
    let mut table = SessionTable::new(SessionLimits::default());
    let session = open(&mut table, 1);
    for sequence in 1..=5 {
        let step = step(&mut table, 1 + sequence, &command(session, sequence, 1));
        assert!(matches!(step, SessionStep::Fresh { .. }));
    }
    let before = table.answer_bytes();
    assert!(matches!(step(&mut table, 7, &command(session, 6, 5)), SessionStep::Fresh { .. }));
    assert!(table.answer_bytes() < before);
    let late = step(&mut table, 8, &command(session, 4, 1));
    assert_eq!(late, SessionStep::Refused(SessionRefusal::Answered));
    assert!(matches!(step(&mut table, 9, &command(session, 5, 1)), SessionStep::Repeated(_)));
}

#[test]
fn the_session_that_was_used_least_recently_expires() {
    let limits = SessionLimits { session_count_max: 2, ..SessionLimits::default() };
    let mut table = SessionTable::new(limits);
    let (first, second) = (open(&mut table, 1), open(&mut table, 2));
    assert!(matches!(step(&mut table, 3, &command(first, 1, 1)), SessionStep::Fresh { .. }));
    let third = open(&mut table, 4);
    let refused = SessionStep::Refused(SessionRefusal::Expired);
    assert_eq!(step(&mut table, 5, &command(second, 1, 1)), refused);
    assert!(matches!(step(&mut table, 6, &command(first, 1, 1)), SessionStep::Repeated(_)));
    assert!(matches!(step(&mut table, 7, &command(third, 1, 1)), SessionStep::Fresh { .. }));
}

#[test]
fn answers_are_bounded_in_bytes() {
    let limits = SessionLimits { answer_bytes_max: 200, ..SessionLimits::default() };
    let mut table = SessionTable::new(limits);
    let (first, second) = (open(&mut table, 1), open(&mut table, 2));
    for (at, session) in [(3, first), (4, second)] {
        assert!(matches!(step(&mut table, at, &command(session, 1, 1)), SessionStep::Fresh { .. }));
    }
    assert!(matches!(table.step(Index(5), &command(second, 2, 1)), SessionStep::Fresh { .. }));
    table.record(second, 2, vec![0; 150].into());
    assert!(table.answer_bytes() <= 200);
    let refused = SessionStep::Refused(SessionRefusal::Expired);
    assert_eq!(table.step(Index(6), &command(first, 1, 1)), refused);
    // An answer that is larger than all there is ends its own session: it is told once, and the
    // command is not applied again.
    let third = open(&mut table, 7);
    assert!(matches!(table.step(Index(8), &command(third, 1, 1)), SessionStep::Fresh { .. }));
    table.record(third, 1, vec![0; 300].into());
    assert_eq!(table.step(Index(9), &command(third, 1, 1)), refused);
    assert_eq!((table.answer_bytes(), table.session_count()), (0, 0));
}

#[test]
fn a_closed_session_and_a_malformed_command_apply_nothing() {
    let mut table = SessionTable::new(SessionLimits::default());
    let session = open(&mut table, 1);
    let close = SessionCommand::Close { session }.encode();
    assert_eq!(step(&mut table, 2, &close), SessionStep::Closed);
    let refused = SessionStep::Refused(SessionRefusal::Expired);
    assert_eq!(step(&mut table, 3, &command(session, 1, 1)), refused);
    for bytes in [&b""[..], b"\x00", b"\x04", b"\x01x", b"\x02short", b"\x03short"] {
        let step = step(&mut table, 4, &Bytes::from_static(bytes));
        assert_eq!(step, SessionStep::Refused(SessionRefusal::Malformed), "{bytes:?}");
    }
}

/// What may stand in a log, with few sessions and numbers so that they meet.
fn contents() -> impl Strategy<Value = Vec<Bytes>> {
    let numbers = (0..12u64, 0..6u64, 0..6u64);
    let content = (0..10u8, numbers).prop_map(|(kind, (id, sequence, lowest))| match kind {
        0 => SessionCommand::Open.encode(),
        1 => SessionCommand::Close { session: SessionId(id) }.encode(),
        _ => command(SessionId(id), sequence, lowest),
    });
    prop::collection::vec(content, 0..60)
}

proptest! {
    /// A node that was restored from a snapshot at any point goes on as one that was not.
    #[test]
    fn a_table_in_a_snapshot_is_the_same_table(contents in contents(), cut in 0..60usize) {
        let limits = SessionLimits { session_count_max: 3, answer_bytes_max: 300 };
        let mut table = SessionTable::new(limits);
        let mut restored = None;
        for (at, content) in (1..).zip(&contents) {
            let taken = step(&mut table, at, content);
            if let Some(restored) = &mut restored {
                prop_assert_eq!(step(restored, at, content), taken);
            }
            if at == u64::try_from(cut).unwrap() {
                restored = SessionTable::decode(&table.encode(), limits);
                prop_assert!(restored.is_some());
            }
        }
        if let Some(restored) = restored {
            prop_assert_eq!(restored, table);
        }
    }

    /// No command is applied twice while its session lives, whatever comes in whatever order.
    #[test]
    fn nothing_is_applied_twice(contents in contents()) {
        let mut table = SessionTable::new(SessionLimits { session_count_max: 3, answer_bytes_max: 300 });
        let mut applied = std::collections::BTreeSet::new();
        for (at, content) in (1..).zip(&contents) {
            if let SessionStep::Fresh { session, sequence, .. } = step(&mut table, at, content) {
                prop_assert!(applied.insert((session, sequence)));
            }
        }
    }

    #[test]
    fn bytes_that_are_no_table_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(table) = SessionTable::decode(&bytes, SessionLimits::default()) {
            prop_assert_eq!(SessionTable::decode(&table.encode(), SessionLimits::default()), Some(table));
        }
    }
}
