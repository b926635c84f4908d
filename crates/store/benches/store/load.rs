//! The puts and deletions that are applied.

use kontiki_store::Bytes;

const BATCH: usize = 128;

/// A write: a key, and its value or none for a deletion.
pub(crate) type Write = (Bytes, Option<Bytes>);

/// Writes that are applied together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) writes: Vec<Write>,
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.writes.len()
    }
}

/// Every key once, in an order that looks random, as often as it is restarted.
#[derive(Debug)]
pub(crate) struct Load {
    keys: u64,
    value_bytes: usize,
    /// The next key.
    position: u64,
    seed: u64,
}

impl Load {
    pub(crate) fn new(keys: u64, value_bytes: usize) -> Self {
        Self { keys, value_bytes, position: 0, seed: 1 }
    }

    pub(crate) fn restart(&mut self) {
        self.position = 0;
    }

    /// The next batch, with `deletes` deletions in a hundred writes. None at the end.
    pub(crate) fn next(&mut self, deletes: u64) -> Option<Batch> {
        self.next_of(BATCH, deletes)
    }

    pub(crate) fn next_of(&mut self, len: usize, deletes: u64) -> Option<Batch> {
        let end = self.keys.min(self.position + len as u64);
        let writes: Vec<Write> = (self.position..end)
            .map(|n| {
                let is_delete = self.random() % 100 < deletes;
                (key(scatter(n, self.keys)).into(), (!is_delete).then(|| self.value()))
            })
            .collect();
        self.position = end;
        (!writes.is_empty()).then_some(Batch { writes })
    }

    fn random(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    /// Half of it can be compressed.
    fn value(&mut self) -> Bytes {
        let mut value = vec![0; self.value_bytes];
        for chunk in value.chunks_mut(16) {
            let random = self.random().to_le_bytes();
            let len = chunk.len().min(8);
            chunk[..len].copy_from_slice(&random[..len]);
        }
        value.into()
    }
}

/// A key of 24 bytes.
pub(crate) fn key(n: u64) -> Vec<u8> {
    format!("/registry/keys/{n:09}").into_bytes()
}

/// A permutation of `0..keys`, for every number of keys that the prime does not divide.
pub(crate) fn scatter(n: u64, keys: u64) -> u64 {
    n * 2_654_435_761 % keys
}
