//! What a cluster's things are called, and where its files lie.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};

/// Names another directory, by an absolute path, for what clusters need while they are up.
const STATE_VARIABLE: &str = "NATCTL_CLUSTER_STATE";
/// A node's disk lies here, too. Not under /tmp: overlayfs refuses some file systems that are used there.
const STATE: &str = "/var/lib/natctl-cluster";
/// Names another directory for what is built once.
const CACHE_VARIABLE: &str = "NATCTL_CACHE";

/// The most nodes there may be: each has a digit in its addresses.
pub const MOST_NODES: u8 = 9;

/// One cluster's names and directories.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
}

impl Place {
    /// The place of the cluster `name`.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "a cluster's name is made of letters and digits, not {name:?}"
        );
        Ok(Self {
            name: name.to_string(),
        })
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the names of its namespaces and cgroups begin with.
    pub fn prefix(&self) -> String {
        format!("{}-", self.name)
    }

    /// What a namespace or cgroup of its own is called.
    pub fn own(&self, what: impl fmt::Display) -> String {
        format!("{}-{what}", self.name)
    }

    /// All its files; there is a cluster if there is this directory.
    pub fn directory(&self) -> PathBuf {
        states().join(&self.name)
    }

    /// What it was made as.
    pub fn record(&self) -> PathBuf {
        self.directory().join("record.json")
    }

    /// Certificates, keys and kubeconfigs of the control plane and its users.
    pub fn pki(&self) -> PathBuf {
        self.directory().join("pki")
    }

    /// What the administrator's kubectl uses.
    pub fn kubeconfig(&self) -> PathBuf {
        self.pki().join("admin.kubeconfig")
    }

    /// Images that every node imports when it boots.
    pub fn images(&self) -> PathBuf {
        self.directory().join("images")
    }

    /// The files of a machine.
    pub fn machine(&self, machine: Machine) -> PathBuf {
        self.directory().join(machine.to_string())
    }

    /// A node's disk.
    pub fn root(&self, node: u8) -> PathBuf {
        self.machine(Machine::Node(node)).join("root")
    }

    /// Where a machine's programs write what they have to say.
    pub fn logs(&self, machine: Machine) -> PathBuf {
        match machine {
            Machine::Control => self.machine(machine).join("log"),
            Machine::Node(node) => self.root(node).join("var/log"),
        }
    }

    /// What a machine's first process has to say.
    pub fn boot_log(&self, machine: Machine) -> PathBuf {
        self.machine(machine).join("boot.log")
    }
}

/// Something that boots: PID 1 of namespaces of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// etcd, API server, controller manager and scheduler; also the router between nodes and the outside.
    Control,
    /// A node, by its number from 1.
    Node(u8),
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Control => f.write_str("control"),
            Self::Node(number) => write!(f, "n{number}"),
        }
    }
}

impl FromStr for Machine {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix('n') {
            None if text == "control" => Ok(Self::Control),
            Some(number) => Ok(Self::Node(number.parse()?)),
            None => Err(Error::msg(format!("there is no machine {text}"))),
        }
    }
}

/// Where all clusters' directories are.
pub fn states() -> PathBuf {
    let named = std::env::var_os(STATE_VARIABLE).filter(|path| Path::new(path).is_absolute());
    named.map_or_else(|| STATE.into(), PathBuf::from)
}

/// Where what is built once is kept.
pub fn cache() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    variable(CACHE_VARIABLE)
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("natctl")))
        .or_else(|| Some(variable("HOME")?.join(".cache/natctl")))
        .filter(|path: &PathBuf| Path::is_absolute(path))
        .with_context(|| {
            format!("no directory for a cache: set {CACHE_VARIABLE} to an absolute path")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_found_by_their_names() {
        for machine in [Machine::Control, Machine::Node(7)] {
            assert_eq!(machine.to_string().parse::<Machine>().unwrap(), machine);
        }
        assert!("x1".parse::<Machine>().is_err());
    }

    #[test]
    fn names_cannot_lead_out_of_the_directory() {
        assert!(Place::new("").is_err());
        assert!(Place::new("../x").is_err());
        assert_eq!(Place::new("a1").unwrap().own("n1"), "a1-n1");
    }
}
