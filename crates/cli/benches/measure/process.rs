//! What the kernel knows of a process: its memory, in megabytes.

use std::{fmt, fs, path::Path};

use crate::servers::Servers;

/// Of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) now: u64,
    /// Since the start, or since it was forgotten.
    pub(crate) peak: u64,
}

impl Memory {
    pub(crate) fn of(process: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
            kilobytes / 1024
        };
        Self { now: field("VmRSS:"), peak: field("VmHWM:") }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MB, peak {} MB", self.now, self.peak)
    }
}

/// Lets the peak begin anew.
pub(crate) fn forget_peak(process: u32) {
    if let Err(error) = fs::write(format!("/proc/{process}/clear_refs"), "5") {
        eprintln!("the peak counts from the start of the process: {error}");
    }
}

/// The directories below those of the servers, with their megabytes.
pub(crate) fn files(servers: &Servers) -> String {
    fn bytes(dir: &Path) -> u64 {
        let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
        let sizes = entries.map(|entry| {
            let path = entry.path();
            if path.is_dir() { bytes(&path) } else { entry.metadata().map_or(0, |data| data.len()) }
        });
        sizes.sum()
    }
    fn walk(dir: &Path, root: &Path, lines: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                let name = path.strip_prefix(root).unwrap().display();
                lines.push(format!("{name} {} MB", bytes(&path) >> 20));
                walk(&path, root, lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(servers.dir.path(), servers.dir.path(), &mut lines);
    lines.sort();
    lines.join(", ")
}
