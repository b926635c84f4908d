//! What a node is told once, at its start: who it is, its times and its bounds.

use std::{fmt, time::Duration};

use crate::NodeId;

/// The settings of a node. Start from [`Config::new`] and change what you must.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who this node is.
    pub id: NodeId,
    /// All randomness comes from here: the same seed and inputs give the same effects.
    pub seed: u64,
    /// How often a leader shows that it is alive. 100 ms, as etcd's.
    pub heartbeat_interval: Duration,
    /// For how long a voter stays loyal after it heard from a leader; elections start after a
    /// random time in `(t, 2t]` (§5.2). 1 s, as etcd's. At least two heartbeats.
    pub election_timeout: Duration,
    /// A leader whose own log write is older than this gives up its leadership: its disk is
    /// part of its health. 5 s, a guess: above the longest stall of a busy cloud disk.
    pub storage_stall_timeout: Duration,
    /// A larger command is refused. 8 MiB, well above etcd's largest request.
    pub entry_bytes_max: usize,
    /// Entries of one message, in bytes; a single larger entry is still sent. 1 MiB.
    pub append_bytes_max: usize,
    /// Messages with entries on their way to one follower. 256, as etcd's 512, halved because
    /// each carries more.
    pub inflight_messages_max: usize,
    /// Bytes of entries on their way to one follower. 16 MiB.
    pub inflight_bytes_max: usize,
    /// Bytes of entries that are appended and not committed: beyond it proposals are refused
    /// with `Busy`. 64 MiB.
    pub uncommitted_bytes_max: usize,
    /// Bytes of entries handed to the state machine and not yet applied. 64 MiB.
    pub unapplied_bytes_max: usize,
    /// Bytes of recent entries kept in memory; older ones are read from the log. 32 MiB.
    pub log_cache_bytes_max: usize,
    /// Reads that wait for a round. Beyond it they are refused with `Busy`. 65,536.
    pub pending_reads_max: usize,
    /// How much faster than another the clock of a node may run, in millionths. Lease reads rest
    /// on it; 0, the default, turns them off: they are then served as any other.
    pub clock_drift_ppm_max: u32,
    /// Who should lead if all else is equal: the higher, the sooner it stands, and a leader hands
    /// over to a follower with a higher one that has caught up. Never part of a vote. 0.
    pub priority: u8,
    /// The newest entries are kept though every voter has them, up to this many bytes, so that a
    /// server that was away needs no snapshot. 16 MiB.
    pub log_keep_bytes: u64,
    /// Beyond this many bytes the log is purged though a follower still needs it: that one gets a
    /// snapshot. 1 GiB.
    pub log_bytes_max: u64,
    /// A purge is asked for only when it frees at least this many entries. 1,024.
    pub purge_entries_min: u64,
    /// Whether the state machine can apply commands of client sessions. A leader whose machine
    /// cannot takes none: they would stop every node like it. True.
    pub keeps_sessions: bool,
}

impl Config {
    /// The defaults, for the node `id`.
    #[must_use]
    pub fn new(id: NodeId, seed: u64) -> Self {
        const MIB: usize = 1 << 20;
        Self {
            id,
            seed,
            heartbeat_interval: Duration::from_millis(100),
            election_timeout: Duration::from_secs(1),
            storage_stall_timeout: Duration::from_secs(5),
            entry_bytes_max: 8 * MIB,
            append_bytes_max: MIB,
            inflight_messages_max: 256,
            inflight_bytes_max: 16 * MIB,
            uncommitted_bytes_max: 64 * MIB,
            unapplied_bytes_max: 64 * MIB,
            log_cache_bytes_max: 32 * MIB,
            pending_reads_max: 65_536,
            clock_drift_ppm_max: 0,
            priority: 0,
            log_keep_bytes: 16 << 20,
            log_bytes_max: 1 << 30,
            purge_entries_min: 1_024,
            keeps_sessions: true,
        }
    }

    /// Checks that the settings can work together.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rules = [
            (self.id.get() != 0, "the node id must not be 0"),
            (!self.heartbeat_interval.is_zero(), "heartbeat_interval must not be 0"),
            (
                self.heartbeat_interval * 2 <= self.election_timeout,
                "election_timeout must be at least twice heartbeat_interval",
            ),
            (!self.storage_stall_timeout.is_zero(), "storage_stall_timeout must not be 0"),
            (0 < self.inflight_messages_max, "inflight_messages_max must not be 0"),
            (self.clock_drift_ppm_max < 1_000_000, "clock_drift_ppm_max must be below a million"),
            (self.log_keep_bytes <= self.log_bytes_max, "log_bytes_max must hold log_keep_bytes"),
            (0 < self.pending_reads_max, "pending_reads_max must not be 0"),
            (
                self.entry_bytes_max <= self.uncommitted_bytes_max,
                "uncommitted_bytes_max must hold at least one entry of entry_bytes_max",
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, rule)) => Err(ConfigError(rule)),
            None => Ok(()),
        }
    }
}

/// The settings contradict each other; the text names the rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigError(pub(crate) &'static str);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for ConfigError {}
