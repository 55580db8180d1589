//! The machine: what kind it is, and that one benchmark at a time has it.

use std::fs::{self, File, TryLockError};

use anyhow::{Context, Result};

/// Waits until no other benchmark runs on this machine: two at once would measure each other, and
/// put back each other's settings. It is this one's turn while the value lives.
pub fn take() -> Result<File> {
    let path = "/run/nat-bench.lock";
    let file = File::create(path).with_context(|| path)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            eprintln!("waiting for another nat-bench to end");
            file.lock()?;
        }
        other => other?,
    }
    Ok(file)
}

/// Processor, number of CPUs, memory and kernel in a line; no names of hosts.
pub fn describe() -> String {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_string())
    };
    let cpus = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let kilobytes: u64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
    format!(
        "{cpus} x {}, {} GiB, Linux {}{}",
        field(&cpuinfo, "model name").unwrap_or_else(|| "unknown processor".into()),
        kilobytes.div_ceil(1 << 20),
        read("/proc/sys/kernel/osrelease").trim(),
        if cpuinfo.contains(" hypervisor") {
            ", virtual machine"
        } else {
            ""
        },
    )
}
