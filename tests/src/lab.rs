//! Topologies of network namespaces, each with the sniffer on its outside link.
//!
//! ```text
//! local pods:   pod1 eth0 --- vethpod1 \
//!               pod2 eth0 --- vethpod2 - node eth0 --- eth0 server
//! routed:       client eth0 ------ eth1 /
//! ```
//!
//! The outside link is 203.0.113.0/24: the node is .1, the server .2 and .3, and behind the server as a router lies
//! 198.51.100.1. The egress addresses, .10 and up, are configured nowhere.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use crate::netns::{self, Netns};
use crate::sniffer::Sniffer;
use crate::topology;

/// The node's outside device, and every namespace's only device elsewhere.
pub const OUTSIDE: &str = "eth0";
/// The node's device toward routed clients.
pub const INSIDE: &str = "eth1";
/// The node's own address on the outside link.
pub const NODE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// A second address of the server on the same link.
pub const SERVER_2: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);
/// An address of the server that is reached through it as a router.
pub const BEYOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Egress addresses, configured nowhere.
pub const EGRESS: [Ipv4Addr; 3] = [
    Ipv4Addr::new(203, 0, 113, 10),
    Ipv4Addr::new(203, 0, 113, 11),
    Ipv4Addr::new(203, 0, 113, 12),
];

const BPFFS: &str = "/sys/fs/bpf";
static NUMBER: AtomicU32 = AtomicU32::new(0);
/// Labs of one process take turns: most tests have time limits, and the machine may have two cores.
static TURN: Mutex<()> = Mutex::new(());

/// How pods reach their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodNetwork {
    /// A host route to each veth, as Calico and ptp do.
    Routed,
    /// A bridge holding all veths, as the bridge plugin and flannel do.
    Bridge,
}

/// The device whose settings a lab changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The pods' own ends, or the client's.
    Inside,
    /// The node's ends toward pods or the client.
    NodeInside,
    /// The node's end of the outside link.
    NodeOutside,
    /// The server's end of it.
    Server,
}

/// A pod, or an address of the routed client.
#[derive(Clone)]
pub struct Host {
    /// Where its programs run.
    pub netns: Netns,
    /// Its address.
    pub address: Ipv4Addr,
    /// The node's device toward it.
    pub device: String,
    /// Its name as a client of the agent.
    pub name: String,
}

/// What a lab will look like.
#[derive(Clone)]
pub struct Builder {
    prefix: Option<String>,
    pods: u8,
    routed: u8,
    pod_network: PodNetwork,
    offload_off: Vec<Port>,
    gro_on: Vec<Port>,
    alone: bool,
}

/// Namespaces, links and the sniffer; all of it goes away with this value.
pub struct Lab {
    // In the order of dropping: the sniffer ends while there is still something to sniff at.
    sniffer: Option<Sniffer>,
    /// The pods, or the client once for each of its addresses.
    pub hosts: Vec<Host>,
    /// The node that translates.
    pub node: Netns,
    /// The world.
    pub server: Netns,
    prefix: String,
    directory: Directory,
    _turn: Option<MutexGuard<'static, ()>>,
}

/// `count` local pods on a node.
pub fn pods(count: u8) -> Builder {
    Builder {
        prefix: None,
        pods: count,
        routed: 0,
        pod_network: PodNetwork::Routed,
        offload_off: Vec::new(),
        gro_on: Vec::new(),
        alone: true,
    }
}

/// A client with `addresses` behind the node as a router, set up for native XDP: checksums complete as on a real
/// wire, and GRO on where redirected frames arrive (a veth drops them otherwise).
pub fn routed(addresses: u8) -> Builder {
    let off = vec![Port::Inside, Port::Server];
    Builder {
        routed: addresses,
        offload_off: off.clone(),
        gro_on: off,
        ..pods(0)
    }
}

