//! Measurements of a process, read from `/proc`.
//! <https://man7.org/linux/man-pages/man5/proc.5.html>

use std::{fs, time::Duration};

/// The length of a clock tick in `/proc/<pid>/stat`. It is the same on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// The CPU time that a process has used.
pub(crate) fn cpu(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the program's name in parentheses, which may contain spaces. User and
    // system time are the 14th and the 15th field.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u32 = (fields.split_whitespace().skip(11).take(2))
        .filter_map(|ticks| ticks.parse::<u32>().ok())
        .sum();
    TICK * ticks
}

/// Resets the memory peak of a process. If the system does not allow the reset, [`peak`] is the
/// peak since the start of the process.
pub(crate) fn reset_peak(pid: u32) {
    let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
}

/// The memory peak of a process, in KiB.
pub(crate) fn peak(pid: u32) -> u64 {
    status_kib(pid, "VmHWM:")
}

/// The current memory of a process, in KiB.
pub(crate) fn resident(pid: u32) -> u64 {
    status_kib(pid, "VmRSS:")
}

fn status_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = (status.lines()).find_map(|line| line.strip_prefix(field)?.strip_suffix("kB"));
    value
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}
