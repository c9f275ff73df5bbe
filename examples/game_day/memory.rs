//! How much memory this process has.

use std::fs;

/// Now, in bytes; 0 where the system does not say.
pub fn resident() -> u64 {
    of("VmRSS:")
}

/// The most that it ever had.
pub fn peak() -> u64 {
    of("VmHWM:")
}

fn of(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
