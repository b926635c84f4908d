//! Disks that fail on command: a shim between a server and the C library, built by the test.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::servers::Servers;

/// The disk of one server.
pub(crate) struct FailingDisk {
    control: PathBuf,
}

impl FailingDisk {
    /// Puts a shim below a server that is not started yet. `None`, with a word on stderr, where
    /// there is no C compiler.
    pub(crate) fn below(servers: &mut Servers, index: usize) -> Option<Self> {
        let dir = servers.dir.path().to_owned();
        let shim = build(&dir)?;
        let control = dir.join(format!("disk-{index}"));
        fs::write(&control, "").unwrap();
        let data = servers.data_dir(index);
        let path = |path: &Path| path.display().to_string();
        servers.set_env(index, "LD_PRELOAD", path(&shim));
        servers.set_env(index, "KONTIKI_DISK", path(&control));
        servers.set_env(index, "KONTIKI_DATA", format!("{}/", path(&data)));
        Some(Self { control })
    }

    /// From now on every fsync fails.
    pub(crate) fn fail(&self) {
        fs::write(&self.control, "eio").unwrap();
    }

    /// From now on no file of the log grows.
    pub(crate) fn fill(&self) {
        fs::write(&self.control, "full").unwrap();
    }

    /// From now on all is well.
    pub(crate) fn mend(&self) {
        fs::write(&self.control, "").unwrap();
    }
}

fn build(dir: &Path) -> Option<PathBuf> {
    let shim = dir.join("failing_disk.so");
    if shim.exists() {
        return Some(shim);
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/failing_disk.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-shared", "-fPIC", "-w", "-o"]).arg(&shim).arg(source).arg("-ldl");
    match compiler.status() {
        Ok(status) if status.success() => Some(shim),
        Ok(status) => panic!("the shim does not compile: {status}"),
        Err(error) => {
            eprintln!("SKIPPED: a failing disk needs the C compiler cc: {error}");
            None
        }
    }
}
