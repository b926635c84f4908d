//! An ordered map of keys that takes little more memory than its items.
//!
//! ```text
//!   map     │ branch                │ branch       │ …      separators between them
//!   branch  │ leaf │ leaf │ leaf │ …                       separators between them
//!   leaf    │ key key key key … │  │ value value value … │
//! ```
//!
//! The map has three levels, never more: the uppermost may be of any length. It changes only
//! when a branch splits, once in thousands of insertions, so moving what comes behind costs
//! nothing even with a hundred million keys. Leaves and branches hold up to `N` things, split
//! when full and merge with a neighbour when both together would be at most half full.
//!
//! Std's `BTreeMap` reserves eleven places in each node and fills eight of them on average. A
//! leaf grows in small steps instead (see [`Leaf`]), so that however full it is, hardly any
//! memory is idle. The keys of a leaf lie side by side: a search touches few cache lines, and
//! walking a range is walking slices.
//!
//! Invariants, which the tests check after each operation:
//!
//! - a child's keys are at or after the separator before it, and before the one behind it;
//! - no leaf is empty, and no branch, except in a map without any key;
//! - two leaves side by side in a branch hold more than `N / 2` keys, and two branches side by
//!   side more than `N / 2` leaves.

mod leaf;
mod range;
mod run;
#[cfg(test)]
mod tests;

use std::ops::Bound;

use crate::{
    key::{Key, Probe},
    range_end::Bounds,
};

use self::{
    leaf::Leaf,
    run::{Node, Run},
};

/// How many keys a leaf holds at most, and how many leaves a branch. Measured with a million
/// keys: half of it makes insertion little faster and lookups little slower, twice of it
/// insertion much slower.
const FANOUT: usize = 96;

/// An ordered map from [`Key`] to `V`.
#[derive(Debug)]
pub(crate) struct SortedMap<V, const N: usize = FANOUT> {
    branches: Run<Branch<V, N>>,
    len: usize,
}

/// Some leaves in a row.
#[derive(Debug)]
struct Branch<V, const N: usize> {
    leaves: Run<Leaf<V, N>>,
    /// How many keys are in the leaves.
    len: usize,
}

/// A place in the map: before the key at `at`, which may be the end of the leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Spot {
    branch: usize,
    leaf: usize,
    at: usize,
}

/// What [`SortedMap::entry`] found.
#[derive(Debug)]
pub(crate) enum Entry<'a, V, const N: usize = FANOUT> {
    /// The value of the key.
    Occupied(&'a mut V),
    Vacant(Vacant<'a, V, N>),
}

/// The place where a key belongs that is not in the map.
#[derive(Debug)]
pub(crate) struct Vacant<'a, V, const N: usize = FANOUT> {
    map: &'a mut SortedMap<V, N>,
    key: Key,
    spot: Spot,
}

impl<'a, V, const N: usize> Vacant<'a, V, N> {
    pub(crate) fn insert(self, value: V) -> &'a mut V {
        self.map.insert_at(self.spot, self.key, value)
    }
}

impl<V, const N: usize> SortedMap<V, N> {
    const _SPLITS: () = assert!(4 <= N, "both halves of what is split must have a child");

    pub(crate) fn new() -> Self {
        const { Self::_SPLITS };
        Self { branches: Run::new(Branch::new(Leaf::new())), len: 0 }
    }

    /// Builds a map from keys that ascend strictly, without a search for each. Leaves are left
    /// with some room, lest each of the next insertions should split one.
    pub(crate) fn from_sorted(items: impl IntoIterator<Item = (Key, V)>) -> Self {
        let mut map = Self::new();
        let mut items = items.into_iter();
        loop {
            let leaf = Leaf::from_sorted(items.by_ref().take(split_last(N)));
            if leaf.is_empty() {
                return map;
            }
            map.push_leaf(leaf);
        }
    }

