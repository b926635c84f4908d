//! The map does what std's does, and holds its invariants after each operation.

use std::{
    collections::BTreeMap,
    ops::{Bound, RangeBounds},
};

use super::{Entry, Leaf, Run, SortedMap, split_last};
use crate::{key::Key, range_end::Bounds};

/// What only tests want.
impl<const N: usize> SortedMap<u64, N> {
    fn len(&self) -> usize {
        self.len
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn insert(&mut self, key: &[u8], value: u64) -> Option<u64> {
        match self.entry(key) {
            Entry::Occupied(there) => Some(std::mem::replace(there, value)),
            Entry::Vacant(vacant) => {
                vacant.insert(value);
                None
            }
        }
    }

    fn remove(&mut self, key: &[u8]) -> Option<u64> {
        let mut removed = None;
        let bounds = (Bound::Included(key), Bound::Included(key));
        self.retain_range(bounds, usize::MAX, |_, value| {
            removed = Some(*value);
            false
        });
        removed
    }
}

/// Splits and merges happen all the time.
type Small = SortedMap<u64, 4>;
type Model = BTreeMap<Key, u64>;

/// SplitMix64: a seed tells the whole run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn size(&mut self, limit: u64) -> usize {
        usize::try_from(self.below(limit)).unwrap()
    }

    /// A key out of a few hundred: with a common prefix or none, in place or too long for it.
    fn key(&mut self) -> Vec<u8> {
        let prefix: &[u8] = match self.below(4) {
            0 => b"",
            1 => b"/registry/",
            2 => b"/registry/pods/default/a-pod-of-30",
            _ => b"\0",
        };
        let digits = self.below(80);
        let zeros = self.size(3);
        let digits = if digits == 0 { String::new() } else { digits.to_string() };
        [prefix, digits.as_bytes(), &[0; 2][..zeros]].concat()
    }

    fn bound<'a>(&mut self, key: &'a [u8]) -> Bound<&'a [u8]> {
        match self.below(5) {
            0 | 1 => Bound::Included(key),
            2 | 3 => Bound::Excluded(key),
            _ => Bound::Unbounded,
        }
    }
}

impl<V, const N: usize> SortedMap<V, N> {
    fn assert_invariants(&self) {
        let mut len = 0;
        assert_eq!(self.branches.len(), self.branches.separators().len() + 1);
        for (at, branch) in self.branches.iter().enumerate() {
            assert!(0 < branch.len || self.len == 0, "no branch is empty");
            assert!(branch.leaves.len() <= N);
            if let Some(right) = self.branches.get(at + 1) {
                assert!(N / 2 < branch.leaves.len() + right.leaves.len(), "small branches");
            }
            let mut branch_len = 0;
            assert_eq!(branch.leaves.len(), branch.leaves.separators().len() + 1);
            for (at, leaf) in branch.leaves.iter().enumerate() {
                assert!(!leaf.is_empty() || self.len == 0, "no leaf is empty");
                assert_leaf(leaf);
                if let Some(right) = branch.leaves.get(at + 1) {
                    assert!(N / 2 < leaf.len() + right.len(), "small leaves");
                }
                branch_len += leaf.len();
            }
            assert_separated(&branch.leaves, |leaf| leaf.keys());
            assert_eq!(branch.len, branch_len);
            len += branch_len;
        }
        let first = |at: usize| self.branches[at].leaves[0].keys();
        let last = |at: usize| self.branches[at].leaves.last().unwrap().keys();
        for (at, separator) in self.branches.separators().iter().enumerate() {
            assert!(last(at).last() < Some(separator) && Some(separator) <= first(at + 1).first());
        }
        assert_eq!(self.len, len);
    }
}

fn assert_leaf<V, const N: usize>(leaf: &Leaf<V, N>) {
    assert!(leaf.len() <= N && leaf.len() == leaf.values().len());
    assert!(leaf.keys().is_sorted_by(|a, b| a < b));
    assert!(leaf.capacity() <= leaf.len() + 2 * Leaf::<V, N>::STEP, "idle memory");
}

fn assert_separated<T>(run: &Run<T>, keys: impl Fn(&T) -> &[Key]) {
    for (at, separator) in run.separators().iter().enumerate() {
        let (left, right) = (keys(&run[at]), keys(&run[at + 1]));
        assert!(left.last() < Some(separator) && Some(separator) <= right.first());
    }
}

/// What std's map has between two bounds, which may cross.
fn expected(model: &Model, bounds: Bounds<'_>) -> Vec<(Key, u64)> {
    let within = model.iter().filter(|(key, _)| RangeBounds::<[u8]>::contains(&bounds, &***key));
    within.map(|(key, value)| (key.clone(), *value)).collect()
}

