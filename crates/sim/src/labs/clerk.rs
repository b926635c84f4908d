//! The clients of parts 3A and 3B, and what they say to each other about right answers.
//!
//! A clerk has a session: each of its operations has a number, which stays the same over all
//! tries, so that an append happens once however often it is asked for (thesis §6.3). It asks
//! one server, waits, and goes to the next. On the way to a server and back its words travel
//! like those of servers among each other: they take their time, and on an unreliable network a
//! tenth of them is lost.

use std::{collections::BTreeMap, time::Duration};

use kontiki_raft::{Bytes, NodeId};

use super::lab::{Done, Lab};
use crate::{
    command::{Action, Stamp},
    dice::{Dice, Draws, Stream},
    requests::Outcome,
};

/// A clerk asks elsewhere when it has heard nothing for so long.
const PATIENCE: Duration = Duration::from_millis(600);

/// What a clerk wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Put { key: u64, value: String },
    Append { key: u64, value: String },
    Get { key: u64 },
}

/// An operation that was carried out, or that nobody knows of.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub(crate) call: Call,
    pub(crate) start: Duration,
    /// `None` if its outcome was never heard of.
    pub(crate) end: Option<Duration>,
    /// What a get has found.
    pub(crate) found: Option<String>,
}

/// A client.
#[derive(Debug)]
pub(crate) struct Clerk {
    session: u64,
    /// Whom it can reach.
    servers: Vec<NodeId>,
    /// Whom it asks next: a place in `servers`.
    favourite: usize,
    sequence: u64,
    draws: Draws,
    open: Option<Open>,
    pub(crate) history: Vec<Finished>,
}

/// The operation that it is at.
#[derive(Debug)]
struct Open {
    call: Call,
    start: Duration,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The request reaches this server at this time.
    Asks { at: Duration, server: NodeId },
    /// The server has it; if nothing is heard until then, it goes on to another one.
    Waits { request: u64, until: Duration },
    /// The answer is on its way.
    Returns { at: Duration, found: Option<String> },
    /// Nothing will come of this try.
    Idles { until: Duration },
}

impl Clerk {
    /// A client that can reach these servers. No two clerks of a lab share a number.
    pub(crate) fn new(lab: &Lab, number: u64, servers: Vec<NodeId>) -> Self {
        let mut draws = Draws::new(Dice::new(lab.world.setup.seed), Stream::Client, number);
        let favourite = usize::try_from(draws.below(64)).unwrap_or_default();
        Self {
            session: number,
            servers,
            favourite,
            sequence: 0,
            draws,
            open: None,
            history: Vec::new(),
        }
    }

    pub(crate) fn number(&self) -> u64 {
        self.session
    }

    /// Gives it other servers.
    pub(crate) fn connect(&mut self, servers: Vec<NodeId>) {
        self.servers = servers;
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_none()
    }

    /// The last operation that has ended.
    pub(crate) fn last(&self) -> Option<&Finished> {
        self.history.last()
    }

    pub(crate) fn draws(&mut self) -> &mut Draws {
        &mut self.draws
    }

    /// Begins an operation. There is none under way.
    pub(crate) fn begin(&mut self, lab: &Lab, call: Call) {
        if !matches!(call, Call::Get { .. }) {
            self.sequence += 1;
        }
        let now = lab.world.now();
        let stage = self.ask(lab);
        self.open = Some(Open { call, start: now, stage });
    }

    fn ask(&mut self, lab: &Lab) -> Stage {
        let now = lab.world.now();
        let (delay, is_lost) = self.travel(lab);
        let server = self.servers[self.favourite % self.servers.len()];
        if is_lost {
            return Stage::Idles { until: now + PATIENCE };
        }
        Stage::Asks { at: now + delay, server }
    }

    fn travel(&mut self, lab: &Lab) -> (Duration, bool) {
        let network = lab.world.network();
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let delay = self.draws.within(micros(network.delay.0)..=micros(network.delay.1));
        (Duration::from_micros(delay), self.draws.below(1_000_000) < network.loss)
    }

