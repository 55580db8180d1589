//! A file that is watched, and what it said when it was last good.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::error;

use super::Settle;
use crate::config::Problem;

/// How long changes are gathered: an editor makes several at once.
const SETTLE: Duration = Duration::from_millis(50);

/// What a file says, or everything that is wrong with it.
pub type Load<T> = fn(&Path) -> Result<T, Vec<Problem>>;

/// The file.
pub struct Watched<T> {
    path: PathBuf,
    load: Load<T>,
    /// As it was last read, to tell a change from a neighbour's.
    text: String,
    good: T,
    /// Why its present text is not used, while it is not.
    refused: Option<String>,
    changes: mpsc::Receiver<()>,
    settle: Settle,
    _watcher: RecommendedWatcher,
}

impl<T> Watched<T> {
    /// Reads the file for the first time, and watches it from then on.
    ///
    /// # Errors
    /// The file is refused, or cannot be watched.
    pub fn open(path: &Path, load: Load<T>) -> Result<Self> {
        let (watcher, changes) = watch(path)?;
        let text = read(path);
        let good = load(path).map_err(|problems| anyhow::Error::msg(lines(&problems)))?;
        Ok(Self {
            path: path.to_owned(),
            load,
            text,
            good,
            refused: None,
            changes,
            settle: Settle::new(SETTLE),
            _watcher: watcher,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it said when it was last good.
    pub const fn good(&self) -> &T {
        &self.good
    }

    /// Why its present text is not used, while it is not.
    pub fn problem(&self) -> Option<String> {
        let problem = self.refused.as_ref()?;
        Some(format!("the configuration file is refused: {problem}"))
    }

    /// Waits until the text is another. Something else in the directory may change often: the
    /// agent's own log may lie there. Safe to cancel.
    pub async fn changed(&mut self) {
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
            if read(&self.path) != self.text {
                return;
            }
        }
    }

    /// Reads it again if its text is another. It is taken whole, if it can be `used`, or not at all.
    pub fn look(&mut self, used: impl FnOnce(&T) -> Result<(), String>) {
        let text = read(&self.path);
        if text == self.text {
            return;
        }
        self.text = text;
        let loaded = (self.load)(&self.path).map_err(|problems| lines(&problems));
        match loaded.and_then(|loaded| used(&loaded).map(|()| loaded)) {
            Ok(loaded) => (self.good, self.refused) = (loaded, None),
            Err(problem) => {
                error!("the configuration is refused, the last good one stays:\n{problem}");
                self.refused = Some(problem);
            }
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    lines.join("\n")
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::time::timeout;

    use super::*;
    use crate::config;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// A directory as Kubernetes mounts a ConfigMap: the file leads through a link that is replaced.
    struct Mount(PathBuf);

    impl Mount {
        fn new(name: &str, text: &str) -> Self {
            let name = format!("natctl-watched-{name}-{}", std::process::id());
            let mount = Self(std::env::temp_dir().join(name));
            let _ = fs::remove_dir_all(&mount.0);
            fs::create_dir_all(&mount.0).unwrap();
            mount.swap("1", text);
            symlink("..data/node.yaml", mount.file()).unwrap();
            mount
        }

        fn file(&self) -> PathBuf {
            self.0.join("node.yaml")
        }

        fn swap(&self, version: &str, text: &str) {
            let directory = self.0.join(version);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("node.yaml"), text).unwrap();
            symlink(version, self.0.join("..data_tmp")).unwrap();
            fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
        }
    }

    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[tokio::test]
    async fn a_config_map_that_changes_is_read_again() {
        let mount = Mount::new("swap", "markBit: 20\n");
        let mut file = Watched::open(&mount.file(), config::load_node).unwrap();
        assert_eq!(file.good().mark_bit, 20);
        // Whatever else happens beside the file is no change of it.
        fs::write(mount.0.join("log"), "something").unwrap();
        let pause = Duration::from_millis(200);
        assert!(timeout(pause, file.changed()).await.is_err());
        mount.swap("2", "markBit: 21\n");
        timeout(PATIENCE, file.changed()).await.unwrap();
        file.look(|_| Ok(()));
        assert_eq!((file.good().mark_bit, file.problem()), (21, None));
    }

    #[tokio::test]
    async fn what_cannot_be_used_changes_nothing() {
        let mount = Mount::new("bad", "markBit: 20\n");
        let mut file = Watched::open(&mount.file(), config::load_node).unwrap();
        for (version, text, words) in [
            ("2", "markBit: 99\n", "node.yaml:1:10: markBit"),
            ("3", "markBit: 21\n", "refused: not today"),
        ] {
            mount.swap(version, text);
            timeout(PATIENCE, file.changed()).await.unwrap();
            file.look(|_| Err("not today".to_owned()));
            assert_eq!(file.good().mark_bit, 20);
            let problem = file.problem().unwrap();
            assert!(problem.contains(words), "{problem}");
        }
        fs::remove_file(mount.file()).unwrap();
        timeout(PATIENCE, file.changed()).await.unwrap();
        file.look(|_| Ok(()));
        assert!(file.problem().is_some() && file.good().mark_bit == 20);
        symlink("..data/node.yaml", mount.file()).unwrap();
        timeout(PATIENCE, file.changed()).await.unwrap();
        file.look(|_| Ok(()));
        assert_eq!((file.good().mark_bit, file.problem()), (21, None));
    }
}
