//! How large the cluster is, and how long it is measured.

use std::time::Duration;

/// A cluster, and what is measured in it.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Nodes, this one among them.
    pub nodes: usize,
    /// Pods of all nodes.
    pub pods: usize,
    /// Pods of this node, at most 250.
    pub own: usize,
    /// Pods that lose their egress address and get it again, one after another.
    pub patches: usize,
    /// How long the agent is given to become steady.
    pub steady: Duration,
    /// How long it is left alone.
    pub idle: Duration,
    /// How often it is restarted.
    pub restarts: usize,
}

impl Scale {
    /// What the goals are about.
    pub const FULL: Self = Self {
        nodes: 100,
        pods: 10_000,
        own: 250,
        patches: 200,
        steady: Duration::from_secs(5),
        idle: Duration::from_secs(60),
        restarts: 5,
    };

    /// To see that everything works.
    pub const QUICK: Self = Self {
        nodes: 4,
        pods: 40,
        own: 10,
        patches: 5,
        steady: Duration::from_secs(1),
        idle: Duration::from_secs(2),
        restarts: 1,
    };
}
