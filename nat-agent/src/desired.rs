//! What the tables and attachments should be: a pure function of a snapshot and
//! of what the node is like.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};
use nat_common::abi::{
    DEVICE_EXCLUSIVE, DEVICE_GENERIC, DEVICE_OUTSIDE, DEVICE_XDP, Delivery, Device as DeviceEntry,
    PAGE_BLOCKS,
};

use crate::{
    bpf::links::{Attachment, Hook, Job},
    facts::{Facts, Kind, Link},
    snapshot::{Client, Path, Pool, Role, Snapshot, XdpMode},
};

/// A pool's settings, as the tables hold them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolEntry {
    /// Seconds: established TCP, other TCP, UDP, ICMP, and how long a port rests.
    pub seconds: [u32; 5],
    /// Direct path.
    pub direct: bool,
    /// Destinations left alone.
    pub excludes: BTreeSet<Ipv4Net>,
}

/// An egress address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEntry {
    /// The pool it belongs to.
    pub pool: String,
    /// Ports in a block.
    pub block_size: u32,
    /// The address is also the node's own.
    pub own: bool,
    /// Mappings that a client may make in a tick; 0: any number.
    pub mappings: u32,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientEntry {
    /// Its sources.
    pub addresses: BTreeSet<Ipv4Net>,
    /// Its device; 0 while there is none.
    pub ifindex: u32,
    /// Its pool.
    pub pool: String,
    /// Its egress address.
    pub egress: Ipv4Addr,
    /// How answers reach it.
    pub delivery: u32,
    /// Blocks it may hold for each protocol.
    pub blocks: u32,
    /// It opens no sessions any more.
    pub draining: bool,
    /// Its sessions with another egress address end at once.
    pub cut_over: bool,
}

impl ClientEntry {
    /// Pages it needs for each protocol.
    pub const fn pages(&self) -> u32 {
        self.blocks.div_ceil(PAGE_BLOCKS as u32)
    }
}

/// Everything that should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Pools by name.
    pub pools: BTreeMap<String, PoolEntry>,
    /// Egress addresses.
    pub slices: BTreeMap<Ipv4Addr, SliceEntry>,
    /// Egress addresses to be given up although sessions use them.
    pub lost: BTreeSet<Ipv4Addr>,
    /// Clients by name.
    pub clients: BTreeMap<String, ClientEntry>,
    /// Devices by number.
    pub devices: BTreeMap<u32, DeviceEntry>,
    /// Programs on devices.
    pub attachments: Vec<Attachment>,
    /// The choice made for each device named in the snapshot, for people.
    pub notes: BTreeMap<String, String>,
    /// What stands in the way, in plain words.
    pub problems: Vec<String>,
}

/// Works out what should be. `current` is each client's egress address now: it
/// keeps it while it may (RFC 4787 REQ-2: paired).
pub fn desired(
    snapshot: &Snapshot,
    facts: &Facts,
    current: &BTreeMap<String, Ipv4Addr>,
) -> Desired {
    let mut desired = Desired {
        lost: snapshot.lost.iter().copied().collect(),
        ..Desired::default()
    };
    if !facts.forwarding {
        desired.problems.push(
            "the kernel forwards nothing, so no client reaches anybody: run \
             `sysctl -w net.ipv4.ip_forward=1`"
                .to_owned(),
        );
    }
    for pool in &snapshot.pools {
        let entry = pool_entry(pool, &snapshot.cluster_ranges);
        desired.pools.insert(pool.name.clone(), entry);
        for address in v4(&pool.addresses) {
            let own = facts.addresses.contains(&address);
            let entry = SliceEntry {
                pool: pool.name.clone(),
                block_size: block_size(pool),
                own,
                mappings: pool.mappings_per_second.unwrap_or(0),
            };
            desired.slices.insert(address, entry);
        }
    }
    let devices = devices(snapshot, facts, &mut desired);
    for client in &snapshot.clients {
        let Some(pool) = snapshot.pool(&client.pool) else {
            continue;
        };
        let entry = client_entry(client, pool, &devices, current.get(&client.name));
        if entry.ifindex == 0
            && let Some(device) = &client.device
        {
            desired.problems.push(format!(
                "client {}: there is no device {device}; its packets are dropped until there is",
                client.name
            ));
        }
        desired.clients.insert(client.name.clone(), entry);
    }
    desired
}

