//! Walking the map from either end.

use std::{ops::Bound, slice};

use crate::{key::Key, range_end::Bounds};

use super::{Branch, SortedMap, leaf::Leaf};

/// The items of what the front holds, then those of each thing in the middle, then those of the
/// back. The front takes what the middle yields, and at last from the back; so does the back
/// the other way round.
#[derive(Debug)]
struct Chain<I, M> {
    front: I,
    middle: M,
    back: I,
}

impl<I, M> Iterator for Chain<I, M>
where
    I: Iterator,
    M: Iterator<Item: IntoIterator<IntoIter = I, Item = I::Item>>,
{
    type Item = I::Item;

    #[inline]
    fn next(&mut self) -> Option<I::Item> {
        loop {
            if let Some(item) = self.front.next() {
                return Some(item);
            }
            match self.middle.next() {
                Some(next) => self.front = next.into_iter(),
                None => return self.back.next(),
            }
        }
    }
}

impl<I, M> DoubleEndedIterator for Chain<I, M>
where
    I: DoubleEndedIterator,
    M: DoubleEndedIterator<Item: IntoIterator<IntoIter = I, Item = I::Item>>,
{
    #[inline]
    fn next_back(&mut self) -> Option<I::Item> {
        loop {
            if let Some(item) = self.back.next_back() {
                return Some(item);
            }
            match self.middle.next_back() {
                Some(next) => self.back = next.into_iter(),
                None => return self.front.next_back(),
            }
        }
    }
}

impl<V, const N: usize> SortedMap<V, N> {
    /// All items, in order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&Key, &V)> {
        self.range((Bound::Unbounded, Bound::Unbounded))
    }

    /// The items between two bounds, in order; none if the bounds cross. Who has to let go of
    /// the map in between goes on behind the last key seen.
    pub(crate) fn range<'a>(
        &'a self,
        bounds: Bounds<'_>,
    ) -> impl DoubleEndedIterator<Item = (&'a Key, &'a V)> + use<'a, V, N> {
        let (start, end) = self.spots(bounds).unwrap_or_default();
        let mut leaves = match &self.branches[start.branch..=end.branch] {
            [first, middle @ .., last] => Chain {
                front: first.leaves[start.leaf..].iter(),
                middle: middle.iter(),
                back: last.leaves[..=end.leaf].iter(),
            },
            only => Chain {
                front: only[0].leaves[start.leaf..=end.leaf].iter(),
                middle: [].iter(),
                back: [].iter(),
            },
        };
        let first = leaves.next().expect("the leaf of a spot exists");
        let (front, back) = match leaves.next_back() {
            Some(last) => (first.part(start.at..first.len()), last.part(0..end.at)),
            None => (first.part(start.at..end.at), first.part(0..0)),
        };
        Chain { front, middle: leaves, back }
    }

    /// Like [`range`](Self::range), with values that can be changed.
    pub(crate) fn range_mut<'a>(
        &'a mut self,
        bounds: Bounds<'_>,
    ) -> impl DoubleEndedIterator<Item = (&'a Key, &'a mut V)> + use<'a, V, N> {
        let (start, end) = self.spots(bounds).unwrap_or_default();
        let mut leaves = match &mut self.branches[start.branch..=end.branch] {
            [first, middle @ .., last] => Chain {
                front: first.leaves[start.leaf..].iter_mut(),
                middle: middle.iter_mut(),
                back: last.leaves[..=end.leaf].iter_mut(),
            },
            only => Chain {
                front: only[0].leaves[start.leaf..=end.leaf].iter_mut(),
                middle: [].iter_mut(),
                back: [].iter_mut(),
            },
        };
        let first = leaves.next().expect("the leaf of a spot exists");
        let (front, back) = match leaves.next_back() {
            Some(last) => {
                let len = first.len();
                (first.part_mut(start.at..len), last.part_mut(0..end.at))
            }
            None => (first.part_mut(start.at..end.at), [].iter().zip(&mut [])),
        };
        Chain { front, middle: leaves, back }
    }
}

impl<'a, V, const N: usize> IntoIterator for &'a Branch<V, N> {
    type Item = &'a Leaf<V, N>;
    type IntoIter = slice::Iter<'a, Leaf<V, N>>;

    fn into_iter(self) -> Self::IntoIter {
        self.leaves.iter()
    }
}

impl<'a, V, const N: usize> IntoIterator for &'a mut Branch<V, N> {
    type Item = &'a mut Leaf<V, N>;
    type IntoIter = slice::IterMut<'a, Leaf<V, N>>;

    fn into_iter(self) -> Self::IntoIter {
        self.leaves.iter_mut()
    }
}