    /// Takes the operation further, as far as it can go now. When to look again.
    pub(crate) fn step(&mut self, lab: &mut Lab) -> Done<Option<Duration>> {
        let now = lab.world.now();
        while let Some(mut open) = self.open.take() {
            let (next, wake) = match open.stage {
                Stage::Asks { at, .. } | Stage::Idles { until: at } | Stage::Returns { at, .. }
                    if now < at =>
                {
                    (open.stage, Some(at))
                }
                Stage::Asks { server, .. } => {
                    let request = self.send(lab, server, &open.call)?;
                    (Stage::Waits { request, until: now + PATIENCE }, None)
                }
                Stage::Waits { request, until } => self.look(lab, request, until),
                Stage::Idles { .. } => {
                    self.favourite += 1;
                    (self.ask(lab), None)
                }
                Stage::Returns { found, .. } => {
                    let Open { call, start, .. } = open;
                    self.history.push(Finished { call, start, end: Some(now), found });
                    return Ok(None);
                }
            };
            open.stage = next;
            self.open = Some(open);
            if wake.is_some() {
                return Ok(wake);
            }
        }
        Ok(None)
    }

    fn send(&mut self, lab: &mut Lab, server: NodeId, call: &Call) -> Done<u64> {
        let stamp = Stamp { session: self.session, sequence: self.sequence };
        let bytes = |text: &String| Bytes::copy_from_slice(text.as_bytes());
        match call {
            Call::Get { key } => lab.world.read(server, *key),
            Call::Put { key, value } => {
                let action = Action::Put { key: *key, value: bytes(value) };
                lab.world.call(server, action, Some(stamp))
            }
            Call::Append { key, value } => {
                let action = Action::Append { key: *key, value: bytes(value) };
                lab.world.call(server, action, Some(stamp))
            }
        }
    }

    /// Looks whether the server has answered.
    fn look(&mut self, lab: &Lab, request: u64, until: Duration) -> (Stage, Option<Duration>) {
        let now = lab.world.now();
        let found = match lab.world.request(request).and_then(|r| r.outcome.as_ref()) {
            None if now < until => {
                // Any event of the world may bring the answer.
                return (Stage::Waits { request, until }, Some(until.min(now + LOOK)));
            }
            Some((_, Outcome::Applied(_))) => None,
            Some((_, Outcome::Read(found))) => {
                found.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            }
            // No answer, or none that helps: the next server may know better.
            None | Some(_) => return (Stage::Idles { until: now + RETRY_PAUSE }, None),
        };
        let (delay, is_lost) = self.travel(lab);
        if is_lost {
            return (Stage::Idles { until: now + PATIENCE }, None);
        }
        // The answer says who leads: asking there saves a hop.
        if let Some(leader) = self.leader_hint(lab)
            && let Some(place) = self.servers.iter().position(|&server| server == leader)
        {
            self.favourite = place;
        }
        (Stage::Returns { at: now + delay, found }, None)
    }

    fn leader_hint(&self, lab: &Lab) -> Option<NodeId> {
        let server = self.servers[self.favourite % self.servers.len()];
        lab.world.status(server)?.leader
    }
}

/// How often a clerk looks for its answer.
const LOOK: Duration = Duration::from_millis(1);

/// Before a clerk asks another server.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Runs the world and the clerks until this time. `idle` gives a clerk that has nothing to do
/// its next operation, if there is one.
pub(crate) fn run_until(
    lab: &mut Lab,
    clerks: &mut [Clerk],
    end: Duration,
    mut idle: impl FnMut(&mut Lab, &mut Clerk) -> Done<Option<Call>>,
) -> Done {
    while lab.world.now() < end {
        let mut wake = end;
        for clerk in &mut *clerks {
            if clerk.is_idle()
                && let Some(call) = idle(lab, clerk)?
            {
                clerk.begin(lab, call);
            }
            if let Some(at) = clerk.step(lab)? {
                wake = wake.min(at);
            } else if clerk.is_idle() {
                wake = wake.min(lab.world.now() + LOOK);
            }
        }
        lab.sleep(wake.saturating_sub(lab.world.now()))?;
    }
    Ok(())
}

/// Runs the world until all clerks have ended what they are at, at most for this time. Whether
/// they have.
pub(crate) fn finish(lab: &mut Lab, clerks: &mut [Clerk], time: Duration) -> Done<bool> {
    let end = lab.world.now() + time;
    while lab.world.now() < end && clerks.iter().any(|clerk| !clerk.is_idle()) {
        let until = end.min(lab.world.now() + 5 * LOOK);
        run_until(lab, clerks, until, |_, _| Ok(None))?;
    }
    Ok(clerks.iter().all(Clerk::is_idle))
}

