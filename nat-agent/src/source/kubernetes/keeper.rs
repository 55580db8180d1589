//! Keeps the CNI plugin in the node's network configuration: the CNI's own daemon may write that anew.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context, Result};
use nat_cni::install::{self, Chained};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tracing::info;

use super::watch::Shared;

/// Looks after a directory of network configurations.
pub struct Keeper {
    directory: PathBuf,
    shared: Shared,
    /// Something is another there.
    changed: Arc<AtomicBool>,
    watcher: Option<RecommendedWatcher>,
    problem: Option<String>,
}

impl Keeper {
    /// For a directory.
    pub fn new(directory: &Path, shared: &Shared) -> Self {
        Self {
            directory: directory.to_owned(),
            shared: shared.clone(),
            changed: Arc::new(AtomicBool::new(true)),
            watcher: None,
            problem: None,
        }
    }

    /// Chains the plugin if it is not. Costs nothing while nothing changes.
    pub fn keep(&mut self) {
        if !self.changed.swap(false, Ordering::Relaxed) {
            return;
        }
        self.problem = self.look().err().map(|error| {
            self.changed.store(true, Ordering::Relaxed);
            format!("new pods do not wait for nat-agent: {error:#}")
        });
    }

    /// Why the plugin is not chained.
    pub fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    fn look(&mut self) -> Result<()> {
        if self.watcher.is_none() {
            self.watcher = Some(self.watch()?);
        }
        if let Chained::Now(path) = install::chain(&self.directory)? {
            info!("{} has the CNI plugin now", path.display());
        }
        Ok(())
    }

    fn watch(&self) -> Result<RecommendedWatcher> {
        let (changed, shared) = (self.changed.clone(), self.shared.clone());
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                if event.is_ok_and(|event| !event.kind.is_access()) {
                    changed.store(true, Ordering::Relaxed);
                    shared.wake();
                }
            })?;
        watcher
            .watch(&self.directory, RecursiveMode::NonRecursive)
            .with_context(|| format!("watch {}", self.directory.display()))?;
        Ok(watcher)
    }
}
