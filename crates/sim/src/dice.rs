//! Chance, as a function.
//!
//! There is no stream of random numbers that everyone draws from: every decision is a hash of
//! the seed and of a *stable key*, such as "the 17th message from n1 to n3". Take one fault
//! away, and all other decisions of the world stay what they were. A shared stream would
//! scramble everything after it.

use std::{ops::RangeInclusive, time::Duration};

/// What a decision is about. Decisions of different streams are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stream {
    /// Which of two things at the same instant comes first.
    Tiebreak,
    /// Whether a message is lost.
    Loss,
    /// How long a message travels.
    Delay,
    /// Whether a reply is held back for long.
    Reorder,
    /// Whether a message arrives twice.
    Duplicate,
    /// How long a write of the log takes to be durable.
    Sync,
    /// How long the state machine takes.
    Apply,
    /// How long the log takes to read old entries.
    StoredRead,
    /// How long the log takes for housekeeping.
    Housekeeping,
    /// How late a timer fires.
    Timer,
    /// What a clock says at its start, and how fast it runs.
    Clock,
    /// What a process is seeded with.
    Process,
    /// What a crash leaves on a disk.
    Crash,
    /// Whether the state machine makes itself durable.
    Checkpoint,
    /// When a peer notices that a process has ended.
    Unreachable,
    /// The shape of a world: sizes, rates, features.
    Shape,
    /// What a scenario does next.
    Scenario,
    /// What a client does next.
    Client,
    /// How long a snapshot takes, and what becomes of its pieces.
    Snapshot,
}

/// A die for every decision of one world.
#[derive(Clone, Copy, Debug)]
pub struct Dice {
    seed: u64,
}

impl Dice {
    /// The decisions of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// 64 random bits for the decision `(stream, who, count)`. Always the same ones.
    #[must_use]
    pub fn roll(self, stream: Stream, who: u64, count: u64) -> u64 {
        let tag = stream as u64;
        splitmix(splitmix(splitmix(self.seed ^ splitmix(tag)) ^ who) ^ count)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    ///
    /// When `bound` is zero.
    #[must_use]
    pub fn below(self, bound: u64, stream: Stream, who: u64, count: u64) -> u64 {
        assert!(0 < bound, "there is no number below zero");
        // The high half of the product: no bias worth naming, no division.
        let wide = u128::from(self.roll(stream, who, count)) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or_default()
    }

    /// A number of a range.
    #[must_use]
    pub fn within(self, range: &RangeInclusive<u64>, stream: Stream, who: u64, count: u64) -> u64 {
        let span = range.end().saturating_sub(*range.start()).saturating_add(1);
        range.start() + self.below(span, stream, who, count)
    }

    /// Whether something happens that happens so many times in a million.
    #[must_use]
    pub fn chance(self, per_million: u64, stream: Stream, who: u64, count: u64) -> bool {
        0 < per_million && self.below(1_000_000, stream, who, count) < per_million
    }
}

/// The finalizer of splitmix64: every bit of the output depends on every bit of the input.
#[must_use]
pub(crate) const fn splitmix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The decisions of one actor in the order in which it makes them: the key is how many came
/// before.
#[derive(Clone, Debug)]
pub struct Draws {
    dice: Dice,
    stream: Stream,
    who: u64,
    count: u64,
}

impl Draws {
    /// The decisions of `who`.
    #[must_use]
    pub const fn new(dice: Dice, stream: Stream, who: u64) -> Self {
        Self { dice, stream, who, count: 0 }
    }

    fn next_count(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let count = self.next_count();
        self.dice.roll(self.stream, self.who, count)
    }

    /// A number below `bound`.
    ///
    /// # Panics
    ///
    /// When `bound` is zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        let count = self.next_count();
        self.dice.below(bound, self.stream, self.who, count)
    }

    /// A number of a range.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let count = self.next_count();
        self.dice.within(&range, self.stream, self.who, count)
    }

    /// Whether something happens that happens so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        let count = self.next_count();
        self.dice.chance(percent * 10_000, self.stream, self.who, count)
    }

    /// A time in whole milliseconds.
    pub fn millis(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }

    /// A number of a range, each power of two as likely as the next: for sizes and rates.
    pub fn log_uniform(&mut self, range: RangeInclusive<u64>) -> u64 {
        let (low, high) = (range.start().max(&1), range.end().max(&1));
        let bits = self.within(u64::from(low.ilog2())..=u64::from(high.ilog2()));
        let floor = 1_u64 << bits;
        self.within(floor..=floor.saturating_mul(2) - 1).clamp(*low, *high)
    }

    /// One of several things. There must be one.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let at = self.below(u64::try_from(items.len()).unwrap_or(u64::MAX));
        &items[usize::try_from(at).unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_depends_on_its_key_alone() {
        let dice = Dice::new(7);
        let first = dice.roll(Stream::Loss, 1, 2);
        assert_eq!(first, dice.roll(Stream::Loss, 1, 2));
        assert_ne!(first, dice.roll(Stream::Delay, 1, 2));
        assert_ne!(first, dice.roll(Stream::Loss, 2, 1));
        assert_ne!(first, Dice::new(8).roll(Stream::Loss, 1, 2));
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_its_ends() {
        let mut draws = Draws::new(Dice::new(1), Stream::Scenario, 0);
        let mut seen = [0_u32; 7];
        for _ in 0..7_000 {
            let value = draws.within(3..=9);
            seen[usize::try_from(value - 3).unwrap()] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1_200).contains(&count)), "{seen:?}");
        assert!((0..1_000).map(|_| draws.log_uniform(5..=300)).all(|n| (5..=300).contains(&n)));
    }
}
