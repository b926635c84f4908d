//! The only source of chance: a small generator from a seed (election timeouts, §5.2).
//!
//! SplitMix64 by Steele, Lea and Flood: one addition and a few shifts, passes the usual tests,
//! and gives the same numbers on every machine. Nothing here has to be unpredictable.

/// A stream of numbers that its seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `1..=max`, or 1 when `max` is 0. The bias of the remainder is below one in
    /// a billion for the durations that this is used for.
    pub(crate) fn up_to(&mut self, max: u64) -> u64 {
        1 + self.next_u64() % max.max(1)
    }
}
