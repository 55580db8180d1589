//! A test bed: one candidate in a gateway of its own, with a generator before and a sink behind.

use anyhow::{Context, Result};

use super::candidate::{Candidate, Installed};
use super::mix::Mix;
use super::topology::Topology;
use super::traffic::Traffic;

/// A candidate in place. Fields are dropped in their order: the namespaces last.
pub struct Bed {
    /// Its frames.
    pub traffic: Traffic,
    _installed: Installed,
    _topology: Topology,
}

impl Bed {
    /// Sets a candidate up.
    pub fn set_up(candidate: &dyn Candidate, mix: Mix) -> Result<Self> {
        let topology = Topology::create()?;
        topology.for_frames()?;
        let traffic = Traffic::set_up(&topology, mix, candidate.translates())?;
        let installed = candidate
            .install(&topology, &mix)
            .with_context(|| candidate.name())?;
        Ok(Self {
            traffic,
            _installed: installed,
            _topology: topology,
        })
    }
}