/// One operation from beginning to end.
pub(crate) fn call(lab: &mut Lab, clerk: &mut Clerk, what: &Call) -> Done<Option<String>> {
    const LONGEST: Duration = Duration::from_secs(60);
    clerk.begin(lab, what.clone());
    if !finish(lab, std::slice::from_mut(clerk), LONGEST)? {
        return Err(lab.failure(format!("{what:?} has not ended after a minute")));
    }
    Ok(clerk.last().and_then(|finished| finished.found.clone()))
}

pub(crate) fn put(lab: &mut Lab, clerk: &mut Clerk, key: u64, value: &str) -> Done {
    call(lab, clerk, &Call::Put { key, value: value.to_owned() }).map(|_| ())
}

pub(crate) fn append(lab: &mut Lab, clerk: &mut Clerk, key: u64, value: &str) -> Done {
    call(lab, clerk, &Call::Append { key, value: value.to_owned() }).map(|_| ())
}

pub(crate) fn get(lab: &mut Lab, clerk: &mut Clerk, key: u64) -> Done<String> {
    Ok(call(lab, clerk, &Call::Get { key })?.unwrap_or_default())
}

/// A get must find this.
pub(crate) fn check(lab: &mut Lab, clerk: &mut Clerk, key: u64, expected: &str) -> Done {
    let found = get(lab, clerk, key)?;
    if found == expected {
        return Ok(());
    }
    Err(lab.failure(format!("key {key} holds {found:?}, not {expected:?}")))
}

/// All that a client has appended is there, once, in its order.
pub(crate) fn check_appends(lab: &Lab, client: u64, value: &str, count: u64) -> Done {
    let mut last = None;
    for number in 0..count {
        let wanted = token(client, number);
        let at = value.find(&wanted);
        let Some(at) = at else {
            return Err(lab.failure(format!("{wanted:?} is missing in {value:?}")));
        };
        if value.rfind(&wanted) != Some(at) {
            return Err(lab.failure(format!("{wanted:?} is twice in {value:?}")));
        }
        if last.is_some_and(|last| at <= last) {
            return Err(lab.failure(format!("{wanted:?} is out of order in {value:?}")));
        }
        last = Some(at);
    }
    Ok(())
}

/// What a client appends: as in the course.
pub(crate) fn token(client: u64, number: u64) -> String {
    format!("x {client} {number} y")
}

/// Whether all that the clerks have seen is linearizable, key by key.
///
/// Appended tokens are unique, so a value tells which appends came before it, and in which
/// order: an append becomes a write of the value that ends with its token, as some get has seen
/// it. One whose value nobody has seen cannot be judged from outside; the world has judged it
/// from inside, as all others.
pub(crate) fn check_linearizable(lab: &Lab, clerks: &[Clerk]) -> Done {
    use crate::linear::{self, Action as Step, Operation};
    let all = || clerks.iter().flat_map(|clerk| &clerk.history);
    let mut seen: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for finished in all() {
        if let (Call::Get { key }, Some(found)) = (&finished.call, &finished.found) {
            seen.entry(*key).or_default().push(found);
        }
    }
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let history: Vec<Operation<u64, String>> = all()
        .filter_map(|finished| {
            let (key, action) = match &finished.call {
                Call::Get { key } if finished.end.is_some() => {
                    (*key, Step::Read(finished.found.clone()))
                }
                Call::Get { .. } => return None,
                Call::Put { key, value } => (*key, Step::Write(Some(value.clone()))),
                Call::Append { key, value } => {
                    let values = seen.get(key)?;
                    let whole = values.iter().find_map(|seen| {
                        let end = seen.find(value.as_str())? + value.len();
                        seen.get(..end)
                    })?;
                    (*key, Step::Write(Some(whole.to_owned())))
                }
            };
            let (start, end) = (nanos(finished.start), finished.end.map(nanos));
            Some(Operation { key, action, start, end })
        })
        .collect();
    linear::check(&history).map_err(|error| lab.failure(error.to_string()))
}
