//! From a seed to a scenario.
//!
//! Each seed draws which classes of faults there are at all, and how often something happens, so
//! that rare combinations get runs of their own.

use std::time::Duration;

use crate::{
    dice::{Dice, Draws, Stream},
    machine::MachineKind,
    network::NetworkSettings,
    scenario::{LEADER, Scenario, Step, What},
    world::Setup,
};

/// Faults that come and go together, and how often one of them is drawn.
const CLASSES: &[(u64, &[What])] = &[
    (50, &[What::Crash]),
    (30, &[What::CrashAll]),
    (50, &[What::Kill]),
    (50, &[What::Pause]),
    (50, &[What::Cut, What::Mute, What::Deafen]),
    (50, &[What::Isolate]),
    (50, &[What::Split, What::Bridge]),
    (30, &[What::Loss]),
    (50, &[What::Transfer]),
    (40, &[What::DiskFails]),
    (40, &[What::DiskFull]),
    (40, &[What::Stall]),
    (40, &[What::Rot]),
    (30, &[What::Destroy, What::Replace]),
    (50, &[What::Snapshot]),
    (
        50,
        &[
            What::AddLearner,
            What::AddLearner,
            What::Promote,
            What::Demote,
            What::Remove,
            What::Replace,
            What::Update,
        ],
    ),
];

/// What ends faults.
const REPAIRS: &[What] = &[
    What::HealAll,
    What::Heal,
    What::Resume,
    What::Start,
    What::StartAll,
    What::StartAll,
    What::Loss,
    What::DiskSpace,
];

/// The scenario of this seed.
#[must_use]
pub fn draw(seed: u64) -> Scenario {
    let dice = Dice::new(seed);
    let mut shape = Draws::new(dice, Stream::Shape, 0);
    let setup = draw_setup(seed, &mut shape);
    let classes: Vec<&[What]> =
        CLASSES.iter().filter(|(percent, _)| shape.percent(*percent)).map(|(_, c)| *c).collect();
    let clients = shape.within(1..=6);
    let calm = shape.log_uniform(50_000..=5_000_000);
    let mut draws = Draws::new(dice, Stream::Scenario, 0);
    let end = draws.millis(3_000..=30_000);
    let mut scenario = Scenario {
        clients,
        end,
        rest: shape.below(3),
        first: shape.below(16),
        steps: Vec::new(),
        setup,
    };
    let mut at = Duration::ZERO;
    loop {
        at += Duration::from_micros(draws.log_uniform(1_000..=calm));
        if end <= at {
            return scenario;
        }
        let is_repair = classes.is_empty() || draws.percent(55);
        let what = if is_repair {
            *draws.pick(REPAIRS)
        } else {
            let class = *draws.pick(&classes);
            *draws.pick(class)
        };
        // All at once is rare, or nothing else would happen.
        if what == What::CrashAll && draws.percent(80) {
            continue;
        }
        let args = draw_args(what, &scenario, is_repair, &mut draws);
        scenario.steps.push(Step { at, what, args });
    }
}

fn draw_args(what: What, scenario: &Scenario, is_repair: bool, draws: &mut Draws) -> [u64; 2] {
    let any = draws.within(1..=scenario.setup.nodes + 2);
    // The leader is the one that hurts.
    let whom = if draws.percent(35) { LEADER } else { any };
    match what {
        What::CrashAll | What::StartAll | What::HealAll | What::DiskSpace => [0; 2],
        What::Start | What::Resume | What::Heal | What::Promote => [any, 0],
        What::Cut => [any, draws.within(1..=scenario.setup.nodes + 2)],
        What::Split => [draws.bits(), 0],
        What::Bridge => [any, draws.bits()],
        What::Loss if is_repair => [scenario.setup.network.loss, 0],
        What::Loss => [draws.log_uniform(100_000..=900_000), 0],
        What::Transfer => [if draws.percent(50) { any } else { 0 }, 0],
        What::DiskFails => [whom, draws.below(3)],
        What::DiskFull => [whom, draws.log_uniform(1..=20_000)],
        What::Stall => [whom, draws.log_uniform(500..=20_000)],
        What::Rot => [whom, draws.bits()],
        What::AddLearner => [draws.below(2), 0],
        What::Crash
        | What::Kill
        | What::Pause
        | What::Isolate
        | What::Mute
        | What::Deafen
        | What::Destroy
        | What::Snapshot
        | What::Demote
        | What::Remove
        | What::Replace
        | What::Update => [whom, 0],
    }
}

