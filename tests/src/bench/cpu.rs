//! Keeping a thread on one CPU, and waiting until the machine is quiet.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::process::check_interrupt;

/// The CPU that measures: generator, gateway and sink all run there. The last one, since
/// interrupts and most else go to the first.
pub fn measuring() -> Result<usize> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
    let last = online.trim().rsplit([',', '-']).next().unwrap_or_default();
    last.parse()
        .with_context(|| format!("no CPU in {online:?}"))
}

/// The CPUs for everything else, as `taskset` takes them; the measuring one if there is no other.
pub fn others() -> Result<String> {
    Ok(match measuring()? {
        0 => "0".into(),
        last => format!("0-{}", last - 1),
    })
}

/// Keeps the calling thread on `cpu`.
pub fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: cpu_set_t is a plain bit set, for which zero is the empty set; CPU_SET checks its
    // bound, and the kernel reads as many bytes as it is told that there are.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Waits until the CPUs are nearly idle: the kernel frees namespaces and tables in the background,
/// and that must not fall into the next measurement. Goes on after ten seconds.
pub fn settle() -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut before = idle_and_all()?;
    while Instant::now() < deadline {
        check_interrupt()?;
        thread::sleep(Duration::from_millis(100));
        let now = idle_and_all()?;
        if (now.0 - before.0) * 100 >= (now.1 - before.1) * 90 {
            return Ok(());
        }
        before = now;
    }
    eprintln!("the machine does not become quiet: measuring anyway");
    Ok(())
}

/// Ticks spent idle, and ticks in all, of all CPUs.
fn idle_and_all() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in user.
    let idle = ticks.get(3).context("no idle time in /proc/stat")?;
    Ok((*idle, ticks.iter().take(8).sum()))
}
