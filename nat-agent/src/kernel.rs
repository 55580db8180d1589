//! Whether this kernel can do what is needed, said before anything is tried.

use anyhow::{Error, Result, bail, ensure};

/// tcx links that can be pinned.
const NEEDED: (u32, u32) = (6, 6);

/// Checks the kernel.
///
/// # Errors
/// What is missing, in plain words.
pub fn check() -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(found) if found >= NEEDED => {}
        Some(_) => bail!(
            "this kernel is {release}; nat-agent needs Linux {}.{} or newer (tcx links)",
            NEEDED.0,
            NEEDED.1
        ),
        None => bail!("cannot tell the kernel's version from {release:?}"),
    }
    ensure!(
        std::path::Path::new("/sys/kernel/btf/vmlinux").exists(),
        "this kernel has no BTF (/sys/kernel/btf/vmlinux); nat-agent needs CONFIG_DEBUG_INFO_BTF"
    );
    Ok(())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Adds to the error that kept the agent from starting which rights it lacks, if any: the kernel's
/// own words do not say.
pub fn explain(error: Error) -> Error {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lacking = lacking(&status);
    if lacking.is_empty() {
        return error;
    }
    error.context(format!(
        "run as root, or with these capabilities: {}",
        lacking.join(", ")
    ))
}

/// What the agent needs (capabilities(7)), and its bit in a capability set.
const CAPABILITIES: [(&str, u32); 4] = [
    ("CAP_NET_ADMIN", 12),
    ("CAP_NET_RAW", 13),
    ("CAP_PERFMON", 38),
    ("CAP_BPF", 39),
];

/// The needed capabilities that are not effective, by a process's status.
fn lacking(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    let held = |bit: u32| set.is_none_or(|set| set & (1 << bit) != 0);
    let lacking = CAPABILITIES.iter().filter(|(_, bit)| !held(*bit));
    lacking.map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_kinds_are_read() {
        assert_eq!(version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(version("6.6.0"), Some((6, 6)));
        assert_eq!(version("7.0-rc1"), Some((7, 0)));
        assert_eq!(version("unknown"), None);
    }

    #[test]
    fn what_is_lacking_is_named() {
        assert_eq!(lacking("CapEff:\t000001ffffffffff\n"), [""; 0]);
        assert_eq!(lacking("CapEff:\t000000c000003000\n"), [""; 0]);
        assert_eq!(lacking("CapEff:\t000000c000001000\n"), ["CAP_NET_RAW"]);
        assert_eq!(lacking("CapEff:\t0\n").len(), CAPABILITIES.len());
        assert_eq!(lacking("Name:\tnat-agent\n"), [""; 0]);
    }
}
