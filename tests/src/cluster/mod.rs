//! A Kubernetes cluster on one machine: real API server, kubelets, containerd and CNI plugins, each node in namespaces
//! of its own.
//!
//! What is up is found by its names alone, never by what some process remembers: so a later command can use it, and
//! all of it can be removed however far it came.

mod address;
mod build;
mod cgroup;
mod control_plane;
mod disk;
mod go;
mod inside;
mod kubectl;
mod logs;
mod machine;
mod network;
mod node;
mod pki;
mod place;
mod record;
mod root;
mod supervisor;
mod sweep;

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::image;
use crate::netns::Netns;

pub use build::programs;
pub use machine::{boot, run};
pub use node::Node;
pub use place::{MOST_NODES, Machine, Place};
pub use record::Cni;
use record::Record;

/// The server outside: it knows the way to every pod and node.
pub const OUTSIDE: Ipv4Addr = address::OUTSIDE;
/// The device of a node, and of the server outside, on its link.
pub const DEVICE: &str = network::DEVICE;
/// What a test's cluster is called, before its process id.
const TEST_PREFIX: &str = "natk";

const ACCOUNTS: [&str; 2] = ["default", "kube-system"];
/// There when the kernel can show conntrack what a bridge carries: answers from the same bridge pass it by otherwise.
const BRIDGE_FILTER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// What a cluster shall be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name, made of letters and digits; none: one that no other process uses.
    pub name: Option<String>,
    /// How many nodes.
    pub nodes: u8,
    /// How pods are connected.
    pub cni: Cni,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: None,
            nodes: 3,
            cni: Cni::Ptp,
        }
    }
}

/// A cluster that is up. Dropped, it is removed, unless it was opened or kept.
pub struct Cluster {
    place: Place,
    record: Record,
    kept: bool,
}

impl Cluster {
    /// Makes a cluster and waits until its nodes are ready. Removes what it made when that fails.
    pub fn up(options: &Options) -> Result<Self> {
        ensure!(
            (1..=MOST_NODES).contains(&options.nodes),
            "a cluster has 1 to {MOST_NODES} nodes, not {}",
            options.nodes
        );
        ensure!(
            options.cni != Cni::Bridge || Path::new(BRIDGE_FILTER).exists(),
            "Services do not work behind a bridge without the kernel's module br_netfilter: `modprobe br_netfilter`"
        );
        let place = match &options.name {
            Some(name) => Place::new(name)?,
            None => own_place()?,
        };
        let programs = build::programs()?;
        claim(&place)?;
        let cluster = Self {
            place,
            record: Record {
                nodes: options.nodes,
                cni: options.cni,
                programs,
            },
            kept: false,
        };
        cluster.make()?;
        Ok(cluster)
    }

    /// The cluster called `name`, which is up already. It stays when this value is dropped.
    pub fn open(name: &str) -> Result<Self> {
        let place = Place::new(name)?;
        let record = Record::read(&place)?;
        Ok(Self {
            place,
            record,
            kept: true,
        })
    }

    /// Leaves it up when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Removes it.
    pub fn down(mut self) -> Result<()> {
        self.kept = true;
        sweep::remove(&self.place)
    }

    /// Runs kubectl with the words of `line` and returns what it printed.
    pub fn kubectl(&self, line: &str) -> Result<String> {
        kubectl::run(
            &self.place,
            &line.split_whitespace().collect::<Vec<_>>(),
            "",
        )
    }

    /// A kubectl, to be told what to do.
    pub fn kubectl_command(&self) -> Result<Command> {
        kubectl::command(&self.place)
    }

    /// Runs Helm with the words of `line` and returns what it printed.
    pub fn helm(&self, line: &str) -> Result<String> {
        kubectl::helm(&self.place, line)
    }

