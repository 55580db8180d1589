//! What is wanted, whoever said it: every source (the configuration file, Kubernetes) produces a
//! [`Snapshot`], and everything after it reads nothing else.
//!
//! Plain values: no file format, no locations. A snapshot from a source has been checked: its names
//! are unique, its addresses do not overlap, and every client's pool exists. [`defaults`] holds
//! every default and [`bounds`] every limit, so that all sources agree on them.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};

/// Everything the agent is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The links that programs are attached to because they were named; a client's own link need
    /// not be here. At least one is outside.
    pub devices: Vec<Device>,
    /// The egress addresses and how they are shared. No address is in two pools.
    pub pools: Vec<Pool>,
    /// Whose packets are translated. No address belongs to two clients.
    pub clients: Vec<Client>,
    /// Egress addresses that are somebody else's now: given up at once, whatever uses them.
    pub lost: Vec<Ipv4Addr>,
    /// Links of clients that have ended: nothing that still comes from there passes.
    pub ended: Vec<String>,
    /// Destinations that are left alone whichever pool a client has: they are within the cluster.
    pub cluster_ranges: Vec<IpNet>,
    /// Sizes of the BPF tables.
    pub limits: Limits,
    /// Which bit of `skb->mark` (0 is the lowest, 31 the highest) carries the veth program's
    /// decision to the outside device on the stack path.
    pub mark_bit: u8,
    /// Which bit of `skb->mark` says that a client's program has looked at a packet.
    pub decided_bit: u8,
    /// How often the agent looks for sessions that have ended.
    pub sweep_interval: Duration,
    /// What is held back before anything is known of its sender; `None`: nothing.
    pub guard: Option<Guard>,
}

/// Pods' packets that are dropped where no program has looked at them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// The addresses of this node's pods; none: nothing is held back.
    pub pods: Vec<Ipv4Net>,
    /// Destinations that no pool translates: nothing to them is held back.
    pub untranslated: Vec<Ipv4Net>,
    /// Links of pods that ask for nothing: what comes from there is decided, and left alone.
    pub left_alone: Vec<String>,
}

impl Guard {
    /// Whether the other holds the same packets back.
    pub fn holds_back_as(&self, other: &Self) -> bool {
        self.pods == other.pods && self.untranslated == other.untranslated
    }
}

impl Snapshot {
    /// The pool of this name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// The client of this name.
    pub fn client(&self, name: &str) -> Option<&Client> {
        self.clients.iter().find(|client| client.name == name)
    }
}

/// What a node is told by its file, whoever names the pools and clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// As [`Snapshot::devices`]; empty where the source finds them itself.
    pub devices: Vec<Device>,
    /// As [`Snapshot::cluster_ranges`].
    pub cluster_ranges: Vec<IpNet>,
    /// As [`Snapshot::limits`].
    pub limits: Limits,
    /// As [`Snapshot::mark_bit`].
    pub mark_bit: u8,
    /// As [`Snapshot::decided_bit`].
    pub decided_bit: u8,
    /// As [`Snapshot::sweep_interval`].
    pub sweep_interval: Duration,
    /// Whether there is a guard, where pods come from Kubernetes.
    pub guard: bool,
    /// Addresses of this node's pods, beside those that the source knows.
    pub pod_ranges: Vec<IpNet>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            devices: Vec::new(),
            cluster_ranges: Vec::new(),
            limits: Limits::default(),
            mark_bit: defaults::MARK_BIT,
            decided_bit: defaults::DECIDED_BIT,
            sweep_interval: defaults::SWEEP_INTERVAL,
            guard: true,
            pod_ranges: Vec::new(),
        }
    }
}

impl Settings {
    /// A snapshot of these settings.
    pub fn with(self, pools: Vec<Pool>, clients: Vec<Client>, guard: Option<Guard>) -> Snapshot {
        Snapshot {
            devices: self.devices,
            pools,
            clients,
            lost: Vec::new(),
            ended: Vec::new(),
            cluster_ranges: self.cluster_ranges,
            limits: self.limits,
            mark_bit: self.mark_bit,
            decided_bit: self.decided_bit,
            sweep_interval: self.sweep_interval,
            guard,
        }
    }
}

/// A link of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The link's name, as `ip link` prints it.
    pub name: String,
    /// Which side of the translation it is on.
    pub role: Role,
    /// How XDP is used here; `None` leaves it to the agent, which picks native on a real NIC and
    /// tcx on a veth (where XDP cannot know whether a checksum was left to offload), and says so.
    pub xdp: Option<XdpMode>,
}

