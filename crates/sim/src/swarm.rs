//! Random worlds: random size, random weather, random faults, clients with a history.
//!
//! Each seed is drawn into a [`Scenario`], which is then played. A run has two phases. In the
//! *safety* phase anything may go wrong at any time, and the invariants must hold. In the
//! *liveness* phase the faults end, at least for a quorum: within bounded time there must be a
//! leader, a fresh write must be acknowledged, all must catch up, every request must be answered,
//! and what the clients have seen must be linearizable.

mod clients;
mod draw;
mod members;
mod play;
mod runner;
mod seen;
mod shrink;

pub use draw::draw;
pub use runner::{FailedWorld, Options, Progress, Report, current, run_many};
pub use seen::Seen;
pub use shrink::{Shrunk, fails_here, kind_of, shrink};

use std::{cell::RefCell, rc::Rc};

use crate::{
    scenario::Scenario,
    trace::{Failure, Recorder},
};
use play::Play;

/// Runs the world of this seed.
///
/// # Errors
///
/// When an invariant breaks, the cluster does not come round, or the history is not
/// linearizable.
pub fn run(seed: u64) -> Result<Seen, Failure> {
    play(&draw(seed))
}

/// As [`run`], with the digest of all that happened.
///
/// # Errors
///
/// As [`run`].
pub fn run_with_digest(seed: u64) -> Result<(Seen, u64), Failure> {
    Play::new(&draw(seed)).run()
}

/// Plays a scenario.
///
/// # Errors
///
/// As [`run`].
pub fn play(scenario: &Scenario) -> Result<Seen, Failure> {
    Play::new(scenario).run().map(|(seen, _)| seen)
}

/// As [`play()`], with a recorder of the caller's.
///
/// # Errors
///
/// As [`run`].
pub fn play_recorded(scenario: &Scenario, recorder: Recorder) -> Result<Seen, Failure> {
    let mut play = Play::new(scenario);
    play.world.set_recorder(Rc::new(RefCell::new(recorder)));
    play.run().map(|(seen, _)| seen)
}
