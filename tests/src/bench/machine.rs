//! What kind of machine the figures are from.

use std::fs;

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
