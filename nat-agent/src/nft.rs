//! The one netfilter table, in two chains. `postrouting`: what is marked keeps its source, whatever
//! masquerade rules come after (the first NAT chain that decides wins). `guard`: what pods send
//! before any program has looked at it is dropped. Both stay in force when the agent is gone.
//!
//! The guard stands in postrouting, too: there the destination is the one after DNAT, and what IPVS
//! sends on comes by, which the forward hook never sees. Before all other chains there, so that
//! nobody has changed the mark since the packet was routed.
//!
//! Installed with the `nft` command, which every node with nftables has.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;

use crate::snapshot::Guard;

/// The table, in the network namespace's family `ip`.
pub const TABLE: &str = "natctl";
/// What counts the packets that the guard has dropped.
const COUNTER: &str = "guard";
const MISSING: &str = "run nft: install nftables (Debian: apt-get install nftables)";

/// The table, as this agent has left it.
#[derive(Debug)]
pub struct Table {
    /// The bit that the guard looks for.
    decided: u32,
    /// The guard, since this agent has set it.
    guard: Option<Option<Guard>>,
    /// The table as nft lists it: it is put back from this.
    listing: String,
}

impl Table {
    /// Installs the rule for what is marked, in place of an older one. A guard that is there stays
    /// as it is until [`Self::guard`] says otherwise.
    ///
    /// # Errors
    /// `nft` is missing or refuses.
    pub fn install(mark: u32, decided: u32) -> Result<Self> {
        run(&format!(
            "table ip {TABLE} {{\n\
             \tcomment \"natctl: what is marked is translated by eBPF, not by a masquerade rule\"\n\
             \tchain postrouting {{ type nat hook postrouting priority srcnat - 10; policy accept; }}\n\
             }}\n\
             flush chain ip {TABLE} postrouting\n\
             add rule ip {TABLE} postrouting meta mark & {mark:#x} == {mark:#x} snat ip to ip saddr\n"
        ))?;
        Ok(Self {
            decided,
            guard: None,
            listing: list()?,
        })
    }

    /// Makes the guard what is wanted, in one step; `None`: there is none.
    ///
    /// # Errors
    /// `nft` is missing or refuses: what was there stays.
    pub fn guard(&mut self, wanted: Option<&Guard>) -> Result<()> {
        let same = |known: &Option<Guard>| match (known, wanted) {
            (Some(known), Some(wanted)) => known.holds_back_as(wanted),
            (known, wanted) => known.is_none() && wanted.is_none(),
        };
        if self.guard.as_ref().is_some_and(same) {
            return Ok(());
        }
        run(&match wanted {
            Some(guard) => standing(guard, self.decided),
            None => lifted(),
        })
        .context("set the guard")?;
        self.listing = list()?;
        self.guard = Some(wanted.cloned());
        Ok(())
    }

    /// Puts the table back if somebody has changed it; whether it had to. A `flush ruleset` of
    /// somebody else takes it away.
    ///
    /// # Errors
    /// `nft` is missing or refuses.
    pub fn keep(&self) -> Result<bool> {
        if list().is_ok_and(|listing| listing == self.listing) {
            return Ok(false);
        }
        run(&format!(
            "table ip {TABLE}\ndelete table ip {TABLE}\n{}",
            self.listing
        ))?;
        Ok(true)
    }
}

/// Removes the guard alone, if it is there: what comes without a decision passes.
///
/// # Errors
/// `nft` is missing or refuses.
pub fn lift_guard() -> Result<()> {
    run(&lifted())
}

/// Removes the table, if it is there.
///
/// # Errors
/// `nft` is missing or refuses.
pub fn remove() -> Result<()> {
    run(&format!("table ip {TABLE}\ndelete table ip {TABLE}\n"))
}

/// How many packets the guard has dropped; `None` where there is no guard.
pub fn held_back() -> Option<u64> {
    let output = Command::new("nft")
        .args(["-j", "list", "counter", "ip", TABLE, COUNTER])
        .output()
        .ok()?;
    let listing: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let mut objects = listing.get("nftables")?.as_array()?.iter();
    objects.find_map(|object| object.get("counter")?.get("packets")?.as_u64())
}

/// Whatever the guard consists of, without a rule: to add to what is there.
fn frame() -> String {
    format!(
        "table ip {TABLE} {{\n\
         \tcounter {COUNTER} {{ }}\n\
         \tset pods {{ type ipv4_addr; flags interval; }}\n\
         \tset untranslated {{ type ipv4_addr; flags interval; }}\n\
         \tchain guard {{ type filter hook postrouting priority raw; policy accept; }}\n\
         }}\n"
    )
}

fn lifted() -> String {
    format!(
        "{}delete chain ip {TABLE} guard\ndelete set ip {TABLE} pods\n\
         delete set ip {TABLE} untranslated\ndelete counter ip {TABLE} {COUNTER}\n",
        frame()
    )
}

/// What the node itself sends has no device that it came in through.
fn standing(guard: &Guard, decided: u32) -> String {
    format!(
        "{}flush chain ip {TABLE} guard\nflush set ip {TABLE} pods\n\
         flush set ip {TABLE} untranslated\n{}{}\
         add rule ip {TABLE} guard meta mark & {decided:#x} == 0 iif != 0 ip saddr @pods \
         ip daddr != @untranslated counter name {COUNTER} drop\n",
        frame(),
        elements("pods", &guard.pods),
        elements("untranslated", &guard.untranslated),
    )
}

/// An empty list of elements is no syntax of nft's.
fn elements(set: &str, networks: &[Ipv4Net]) -> String {
    let mut text = String::new();
    if let [first, rest @ ..] = networks {
        let _ = write!(text, "add element ip {TABLE} {set} {{ {first}");
        for network in rest {
            let _ = write!(text, ", {network}");
        }
        text += " }\n";
    }
    text
}

/// The table as it is, without what its counters count.
fn list() -> Result<String> {
    let output = Command::new("nft")
        .args(["-s", "list", "table", "ip", TABLE])
        .output()
        .context(MISSING)?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run(script: &str) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(MISSING)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_networks_with_commas_between() {
        let networks = ["10.0.0.0/8", "192.0.2.1/32"].map(|net| net.parse().unwrap());
        assert_eq!(
            elements("pods", &networks),
            "add element ip natctl pods { 10.0.0.0/8, 192.0.2.1/32 }\n"
        );
        assert_eq!(elements("pods", &[]), "");
    }
}
