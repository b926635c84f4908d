//! A scenario: all that is done to a world, as data and as text.
//!
//! A seed is drawn into a scenario before the world begins, so that a failing one can be made
//! smaller step by step, and kept. In the text nothing is left to be drawn: it names the world,
//! every fault and its time. What a link does with its seventeenth message is a hash of the
//! world's seed and of that, so it stays what it is when a fault is taken away.
//!
//! ```text
//! kontiki scenario 1
//! set seed 17
//! set nodes 3
//! at 1500000 isolate leader
//! at 2750000 crash 2
//! ```

use std::{fmt, time::Duration};

use crate::{machine::MachineKind, world::Setup};

/// What is done to a world.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The world.
    pub setup: Setup,
    /// How many clients there are.
    pub clients: u64,
    /// When the faults end.
    pub end: Duration,
    /// What becomes of the nodes that the liveness phase can do without: 0 they are healed as
    /// well, 1 they are down, 2 they run and are cut off.
    pub rest: u64,
    /// With whom the choice of the nodes begins that the liveness phase needs.
    pub first: u64,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// One thing that is done at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub at: Duration,
    /// What.
    pub what: What,
    /// To whom, and how: see [`What`].
    pub args: [u64; 2],
}

/// Stands for whoever leads when the step is taken.
pub const LEADER: u64 = u64::MAX;

