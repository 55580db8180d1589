//! What a cluster was made as, for the commands that come later.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::place::Place;

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// A veth and a host route each.
    #[default]
    Ptp,
    /// A bridge that holds all veths.
    Bridge,
}

impl Cni {
    /// The plugins' configuration, but for the node's POD_CIDR.
    pub fn conflist(self) -> &'static str {
        match self {
            Self::Ptp => include_str!("../../cluster/ptp.conflist"),
            Self::Bridge => include_str!("../../cluster/bridge.conflist"),
        }
    }
}

/// What a cluster was made as.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// How many nodes it has, running or not.
    pub nodes: u8,
    /// How pods are connected.
    pub cni: Cni,
    /// Where the programs of Kubernetes are.
    pub programs: PathBuf,
}

impl Record {
    /// Reads the record of a cluster that is up.
    pub fn read(place: &Place) -> Result<Self> {
        let text = fs::read_to_string(place.record())
            .context("there is no cluster: `cargo xtask cluster up` makes one")?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Writes it.
    pub fn write(&self, place: &Place) -> Result<()> {
        Ok(fs::write(place.record(), serde_json::to_string(self)?)?)
    }
}
