//! How large the log is, about: what its compaction goes by (§7).
//!
//! The bytes of the entries are summed up in buckets, so that a log of any length takes little
//! memory, and the place from which on it holds so many bytes is found quickly. It is about the
//! right size, no more: nothing but the moment of a purge depends on it.
//!
//! ```text
//!   start ─── bucket ───┬─── bucket ───┬─── bucket ─── last
//!             bytes     │    bytes     │    bytes
//! ```

use std::collections::VecDeque;

use crate::Index;

/// The sizes of the parts of a log.
#[derive(Clone, Debug)]
pub(crate) struct Sizes {
    /// The first index of each bucket and the bytes from there to the next, ascending.
    buckets: VecDeque<(Index, u64)>,
    total: u64,
    /// A bucket is full when it holds so many.
    bucket_bytes: u64,
}

/// Buckets of a log of the largest size that is allowed: a thousandth is exact enough.
const BUCKETS: u64 = 1024;

/// No bucket is larger, however large the log may become.
const BUCKET_BYTES_MAX: u64 = 1 << 20;

impl Sizes {
    /// A log after `start` up to `last`, with what the disk says of it, which need not be so.
    pub(crate) fn new(
        log_bytes_max: u64,
        recovered: &[(Index, u64)],
        (start, last): (Index, Index),
    ) -> Self {
        let bucket_bytes = (log_bytes_max / BUCKETS).clamp(1, BUCKET_BYTES_MAX);
        let mut sizes = Self { buckets: VecDeque::new(), total: 0, bucket_bytes };
        for &(first, bytes) in recovered {
            let first = first.max(start.next());
            match sizes.buckets.back_mut() {
                Some((before, known)) if first <= *before => *known = known.saturating_add(bytes),
                _ if last < first => continue,
                _ => sizes.buckets.push_back((first, bytes)),
            }
            sizes.total = sizes.total.saturating_add(bytes);
        }
        sizes.split(last);
        sizes
    }

    /// Splits buckets that hold too much: the disk tells of many entries at once what was
    /// written at once, and to keep all of them for the newest would be to keep too much.
    fn split(&mut self, last: Index) {
        let nexts = self.buckets.iter().skip(1).map(|&(first, _)| first).chain([last.next()]);
        let mut split = VecDeque::with_capacity(self.buckets.len());
        for (&(first, bytes), next) in self.buckets.iter().zip(nexts) {
            let entries = next.get().saturating_sub(first.get()).max(1);
            let parts = (bytes / self.bucket_bytes).clamp(1, entries.min(BUCKETS));
            let at = |part: u64| first.get().saturating_add(entries / parts * part);
            for part in 0..parts {
                let end = if part + 1 == parts {
                    first.get().saturating_add(entries)
                } else {
                    at(part + 1)
                };
                split.push_back((Index(at(part)), share(bytes, end - at(part), entries)));
            }
        }
        self.buckets = split;
        self.total = self.buckets.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes));
    }

    /// The same for a log that is empty.
    pub(crate) fn emptied(&self) -> Self {
        Self { buckets: VecDeque::new(), total: 0, bucket_bytes: self.bucket_bytes }
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The last index before the newest entries that have at least so many bytes, in steps of
    /// buckets. Zero if there are not as many.
    pub(crate) fn before_newest(&self, bytes: u64, last: Index) -> Index {
        let mut sum: u64 = 0;
        let mut before = last;
        for &(first, bucket) in self.buckets.iter().rev() {
            if bytes <= sum {
                return before;
            }
            sum = sum.saturating_add(bucket);
            before = first.prev();
        }
        if bytes <= sum { before } else { Index::ZERO }
    }

    /// An entry was added at the end.
    pub(crate) fn push(&mut self, index: Index, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.total = self.total.saturating_add(bytes);
        match self.buckets.back_mut() {
            Some((_, bucket)) if *bucket < self.bucket_bytes => {
                *bucket = bucket.saturating_add(bytes);
            }
            Some(_) | None => self.buckets.push_back((index, bytes)),
        }
    }

    /// The log ends before `from` from here on; until now it ended at `last`.
    pub(crate) fn truncate(&mut self, from: Index, last: Index) {
        let mut next = last.next();
        while let Some((first, bytes)) = self.buckets.pop_back() {
            self.total = self.total.saturating_sub(bytes);
            if first < from {
                let kept = share(bytes, from.get() - first.get(), next.get() - first.get());
                self.total = self.total.saturating_add(kept);
                self.buckets.push_back((first, kept));
                return;
            }
            next = first;
        }
    }

    /// The log starts after `upto` from here on, and ends at `last`.
    pub(crate) fn purge(&mut self, upto: Index, last: Index) {
        while let Some((first, bytes)) = self.buckets.pop_front() {
            let next = self.buckets.front().map_or(last.next(), |&(next, _)| next);
            if upto < first {
                self.buckets.push_front((first, bytes));
                return;
            }
            self.total = self.total.saturating_sub(bytes);
            if upto.next() < next {
                let kept = share(bytes, next.get() - upto.next().get(), next.get() - first.get());
                self.total = self.total.saturating_add(kept);
                self.buckets.push_front((upto.next(), kept));
                return;
            }
        }
    }
}

