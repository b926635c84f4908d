//! A leaf: some keys in order, side by side, and beside them their values.

use std::{iter, ops::Range, slice};

use crate::key::{Key, Probe};

use super::run::Node;

/// Up to `N` keys and their values.
///
/// Memory for more of them is taken in steps of [`STEP`](Self::STEP), and given back when there
/// is room for more than two steps: so about half a step is idle where keys come, and one and
/// a half where they go.
#[derive(Debug)]
pub(super) struct Leaf<V, const N: usize> {
    keys: Vec<Key>,
    /// As many as there are keys.
    values: Vec<V>,
}

impl<V, const N: usize> Leaf<V, N> {
    /// How much a leaf grows by. Larger steps waste memory, smaller ones time.
    pub(super) const STEP: usize = N.div_ceil(16);

    pub(super) fn new() -> Self {
        Self { keys: Vec::new(), values: Vec::new() }
    }

    /// A leaf of at most `N` items, which ascend strictly.
    pub(super) fn from_sorted(items: impl Iterator<Item = (Key, V)>) -> Self {
        let mut leaf = Self { keys: Vec::with_capacity(N), values: Vec::with_capacity(N) };
        leaf.extend(items);
        assert!(leaf.keys.is_sorted_by(|a, b| a < b), "keys must ascend strictly");
        leaf.shrink();
        leaf
    }

    fn extend(&mut self, items: impl Iterator<Item = (Key, V)>) {
        for (key, value) in items {
            self.keys.push(key);
            self.values.push(value);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub(super) fn keys(&self) -> &[Key] {
        &self.keys
    }

    pub(super) fn values(&self) -> &[V] {
        &self.values
    }

    pub(super) fn values_mut(&mut self) -> &mut [V] {
        &mut self.values
    }

    /// Some of the items.
    pub(super) fn part(&self, part: Range<usize>) -> Items<'_, V> {
        self.keys[part.clone()].iter().zip(&self.values[part])
    }

    /// Some of the items.
    pub(super) fn part_mut(&mut self, part: Range<usize>) -> ItemsMut<'_, V> {
        self.keys[part.clone()].iter().zip(&mut self.values[part])
    }

    /// How many items would fit into the memory that the leaf has.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.keys.capacity().max(self.values.capacity())
    }

    /// Where a key is, or else where it belongs.
    pub(super) fn search(&self, probe: &Probe<'_>) -> Result<usize, usize> {
        self.keys.binary_search_by(|key| probe.compare(key).reverse())
    }

    pub(super) fn insert(&mut self, at: usize, key: Key, value: V) -> &mut V {
        if self.keys.len() == self.keys.capacity() {
            self.keys.reserve_exact(Self::STEP);
            self.values.reserve_exact(Self::STEP);
        }
        self.keys.insert(at, key);
        self.values.insert(at, value);
        &mut self.values[at]
    }

    /// Removes those in `part` that `keep` does not want. Returns how many.
    pub(super) fn retain(
        &mut self,
        part: Range<usize>,
        keep: &mut impl FnMut(&Key, &mut V) -> bool,
    ) -> usize {
        let mut kept = part.start;
        for at in part.clone() {
            if keep(&self.keys[at], &mut self.values[at]) {
                if kept < at {
                    self.keys.swap(kept, at);
                    self.values.swap(kept, at);
                }
                kept += 1;
            }
        }
        self.keys.drain(kept..part.end);
        self.values.drain(kept..part.end);
        self.shrink();
        part.end - kept
    }

    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let right = Self { keys: self.keys.split_off(at), values: self.values.split_off(at) };
        self.shrink();
        right
    }

    /// Gives memory back if much of it is idle. One step is left, lest the next insertion
    /// should ask for it again.
    fn shrink(&mut self) {
        if 2 * Self::STEP < self.keys.capacity() - self.keys.len() {
            self.keys.shrink_to(self.keys.len() + Self::STEP);
            self.values.shrink_to(self.values.len() + Self::STEP);
        }
    }
}

impl<V, const N: usize> Node for Leaf<V, N> {
    fn is_small_with(&self, right: &Self) -> bool {
        self.is_empty() || right.is_empty() || self.len() + right.len() <= N / 2
    }

    fn absorb(&mut self, _: Key, mut right: Self) {
        if self.is_empty() {
            *self = right;
            return;
        }
        self.keys.reserve_exact(right.keys.len());
        self.values.reserve_exact(right.values.len());
        self.keys.append(&mut right.keys);
        self.values.append(&mut right.values);
    }
}

pub(super) type Items<'a, V> = iter::Zip<slice::Iter<'a, Key>, slice::Iter<'a, V>>;
pub(super) type ItemsMut<'a, V> = iter::Zip<slice::Iter<'a, Key>, slice::IterMut<'a, V>>;

impl<'a, V, const N: usize> IntoIterator for &'a Leaf<V, N> {
    type Item = (&'a Key, &'a V);
    type IntoIter = Items<'a, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.keys.iter().zip(&self.values)
    }
}

impl<'a, V, const N: usize> IntoIterator for &'a mut Leaf<V, N> {
    type Item = (&'a Key, &'a mut V);
    type IntoIter = ItemsMut<'a, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.keys.iter().zip(&mut self.values)
    }
}
