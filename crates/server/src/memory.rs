//! How much memory this process may count on.

use std::fs;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Newest values are kept in a quarter of the memory …
const CACHE_DIVISOR: u64 = 4;

/// … and never in more than this: beyond it, more memory serves other things better.
const CACHE_BYTES_MAX: u64 = 1 << 30;

/// Where nothing is known of the memory.
const CACHE_BYTES_UNKNOWN: u64 = 256 << 20;

/// For how many bytes of values there is room, if nobody says otherwise.
pub(crate) fn default_cache_bytes() -> usize {
    cache_bytes(memory(|path| fs::read_to_string(path).ok()))
}

fn cache_bytes(memory: Option<u64>) -> usize {
    let bytes = memory.map_or(CACHE_BYTES_UNKNOWN, |bytes| bytes / CACHE_DIVISOR);
    usize::try_from(bytes.min(CACHE_BYTES_MAX)).unwrap_or(usize::MAX)
}

/// The memory of the machine, or what the groups of this process leave of it. Nothing, where
/// there is no `/proc`.
fn memory(read: impl Fn(&str) -> Option<String>) -> Option<u64> {
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib * 1024)
    });
    // In a container its own group is the root, whatever it is called outside.
    let mut limits =
        vec![format!("{CGROUPS}/memory.max"), format!("{CGROUPS}/memory/memory.limit_in_bytes")];
    for line in read("/proc/self/cgroup").unwrap_or_default().lines() {
        if let Some(group) = line.strip_prefix("0::/") {
            // Each group above has a limit of its own.
            let mut path = group;
            while !path.is_empty() {
                limits.push(format!("{CGROUPS}/{path}/memory.max"));
                path = path.rsplit_once('/').map_or("", |(above, _)| above);
            }
        }
    }
    // A group without a limit says `max`, or a number larger than any machine.
    let limits = limits.iter().filter_map(|path| read(path)?.trim().parse().ok());
    machine.into_iter().chain(limits).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16000000 kB\nMemFree:  1 kB\n";

    fn with(files: &[(&str, &str)]) -> Option<u64> {
        memory(|path| {
            files.iter().find(|(name, _)| *name == path).map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn the_smallest_limit_counts() {
        let machine = ("/proc/meminfo", MEMINFO);
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[machine]), Some(16_384_000_000));
        let unlimited = ("/sys/fs/cgroup/memory.max", "max\n");
        assert_eq!(with(&[machine, unlimited]), Some(16_384_000_000));
        let container = ("/sys/fs/cgroup/memory.max", "536870912\n");
        assert_eq!(with(&[machine, container]), Some(512 << 20));
        let of_old = ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(with(&[machine, of_old]), Some(16_384_000_000));
        let group = ("/proc/self/cgroup", "0::/system.slice/kontiki.service\n");
        let above = ("/sys/fs/cgroup/system.slice/memory.max", "1073741824\n");
        assert_eq!(with(&[machine, group, above]), Some(1 << 30));
    }

    #[test]
    fn the_cache_takes_a_quarter_and_no_more_than_a_gibibyte() {
        assert_eq!(cache_bytes(Some(1 << 30)), 256 << 20);
        assert_eq!(cache_bytes(Some(64 << 30)), 1 << 30);
        assert_eq!(cache_bytes(None), 256 << 20);
    }
}
