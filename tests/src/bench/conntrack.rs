//! Room in the kernel's connection tracking for a million flows, given back on drop.
//!
//! The table is one for the whole machine, its size as well as the limit; only time-outs are a
//! namespace's own.

use std::fs;

use anyhow::{Context, Result};

use crate::netns::Netns;

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";

/// Room for four million flows in a million buckets.
pub struct Room(Vec<(&'static str, String)>);

impl Room {
    /// Makes the room.
    pub fn make() -> Result<Self> {
        if !fs::exists(MAX)? {
            // Not an error here: it may be built in, and the write below says what is wrong.
            let _ = std::process::Command::new("modprobe")
                .arg("nf_conntrack")
                .status();
        }
        let mut room = Self(Vec::new());
        // Changing the buckets changes the limit on some kernels: so the limit comes last.
        for (file, value) in [(BUCKETS, "1048576"), (MAX, "4194304")] {
            let before = fs::read_to_string(file).with_context(|| format!("no {file}"))?;
            fs::write(file, value).with_context(|| format!("cannot set {file}"))?;
            room.0.push((file, before.trim().to_string()));
        }
        Ok(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for (file, value) in &self.0 {
            if let Err(error) = fs::write(file, value) {
                eprintln!("{file} stays changed, it was {value}: {error}");
            }
        }
    }
}

/// Lets flows without replies live for an hour in `namespace`: between two rounds of a large
/// benchmark they would end.
pub fn keep_flows(namespace: &Netns) -> Result<()> {
    for name in [
        "nf_conntrack_udp_timeout",
        "nf_conntrack_udp_timeout_stream",
    ] {
        namespace.sysctl(&format!("net.netfilter.{name}"), "3600")?;
    }
    Ok(())
}
