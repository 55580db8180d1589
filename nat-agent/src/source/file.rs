//! The configuration file as a source: watched, and read again when its text is another.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::{Answer, Settle};
use crate::{config, snapshot::Settings, snapshot::Snapshot};

/// How long changes are gathered: an editor makes several at once.
const SETTLE: Duration = Duration::from_millis(50);

/// The file.
pub struct File {
    path: PathBuf,
    settings: Settings,
    /// As it was last read, to tell a change from a neighbour's.
    text: String,
    changes: mpsc::Receiver<()>,
    settle: Settle,
    _watcher: RecommendedWatcher,
}

impl File {
    /// Reads the file for the first time, and watches it from then on.
    ///
    /// # Errors
    /// The file is refused, or cannot be watched.
    pub fn open(path: &Path) -> Result<Self> {
        let snapshot = load(path).map_err(anyhow::Error::msg)?;
        let (watcher, changes) = watch(path)?;
        Ok(Self {
            path: path.to_owned(),
            settings: Settings {
                devices: snapshot.devices,
                cluster_ranges: snapshot.cluster_ranges,
                limits: snapshot.limits,
                mark_bit: snapshot.mark_bit,
                decided_bit: snapshot.decided_bit,
                sweep_interval: snapshot.sweep_interval,
                guard: false,
                pod_ranges: Vec::new(),
            },
            text: String::new(),
            changes,
            settle: Settle::new(SETTLE),
            _watcher: watcher,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Waits until the text is another. Something else in the directory may change often: the
    /// agent's own log may lie there.
    pub(super) async fn changed(&mut self) {
        loop {
            let changes = &mut self.changes;
            self.settle
                .after(async {
                    if changes.recv().await.is_none() {
                        std::future::pending().await
                    }
                })
                .await;
            while self.changes.try_recv().is_ok() {}
            if self.read() != self.text {
                return;
            }
        }
    }

    pub(super) fn ask(&mut self) -> Answer {
        self.text = self.read();
        match load(&self.path) {
            Ok(snapshot) => Answer::Snapshot(Box::new(snapshot)),
            Err(problem) => Answer::Refused(problem),
        }
    }

    fn read(&self) -> String {
        fs::read_to_string(&self.path).unwrap_or_default()
    }
}

fn load(path: &Path) -> Result<Snapshot, String> {
    config::load(path).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        lines.join("\n")
    })
}

/// Watches the file's directory: editors and Kubernetes replace files by renaming.
fn watch(file: &Path) -> Result<(RecommendedWatcher, mpsc::Receiver<()>)> {
    let (sender, receiver) = mpsc::channel(16);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the file is an event too; only what changes it counts.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = sender.try_send(());
        }
    })?;
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    watcher
        .watch(directory, RecursiveMode::NonRecursive)
        .with_context(|| format!("watch {}", directory.display()))?;
    Ok((watcher, receiver))
}