macro_rules! whats {
    ($($(#[$doc:meta])* $name:ident $word:literal $count:literal,)*) => {
        /// What can be done. A node is a number that counts around the nodes that there are, or
        /// the leader; a member counts around the committed membership.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[expect(clippy::exhaustive_enums, reason = "a player that overlooks one must not compile")]
        pub enum What { $($(#[$doc])* $name,)* }

        impl What {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its word in the text, and how many arguments follow.
            #[must_use]
            pub const fn word(self) -> (&'static str, usize) {
                match self { $(Self::$name => ($word, $count),)* }
            }
        }
    };
}

whats! {
    /// The power of a node fails.
    Crash "crash" 1,
    /// The power of all nodes fails.
    CrashAll "crash-all" 0,
    /// A process is killed.
    Kill "kill" 1,
    /// A node is started.
    Start "start" 1,
    /// All nodes are started, and those that stand still go on.
    StartAll "start-all" 0,
    /// A process stands still.
    Pause "pause" 1,
    /// A process goes on.
    Resume "resume" 1,
    /// One direction of a link is cut.
    Cut "cut" 2,
    /// All links of a node are cut.
    Isolate "isolate" 1,
    /// A node hears, and is not heard.
    Mute "mute" 1,
    /// A node is heard, and does not hear.
    Deafen "deafen" 1,
    /// The nodes of the bits of the argument are cut off from the others.
    Split "split" 1,
    /// Two sides hear each other only through this node.
    Bridge "bridge" 2,
    /// All links of a node are healed.
    Heal "heal" 1,
    /// All links are healed.
    HealAll "heal-all" 0,
    /// From now on so many messages in a million are lost.
    Loss "loss" 1,
    /// The leader hands over to this node, or, with 0, to the best.
    Transfer "transfer" 1,
    /// The operation after so many others of a node's disk fails with `EIO`.
    DiskFails "disk-fails" 2,
    /// A disk has room for so many more bytes.
    DiskFull "disk-full" 2,
    /// All disks have room again.
    DiskSpace "disk-space" 0,
    /// The next `sync` of a node's disk takes so many milliseconds.
    Stall "stall" 2,
    /// A node loses its power, and a bit on its disk is flipped.
    Rot "rot" 2,
    /// A disk is gone for ever.
    Destroy "destroy" 1,
    /// A node makes a snapshot.
    Snapshot "snapshot" 1,
    /// A learner is added; with 1 it becomes a voter by itself.
    AddLearner "add-learner" 1,
    /// A member becomes a voter.
    Promote "promote" 1,
    /// A member becomes a learner.
    Demote "demote" 1,
    /// A member is removed.
    Remove "remove" 1,
    /// A member is replaced by a new server.
    Replace "replace" 1,
    /// A member gets another address.
    Update "update" 1,
}

/// A number of the text, and where it belongs.
type Field = (&'static str, fn(&Scenario) -> u64, fn(&mut Scenario, u64));

macro_rules! field {
    ($name:literal, $($path:ident).+) => {
        ($name, |s| number(s.$($path).+), |s, value| s.$($path).+ = From::from(Number(value)))
    };
    (pair $name:literal, $at:tt, $($path:ident).+) => {
        ($name, |s| micros(s.$($path).+.$at), |s, value| {
            s.$($path).+.$at = Duration::from_micros(value);
        })
    };
}

const FIELDS: &[Field] = &[
    field!("seed", setup.seed),
    field!("nodes", setup.nodes),
    field!("clients", clients),
    ("end", |s| micros(s.end), |s, value| s.end = Duration::from_micros(value)),
    field!("rest", rest),
    field!("first", first),
    field!(pair "delay-min", 0, setup.network.delay),
    field!(pair "delay-max", 1, setup.network.delay),
    field!("loss", setup.network.loss),
    field!("duplicates", setup.network.duplicates),
    field!("stragglers", setup.network.stragglers),
    field!("long-reordering", setup.network.has_long_reordering),
    field!("ordered", setup.network.is_ordered),
    field!("keeps-in-flight", setup.network.keeps_in_flight),
    field!(pair "sync-min", 0, setup.sync),
    field!(pair "sync-max", 1, setup.sync),
    field!("stalls", setup.stalls),
    field!(pair "apply-min", 0, setup.apply),
    field!(pair "apply-max", 1, setup.apply),
    (
        "durable-machine",
        |s| s.setup.machine as u64,
        |s, value| {
            s.setup.machine = match value {
                0 => MachineKind::Memory,
                1 => MachineKind::Durable,
                _ => MachineKind::Store,
            };
        },
    ),
    field!("store-segment-bytes", setup.store.segment_bytes),
    field!("store-checkpoint-bytes", setup.store.checkpoint_bytes),
    field!("store-cache-bytes", setup.store.value_cache_bytes),
    field!(pair "store-flush-min", 0, setup.store_flush),
    field!(pair "store-flush-max", 1, setup.store_flush),
    field!("clock-drift", setup.clock_drift),
    (
        "timer-lateness",
        |s| micros(s.setup.timer_lateness),
        |s, value| s.setup.timer_lateness = Duration::from_micros(value),
    ),
    (
        "request-timeout",
        |s| micros(s.setup.request_timeout),
        |s, value| s.setup.request_timeout = Duration::from_micros(value),
    ),
    field!("given-back", setup.given_back),
    field!("stores", setup.has_stores),
    field!("snapshot-bytes", setup.snapshot_bytes),
    field!("chunk-bytes", setup.chunk_bytes),
    field!("chunk-damage", setup.chunk_damage),
    field!("segment-bytes", setup.log.segment_bytes),
    field!("spares", setup.log.spares),
    field!("purge-entries-min", setup.config.purge_entries_min),
    field!("log-keep-bytes", setup.config.log_keep_bytes),
    field!("log-bytes-max", setup.config.log_bytes_max),
    field!("append-bytes-max", setup.config.append_bytes_max),
    field!("inflight-messages-max", setup.config.inflight_messages_max),
    field!("inflight-bytes-max", setup.config.inflight_bytes_max),
    field!("log-cache-bytes-max", setup.config.log_cache_bytes_max),
    field!("entry-bytes-max", setup.config.entry_bytes_max),
    field!("uncommitted-bytes-max", setup.config.uncommitted_bytes_max),
    field!("unapplied-bytes-max", setup.config.unapplied_bytes_max),
    field!("pending-reads-max", setup.config.pending_reads_max),
    (
        "clock-drift-max",
        |s| s.setup.config.clock_drift_ppm_max.into(),
        |s, value| s.setup.config.clock_drift_ppm_max = u32::try_from(value).unwrap_or(0),
    ),
    field!("priorities", setup.has_priorities),
];

/// A number on its way to its type.
struct Number(u64);

impl From<Number> for u64 {
    fn from(number: Number) -> Self {
        number.0
    }
}
impl From<Number> for usize {
    fn from(number: Number) -> Self {
        Self::try_from(number.0).unwrap_or(Self::MAX)
    }
}
impl From<Number> for bool {
    fn from(number: Number) -> Self {
        number.0 != 0
    }
}

fn number<T: Into<Plain>>(value: T) -> u64 {
    value.into().0
}

struct Plain(u64);

impl From<u64> for Plain {
    fn from(value: u64) -> Self {
        Self(value)
    }
}
impl From<usize> for Plain {
    fn from(value: usize) -> Self {
        Self(u64::try_from(value).unwrap_or(u64::MAX))
    }
}
impl From<bool> for Plain {
    fn from(value: bool) -> Self {
        Self(value.into())
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

const HEADING: &str = "kontiki scenario 1";

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADING}")?;
        for (name, get, _) in FIELDS {
            writeln!(f, "set {name} {}", get(self))?;
        }
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, count) = self.what.word();
        write!(f, "at {} {word}", micros(self.at))?;
        for &arg in &self.args[..count] {
            if arg == LEADER { f.write_str(" leader")? } else { write!(f, " {arg}")? }
        }
        Ok(())
    }
}

/// A line of a text that is no scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoScenario {
    /// Which line, from 1.
    pub line: usize,
    /// What it says.
    pub text: String,
}

impl fmt::Display for NoScenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} is not understood: {}", self.line, self.text)
    }
}

