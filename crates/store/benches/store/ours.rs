//! The store, as the benchmark sees it.

use std::{io, ops::ControlFlow, path::Path, time::Duration};

use kontiki_store::{
    Bytes, CompactRequest, DeleteRangeRequest, PutRequest, RangeRequest, Request, Store,
    StoreOptions,
};

use crate::{Subject, load::Batch};

#[derive(Debug)]
pub(crate) struct Ours(Store);

impl Ours {
    fn apply_one(&self, request: Request) {
        let index = self.0.applied().0 + 1;
        for answer in self.0.apply(&[(index, 1, request)], (index, 1)).unwrap() {
            drop(answer.unwrap());
        }
    }
}

impl Subject for Ours {
    const NAME: &'static str = "kontiki";

    fn open(dir: &Path, cache: bool) -> Self {
        let value_cache_bytes = if cache { 512 << 20 } else { 0 };
        let options = StoreOptions { value_cache_bytes, ..StoreOptions::default() };
        Self(Store::open(dir, options).unwrap())
    }

    fn apply(&self, batch: &Batch) {
        // Positions of the load are counted anew in each life of the store.
        let before = self.0.applied().0;
        let requests: Vec<(u64, u64, Request)> = (before + 1..)
            .zip(&batch.writes)
            .map(|(index, (key, value))| {
                let key = key.clone();
                let request = match value.clone() {
                    Some(value) => Request::Put(PutRequest { key, value, ..Default::default() }),
                    None => Request::DeleteRange(DeleteRangeRequest {
                        key,
                        range_end: Bytes::new(),
                        prev_kv: false,
                    }),
                };
                (index, 1, request)
            })
            .collect();
        let upto = before + batch.len() as u64;
        let answers = self.0.apply(&requests, (upto, 1)).unwrap();
        assert!(answers.iter().all(Result::is_ok));
    }

    fn get(&self, key: &[u8]) -> bool {
        let key = Bytes::copy_from_slice(key);
        let range = RangeRequest { key, ..RangeRequest::default() };
        self.0.range(&range).unwrap().kvs.first().is_some_and(|kv| !kv.value.is_empty())
    }

    fn range(&self, from: &[u8], end: &[u8]) -> usize {
        let range = RangeRequest {
            key: Bytes::copy_from_slice(from),
            range_end: Bytes::copy_from_slice(end),
            ..RangeRequest::default()
        };
        let answer = self.0.range(&range).unwrap();
        assert!(answer.kvs.iter().all(|kv| !kv.value.is_empty()));
        answer.kvs.len()
    }

    fn scan(&self) -> u64 {
        let (mut events, mut bytes) = (0, 0);
        let scanned = self.0.scan_events(0, &mut |event| {
            events += 1;
            bytes += event.key.len() + event.value.len();
            ControlFlow::Continue(())
        });
        scanned.unwrap();
        assert!(0 < bytes);
        events
    }

    fn snapshot(&self, take: &mut dyn FnMut(&[u8])) {
        struct Taker<'a>(&'a mut dyn FnMut(&[u8]));
        impl io::Write for Taker<'_> {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                (self.0)(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        self.0.snapshot().unwrap().write_to(&mut Taker(take)).unwrap();
    }

    fn compact_half(&self) {
        // Of two versions of each key one goes.
        let revision = self.0.revision() / 4 * 3;
        self.apply_one(Request::Compact(CompactRequest { revision, physical: true }));
        assert!(self.0.wait_compacted(revision, Duration::from_secs(600)));
    }

    fn flush(&self) {
        self.0.flush().unwrap();
    }

    fn close(self) {
        self.0.close().unwrap();
    }
}
