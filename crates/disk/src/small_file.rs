//! Small files that are replaced whole: the old one or the new one, never a mixture.
//!
//! Layout: `docs/log-format.md`, "Small files". Written to a temporary name, made durable,
//! renamed, and the directory made durable (pitfall D5): a crash at any point leaves the old
//! content or the new one.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{ByteReader, Disk, DiskError};

const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;

/// Read into memory whole, so there is a bound. The largest one holds a few bytes for each peer.
const BYTES_MAX: usize = 16 << 20;

/// A file with a checksum that is replaced whole.
#[derive(Clone, Debug)]
pub struct SmallFile {
    path: PathBuf,
    magic: [u8; 8],
}

impl SmallFile {
    /// Names the file and what it is for. Touches nothing.
    #[must_use]
    pub fn new(path: PathBuf, magic: [u8; 8]) -> Self {
        Self { path, magic }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its content, `None` if there is no such file.
    ///
    /// # Errors
    ///
    /// [`DiskError::Damaged`] if it is not what was written.
    pub fn read(&self, disk: &dyn Disk) -> Result<Option<Vec<u8>>, DiskError> {
        let file = match disk.open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(DiskError::io("open", &self.path))?,
        };
        let len = file.len().map_err(DiskError::io("measure", &self.path))?;
        let len = usize::try_from(len).ok().filter(|&len| len <= BYTES_MAX);
        let len = len.ok_or_else(|| self.damaged("it is too long"))?;
        let mut bytes = vec![0; len];
        file.read_at(0, &mut bytes).map_err(DiskError::io("read", &self.path))?;
        self.decode(&bytes).map(Some)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<u8>, DiskError> {
        let Some((covered, crc)) = bytes.split_last_chunk::<4>() else {
            return Err(self.damaged("it is too short"));
        };
        if u32::from_le_bytes(*crc) != crc32c::crc32c(covered) {
            return Err(self.damaged("its checksum does not fit"));
        }
        let mut reader = ByteReader::new(covered);
        if reader.array() != Some(self.magic) {
            return Err(self.damaged("it is a file of another kind"));
        }
        let (Some(version), Some(len)) = (reader.u32(), reader.u32()) else {
            return Err(self.damaged("it is too short"));
        };
        if version != VERSION {
            let path = self.path.clone();
            return Err(DiskError::Version { path, found: version, supported: VERSION });
        }
        if usize::try_from(len).ok() != Some(reader.rest().len()) {
            return Err(self.damaged("its length does not fit"));
        }
        Ok(reader.rest().to_vec())
    }

    /// Replaces its content, durably.
    ///
    /// # Errors
    ///
    /// As the file system says. The old content or the new one is there, and which of them is
    /// known only after the next [`read`](Self::read).
    ///
    /// # Panics
    ///
    /// If the content is longer than 16 MiB less its frame, or the path has no directory.
    pub fn replace(&self, disk: &dyn Disk, content: &[u8]) -> Result<(), DiskError> {
        let len = HEADER_BYTES + content.len() + 4;
        assert!(len <= BYTES_MAX, "a small file is small, not {len} bytes");
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&self.magic);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        let len = u32::try_from(content.len()).expect("a small file is small");
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(content);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());

        let temporary = self.path.with_extension("tmp");
        match disk.remove(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(DiskError::io("remove", &temporary))?,
        }
        let file = disk.create(&temporary).map_err(DiskError::making("create", &temporary))?;
        file.write_at(0, &bytes).map_err(DiskError::making("write", &temporary))?;
        file.sync_data().map_err(DiskError::io("sync", &temporary))?;
        disk.rename(&temporary, &self.path).map_err(DiskError::io("rename", &temporary))?;
        let dir = self.path.parent().expect("a small file lies in a directory");
        disk.sync_dir(dir).map_err(DiskError::io("sync", dir))
    }

    fn damaged(&self, what: &str) -> DiskError {
        DiskError::damaged(&self.path, 0, what)
    }
}