impl std::error::Error for NoScenario {}

impl std::str::FromStr for Scenario {
    type Err = NoScenario;

    fn from_str(text: &str) -> Result<Self, NoScenario> {
        let mut scenario = Self {
            setup: Setup::new(0, 3),
            clients: 1,
            end: Duration::ZERO,
            rest: 0,
            first: 0,
            steps: Vec::new(),
        };
        let mut has_heading = false;
        for (at, text) in text.lines().enumerate() {
            let line = text.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let is_understood = if has_heading {
                scenario.read_line(line).is_some()
            } else {
                has_heading = true;
                line == HEADING
            };
            if !is_understood {
                return Err(NoScenario { line: at + 1, text: text.to_owned() });
            }
        }
        let seed = scenario.setup.seed;
        scenario.setup.log.seed = seed;
        Ok(scenario)
    }
}

impl Scenario {
    fn read_line(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_whitespace();
        match words.next()? {
            "set" => {
                let name = words.next()?;
                let (_, _, set) = FIELDS.iter().find(|(known, _, _)| *known == name)?;
                set(self, words.next()?.parse().ok()?);
            }
            "at" => {
                let at = Duration::from_micros(words.next()?.parse().ok()?);
                let word = words.next()?;
                let what = *What::ALL.iter().find(|what| what.word().0 == word)?;
                let mut args = [0; 2];
                for arg in &mut args[..what.word().1] {
                    let word = words.next()?;
                    *arg = if word == "leader" { LEADER } else { word.parse().ok()? };
                }
                self.steps.push(Step { at, what, args });
            }
            _ => return None,
        }
        words.next().is_none().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm;

    #[test]
    fn a_scenario_is_read_back_as_it_was() {
        for seed in 1..50 {
            let text = swarm::draw(seed).to_string();
            let again: Scenario = text.parse().expect("its own text");
            assert_eq!(again.to_string(), text);
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let error = "kontiki scenario 1\nat 5 explode 1\n".parse::<Scenario>().unwrap_err();
        assert_eq!(error.to_string(), "line 2 is not understood: at 5 explode 1");
        for line in ["set colour 3", "at 5 crash", "at 5 crash 1 2", "set seed x"] {
            assert!(format!("{HEADING}\n{line}").parse::<Scenario>().is_err(), "{line}");
        }
        assert!("something else".parse::<Scenario>().is_err());
    }
}
