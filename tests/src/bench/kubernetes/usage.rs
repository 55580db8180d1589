//! What a process takes, by /proc.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// `USER_HZ`: what /proc counts in.
const TICKS: f64 = 100.0;

/// Processor time until a moment, or between two.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    at: Instant,
    ticks: u64,
    /// Since the value before.
    pub time: Duration,
}

impl Usage {
    /// What came after `before`.
    pub fn since(self, before: &Self) -> Self {
        Self {
            at: self.at,
            ticks: self.ticks - before.ticks,
            time: self.at - before.at,
        }
    }

    /// As a part of one processor, in percent.
    pub fn percent(&self) -> f64 {
        100.0 * self.ticks as f64 / TICKS / self.time.as_secs_f64()
    }
}

/// User and system time of a process and of its children that have ended.
pub fn usage(pid: u32) -> Result<Usage> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may have spaces. Behind it: state is the 3rd field of proc(5), utime,
    // stime, cutime and cstime the 14th to the 17th.
    let (_, rest) = text.rsplit_once(") ").context("no name")?;
    let fields = rest.split(' ').skip(11).take(4);
    let ticks = fields.map(|field| field.parse::<u64>().unwrap_or_default());
    Ok(Usage {
        at: Instant::now(),
        ticks: ticks.sum(),
        time: Duration::ZERO,
    })
}

/// Resident memory in KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Mapped BPF maps.
    pub maps: u64,
    /// Anonymous memory: heap and stacks.
    pub anonymous: u64,
    /// Everything but the maps: anonymous memory and the program's file.
    pub beyond: u64,
}

/// Sums up a process's mappings.
pub fn memory(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut memory, mut is_map) = (Memory::default(), false);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let kilobytes = || line.split_whitespace().nth(1)?.parse::<u64>().ok();
        match name {
            "Rss:" if is_map => memory.maps += kilobytes().unwrap_or_default(),
            "Rss:" => memory.beyond += kilobytes().unwrap_or_default(),
            "Anonymous:" if !is_map => memory.anonymous += kilobytes().unwrap_or_default(),
            // A mapping's own line: its addresses.
            _ if !name.ends_with(':') => is_map = line.ends_with("bpf-map"),
            _ => {}
        }
    }
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_something() {
        let memory = memory(std::process::id()).unwrap();
        assert!(memory.beyond > memory.anonymous && memory.anonymous > 0);
        assert_eq!(memory.maps, 0);
        let before = usage(std::process::id()).unwrap();
        let after = usage(std::process::id()).unwrap().since(&before);
        assert!(after.ticks < 100);
    }
}