/// Which side of the translation a device is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Packets leave translated here, and their replies arrive.
    #[default]
    Outside,
    /// Clients are routed in here.
    Inside,
}

/// How XDP is used on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum XdpMode {
    /// In the driver, before an skb exists.
    Native,
    /// In the kernel's generic hook, for drivers without XDP. Slow, so only where it was asked for.
    Generic,
    /// Not at all: tcx does the work.
    Off,
}

/// Egress addresses that are shared by the same rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// What clients refer to it by; never an address.
    pub name: String,
    /// Every egress address that this node may use, in the order of the source. While there is none,
    /// the pool's clients are blocked toward every destination that it does not exclude.
    pub addresses: Vec<IpAddr>,
    /// Destinations that are left alone (RFC 6888 REQ-6): sent on with the client's own address.
    pub exclude: Vec<IpNet>,
    /// The most external ports one client may hold at a time, of each protocol (TCP, UDP, ICMP echo
    /// identifiers; RFC 6888 REQ-4). A multiple of `block_size`, or less than it.
    pub ports_per_client: u32,
    /// Ports in a block, the unit that a client is given ports in: 1 to 64, one bit each in a word.
    pub block_size: u8,
    /// The most mappings that one client may make in a second, of all protocols together (RFC 6888
    /// REQ-4); `None`: any number. The kernel's coarse clock counts: its second is 1.024 s at most
    /// settings of the kernel's HZ, and the bucket is filled anew at each.
    pub mappings_per_second: Option<u32>,
    /// How long a freed port is not handed out again (RFC 6888 REQ-8). Whole seconds, zero: none.
    pub rest: Duration,
    /// Which way the packets of local pods take.
    pub path: Path,
    /// When an idle session ends.
    pub timers: Timers,
}

/// Which way the packets of local pods take through the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Path {
    /// Marked at the pod's veth, forwarded by the kernel, translated at the outside device:
    /// netfilter's rules (NetworkPolicy, firewalls) stay in force.
    #[default]
    Stack,
    /// Translated at the pod's veth and sent on from there: fastest, and past netfilter.
    Direct,
}

/// How long a session may be idle before it ends. Whole seconds, none of them zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// A TCP connection that was opened from both sides (RFC 5382 REQ-5: at least 7440 s).
    pub tcp_established: Duration,
    /// A TCP connection that is half open, closing or reset (RFC 5382 REQ-5, RFC 7857: at least
    /// 240 s).
    pub tcp_transitory: Duration,
    /// A UDP mapping (RFC 4787 REQ-5: at least 120 s, 300 s recommended).
    pub udp: Duration,
    /// An ICMP query, i.e. a ping (RFC 5508 REQ-2: at least 60 s).
    pub icmp: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            tcp_established: defaults::TCP_ESTABLISHED,
            tcp_transitory: defaults::TCP_TRANSITORY,
            udp: defaults::UDP,
            icmp: defaults::ICMP,
        }
    }
}

/// Someone whose packets are translated: a pod, a host, or a network behind a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// How `natctl` calls it, e.g. `namespace/pod`.
    pub name: String,
    /// Its own addresses and networks; another source arriving from its veth is dropped. Not empty.
    pub addresses: Vec<IpNet>,
    /// The link it is reached through: the host side of a pod's veth, or an inside device. `None`
    /// while the source has not found it: whatever the client sends is dropped.
    pub device: Option<String>,
    /// The name of its pool.
    pub pool: String,
    /// The one address that it was given; `None` leaves the choice to the agent, which keeps one
    /// address per client (RFC 4787 REQ-2). The client of an address that is not among the pool's
    /// is blocked like that of an empty pool.
    pub address: Option<IpAddr>,
    /// It opens no sessions any more: those that it has go on until they end, and all else that it
    /// sends leaves as the node sends it.
    pub draining: bool,
    /// Its sessions with another egress address than its own end at once.
    pub cut_over: bool,
}

/// Sizes of the BPF tables. They are fixed while the tables are pinned, so that a restart can adopt
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Flows at a time (two entries each).
    pub sessions: u32,
    /// Clients.
    pub clients: u32,
    /// Egress addresses, of all pools together.
    pub addresses: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: defaults::SESSIONS,
            clients: defaults::CLIENTS,
            addresses: defaults::ADDRESSES,
        }
    }
}

