//! What the system says of this process. Nothing, where there is no `/proc`.

use std::{fmt, fs};

use super::{counter, gauge};

/// Ticks of `/proc/self/stat` in a second: Linux shows 100 whatever it counts in.
const TICKS_PER_SECOND: f64 = 100.0;

pub(super) fn write(out: &mut String) -> fmt::Result {
    if let Some(seconds) = read("/proc/self/stat").as_deref().and_then(cpu_seconds) {
        let what = "Total user and system CPU time spent in seconds.";
        counter(out, "process_cpu_seconds_total", what, seconds)?;
    }
    let status = read("/proc/self/status");
    let status = status.as_deref().unwrap_or_default();
    if let Some(kib) = field(status, "VmRSS:") {
        let what = "Resident memory size in bytes.";
        gauge(out, "process_resident_memory_bytes", what, kib * 1024)?;
    }
    if let Some(kib) = field(status, "VmSize:") {
        let what = "Virtual memory size in bytes.";
        gauge(out, "process_virtual_memory_bytes", what, kib * 1024)?;
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is the directory that is being read.
        let count = open.count().saturating_sub(1);
        gauge(out, "process_open_fds", "Number of open file descriptors.", count)?;
    }
    let limits = read("/proc/self/limits");
    if let Some(limit) = field(limits.as_deref().unwrap_or_default(), "Max open files") {
        gauge(out, "process_max_fds", "Maximum number of open file descriptors.", limit)?;
    }
    Ok(())
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// User and system time, the 14th and 15th field. The second is the name of the program, in
/// parentheses, and may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Vec<u32> =
        fields.split_whitespace().skip(11).take(2).map_while(|text| text.parse().ok()).collect();
    let [user, system] = ticks.as_slice() else { return None };
    Some((f64::from(*user) + f64::from(*system)) / TICKS_PER_SECOND)
}

/// The first number of the line that begins with `name`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_says_is_read() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4 90 0 0 0 250 50 0 0 20 0 4 0 66 9 9";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (a"), None);
        assert_eq!(field("VmSize:\t  10 kB\nVmRSS:\t  12345 kB\n", "VmRSS:"), Some(12345));
        assert_eq!(field("Max open files   1024   4096   files\n", "Max open files"), Some(1024));
    }
}