fn v4(addresses: &[IpAddr]) -> impl Iterator<Item = Ipv4Addr> {
    addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

fn v4_nets<'a>(nets: impl IntoIterator<Item = &'a IpNet>) -> BTreeSet<Ipv4Net> {
    let nets = nets.into_iter().filter_map(|net| match net {
        IpNet::V4(net) => Some(net.trunc()),
        IpNet::V6(_) => None,
    });
    nets.collect()
}

/// A client that may have fewer ports than a block gets a block of its size.
fn block_size(pool: &Pool) -> u32 {
    u32::from(pool.block_size).min(pool.ports_per_client)
}

fn pool_entry(pool: &Pool, cluster_ranges: &[IpNet]) -> PoolEntry {
    let timers = &pool.timers;
    let seconds = [
        timers.tcp_established,
        timers.tcp_transitory,
        timers.udp,
        timers.icmp,
        pool.rest,
    ];
    PoolEntry {
        seconds: seconds.map(|duration| duration.as_secs() as u32),
        direct: pool.path == Path::Direct,
        excludes: v4_nets(pool.exclude.iter().chain(cluster_ranges)),
    }
}

fn client_entry(
    client: &Client,
    pool: &Pool,
    devices: &BTreeMap<&str, Place<'_>>,
    current: Option<&Ipv4Addr>,
) -> ClientEntry {
    let place = client.device.as_deref().and_then(|name| devices.get(name));
    let direct = pool.path == Path::Direct;
    ClientEntry {
        addresses: v4_nets(&client.addresses),
        ifindex: place.map_or(0, |place| place.link.ifindex),
        pool: pool.name.clone(),
        egress: egress(client, pool, current),
        delivery: place.map_or(Delivery::Stack, |place| place.delivery(direct)) as u32,
        blocks: pool.ports_per_client / block_size(pool),
        draining: client.draining,
        cut_over: client.cut_over,
    }
}

/// The client's egress address: the one it was given, the one it has, or the
/// pool's that wins the draw for its name (rendezvous hashing: when the pool
/// changes, few others move).
fn egress(client: &Client, pool: &Pool, current: Option<&Ipv4Addr>) -> Ipv4Addr {
    if let Some(IpAddr::V4(address)) = client.address {
        return address;
    }
    if let Some(current) = current
        && pool.addresses.contains(&IpAddr::V4(*current))
    {
        return *current;
    }
    v4(&pool.addresses)
        .max_by_key(|address| draw(&client.name, *address))
        .unwrap_or(Ipv4Addr::UNSPECIFIED)
}

/// A draw for an address: the highest wins (rendezvous hashing).
pub fn draw(name: &str, address: Ipv4Addr) -> u64 {
    fnv(name.bytes().chain(address.octets()))
}

/// FNV-1a, with a final mix so that the last bytes count as much as the first.
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, step);
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A device and what happens on it.
struct Place<'a> {
    link: &'a Link,
    outside: bool,
    /// One pod's own link.
    exclusive: bool,
    xdp: Option<Hook>,
    /// XDP takes packets all the way: in here and out there.
    through: bool,
    /// All clients here take the direct path.
    direct: bool,
    clients: bool,
}

impl Place<'_> {
    fn delivery(&self, direct: bool) -> Delivery {
        // Clients behind an outside device itself are tcx's: XDP has one program there.
        match (
            self.xdp.is_some() && self.through && !self.outside,
            direct && self.direct,
            self.exclusive,
        ) {
            (true, _, _) => Delivery::Xdp,
            (_, true, true) => Delivery::Peer,
            (_, true, false) => Delivery::Neighbour,
            _ => Delivery::Stack,
        }
    }

    fn entry(&self) -> DeviceEntry {
        let mut flags = 0;
        if self.outside {
            flags |= DEVICE_OUTSIDE;
        }
        if self.xdp.is_some() {
            flags |= DEVICE_XDP;
        }
        if self.xdp == Some(Hook::XdpGeneric) {
            flags |= DEVICE_GENERIC;
        }
        if self.exclusive {
            flags |= DEVICE_EXCLUSIVE;
        }
        DeviceEntry {
            flags,
            mac: self.link.mac,
            padding: [0; 2],
        }
    }

    /// The program at XDP and the ones at tcx.
    fn programs(&self) -> Vec<(Job, Hook, &'static str)> {
        let mut programs = Vec::new();
        if let Some(hook) = self.xdp {
            let program = if self.outside {
                "xdp_outside"
            } else {
                "xdp_inside"
            };
            programs.push((Job::Xdp, hook, program));
        }
        if self.outside {
            programs.push((Job::Answers, Hook::Ingress, "outside_ingress"));
            programs.push((Job::Guard, Hook::Egress, "outside_egress"));
        }
        if self.clients {
            // Behind XDP only what the kernel must handle comes this far.
            let direct = self.direct && (self.xdp.is_none() || self.outside);
            let program = if direct {
                "client_direct"
            } else {
                "client_stack"
            };
            programs.push((Job::Client, Hook::Ingress, program));
        }
        programs
    }
}

