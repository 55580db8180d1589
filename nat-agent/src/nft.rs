//! The one static netfilter rule of the stack path: what is marked keeps its
//! source, whatever masquerade rules come after (the first NAT chain that
//! decides wins). Installed with the `nft` command, which every node with
//! nftables has.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The table, in the network namespace's family `ip`.
pub const TABLE: &str = "natctl";

/// Installs the rule, in place of an older one.
///
/// # Errors
/// `nft` is missing or refuses.
pub fn install(mark: u32) -> Result<()> {
    run(&format!(
        "table ip {TABLE}\n\
         delete table ip {TABLE}\n\
         table ip {TABLE} {{\n\
         \tcomment \"natctl: marked packets are translated by eBPF, not by a masquerade rule\"\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat - 10; policy accept;\n\
         \t\tmeta mark & {mark:#x} == {mark:#x} snat ip to ip saddr\n\
         \t}}\n\
         }}\n"
    ))
}

/// Whether the rule is there: a `flush ruleset` of somebody else takes it away.
///
/// # Errors
/// `nft` is missing.
pub fn present() -> Result<bool> {
    let status = Command::new("nft")
        .args(["list", "chain", "ip", TABLE, "postrouting"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("run nft: install nftables (Debian: apt-get install nftables)")?;
    Ok(status.success())
}

/// Removes the rule, if it is there.
///
/// # Errors
/// `nft` is missing or refuses.
pub fn remove() -> Result<()> {
    run(&format!("table ip {TABLE}\ndelete table ip {TABLE}\n"))
}

fn run(script: &str) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("run nft: install nftables (Debian: apt-get install nftables)")?;
    child
        .stdin
        .take()
        .context("nft's input")?
        .write_all(script.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
