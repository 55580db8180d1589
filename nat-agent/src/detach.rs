//! Takes everything that the agent made off the node.

use anyhow::Result;

use crate::{bpf::pins::Pins, nft};

/// Removes programs, maps and the netfilter table; all sessions end. Whether anything was pinned.
///
/// # Errors
/// Another agent runs, or what the file system or `nft` says.
pub fn detach(pins: &Pins) -> Result<bool> {
    if !pins.directory().exists() {
        nft::remove()?;
        return Ok(false);
    }
    let lock = pins.lock()?;
    // Before the programs: without their decision it would drop what pods send that asked for nothing.
    nft::lift_guard()?;
    pins.remove()?;
    drop(lock);
    nft::remove()?;
    Ok(true)
}