/// The part of `bytes` that falls to `part` of `whole` entries, as if all were of one size.
fn share(bytes: u64, part: u64, whole: u64) -> u64 {
    let share = u128::from(bytes) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of which entry `index` has `index` bytes.
    fn log(last: u64) -> Sizes {
        let mut sizes = Sizes::new(0, &[], (Index::ZERO, Index::ZERO));
        for index in 1..=last {
            sizes.push(Index(index), usize::try_from(index).unwrap());
        }
        sizes
    }

    #[test]
    fn the_newest_bytes_are_found() {
        let sizes = log(10);
        assert_eq!(sizes.total(), 55);
        assert_eq!(sizes.before_newest(0, Index(10)), Index(10));
        assert_eq!(sizes.before_newest(1, Index(10)), Index(9));
        assert_eq!(sizes.before_newest(10, Index(10)), Index(9));
        assert_eq!(sizes.before_newest(11, Index(10)), Index(8));
        assert_eq!(sizes.before_newest(55, Index(10)), Index(0));
        assert_eq!(sizes.before_newest(56, Index(10)), Index(0));
    }

    #[test]
    fn both_ends_may_go() {
        let mut sizes = log(10);
        sizes.truncate(Index(9), Index(10));
        assert_eq!(sizes.total(), 36);
        sizes.purge(Index(3), Index(8));
        assert_eq!(sizes.total(), 30);
        sizes.purge(Index(8), Index(8));
        assert_eq!(sizes.total(), 0);
        sizes.push(Index(9), 7);
        assert_eq!(sizes.before_newest(7, Index(9)), Index(8));
    }

    #[test]
    fn a_bucket_is_shared_out_evenly() {
        let mut sizes = Sizes::new(1 << 30, &[(Index(0), 100)], (Index(4), Index(14)));
        assert_eq!(sizes.total(), 100);
        sizes.purge(Index(9), Index(14));
        assert_eq!(sizes.total(), 50);
        sizes.truncate(Index(11), Index(14));
        assert_eq!(sizes.total(), 10);
    }

    /// Pitfall D8. The sizes come from a disk.
    #[test]
    fn nonsense_from_a_disk_does_no_harm() {
        let nonsense =
            [(Index(u64::MAX), 7), (Index(5), u64::MAX), (Index(3), u64::MAX), (Index(0), 1)];
        let mut sizes = Sizes::new(0, &nonsense, (Index(2), Index(9)));
        assert_eq!(sizes.total(), u64::MAX);
        sizes.truncate(Index(4), Index(9));
        sizes.purge(Index(3), Index(3));
        assert_eq!(sizes.before_newest(u64::MAX, Index(3)), Index::ZERO);
    }

    /// A gigabyte of entries of a byte each does not take a gigabyte of buckets.
    #[test]
    fn buckets_are_few() {
        let mut sizes = Sizes::new(1 << 20, &[], (Index::ZERO, Index::ZERO));
        for index in 1..=200_000 {
            sizes.push(Index(index), 10);
        }
        assert!(sizes.buckets.len() < 2_048, "{}", sizes.buckets.len());
    }

    /// What a record of many entries takes is spread over them, or the newest would keep all.
    #[test]
    fn what_was_written_at_once_need_not_be_kept_at_once() {
        let log = Sizes::new(0, &[(Index(1), 10), (Index(2), 100)], (Index::ZERO, Index(11)));
        assert_eq!(log.total(), 110);
        assert_eq!(log.before_newest(30, Index(11)), Index(8));
        assert_eq!(log.before_newest(100, Index(11)), Index(1));
        assert_eq!(log.before_newest(105, Index(11)), Index::ZERO);
    }
}