    /// Applies manifests in YAML.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        kubectl::run(&self.place, &["apply", "-f", "-"], manifests)
    }

    /// Node `number`, from 1.
    pub fn node(&self, number: u8) -> Result<Node<'_>> {
        let nodes = self.record.nodes;
        ensure!(
            (1..=nodes).contains(&number),
            "there is no node {number}: they are numbered 1 to {nodes}"
        );
        Ok(Node {
            cluster: self,
            number,
        })
    }

    /// All nodes, running or not.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_>> {
        (1..=self.record.nodes).map(|number| Node {
            cluster: self,
            number,
        })
    }

    /// Ends the API server and all else of the control plane. The nodes go on.
    pub fn stop_control_plane(&self) -> Result<()> {
        machine::kill(&self.place, Machine::Control)
    }

    /// Starts the control plane again, with all that it knew, and waits until the API server answers.
    pub fn start_control_plane(&self) -> Result<()> {
        control_plane::start(&self.place)
    }

    /// The namespace of the server on the outside link: a place for servers, and for a sniffer at [`DEVICE`].
    pub fn outside(&self) -> Netns {
        network::outside(&self.place)
    }

    /// Imports the image in an archive into every running node, and into the others when they boot.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let name = archive
            .file_name()
            .with_context(|| format!("{} is no file", archive.display()))?;
        let copy = self.place.images().join(name);
        fs::copy(archive, &copy).with_context(|| archive.display().to_string())?;
        let imported = self
            .nodes()
            .filter(Node::is_running)
            .try_for_each(|node| node.import(name));
        if imported.is_err() {
            // No node would boot with it.
            fs::remove_file(&copy)?;
        }
        imported
    }

    fn make(&self) -> Result<()> {
        let step = Steps::begin();
        self.record.write(&self.place)?;
        pki::create(&self.place.pki(), self.record.nodes)?;
        image::write_test_images(&self.place.images())?;
        step.done("certificates and images");
        network::lay_out(&self.place)?;
        for node in self.nodes() {
            disk::provision(&self.place, node.number, self.record.cni)?;
        }
        control_plane::start(&self.place)?;
        step.done("the API server answers");
        self.apply(include_str!("../../cluster/rbac.yaml"))?;
        let objects: String = self.nodes().map(|node| node::object(node.number)).collect();
        self.apply(&objects)?;
        let boots = self
            .nodes()
            .map(|node| node.boot())
            .collect::<Result<Vec<_>>>()?;
        for (node, boot) in self.nodes().zip(boots) {
            node.wait_ready(&boot)?;
            step.done(&format!("{} is ready", node.name()));
        }
        // A pod that is made before them is refused.
        for namespace in ACCOUNTS {
            self.kubectl(&format!(
                "wait --for=create serviceaccount/default -n {namespace} --timeout=60s"
            ))?;
        }
        step.done("pods can be made");
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = sweep::remove(&self.place)
        {
            eprintln!("{error:#}");
        }
    }
}

/// Removes the cluster called `name`, however much there is of it. Says whether there was any.
pub fn down(name: &str) -> Result<bool> {
    let place = Place::new(name)?;
    let found = sweep::is_anything_left(&place)?;
    sweep::remove(&place)?;
    Ok(found)
}

/// Takes the cluster's directory, which no second one can.
fn claim(place: &Place) -> Result<()> {
    let states = place::states();
    fs::create_dir_all(&states).with_context(|| states.display().to_string())?;
    match fs::create_dir(place.directory()) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => bail!(
            "the cluster is up already, or an attempt at it was broken off: `cargo xtask cluster down` removes it"
        ),
        result => result.with_context(|| place.directory().display().to_string()),
    }
}

/// A name of this process's own. The first call removes what dead processes left behind.
fn own_place() -> Result<Place> {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    if number == 0 {
        remove_leftovers()?;
    }
    Place::new(&format!("{TEST_PREFIX}{}x{number}", std::process::id()))
}

/// Removes the clusters of tests that were killed; their names carry the process id.
pub fn remove_leftovers() -> Result<()> {
    for entry in fs::read_dir(place::states()).into_iter().flatten() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(TEST_PREFIX)
            .and_then(|rest| rest.split_once('x')?.0.parse::<u32>().ok());
        if owner.is_some_and(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()) {
            sweep::remove(&Place::new(&name)?)?;
        }
    }
    Ok(())
}

/// Tells how a cluster comes up.
struct Steps(Instant);

impl Steps {
    fn begin() -> Self {
        Self(Instant::now())
    }

    fn done(&self, what: &str) {
        eprintln!("  {:4.1} s  {what}", self.0.elapsed().as_secs_f32());
    }
}
