//! etcd's way to name a range of keys: a key and a range end.

use std::ops::Bound;

/// The bounds of keys in an ordered map.
pub(crate) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// The keys that a `key` and a `range_end` stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span<'a> {
    /// No range end: the key itself.
    One(&'a [u8]),
    /// From the first to just before the second, which is greater.
    Until(&'a [u8], &'a [u8]),
    /// The range end is one zero byte: every key from this one on.
    From(&'a [u8]),
    /// The range end is at or before the key.
    Empty,
}

impl<'a> Span<'a> {
    pub(crate) fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            [] => Self::One(key),
            [0] => Self::From(key),
            end if key < end => Self::Until(key, end),
            _ => Self::Empty,
        }
    }

    /// The bounds for an ordered map, or none for the empty span: `BTreeMap::range` panics on
    /// bounds that cross.
    pub(crate) fn bounds(self) -> Option<Bounds<'a>> {
        match self {
            Self::One(key) => Some((Bound::Included(key), Bound::Included(key))),
            Self::Until(key, end) => Some((Bound::Included(key), Bound::Excluded(end))),
            Self::From(key) => Some((Bound::Included(key), Bound::Unbounded)),
            Self::Empty => None,
        }
    }

    /// Whether `key` is one of them.
    pub(crate) fn contains(self, key: &[u8]) -> bool {
        match self {
            Self::One(only) => key == only,
            Self::Until(first, end) => first <= key && key < end,
            Self::From(first) => first <= key,
            Self::Empty => false,
        }
    }
}
