//! The vocabulary of the scripts. Closed: what is not here cannot be said.
//!
//! `docs/testing.md` explains it to authors of scripts.

use std::{str::FromStr, time::Duration};

use kontiki_raft::NodeId;

/// Something that a script can tell the cluster to do.
#[derive(Debug, goldenscript::Command)]
pub(crate) enum Command {
    /// Starts `nodes` voters, all with the same log.
    Cluster {
        #[arg(key)]
        nodes: u64,
        #[arg(key, optional)]
        log: Log,
        #[arg(key, optional)]
        term: u64,
        #[arg(key, optional)]
        commit: u64,
        /// At most this many entries of one byte in a message.
        #[arg(key)]
        entries_max: Option<usize>,
        /// At most this many messages with entries on their way to one follower.
        #[arg(key)]
        inflight_max: Option<usize>,
        #[arg(key)]
        entry_bytes_max: Option<usize>,
        #[arg(key)]
        uncommitted_bytes_max: Option<usize>,
        #[arg(key)]
        unapplied_bytes_max: Option<usize>,
        #[arg(key)]
        cache_bytes_max: Option<usize>,
        #[arg(key)]
        pending_reads_max: Option<usize>,
        /// The log keeps at least so many bytes, and no more than so many.
        #[arg(key)]
        keep_bytes: Option<u64>,
        #[arg(key)]
        log_bytes_max: Option<u64>,
        /// Clocks may run apart by so many millionths.
        #[arg(key, optional)]
        drift: u32,
        /// Purge as soon as so many entries go.
        #[arg(key)]
        purge_min: Option<u64>,
        /// The state machine keeps what it has applied over a crash.
        #[arg(key, optional)]
        durable_machine: bool,
        /// So many nodes more are up, and are no members yet.
        #[arg(key)]
        spare: Option<u64>,
        /// The priorities of the nodes, from `n1` on.
        #[arg(key, optional)]
        priorities: Log,
    },
    /// The state machine of a node writes a snapshot of what it has applied. It is durable.
    Snapshot(Name),
    /// The snapshot that the first node sends arrives whole at the second. `unheard`: the first
    /// does not hear of it.
    Ship {
        link: Link,
        #[arg(key, optional)]
        unheard: bool,
    },
    /// The newest snapshot of the first node reaches the second, whoever may have asked for it.
    Give(Link),
    /// The snapshot on the link does not arrive, and the sender knows.
    LoseSnapshot(Link),
    /// Replaces the disk of a node, and starts the node from it.
    Node {
        name: Name,
        #[arg(key, optional)]
        log: Log,
        #[arg(key)]
        term: Option<u64>,
        #[arg(key)]
        vote: Option<Name>,
        #[arg(key, optional)]
        commit: u64,
    },
    /// Lets all timers pass, then makes a node leader: only messages about votes are delivered,
    /// only to and from `votes`.
    Elect {
        name: Name,
        #[arg(key)]
        term: Option<u64>,
        #[arg(key)]
        votes: Option<Names>,
    },
    /// The operator asks a node to stand for election.
    Campaign(Name),
    /// Moves the clock to the deadline of one node, and fires its timer only.
    Timeout(Name),
    /// Moves the clock and fires the timers that run out, of all nodes or of those named.
    Advance {
        time: Span,
        #[arg(optional)]
        names: Vec<Name>,
    },
    /// Moves the clock. No timer fires: nobody has had the time to look.
    Wait(Span),
    /// As `advance`, and every message is delivered as soon as it is sent.
    Run(Span),
    /// Proposes commands at a node, in one batch.
    Propose {
        name: Name,
        #[arg(optional)]
        commands: Vec<String>,
        /// One command of so many bytes.
        #[arg(key)]
        bytes: Option<usize>,
    },
    /// Asks a node to change the membership, in this order: removals, demotions, additions,
    /// replacements, promotions.
    Change {
        name: Name,
        #[arg(key, optional)]
        remove: Names,
        #[arg(key, optional)]
        demote: Names,
        /// Learners that are promoted by hand.
        #[arg(key, optional)]
        add: Names,
        /// Learners that are promoted when they have caught up.
        #[arg(key, optional)]
        join: Names,
        #[arg(key)]
        replace: Option<Name>,
        /// Who takes the place of `replace`.
        #[arg(key)]
        by: Option<Name>,
        #[arg(key, optional)]
        promote: Names,
        /// The node is reached elsewhere.
        #[arg(key, optional)]
        update: Names,
        /// The entry of the membership that the change is for: its index and term.
        #[arg(key, optional)]
        expect: Log,
    },
    /// Shows the membership in force at a node.
    Members(Name),
    /// The transport of the first node meets the second, with this data directory.
    Meet(Name, Name, u64),
    /// Asks for a linearizable read at a node; `lease`: one that may rest on the lease.
    Read {
        name: Name,
        #[arg(key, optional)]
        lease: bool,
    },
    /// Shows for how long a leader may serve lease reads.
    Lease(Name),
    /// Asks a leader to hand over, to `to` or to the best follower.
    Transfer {
        name: Name,
        #[arg(key)]
        to: Option<Name>,
    },
    /// Delivers what waits on the links now; on all links, and until nothing is sent any more,
    /// if none is named.
    Deliver(#[arg(optional)] Vec<Link>),
    /// Loses what waits on the links, or on all.
    Drop(#[arg(optional)] Vec<Link>),
    /// Doubles what waits on the links.
    Dup(Vec<Link>),
    /// Reverses the order of what waits on the links.
    Reorder(Vec<Link>),
    /// Takes what waits on the links aside, to be released late.
    Hold(Vec<Link>),
    /// As `hold`, and what waits is delivered too: the copies come late.
    Copy(Vec<Link>),
    /// Puts what was held or copied on its links.
    Release(Vec<Link>),
    /// From here on everything sent on the links is lost.
    Cut(Vec<Link>),
    /// Cuts all links from and to the nodes.
    Isolate(Vec<Name>),
    /// Mends all links.
    Heal,
    /// Shows what waits on the links.
    Messages(#[arg(optional)] Vec<Link>),
    /// `slow`: writes wait for `persist`. `fast`: they are durable at once.
    Disk(Name, Pace),
    /// `slow`: entries wait for `applied`. `fast`: they are applied at once.
    Machine(Name, Pace),
    /// The disk of a node finishes its oldest writes: all of them with one flush, or `count`.
    Persist {
        name: Name,
        #[arg(key)]
        count: Option<usize>,
    },
    /// The oldest write of a node fails.
    FailWrite(Name),
    /// The state machine of a node has applied what it was given.
    Applied(Name),
    /// The transport of the first node lost its connection to the second.
    Unreachable(Name, Name),
    /// Entries that left the memory of a node cannot be read from its disk from here on.
    FailReads {
        name: Name,
        /// For good: the disk is damaged there.
        #[arg(key, optional)]
        damaged: bool,
    },
    /// The disk under the log of a node is full.
    Full(Name),
    /// It has space again.
    Space(Name),
    /// The log of a node that is down is damaged from an index on; with `term`, the votes that
    /// it gave after that term are lost, too.
    Damage {
        name: Name,
        #[arg(key)]
        from: u64,
        #[arg(key)]
        term: Option<u64>,
    },
    /// The state machine of a node that is down loses its state, and its snapshots are gone.
    LoseState(Name),
    /// Takes a node down: what was not persisted is gone.
    Crash(Vec<Name>),
    /// Starts nodes from what their disks hold.
    Restart(Vec<Name>),
    /// Shows the nodes, or those named.
    Status(#[arg(optional)] Vec<Name>),
    /// Shows what a leader knows of the others.
    Progress(Name),
}

/// `n1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(pub(crate) NodeId);

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_prefix('n').and_then(|digits| digits.parse().ok());
        number.map(|id| Self(NodeId(id))).ok_or_else(|| format!("{text} is not a node such as n1"))
    }
}

/// `n1,n2`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(pub(crate) Vec<NodeId>);

impl FromStr for Names {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names: Result<Vec<Name>, String> =
            text.split(',').filter(|name| !name.is_empty()).map(Name::from_str).collect();
        Ok(Self(names?.into_iter().map(|name| name.0).collect()))
    }
}

/// `n1->n2`: one direction between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Link {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) =
            text.split_once("->").ok_or_else(|| format!("{text} is not a link such as n1->n2"))?;
        Ok(Self { from: from.parse::<Name>()?.0, to: to.parse::<Name>()?.0 })
    }
}

/// `1,1,2`: the terms of the entries of a log, from index 1 on, as Figure 7 draws them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(pub(crate) Vec<u64>);

impl FromStr for Log {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',')
            .map(|term| term.parse().map_err(|_| format!("{text} is not a log such as 1,1,2")))
            .collect::<Result<Vec<u64>, String>>()
            .map(Self)
    }
}

/// `100ms` or `2s`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let millis = match text.strip_suffix("ms") {
            Some(millis) => millis.parse().ok(),
            None => text.strip_suffix('s').and_then(|s| s.parse().ok()).map(|s: u64| s * 1000),
        };
        let millis = millis.ok_or_else(|| format!("{text} is not a time such as 100ms or 2s"))?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

/// How fast a disk or a state machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// It has finished before anyone looks.
    Fast,
    /// It finishes when the script says so.
    Slow,
}

impl FromStr for Pace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fast" => Ok(Self::Fast),
            "slow" => Ok(Self::Slow),
            other => Err(format!("{other} is neither fast nor slow")),
        }
    }
}
