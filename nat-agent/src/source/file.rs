//! The configuration file as a source.

use std::path::Path;

use anyhow::Result;

use super::{Answer, Fixed, watched::Watched};
use crate::{config, snapshot::Settings, snapshot::Snapshot};

/// The file.
pub struct File {
    file: Watched<Snapshot>,
    settings: Settings,
}

impl File {
    /// Reads the file for the first time, and watches it from then on.
    ///
    /// # Errors
    /// The file is refused, or cannot be watched.
    pub fn open(path: &Path) -> Result<Self> {
        let file = Watched::open(path, config::load)?;
        let snapshot = file.good();
        let settings = Settings {
            devices: snapshot.devices.clone(),
            cluster_ranges: snapshot.cluster_ranges.clone(),
            limits: snapshot.limits,
            mark_bit: snapshot.mark_bit,
            decided_bit: snapshot.decided_bit,
            sweep_interval: snapshot.sweep_interval,
            guard: false,
            pod_ranges: Vec::new(),
        };
        Ok(Self { file, settings })
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) async fn changed(&mut self) {
        self.file.changed().await;
    }

    pub(super) fn ask(&mut self, fixed: &Fixed) -> Answer {
        self.file.look(|snapshot| {
            fixed.allows(snapshot.limits, snapshot.mark_bit, snapshot.decided_bit)
        });
        Answer::Snapshot(Box::new(self.file.good().clone()))
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.file.problem()
    }
}