fn draw_setup(seed: u64, shape: &mut Draws) -> Setup {
    let micros = Duration::from_micros;
    let mut setup = Setup::new(seed, shape.within(1..=7));
    let slowest = shape.log_uniform(200..=50_000);
    setup.network = NetworkSettings {
        delay: (micros(slowest / 10), micros(slowest)),
        loss: if shape.percent(50) { shape.log_uniform(1_000..=300_000) } else { 0 },
        duplicates: if shape.percent(50) { shape.log_uniform(1_000..=300_000) } else { 0 },
        stragglers: if shape.percent(50) { shape.log_uniform(1_000..=50_000) } else { 0 },
        has_long_reordering: shape.percent(10),
        is_ordered: shape.percent(50),
        keeps_in_flight: shape.percent(50),
    };
    let slowest = shape.log_uniform(50..=30_000);
    setup.sync = (micros(slowest / 20), micros(slowest));
    setup.stalls = if shape.percent(50) { shape.log_uniform(100..=20_000) } else { 0 };
    let slowest = shape.log_uniform(10..=50_000);
    setup.apply = (micros(1), micros(slowest));
    if shape.percent(50) {
        setup.machine = MachineKind::Durable;
    }
    setup.clock_drift = shape.log_uniform(1..=50_000);
    setup.timer_lateness = micros(shape.log_uniform(1..=20_000));
    setup.request_timeout = shape.millis(100..=8_000);
    setup.has_stores = shape.percent(50);
    setup.has_priorities = shape.percent(30);
    setup.log.segment_bytes = 5_120 * shape.log_uniform(1..=12);
    setup.log.spares = usize::try_from(shape.below(3)).unwrap_or_default();
    draw_config(&mut setup, shape);
    draw_more(&mut setup);
    setup
}

/// What was added later is drawn apart, so that the rest of each world stays what it was. Every
/// third one is of whole servers.
fn draw_more(setup: &mut Setup) {
    let mut shape = Draws::new(Dice::new(setup.seed), Stream::Shape, 1);
    setup.given_back = if shape.percent(50) { shape.log_uniform(10_000..=1_000_000) } else { 0 };
    if !shape.percent(35) {
        return;
    }
    setup.machine = MachineKind::Store;
    setup.store.segment_bytes = shape.log_uniform(300..=60_000);
    setup.store.checkpoint_bytes = shape.log_uniform(500..=1_000_000);
    let cache = if shape.percent(50) { 0 } else { shape.log_uniform(1..=5_000) };
    setup.store.value_cache_bytes = usize::try_from(cache).unwrap_or_default();
    let slowest = shape.log_uniform(500..=500_000);
    setup.store_flush = (Duration::from_micros(slowest / 10), Duration::from_micros(slowest));
}

fn draw_config(setup: &mut Setup, shape: &mut Draws) {
    let small = |shape: &mut Draws, low, high| {
        usize::try_from(shape.log_uniform(low..=high)).unwrap_or_default()
    };
    if shape.percent(70) {
        setup.snapshot_bytes = shape.log_uniform(100..=20_000);
    }
    setup.chunk_damage = if shape.percent(50) { shape.log_uniform(1_000..=100_000) } else { 0 };
    setup.chunk_bytes = shape.log_uniform(64..=65_536);
    let drift = u32::try_from(setup.clock_drift).unwrap_or(u32::MAX);
    let config = &mut setup.config;
    config.purge_entries_min = shape.log_uniform(1..=30);
    // Down to the tip of the log, so that whoever lags a little needs a snapshot.
    if shape.percent(60) {
        config.log_keep_bytes = shape.log_uniform(1..=4_000);
        config.log_bytes_max = config.log_keep_bytes + shape.log_uniform(1..=8_000);
    } else {
        config.log_keep_bytes = 0;
    }
    if shape.percent(50) {
        // The clocks keep to what is promised of them.
        config.clock_drift_ppm_max = drift + 1;
    }
    if shape.percent(50) {
        config.append_bytes_max = small(shape, 1, 20_000);
        config.inflight_messages_max = small(shape, 1, 16);
        config.inflight_bytes_max = small(shape, 1, 50_000);
    }
    if shape.percent(50) {
        config.log_cache_bytes_max = small(shape, 1, 10_000);
    }
    if shape.percent(20) {
        config.entry_bytes_max = small(shape, 1_000, 4_000);
        config.uncommitted_bytes_max = config.entry_bytes_max + small(shape, 1, 4_000);
        config.unapplied_bytes_max = small(shape, 1, 10_000);
        config.pending_reads_max = small(shape, 1, 4);
    }
}
