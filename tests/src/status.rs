//! What `natctl status` says, for assertions.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What `natctl status -o json` says.
pub struct Status(pub Value);

impl Status {
    /// Packets dropped for `reason`; 0 for a reason that is not listed.
    pub fn drops(&self, reason: &str) -> u64 {
        let listed = self.0["drops"].as_array().into_iter().flatten();
        listed
            .filter(|drop| drop["reason"] == reason)
            .filter_map(|drop| drop["count"].as_u64())
            .sum()
    }

    /// The entry of a client.
    pub fn client(&self, name: &str) -> Result<&Value> {
        self.find("clients", "name", name)
    }

    /// A client's live flows.
    pub fn flows(&self, client: &str) -> Result<u64> {
        self.client(client)?["flows"].as_u64().context("no flows")
    }

    /// Ports of an egress address for a protocol (`udp`) in a state (`used`, `free`, `resting`).
    pub fn ports(&self, address: Ipv4Addr, protocol: &str, state: &str) -> Result<u64> {
        let entry = self.find("addresses", "address", &address.to_string())?;
        entry["ports"][protocol][state]
            .as_u64()
            .with_context(|| format!("no {protocol} {state}: {entry}"))
    }

    /// Whether the agent is said to run.
    pub fn is_running(&self) -> bool {
        self.0["agent"]["running"] == true
    }

    /// The health in a word.
    pub fn health(&self) -> &str {
        self.0["health"]["state"].as_str().unwrap_or_default()
    }

    /// Fails with what is wrong unless all is well.
    pub fn is_well(&self) -> Result<()> {
        ensure!(self.health() == "ok", "{}", self.problems());
        Ok(())
    }

    /// What is wrong, in words.
    pub fn problems(&self) -> String {
        self.0["health"]["problems"].to_string()
    }

    /// The entry of a device.
    pub fn device(&self, name: &str) -> Result<&Value> {
        self.find("devices", "name", name)
    }

    fn find(&self, list: &str, field: &str, value: &str) -> Result<&Value> {
        let entries = self.0[list]
            .as_array()
            .with_context(|| format!("no {list}: {}", self.0))?;
        entries
            .iter()
            .find(|entry| entry[field] == value)
            .with_context(|| format!("no {value}: {}", self.0))
    }
}
