//! Children of a node and what separates them.

use std::ops::{Deref, DerefMut, Range};

use crate::key::{Key, Probe};

/// One child or more, in order. Reads as a slice of them.
#[derive(Debug)]
pub(super) struct Run<T> {
    children: Vec<T>,
    /// The keys of child `i` are before `separators[i]`, those of child `i + 1` are not.
    separators: Vec<Key>,
}

/// What a run can merge when it has become small.
pub(super) trait Node {
    /// Whether this node and the one to the right of it should be one.
    fn is_small_with(&self, right: &Self) -> bool;

    /// Takes all that the node to the right holds.
    fn absorb(&mut self, separator: Key, right: Self);
}

impl<T> Run<T> {
    pub(super) fn new(child: T) -> Self {
        Self { children: vec![child], separators: Vec::new() }
    }

    /// The child that holds a key, if any does.
    pub(super) fn find(&self, probe: &Probe<'_>) -> usize {
        self.separators.partition_point(|separator| probe.compare(separator).is_ge())
    }

    #[cfg(test)]
    pub(super) fn separators(&self) -> &[Key] {
        &self.separators
    }

    pub(super) fn last_mut(&mut self) -> &mut T {
        self.children.last_mut().expect("a run has one child at least")
    }

    pub(super) fn push(&mut self, separator: Key, child: T) {
        self.separators.push(separator);
        self.children.push(child);
    }

    pub(super) fn insert_after(&mut self, at: usize, separator: Key, child: T) {
        self.separators.insert(at, separator);
        self.children.insert(at + 1, child);
    }

    /// Takes the children from the one at `at` on, which is not the first.
    pub(super) fn split_off(&mut self, at: usize) -> (Key, Self) {
        let children = self.children.split_off(at);
        let separators = self.separators.split_off(at);
        let separator = self.separators.pop().expect("there is one on each side of `at`");
        (separator, Self { children, separators })
    }

    pub(super) fn append(&mut self, separator: Key, mut right: Self) {
        self.separators.push(separator);
        self.separators.append(&mut right.separators);
        self.children.append(&mut right.children);
    }
}

impl<T: Node> Run<T> {
    /// Merges those of the changed children that have become small with their neighbours.
    pub(super) fn merge_small(&mut self, changed: Range<usize>) {
        let first = changed.start.saturating_sub(1);
        for left in (first..changed.end).rev() {
            let Some([child, right]) = self.children.get(left..left + 2) else { continue };
            if child.is_small_with(right) {
                let right = self.children.remove(left + 1);
                let separator = self.separators.remove(left);
                self.children[left].absorb(separator, right);
            }
        }
    }
}

impl<T> Deref for Run<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.children
    }
}

impl<T> DerefMut for Run<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.children
    }
}