impl Builder {
    /// Uses `prefix` in all names instead of one that carries the process id.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.to_string());
        self
    }

    /// Connects the pods in another way.
    pub fn pod_network(mut self, network: PodNetwork) -> Self {
        self.pod_network = network;
        self
    }

    /// Turns transmit checksum offload off at `ports` alone: what they send then carries a whole checksum.
    pub fn offload_off(mut self, ports: &[Port]) -> Self {
        self.offload_off = ports.to_vec();
        self
    }

    /// Turns GRO on at `ports` alone.
    pub fn gro_on(mut self, ports: &[Port]) -> Self {
        self.gro_on = ports.to_vec();
        self
    }

    /// Does not wait for other labs of this process to end: for tests that need two at once.
    pub fn beside_others(mut self) -> Self {
        self.alone = false;
        self
    }

    /// Builds it.
    pub fn build(self) -> Result<Lab> {
        let turn = self
            .alone
            .then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
        let prefix = self.prefix.clone().unwrap_or_else(own_prefix);
        let directory = Directory::create(&prefix)?;
        let node = Netns::create(&format!("{prefix}-node"))?;
        let server = Netns::create(&format!("{prefix}-server"))?;
        topology::set_up_outside(&node, &server)?;
        let hosts = if self.routed > 0 {
            topology::add_client(&node, &prefix, self.routed)?
        } else {
            topology::add_pods(&node, &prefix, self.pods, self.pod_network)?
        };
        let mut lab = Lab {
            sniffer: None,
            hosts,
            node,
            server,
            prefix,
            directory,
            _turn: turn,
        };
        for port in &self.offload_off {
            lab.ethtool(*port, "tx off")?;
        }
        for port in &self.gro_on {
            lab.ethtool(*port, "gro on")?;
        }
        let allowed: Vec<_> = EGRESS.into_iter().chain([NODE]).collect();
        lab.sniffer = Some(Sniffer::guard(&lab.server, OUTSIDE, &allowed)?);
        Ok(lab)
    }
}

impl Lab {
    /// The witness on the outside link.
    pub fn sniffer(&self) -> &Sniffer {
        self.sniffer
            .as_ref()
            .expect("a lab has its sniffer until it ends")
    }

    /// A directory for files, gone with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// What the names of everything in it begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A directory on bpffs that nobody else uses. Neither made nor removed by the lab.
    pub fn bpffs(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.prefix)
    }

    /// Changes device features at `port`, as `ethtool -K` takes them.
    pub fn ethtool(&self, port: Port, features: &str) -> Result<()> {
        for (netns, device) in self.devices(port) {
            netns.run(&format!("ethtool -K {device} {features}"))?;
        }
        Ok(())
    }

    fn devices(&self, port: Port) -> Vec<(&Netns, &str)> {
        let mut devices: Vec<(&Netns, &str)> = match port {
            Port::Inside => self
                .hosts
                .iter()
                .map(|host| (&host.netns, OUTSIDE))
                .collect(),
            Port::NodeInside => self
                .hosts
                .iter()
                .map(|host| (&self.node, host.device.as_str()))
                .collect(),
            Port::NodeOutside => vec![(&self.node, OUTSIDE)],
            Port::Server => vec![(&self.server, OUTSIDE)],
        };
        devices.dedup_by_key(|(netns, device)| (netns.name(), *device));
        devices
    }

    /// Ends the sniffer with its verdict, an error for any frame that must not have been. All else stays up.
    pub fn verdict(&mut self) -> Result<()> {
        self.sniffer.take().map_or(Ok(()), Sniffer::finish)
    }

    /// Ends the lab with the sniffer's verdict.
    pub fn finish(mut self) -> Result<()> {
        self.verdict()
    }

    /// Ends the sniffer with its verdict and leaves all else in place.
    pub fn keep(mut self) -> Result<()> {
        self.hosts
            .iter()
            .map(|host| &host.netns)
            .chain([&self.node, &self.server])
            .for_each(Netns::keep);
        self.directory.1 = true;
        self.verdict()
    }
}

/// A directory under /tmp, removed on drop unless kept.
struct Directory(PathBuf, bool);

impl Directory {
    fn create(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path, false))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !self.1 {
            // Left behind, it is removed when the next lab starts.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// A prefix that nobody else uses; the first call removes what dead processes left behind.
fn own_prefix() -> String {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    if number == 0 {
        remove_leftovers();
    }
    format!("nt{}-{number}", std::process::id())
}

/// Removes everything that labs with names beginning with `prefix` left: processes, namespaces, pins, files.
pub fn remove(prefix: &str) {
    netns::remove(prefix);
    for directory in [Path::new(BPFFS), &std::env::temp_dir()] {
        for path in entries(directory).filter(|path| file_name(path).starts_with(prefix)) {
            // Whatever cannot be removed now is tried again by the next lab.
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// Removes what the labs of dead processes left behind; names carry the process id.
pub fn remove_leftovers() {
    let directories = [
        Path::new("/run/netns"),
        Path::new(BPFFS),
        &std::env::temp_dir(),
    ];
    let mut dead: Vec<u32> = directories
        .into_iter()
        .flat_map(entries)
        .filter_map(|path| owner(&file_name(&path)))
        .filter(|pid| !Path::new("/proc").join(pid.to_string()).exists())
        .collect();
    dead.sort_unstable();
    dead.dedup();
    dead.iter().for_each(|pid| remove(&format!("nt{pid}-")));
}

/// The process id in a name that [`own_prefix`] made.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix("nt")?.split_once('-')?.0.parse().ok()
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
