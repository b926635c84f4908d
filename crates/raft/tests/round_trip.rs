//! How long a follower takes to answer, as its leader measures it: a round is the moment when it
//! was sent, and comes back with the answer.

use std::{sync::Arc, time::Duration};

use kontiki_raft::{
    AppendEntries, AppendEntriesReply, AppendResult, Body, Config, Effects, EntryId, Envelope,
    Input, Membership, Message, NodeId, Outbound, RaftCore, Recovered, Report, RequestVoteReply,
    Timestamp,
};

const PEER: NodeId = NodeId(2);

/// `n1`, and a test that plays `n2`.
struct Stage {
    core: RaftCore,
    now: Timestamp,
}

impl Stage {
    fn new() -> Self {
        let membership = Membership::of_voters([(NodeId(1), "a"), (PEER, "b")]);
        let recovered = Recovered {
            memberships: vec![(EntryId::ZERO, Arc::new(membership))],
            is_pristine: true,
            ..Recovered::default()
        };
        let now = Timestamp(1);
        let core = RaftCore::new(Config::new(NodeId(1), 1), recovered, now).expect("it is sound");
        Self { core, now }
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    fn hears(&mut self, body: Body) {
        let message = Message { term: self.core.status().term(), body };
        self.core.step(self.now, Input::Message { from: PEER, message });
    }

    /// What it says until it has nothing to say. Its disk is quick.
    fn says(&mut self) -> Vec<Body> {
        let (mut effects, mut said) = (Effects::default(), Vec::new());
        loop {
            self.core.poll(self.now, &mut effects);
            said.extend(effects.messages.drain(..).filter_map(|outbound| match outbound {
                Outbound::Send(Envelope { message, .. }) => Some(message.body),
                Outbound::SendStored { .. } => None,
            }));
            match effects.write.take() {
                Some(write) => self.core.step(self.now, Input::Persisted(write.ticket)),
                None => return said,
            }
        }
    }

    fn is_elected(&mut self) -> AppendEntries {
        self.wait(Duration::from_secs(5));
        self.core.step(self.now, Input::Timeout);
        loop {
            let said = self.says();
            match said.into_iter().next() {
                Some(Body::RequestVote(request)) => {
                    let (kind, for_term) = (request.kind, request.for_term);
                    let reply = RequestVoteReply { kind, for_term, granted: true };
                    self.hears(Body::RequestVoteReply(reply));
                }
                Some(Body::AppendEntries(append)) => return append,
                other => panic!("an election goes otherwise: {other:?}"),
            }
        }
    }

    fn is_answered(&mut self, append: &AppendEntries) {
        let last = append.entries.iter().last().map_or(append.prev, |entry| entry.id).index;
        let result = AppendResult::Match(last);
        let (session, round, report) = (append.session, append.round, Report::default());
        let reply = AppendEntriesReply { session, round, received: last, result, report };
        self.hears(Body::AppendEntriesReply(reply));
    }

    /// The next message with a round.
    fn heartbeat(&mut self) -> AppendEntries {
        self.wait(Duration::from_millis(100));
        self.core.step(self.now, Input::Timeout);
        let append = self.says().into_iter().find_map(|body| match body {
            Body::AppendEntries(append) => Some(append),
            _ => None,
        });
        append.expect("a heartbeat is due")
    }

    /// In milliseconds: rounds of one moment are a nanosecond apart.
    fn round_trip(&self) -> Option<u128> {
        let took = self.core.status().progress[0].round_trip;
        took.map(|took| (took + Duration::from_micros(500)).as_millis())
    }
}

#[test]
fn a_round_trip_is_measured_by_the_first_answer_to_a_round_and_smoothed() {
    let mut stage = Stage::new();
    let first = stage.is_elected();
    assert_eq!(stage.round_trip(), None);
    stage.wait(Duration::from_millis(40));
    stage.is_answered(&first);
    assert_eq!(stage.round_trip(), Some(40));

    // The same answer again: when the disk has answered, or doubled on its way.
    stage.wait(Duration::from_millis(500));
    stage.is_answered(&first);
    assert_eq!(stage.round_trip(), Some(40));

    // One slow answer is an eighth of the truth.
    let second = stage.heartbeat();
    stage.wait(Duration::from_millis(120));
    stage.is_answered(&second);
    assert_eq!(stage.round_trip(), Some(50));
}
