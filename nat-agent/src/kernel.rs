//! Whether this kernel can do what is needed, said before anything is tried.

use anyhow::{Result, bail, ensure};

/// tcx links that can be pinned.
const NEEDED: (u32, u32) = (6, 6);

/// Checks the kernel and the rights.
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
    ensure!(
        may_use_bpf(),
        "nat-agent needs root, or CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON"
    );
    Ok(())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Whether the effective capabilities (capabilities(7)) hold what is needed.
fn may_use_bpf() -> bool {
    const NET_ADMIN: u32 = 12;
    const NET_RAW: u32 = 13;
    const PERFMON: u32 = 38;
    const BPF: u32 = 39;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(mask) = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) else {
        return true;
    };
    [NET_ADMIN, NET_RAW, PERFMON, BPF]
        .iter()
        .all(|bit| mask & (1 << bit) != 0)
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
}