    /// Adds a leaf behind all others.
    fn push_leaf(&mut self, leaf: Leaf<V, N>) {
        self.len += leaf.len();
        let branch = self.branches.last_mut();
        let last = branch.leaves.last_mut();
        if last.is_empty() {
            *branch = Branch::new(leaf);
            return;
        }
        let separator = separator(last, &leaf);
        if branch.leaves.len() < split_last(N) {
            branch.len += leaf.len();
            branch.leaves.push(separator, leaf);
        } else {
            self.branches.push(separator, Branch::new(leaf));
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<&V> {
        let probe = Probe::new(key);
        let branch = &self.branches[self.branches.find(&probe)];
        let leaf = &branch.leaves[branch.leaves.find(&probe)];
        leaf.search(&probe).ok().map(|at| &leaf.values()[at])
    }

    pub(crate) fn get_mut(&mut self, key: &[u8]) -> Option<&mut V> {
        let spot = self.search(&Probe::new(key)).ok()?;
        Some(self.value_mut(spot))
    }

    /// Finds the value of a key, or the place for it, in one search.
    pub(crate) fn entry(&mut self, key: &[u8]) -> Entry<'_, V, N> {
        match self.search(&Probe::new(key)) {
            Ok(spot) => Entry::Occupied(self.value_mut(spot)),
            Err(spot) => Entry::Vacant(Vacant { map: self, key: key.into(), spot }),
        }
    }

    /// Shows up to `keys_max` keys of a range, from its beginning, to `keep`, which may change
    /// the values, and removes those that it does not keep. Returns the last key that was
    /// shown, if any: what comes after it is for the next call.
    pub(crate) fn retain_range(
        &mut self,
        bounds: Bounds<'_>,
        keys_max: usize,
        mut keep: impl FnMut(&Key, &mut V) -> bool,
    ) -> Option<Key> {
        let (start, end) = self.spots(bounds)?;
        let (mut spot, mut keys_left, mut last) = (start, keys_max, None);
        // What gets small is merged when all is done: until then the places stay valid.
        while spot < end && 0 < keys_left {
            let branch = &mut self.branches[spot.branch];
            let leaf = &mut branch.leaves[spot.leaf];
            let is_end = (spot.branch, spot.leaf) == (end.branch, end.leaf);
            let leaf_end = if is_end { end.at } else { leaf.len() };
            let seen = spot.at..leaf_end.min(spot.at.saturating_add(keys_left));
            keys_left -= seen.len();
            last = leaf.keys()[seen.clone()].last().cloned().or(last);
            let removed = leaf.retain(seen, &mut keep);
            branch.len -= removed;
            self.len -= removed;
            spot = match spot {
                _ if spot.leaf + 1 < branch.leaves.len() => {
                    Spot { leaf: spot.leaf + 1, at: 0, ..spot }
                }
                _ => Spot { branch: spot.branch + 1, leaf: 0, at: 0 },
            };
        }
        let touched = start.branch..self.branches.len().min(spot.branch + 1);
        for branch in touched.clone() {
            let leaves = &mut self.branches[branch].leaves;
            leaves.merge_small(0..leaves.len());
        }
        self.branches.merge_small(touched);
        last
    }

    /// How many keys lie between two bounds. Costs little more than the search for the bounds.
    pub(crate) fn count(&self, bounds: Bounds<'_>) -> usize {
        let Some((start, end)) = self.spots(bounds) else { return 0 };
        let in_branch_before = |spot: Spot| {
            let leaves = &self.branches[spot.branch].leaves[..spot.leaf];
            leaves.iter().map(Leaf::len).sum::<usize>() + spot.at
        };
        let between = self.branches[start.branch..end.branch].iter().map(|branch| branch.len);
        between.sum::<usize>() + in_branch_before(end) - in_branch_before(start)
    }

    /// Where two bounds lie, or none if there is nothing between them, as when they cross.
    fn spots(&self, (start, end): Bounds<'_>) -> Option<(Spot, Spot)> {
        let start = match start {
            Bound::Included(key) => self.search(&Probe::new(key)).unwrap_or_else(|spot| spot),
            Bound::Excluded(key) => self.after(key),
            Bound::Unbounded => Spot::default(),
        };
        let end = match end {
            Bound::Included(key) => self.after(key),
            Bound::Excluded(key) => self.search(&Probe::new(key)).unwrap_or_else(|spot| spot),
            Bound::Unbounded => {
                let branch = self.branches.len() - 1;
                let leaf = self.branches[branch].leaves.len() - 1;
                Spot { branch, leaf, at: self.branches[branch].leaves[leaf].len() }
            }
        };
        (start < end).then_some((start, end))
    }

    /// The place behind a key, whether it is there or not.
    fn after(&self, key: &[u8]) -> Spot {
        match self.search(&Probe::new(key)) {
            Ok(spot) => Spot { at: spot.at + 1, ..spot },
            Err(spot) => spot,
        }
    }

    /// Where a key is, or else where it belongs.
    fn search(&self, probe: &Probe<'_>) -> Result<Spot, Spot> {
        let branch = self.branches.find(probe);
        let leaves = &self.branches[branch].leaves;
        let leaf = leaves.find(probe);
        match leaves[leaf].search(probe) {
            Ok(at) => Ok(Spot { branch, leaf, at }),
            Err(at) => Err(Spot { branch, leaf, at }),
        }
    }

    fn value_mut(&mut self, spot: Spot) -> &mut V {
        &mut self.branches[spot.branch].leaves[spot.leaf].values_mut()[spot.at]
    }

    fn insert_at(&mut self, spot: Spot, key: Key, value: V) -> &mut V {
        let spot = self.make_room(spot, &key);
        self.len += 1;
        let branch = &mut self.branches[spot.branch];
        branch.len += 1;
        branch.leaves[spot.leaf].insert(spot.at, key, value)
    }

    /// Splits the leaf of a spot if it is full. Returns where `key` belongs after that.
    fn make_room(&mut self, mut spot: Spot, key: &Key) -> Spot {
        let branch = &self.branches[spot.branch];
        if branch.leaves[spot.leaf].len() < N {
            return spot;
        }
        // Who adds key after key at the end never comes back to fill the lower halves.
        let is_end = spot.branch + 1 == self.branches.len()
            && spot.leaf + 1 == branch.leaves.len()
            && spot.at == N;
        let half = if is_end { split_last(N) } else { N / 2 };

        if branch.leaves.len() == N {
            let (separator, right) = self.branches[spot.branch].split_off(half);
            self.branches.insert_after(spot.branch, separator, right);
            if half <= spot.leaf {
                spot = Spot { branch: spot.branch + 1, leaf: spot.leaf - half, ..spot };
            }
        }
        let leaves = &mut self.branches[spot.branch].leaves;
        let left = &mut leaves[spot.leaf];
        let right = left.split_off(half);
        let separator = separator(left, &right);
        // At the seam only the separator knows on which side of it the key is.
        let is_right = separator <= *key;
        leaves.insert_after(spot.leaf, separator, right);
        match is_right {
            true => Spot { leaf: spot.leaf + 1, at: spot.at - half, ..spot },
            false => spot,
        }
    }
}

/// Where a full node is split, or how far it is filled, when only its end will grow.
const fn split_last(fanout: usize) -> usize {
    fanout * 7 / 8
}

/// The shortest key that separates two leaves: all of the first are before it.
fn separator<V, const N: usize>(left: &Leaf<V, N>, right: &Leaf<V, N>) -> Key {
    let (Some(left), Some(right)) = (left.keys().last(), right.keys().first()) else {
        unreachable!("neither of two leaves side by side is empty");
    };
    assert!(left < right, "keys must ascend strictly: {left:?}, {right:?}");
    let common = left.iter().zip(&**right).take_while(|(left, right)| left == right).count();
    right[..=common].into()
}

impl<V, const N: usize> Branch<V, N> {
    fn new(leaf: Leaf<V, N>) -> Self {
        Self { len: leaf.len(), leaves: Run::new(leaf) }
    }

    fn split_off(&mut self, at: usize) -> (Key, Self) {
        let (separator, leaves) = self.leaves.split_off(at);
        let len = leaves.iter().map(Leaf::len).sum();
        self.len -= len;
        (separator, Self { leaves, len })
    }
}

impl<V, const N: usize> Node for Branch<V, N> {
    fn is_small_with(&self, right: &Self) -> bool {
        self.len == 0 || right.len == 0 || self.leaves.len() + right.leaves.len() <= N / 2
    }

    fn absorb(&mut self, separator: Key, right: Self) {
        if self.len == 0 {
            *self = right;
        } else if right.len != 0 {
            let seam = self.leaves.len();
            self.len += right.len;
            self.leaves.append(separator, right.leaves);
            self.leaves.merge_small(seam..seam + 1);
        }
    }
}