fn assert_range<const N: usize>(map: &mut SortedMap<u64, N>, model: &Model, bounds: Bounds<'_>) {
    let mut expected = expected(model, bounds);
    let owned = |(key, value): (&Key, &u64)| (key.clone(), *value);
    assert_eq!(map.count(bounds), expected.len());
    assert_eq!(map.range(bounds).map(owned).collect::<Vec<_>>(), expected);
    let owned_mut = |(key, value): (&Key, &mut u64)| (key.clone(), *value);
    assert_eq!(map.range_mut(bounds).map(owned_mut).collect::<Vec<_>>(), expected);
    expected.reverse();
    assert_eq!(map.range(bounds).rev().map(owned).collect::<Vec<_>>(), expected);
    assert_eq!(map.range_mut(bounds).rev().map(owned_mut).collect::<Vec<_>>(), expected);
}

/// Both ends walk towards each other, in any order, until they meet.
fn assert_meeting<const N: usize>(
    map: &mut SortedMap<u64, N>,
    model: &Model,
    bounds: Bounds<'_>,
    random: &mut Random,
) {
    let expected = expected(model, bounds);
    let turns: Vec<bool> = (0..expected.len() + 2).map(|_| random.below(2) == 0).collect();
    let expected = expected.iter().map(|(key, value)| (key, *value));
    let range = map.range(bounds).map(|(key, value)| (key, *value));
    assert!(take_turns(range, &turns).eq(&take_turns(expected.clone(), &turns)));
    let range = map.range_mut(bounds).map(|(key, value)| (key, *value));
    assert!(take_turns(range, &turns).eq(&take_turns(expected, &turns)));
}

fn take_turns<T>(mut items: impl DoubleEndedIterator<Item = T>, turns: &[bool]) -> Vec<Option<T>> {
    let take = |&is_front| if is_front { items.next() } else { items.next_back() };
    turns.iter().map(take).collect()
}

/// Does the same with both maps.
fn step<const N: usize>(map: &mut SortedMap<u64, N>, model: &mut Model, random: &mut Random) {
    let (key, other, value) = (random.key(), random.key(), random.next());
    match random.below(100) {
        0..30 => assert_eq!(map.remove(&key), model.remove(&*key)),
        30..45 => {
            let replaced = map.insert(&key, value);
            assert_eq!(replaced, model.insert(Key::from(&*key), value));
        }
        45..80 => match map.entry(&key) {
            Entry::Occupied(found) => {
                let expected = model.get_mut(&*key).unwrap();
                assert_eq!(found, expected);
                (*found, *expected) = (value, value);
            }
            Entry::Vacant(vacant) => {
                assert_eq!(*vacant.insert(value), value);
                assert_eq!(model.insert(Key::from(&*key), value), None);
            }
        },
        80..90 => {
            assert_eq!(map.get(&key), model.get(&*key));
            assert_eq!(map.get_mut(&key), model.get_mut(&*key));
        }
        _ => {
            let bounds = (random.bound(&key), random.bound(&other));
            // Now and then nothing stays.
            let (keys_max, kept) = (random.size(40), random.below(4));
            retain(map, model, bounds, keys_max, |value| value % 4 < kept);
        }
    }
}

fn retain<const N: usize>(
    map: &mut SortedMap<u64, N>,
    model: &mut Model,
    bounds: Bounds<'_>,
    keys_max: usize,
    is_kept: impl Fn(u64) -> bool,
) {
    let mut seen = Vec::new();
    let last = map.retain_range(bounds, keys_max, |key, value| {
        seen.push((key.clone(), *value));
        *value = value.wrapping_mul(5).wrapping_add(1);
        is_kept(*value)
    });
    let mut expected = expected(model, bounds);
    expected.truncate(keys_max);
    assert_eq!(seen, expected);
    assert_eq!(last.as_ref(), expected.last().map(|(key, _)| key));
    for (key, value) in expected {
        let value = value.wrapping_mul(5).wrapping_add(1);
        match is_kept(value) {
            true => model.insert(key, value),
            false => model.remove(&key),
        };
    }
}

fn run<const N: usize>(seed: u64, steps: usize) {
    let mut random = Random(seed);
    let (mut map, mut model) = (SortedMap::<u64, N>::new(), Model::new());
    for _ in 0..steps {
        step(&mut map, &mut model, &mut random);
        map.assert_invariants();
        assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
        if random.below(4) == 0 {
            let (first, last) = (random.key(), random.key());
            let bounds = (random.bound(&first), random.bound(&last));
            assert_range(&mut map, &model, bounds);
            assert_meeting(&mut map, &model, bounds, &mut random);
        }
    }
    assert!(map.iter().eq(&model), "seed {seed}");
}

#[test]
fn many_operations_leave_what_they_would_in_the_map_of_std() {
    for seed in 0..40 {
        run::<4>(seed, 1500);
        run::<5>(seed, 500);
        run::<8>(seed, 500);
    }
    run::<96>(40, 2000);
}

