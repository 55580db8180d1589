//! Where snapshots come from: a file, or Kubernetes. The rest of the agent does not know which.
//!
//! ```text
//! file                 the configuration file, watched
//! kubernetes/          pods, namespaces, nodes and EgressPools, watched
//! watched              a file that is watched, for either
//! ```

pub mod file;
pub mod kubernetes;
pub mod watched;

use std::{collections::BTreeSet, net::Ipv4Addr, path::Path, time::Duration};

use tokio::time::{Instant, sleep_until};

use crate::{
    diff::State,
    facts::Facts,
    report,
    snapshot::{Limits, Settings, Snapshot},
};
use file::File;
use kubernetes::Kubernetes;

/// What a source is shown of the node.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// What the node is like.
    pub facts: &'a Facts,
    /// What the tables hold.
    pub state: &'a State,
    /// Numbers of the clients that may have sessions: those that had at the last sweep, and those
    /// that were written since.
    pub talking: &'a BTreeSet<u16>,
    /// What a file may not change now.
    pub fixed: &'a Fixed,
}

/// What cannot change while the tables are pinned and the programs loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Sizes of the tables.
    pub limits: Limits,
    /// As [`Settings::mark_bit`].
    pub mark_bit: u8,
    /// As [`Settings::decided_bit`].
    pub decided_bit: u8,
    /// What a person can do who wants other limits.
    pub way_out: String,
}

impl Fixed {
    /// What the agent has started with.
    pub const fn new(settings: &Settings, way_out: String) -> Self {
        Self {
            limits: settings.limits,
            mark_bit: settings.mark_bit,
            decided_bit: settings.decided_bit,
            way_out,
        }
    }

    /// # Errors
    /// One of them is another, with what to do.
    pub fn allows(&self, limits: Limits, mark_bit: u8, decided_bit: u8) -> Result<(), String> {
        if limits != self.limits {
            return Err(format!(
                "limits cannot change while the tables are pinned; {}",
                self.way_out
            ));
        }
        for (name, bit, loaded) in [
            ("markBit", mark_bit, self.mark_bit),
            ("decidedBit", decided_bit, self.decided_bit),
        ] {
            if bit != loaded {
                return Err(format!(
                    "{name} is a constant of the programs: restart nat-agent to change it"
                ));
            }
        }
        Ok(())
    }
}

/// What a source says when it is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Everything that is wanted.
    Snapshot(Box<Snapshot>),
    /// Not everything is known yet, and why: whatever the tables hold stays.
    NotYet(String),
}

/// Where snapshots come from.
pub enum Source {
    /// One file says everything.
    File(Box<File>),
    /// Kubernetes says whose packets are translated, a file what the node is like.
    Kubernetes(Box<Kubernetes>),
}

impl Source {
    /// The file, whose name the status gives.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(file) => file.path(),
            Self::Kubernetes(kubernetes) => kubernetes.path(),
        }
    }

    /// What the agent starts with.
    pub fn settings(&self) -> &Settings {
        match self {
            Self::File(file) => file.settings(),
            Self::Kubernetes(kubernetes) => kubernetes.settings(),
        }
    }

    /// Whether the answer depends on the node, too: it is asked for again when that changes.
    pub const fn follows_node(&self) -> bool {
        matches!(self, Self::Kubernetes(_))
    }

    /// Waits until the answer may be another. Safe to cancel.
    pub async fn changed(&mut self) {
        match self {
            Self::File(file) => file.changed().await,
            Self::Kubernetes(kubernetes) => kubernetes.changed().await,
        }
    }

    /// What is wanted now.
    pub fn ask(&mut self, view: View<'_>) -> Answer {
        match self {
            Self::File(file) => file.ask(view.fixed),
            Self::Kubernetes(kubernetes) => kubernetes.ask(view),
        }
    }

    /// What was said last is in force, but for `problem`.
    pub fn applied(&mut self, view: View<'_>, problem: Option<&str>) {
        match self {
            Self::File(_) => {}
            Self::Kubernetes(kubernetes) => kubernetes.applied(view, problem),
        }
    }

    /// Neighbours that the kernel has to look for, so that a client's link is found.
    pub fn sought(&self) -> &[(u32, Ipv4Addr)] {
        match self {
            Self::File(_) => &[],
            Self::Kubernetes(kubernetes) => kubernetes.sought(),
        }
    }

    /// Whether everything is to be taken off the node when the agent ends.
    pub async fn is_uninstalled(&self) -> bool {
        match self {
            Self::File(_) => false,
            Self::Kubernetes(kubernetes) => kubernetes.is_uninstalled().await,
        }
    }

    /// What stands in the way on the source's side, in plain words.
    pub fn problems(&self) -> Vec<String> {
        match self {
            Self::File(file) => file.problem().into_iter().collect(),
            Self::Kubernetes(kubernetes) => kubernetes.problems(),
        }
    }

    /// What the agent reports of Kubernetes; `None` where there is none.
    pub fn report(&self) -> Option<report::Kubernetes> {
        match self {
            Self::File(_) => None,
            Self::Kubernetes(kubernetes) => Some(kubernetes.report()),
        }
    }
}

/// Gathers changes for a moment.
struct Settle {
    pause: Duration,
    until: Option<Instant>,
}

impl Settle {
    const fn new(pause: Duration) -> Self {
        Self { pause, until: None }
    }

    /// Waits for `first` and then the pause out. A call that is cancelled in its pause is taken up
    /// by the next one: `first` is not lost.
    async fn after(&mut self, first: impl Future<Output = ()>) {
        let until = match self.until {
            Some(until) => until,
            None => {
                first.await;
                *self.until.insert(Instant::now() + self.pause)
            }
        };
        sleep_until(until).await;
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_change_survives_being_cancelled() {
        let mut settle = Settle::new(Duration::from_millis(20));
        let cancelled = timeout(Duration::from_millis(1), settle.after(async {})).await;
        assert!(cancelled.is_err());
        let done = timeout(Duration::from_secs(5), settle.after(std::future::pending())).await;
        assert!(done.is_ok(), "the first change was lost");
        let nothing = timeout(
            Duration::from_millis(40),
            settle.after(std::future::pending()),
        );
        assert!(nothing.await.is_err(), "one change was told twice");
    }
}