/// All devices that are named or that clients are on, and what happens on them.
fn devices<'a>(
    snapshot: &'a Snapshot,
    facts: &'a Facts,
    desired: &mut Desired,
) -> BTreeMap<&'a str, Place<'a>> {
    let mut places = BTreeMap::new();
    for device in &snapshot.devices {
        let Some(link) = facts.links.get(&device.name) else {
            desired
                .problems
                .push(format!("there is no device {}", device.name));
            continue;
        };
        let (xdp, note) = choose(link.kind, device.xdp);
        desired.notes.insert(device.name.clone(), note.to_owned());
        let outside = device.role == Role::Outside;
        places.insert(device.name.as_str(), place(link, outside, false, xdp));
    }
    for client in &snapshot.clients {
        let Some(name) = client.device.as_deref() else {
            continue;
        };
        let Some(link) = facts.links.get(name) else {
            continue;
        };
        let place = places.entry(name).or_insert_with(|| {
            // Not named: a veth is one pod's own link, anything else an inside device.
            let exclusive = link.kind == Kind::Veth;
            place(link, false, exclusive, choose(link.kind, None).0)
        });
        let pool = snapshot.pool(&client.pool);
        place.clients = true;
        place.direct &= pool.is_some_and(|pool| pool.path == Path::Direct);
    }
    for name in &snapshot.ended {
        if let Some(link) = facts.links.get(name) {
            places.entry(name).or_insert_with(|| sealed(link));
        }
    }
    let through = places
        .values()
        .any(|place| place.outside && place.xdp.is_some());
    for (name, place) in &mut places {
        place.through = through;
        desired.devices.insert(place.link.ifindex, place.entry());
        desired
            .attachments
            .extend(place.programs().into_iter().map(|(job, hook, program)| {
                let (device, ifindex) = ((*name).to_owned(), place.link.ifindex);
                Attachment {
                    device,
                    ifindex,
                    job,
                    hook,
                    program,
                }
            }));
    }
    let alone = snapshot.guard.iter().flat_map(|guard| &guard.left_alone);
    let alone = alone.filter(|name| !places.contains_key(name.as_str()));
    let alone = alone.filter_map(|name| Some(left_alone(name, facts.links.get(name)?)));
    desired.attachments.extend(alone);
    // The guard first: a packet that a client's device marks is kept from masquerade, and
    // must not find the way out unguarded.
    desired
        .attachments
        .sort_by_key(|attachment| (attachment.job, attachment.device.clone()));
    places
}

/// A client's own link that is no client's any more: no source is right there.
fn sealed(link: &Link) -> Place<'_> {
    Place {
        direct: false,
        clients: true,
        ..place(link, false, true, None)
    }
}

/// Decides on what comes from a pod that asks for nothing. Its device stands in no table: it may
/// send from any address that is no client's.
fn left_alone(name: &str, link: &Link) -> Attachment {
    Attachment {
        device: name.to_owned(),
        ifindex: link.ifindex,
        job: Job::Client,
        hook: Hook::Ingress,
        program: "client_stack",
    }
}

fn place(link: &Link, outside: bool, exclusive: bool, xdp: Option<Hook>) -> Place<'_> {
    Place {
        link,
        outside,
        exclusive,
        xdp,
        through: false,
        direct: true,
        clients: false,
    }
}

/// The hook for XDP on a device, and why.
fn choose(kind: Kind, wish: Option<XdpMode>) -> (Option<Hook>, &'static str) {
    match (wish, kind) {
        (Some(XdpMode::Native), _) => (Some(Hook::XdpNative), "native XDP, as configured"),
        (Some(XdpMode::Generic), _) => (
            Some(Hook::XdpGeneric),
            "generic XDP, as configured: several times slower than native",
        ),
        (Some(XdpMode::Off), _) => (None, "tcx, as configured"),
        (None, Kind::Nic) => (Some(Hook::XdpNative), "native XDP"),
        (None, Kind::Veth) => (
            None,
            "tcx: on a veth XDP cannot tell whether a checksum was left to offload",
        ),
        (None, Kind::Virtual) => (None, "tcx: a device made of software has no native XDP"),
    }
}