#[test]
fn any_two_bounds_give_what_lies_between_them_even_if_they_cross() {
    let keys: Vec<Vec<u8>> = (0..60u8).map(|key| vec![b'k', key]).collect();
    let items = keys.iter().skip(1).step_by(2).map(|key| (Key::from(&**key), 1));
    let mut map = Small::from_sorted(items.clone());
    let model: Model = items.collect();
    let mut random = Random(1);
    assert!(2 < map.branches.len(), "a range can lie in one leaf, one branch, several branches");
    let bounds = |key| [Bound::Included(key), Bound::Excluded(key), Bound::Unbounded];
    for first in &keys {
        for last in &keys {
            for first in bounds(&**first) {
                for last in bounds(&**last) {
                    assert_range(&mut map, &model, (first, last));
                    assert_meeting(&mut map, &model, (first, last), &mut random);
                }
            }
        }
    }
    let nothing = (Bound::Unbounded, Bound::Excluded(&[][..]));
    assert_range(&mut map, &model, nothing);
    assert_range(&mut Small::new(), &Model::new(), (Bound::Unbounded, Bound::Unbounded));
}

#[test]
fn changes_through_a_range_stay() {
    let items = (0..100u8).map(|key| (Key::from(&[key][..]), 0));
    let mut map = Small::from_sorted(items);
    let bounds = (Bound::Included(&[10][..]), Bound::Excluded(&[90][..]));
    for (_, value) in map.range_mut(bounds) {
        *value += 1;
    }
    for (_, value) in map.range_mut(bounds).rev() {
        *value += 1;
    }
    *map.get_mut(&[95]).unwrap() = 3;
    let sum = |map: &Small| map.iter().map(|(_, value)| value).sum::<u64>();
    assert_eq!((sum(&map), map.get(&[9]), map.get(&[10])), (163, Some(&0), Some(&2)));
}

#[test]
fn a_map_is_built_from_sorted_items_in_full_leaves() {
    for len in 0..200 {
        let key = |at: u64| Key::from(&at.to_be_bytes()[..]);
        let mut map = SortedMap::<u64, 8>::from_sorted((0..len).map(|at| (key(at), at)));
        map.assert_invariants();
        assert!(map.iter().map(|(_, value)| *value).eq(0..len));
        let leaves: usize = map.branches.iter().map(|branch| branch.leaves.len()).sum();
        assert_eq!(leaves, map.len().div_ceil(split_last(8)).max(1));
        // There is room for more.
        map.insert(b"", 0);
        map.assert_invariants();
    }
}

#[test]
#[should_panic(expected = "keys must ascend strictly")]
fn sorted_items_must_not_repeat_within_a_leaf() {
    Small::from_sorted([(Key::from(&b"a"[..]), 0), (Key::from(&b"a"[..]), 1)]);
}

#[test]
#[should_panic(expected = "keys must ascend strictly")]
fn sorted_items_must_not_repeat_from_one_leaf_to_the_next() {
    let keys = [b"a", b"b", b"c", b"c"];
    Small::from_sorted(keys.map(|key| (Key::from(&key[..]), 0)));
}

#[test]
fn keys_that_come_in_order_fill_their_leaves() {
    let mut map = Small::new();
    for at in 0..1000u64 {
        map.insert(&at.to_be_bytes(), at);
        map.assert_invariants();
    }
    let leaves: usize = map.branches.iter().map(|branch| branch.leaves.len()).sum();
    assert_eq!((leaves, map.branches.len()), (333, 111));
}

#[test]
fn little_memory_is_idle_when_keys_come_in_any_order() {
    let mut random = Random(7);
    let mut map: SortedMap<u64> = SortedMap::new();
    for at in 0..30_000 {
        map.insert(&random.next().to_be_bytes(), at);
    }
    let leaves = map.branches.iter().flat_map(|branch| &branch.leaves[..]);
    let places: usize = leaves.map(Leaf::capacity).sum();
    assert!(places < map.len() + map.len() / 12, "{places} places for {} keys", map.len());
}

#[test]
fn compaction_sees_each_key_once_on_its_way_from_cursor_to_cursor() {
    let key = |at: u64| Key::from(&at.to_be_bytes()[..]);
    for keys_max in 1..40 {
        let mut map = Small::from_sorted((0..300).map(|at| (key(at), at)));
        let (mut cursor, mut seen) = (None::<Key>, Vec::new());
        loop {
            let start = cursor.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            let last = map.retain_range((start, Bound::Unbounded), keys_max, |_, value| {
                seen.push(*value);
                *value % 7 == 0
            });
            map.assert_invariants();
            match last {
                Some(last) => cursor = Some(last),
                None => break,
            }
        }
        assert!(seen.iter().copied().eq(0..300));
        assert!(map.iter().map(|(_, value)| *value).eq((0..300).step_by(7)));
    }
}
