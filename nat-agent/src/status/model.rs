//! What `natctl status` says. These fields are its JSON: `docs/natctl.md` names
//! every one, and [`SCHEMA`] grows when one changes its meaning or goes.

use std::net::IpAddr;

use serde::Serialize;

use crate::report::{HookReport, Kubernetes, Role};

/// Version of the JSON of all commands. Fields may be added under the same number.
pub const SCHEMA: u32 = 1;

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Version of natctl.
    pub version: String,
    /// Where the maps are pinned.
    pub bpffs: String,
    /// When this was read, Unix seconds.
    pub time: u64,
    /// Whether all is well.
    pub health: Health,
    /// The agent.
    pub agent: Agent,
    /// Where programs are attached.
    pub devices: Vec<Device>,
    /// Egress addresses.
    pub addresses: Vec<Address>,
    /// Whose packets are translated.
    pub clients: Vec<Client>,
    /// Networks that are never translated to, as the agent reported them.
    pub cluster_ranges: Vec<String>,
    /// What the agent reported of Kubernetes; null where that is not its source.
    pub kubernetes: Option<Kubernetes>,
    /// Packets dropped, for every reason there is.
    pub drops: Vec<Dropped>,
    /// How full the tables are.
    pub tables: Vec<Table>,
}

/// Whether all is well.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// In a word.
    pub state: HealthState,
    /// Since when, Unix seconds, where it is known.
    pub since: Option<u64>,
    /// What is wrong, in plain words.
    pub problems: Vec<String>,
}

/// Health in a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HealthState {
    /// The agent runs, and nothing is wrong.
    #[default]
    Ok,
    /// The agent runs, and something is wrong.
    Degraded,
    /// The agent does not run.
    AgentDown,
}

/// The agent: what is not known is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Whether it runs.
    pub running: bool,
    /// Since when it runs, or since when it was not heard of; Unix seconds.
    pub since: Option<u64>,
    /// When it last reported, Unix seconds.
    pub heartbeat: Option<u64>,
    /// Its version.
    pub version: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// Its configuration file.
    pub config: Option<String>,
    /// Seconds between two sweeps, rounded up.
    pub sweep_interval: Option<u64>,
}

/// A device that programs are attached to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// The link's name; null where only the agent would know it.
    pub name: Option<String>,
    /// Its number.
    pub ifindex: u32,
    /// What it is for.
    pub role: Role,
    /// The programs; none where only the agent would know them.
    pub hooks: Vec<HookReport>,
    /// What a person should know of it.
    pub note: Option<String>,
}

/// An egress address.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// The address.
    pub address: IpAddr,
    /// Its pool, where it is known.
    pub pool: Option<String>,
    /// Whether it is also the node's own: what matches no session is the kernel's.
    pub own: bool,
    /// Who answers ARP for it.
    pub arp: Arp,
    /// Clients that use it.
    pub clients: u32,
    /// Its ports.
    pub ports: Protocols<Ports>,
}

/// Who answers ARP for an egress address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Arp {
    /// The node's kernel: the address is configured on a device.
    Kernel,
    /// The programs.
    Natctl,
    /// Nobody here: the address is being given up.
    Nobody,
}

/// One of something for each protocol whose ports are handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Protocols<T> {
    /// TCP.
    pub tcp: T,
    /// UDP.
    pub udp: T,
    /// ICMP echo, whose identifiers are handed out like ports.
    pub icmp: T,
}

impl<T: Copy> Protocols<T> {
    /// From the order of [`nat_common::abi::protocol_index`].
    pub const fn new([tcp, udp, icmp]: [T; 3]) -> Self {
        Self { tcp, udp, icmp }
    }

    /// With their names.
    pub const fn named(&self) -> [(&'static str, T); 3] {
        [("tcp", self.tcp), ("udp", self.udp), ("icmp", self.icmp)]
    }
}

/// Ports of an egress address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ports {
    /// In use by sessions.
    pub used: u32,
    /// Can be handed out now.
    pub free: u32,
    /// No longer in use, and not yet handed out again.
    pub resting: u32,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// Its name.
    pub name: String,
    /// Its own addresses and networks.
    pub addresses: Vec<String>,
    /// The link its packets come in through, where its name is known.
    pub device: Option<String>,
    /// That link's number; 0 while there is no such link.
    pub ifindex: u32,
    /// Its pool.
    pub pool: Option<String>,
    /// Its egress address; null while it has none.
    pub egress: Option<IpAddr>,
    /// It has no egress address: everything it sends outside is dropped.
    pub blocked: bool,
    /// It opens no sessions any more: what belongs to none leaves as the node sends it.
    pub draining: bool,
    /// Live sessions.
    pub flows: u64,
    /// Its ports.
    pub ports: Protocols<ClientPorts>,
    /// What it sent outside, since it is a client.
    pub out: Traffic,
    /// What came back.
    pub r#in: Traffic,
}

/// Ports of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientPorts {
    /// Taken by one of its sockets.
    pub used: u32,
    /// In blocks that it holds, and nobody else can use.
    pub held: u32,
    /// As many as it may hold.
    pub most: u32,
}

/// Packets and bytes in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

impl Traffic {
    /// Counts more.
    pub const fn add(&mut self, packets: u64, bytes: u64) {
        self.packets = self.packets.wrapping_add(packets);
        self.bytes = self.bytes.wrapping_add(bytes);
    }
}

/// Packets dropped for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dropped {
    /// The reason's name.
    pub reason: &'static str,
    /// Packets, since the maps were made.
    pub count: u64,
    /// What happened and what to do.
    pub sentence: &'static str,
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// What it holds.
    pub name: &'static str,
    /// Entries in use.
    pub used: u64,
    /// Entries it has room for.
    pub capacity: u64,
}
