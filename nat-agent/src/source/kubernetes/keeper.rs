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

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use tokio::time::timeout;

    use super::*;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "plugins": [{"type": "ptp"}]}"#;

    #[tokio::test]
    async fn the_plugin_is_put_back() {
        let name = format!("natctl-keeper-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let shared = Shared::default();
        let mut keeper = Keeper::new(&directory, &shared);
        keeper.keep();
        assert!(keeper.problem().is_some(), "there is no such directory");
        fs::create_dir_all(&directory).unwrap();
        let list = directory.join("10-pods.conflist");
        for text in [LIST, &LIST.replace("ptp", "bridge")] {
            fs::write(&list, text).unwrap();
            let put_back = async {
                loop {
                    keeper.keep();
                    if fs::read_to_string(&list).unwrap().contains(nat_cni::NAME) {
                        return;
                    }
                    shared.changed().await;
                }
            };
            timeout(Duration::from_secs(10), put_back).await.unwrap();
            assert_eq!(keeper.problem(), None);
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
