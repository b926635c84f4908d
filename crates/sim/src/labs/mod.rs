//! The lab scenarios of the Raft course (MIT 6.824 / 6.5840), parts 2A to 3B, as simulations.
//!
//! Every scenario keeps the facts of the course's tests: delays, loss, time limits, what is
//! asserted, how many calls and bytes are allowed. On top, all invariants are checked after
//! every event, disks are slow and crashes tear what was not synced, and each seed is another
//! world.

mod clerk;
mod lab;
mod part_2a;
mod part_2b;
mod part_2c;
mod part_2d;
mod part_3a;
mod part_3b;
mod report;
mod runner;

pub use lab::Lab;
pub use report::{FailedRun, Report, Row};
pub use runner::{Options, Progress, Run, UnknownScenario, run, run_one, run_told};

use crate::trace::Failure;

/// A scenario of the labs.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name, as in the course.
    pub name: &'static str,
    /// How many servers there are.
    pub nodes: u64,
    /// What its servers keep of the log.
    keeps: Keeps,
    play: fn(&mut Lab) -> Result<(), Failure>,
}

impl Scenario {
    /// The part of the course that it belongs to, as its name ends: `2a`.
    #[must_use]
    pub fn part(&self) -> &'static str {
        self.name.rsplit('_').next().unwrap_or_default()
    }
}

/// What the servers of a scenario keep of their logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// All of it, or what their own state machines do not need.
    All,
    /// Snapshots are made every ten commands, and no more than 2,000 B of entries are kept.
    Commands,
    /// Snapshots are made when some hundred bytes were applied, and no more than 2,000 B of
    /// entries are kept (`maxraftstate` 1,000).
    Bytes,
}

/// All scenarios, in the order of the course.
pub const SCENARIOS: [Scenario; 52] = [
    scenario("initial_election_2a", 3, part_2a::initial_election),
    scenario("reelection_2a", 3, part_2a::reelection),
    scenario("many_election_2a", 7, part_2a::many_election),
    scenario("basic_agree_2b", 5, part_2b::basic_agree),
    scenario("rpc_bytes_2b", 3, part_2b::rpc_bytes),
    scenario("follower_failure_2b", 3, part_2b::follower_failure),
    scenario("leader_failure_2b", 3, part_2b::leader_failure),
    scenario("fail_agree_2b", 3, part_2b::fail_agree),
    scenario("fail_no_agree_2b", 5, part_2b::fail_no_agree),
    scenario("concurrent_starts_2b", 3, part_2b::concurrent_starts),
    scenario("rejoin_2b", 3, part_2b::rejoin),
    scenario("backup_2b", 5, part_2b::backup),
    scenario("count_2b", 3, part_2b::count),
    scenario("persist1_2c", 3, part_2c::persist1),
    scenario("persist2_2c", 5, part_2c::persist2),
    scenario("persist3_2c", 3, part_2c::persist3),
    scenario("figure_8_2c", 5, part_2c::figure_8),
    scenario("unreliable_agree_2c", 5, part_2c::unreliable_agree),
    scenario("figure_8_unreliable_2c", 5, part_2c::figure_8_unreliable),
    scenario("figure_8_long_reordering_2c", 5, part_2c::figure_8_long_reordering),
    scenario("reliable_churn_2c", 5, part_2c::reliable_churn),
    scenario("unreliable_churn_2c", 5, part_2c::unreliable_churn),
    compact("snapshot_basic_2d", 3, Keeps::Commands, part_2d::basic),
    compact("snapshot_install_2d", 3, Keeps::Commands, part_2d::install),
    compact("snapshot_install_unreliable_2d", 3, Keeps::Commands, part_2d::install_unreliable),
    compact("snapshot_install_crash_2d", 3, Keeps::Commands, part_2d::install_crash),
    compact(
        "snapshot_install_unreliable_crash_2d",
        3,
        Keeps::Commands,
        part_2d::install_unreliable_crash,
    ),
    compact("snapshot_all_crash_2d", 3, Keeps::Commands, part_2d::all_crash),
    compact("snapshot_init_2d", 3, Keeps::Commands, part_2d::init),
    scenario("basic_3a", 5, part_3a::basic),
    scenario("concurrent_3a", 5, part_3a::concurrent),
    scenario("unreliable_3a", 5, part_3a::unreliable),
    scenario("speed_3a", 5, part_3a::speed),
    scenario("unreliable_one_key_3a", 3, part_3a::unreliable_one_key),
    scenario("one_partition_3a", 5, part_3a::one_partition),
    scenario("many_partitions_one_client_3a", 5, part_3a::many_partitions_one_client),
    scenario("many_partitions_many_clients_3a", 5, part_3a::many_partitions_many_clients),
    scenario("persist_one_client_3a", 5, part_3a::persist_one_client),
    scenario("persist_concurrent_3a", 5, part_3a::persist_concurrent),
    scenario("persist_concurrent_unreliable_3a", 5, part_3a::persist_concurrent_unreliable),
    scenario("persist_partition_3a", 5, part_3a::persist_partition),
    scenario("persist_partition_unreliable_3a", 5, part_3a::persist_partition_unreliable),
    scenario(
        "persist_partition_unreliable_linearizable_3a",
        7,
        part_3a::persist_partition_unreliable_linearizable,
    ),
    compact("snapshot_rpc_3b", 3, Keeps::Bytes, part_3b::snapshot_rpc),
    compact("snapshot_size_3b", 3, Keeps::Bytes, part_3b::snapshot_size),
    compact("speed_3b", 3, Keeps::Bytes, part_3b::speed),
    compact("snapshot_recover_3b", 5, Keeps::Bytes, part_3b::snapshot_recover),
    compact(
        "snapshot_recover_many_clients_3b",
        5,
        Keeps::Bytes,
        part_3b::snapshot_recover_many_clients,
    ),
    compact("snapshot_unreliable_3b", 5, Keeps::Bytes, part_3b::snapshot_unreliable),
    compact(
        "snapshot_unreliable_recover_3b",
        5,
        Keeps::Bytes,
        part_3b::snapshot_unreliable_recover,
    ),
    compact(
        "snapshot_unreliable_recover_concurrent_partition_3b",
        5,
        Keeps::Bytes,
        part_3b::snapshot_unreliable_recover_concurrent_partition,
    ),
    compact(
        "snapshot_unreliable_recover_concurrent_partition_linearizable_3b",
        7,
        Keeps::Bytes,
        part_3b::snapshot_unreliable_recover_concurrent_partition_linearizable,
    ),
];

const fn scenario(
    name: &'static str,
    nodes: u64,
    play: fn(&mut Lab) -> Result<(), Failure>,
) -> Scenario {
    Scenario { name, nodes, keeps: Keeps::All, play }
}

const fn compact(
    name: &'static str,
    nodes: u64,
    keeps: Keeps,
    play: fn(&mut Lab) -> Result<(), Failure>,
) -> Scenario {
    Scenario { name, nodes, keeps, play }
}

/// The scenario of this name.
#[must_use]
pub fn scenario_named(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}