/// Every default, in one place. The enums' own are marked there.
pub mod defaults {
    use std::time::Duration;

    /// [`Pool::ports_per_client`](super::Pool::ports_per_client): 15 clients can fill one address.
    pub const PORTS_PER_CLIENT: u32 = 4096;
    /// [`Pool::block_size`](super::Pool::block_size): one machine word of free ports.
    pub const BLOCK_SIZE: u8 = 64;
    /// [`Pool::rest`](super::Pool::rest): RFC 6888 REQ-8.
    pub const REST: Duration = Duration::from_secs(120);
    /// [`Timers::tcp_established`](super::Timers::tcp_established): RFC 5382 REQ-5, 2 h 4 min.
    pub const TCP_ESTABLISHED: Duration = Duration::from_secs(7440);
    /// [`Timers::tcp_transitory`](super::Timers::tcp_transitory): RFC 5382 REQ-5, 4 minutes.
    pub const TCP_TRANSITORY: Duration = Duration::from_secs(240);
    /// [`Timers::udp`](super::Timers::udp): RFC 4787 REQ-5, the recommended 5 minutes.
    pub const UDP: Duration = Duration::from_secs(300);
    /// [`Timers::icmp`](super::Timers::icmp): RFC 5508 REQ-2.
    pub const ICMP: Duration = Duration::from_secs(60);
    /// [`Limits::sessions`](super::Limits::sessions).
    pub const SESSIONS: u32 = 262_144;
    /// [`Limits::clients`](super::Limits::clients).
    pub const CLIENTS: u32 = 4096;
    /// [`Limits::addresses`](super::Limits::addresses).
    pub const ADDRESSES: u32 = 64;
    /// [`Snapshot::mark_bit`](super::Snapshot::mark_bit): used by none of kube-proxy (14, 15),
    /// Calico and Cilium.
    pub const MARK_BIT: u8 = 13;
    /// [`Snapshot::decided_bit`](super::Snapshot::decided_bit).
    pub const DECIDED_BIT: u8 = 12;
    /// [`Snapshot::sweep_interval`](super::Snapshot::sweep_interval).
    pub const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
}

/// What a value may be at most; every source refuses more.
pub mod bounds {
    use std::time::Duration;

    use nat_common::abi;

    /// The ports 1024 to 65535 of one address: a client cannot hold more of one protocol.
    pub const PORTS_PER_CLIENT: u32 = 64_512;
    /// More new mappings in a second than an address has ports are no limit.
    pub const MAPPINGS_PER_SECOND: u32 = 64_512;
    /// Ports of a block: the bits of one word.
    pub const BLOCK_SIZE: u8 = abi::BLOCK_PORTS as u8;
    /// Blocks of one protocol that a client's pages have room for: small blocks lower the ports.
    pub const BLOCKS_PER_CLIENT: u32 = abi::MAX_PAGES * abi::PAGE_BLOCKS as u32;
    /// The highest bit of `skb->mark`.
    pub const MARK_BIT: u8 = 31;
    /// The longest timer or rest: a session's age is kept in 32 bits of kernel ticks, which wrap
    /// after 49 days at 1000 ticks a second.
    pub const TIMER: Duration = Duration::from_secs(30 * 24 * 3600);
    /// The longest time between two sweeps: sessions outlive their timers by as much.
    pub const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
    /// The shortest time between two sweeps: below it the agent does nothing else.
    pub const SWEEP_INTERVAL_LEAST: Duration = Duration::from_millis(10);
    /// Two entries each of at least 64 bytes: 2 GiB.
    pub const SESSIONS: u32 = 1 << 24;
    /// A session keeps its client's number in 16 bits.
    pub const CLIENTS: u32 = 1 << 16;
    /// At the default block size an address has about 3000 blocks of 24 bytes, and its queues.
    pub const ADDRESSES: u32 = 1024;
    /// Bytes of a pool's name.
    pub const POOL_NAME: usize = 63;
    /// Bytes of a client's name: Kubernetes' longest namespace, `/`, and its longest pod name.
    pub const CLIENT_NAME: usize = 63 + 1 + 253;
    /// Bytes of a link's name (the kernel's IFNAMSIZ, less the final zero).
    pub const DEVICE_NAME: usize = 15;
}
