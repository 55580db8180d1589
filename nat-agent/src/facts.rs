//! What the node is like: links, its own addresses, the ports it uses itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use nat_common::abi::Mac;

/// A network link of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: Mac,
    /// What it is.
    pub kind: Kind,
}

/// Ways to addresses behind the node's links: how pods are found. Read only where they are needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Link numbers by destination, of routes without a gateway.
    pub routes: BTreeMap<Ipv4Net, u32>,
    /// Links of the default routes.
    pub defaults: BTreeSet<u32>,
    /// Ethernet addresses by link and neighbour.
    pub neighbours: BTreeMap<(u32, Ipv4Addr), Mac>,
    /// Ports of bridges, by the bridge's number and an Ethernet address behind the port.
    pub ports: BTreeMap<(u32, Mac), u32>,
}

/// What kind of link it is, as far as it matters for choosing hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A network interface card, or what a hypervisor gives for one.
    Nic,
    /// One end of a veth pair.
    Veth,
    /// Anything else that is made of software: bridge, VLAN, bond, tunnel.
    Virtual,
}

/// Ports that the node uses itself, on its own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnPorts {
    /// First and last of `net.ipv4.ip_local_port_range`.
    pub ephemeral: (u16, u16),
    /// TCP ports of sockets, listening or connected.
    pub tcp: BTreeSet<u16>,
    /// UDP ports of sockets.
    pub udp: BTreeSet<u16>,
}

impl OwnPorts {
    /// Whether the node uses this port of a protocol's place (0 TCP, 1 UDP, 2 ICMP).
    pub fn contains(&self, place: u32, port: u16) -> bool {
        let ephemeral = (self.ephemeral.0..=self.ephemeral.1).contains(&port);
        match place {
            0 => ephemeral || self.tcp.contains(&port),
            1 => ephemeral || self.udp.contains(&port),
            _ => false,
        }
    }
}

/// The node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Links by name.
    pub links: BTreeMap<String, Link>,
    /// The node's own IPv4 addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// The kernel forwards IPv4 packets between devices.
    pub forwarding: bool,
    /// Ways to addresses; empty where nobody asks for them.
    pub ways: Ways,
}

impl Facts {
    /// Whether programs, clients or addresses may have to be others than by `before`.
    pub fn differ(&self, before: &Self) -> bool {
        self.links != before.links || self.addresses != before.addresses || self.ways != before.ways
    }
}

/// Whether the kernel forwards IPv4 packets in this network namespace.
pub fn forwarding() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() != "0")
}

/// Reads the ports that sockets of this network namespace use.
///
/// Missing files (no IPv6, no UDP) count as empty.
pub fn own_ports() -> OwnPorts {
    let read = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
    let range = read("/proc/sys/net/ipv4/ip_local_port_range");
    let mut bounds = range
        .split_whitespace()
        .filter_map(|word| word.parse().ok());
    let sockets = |protocol: &str| {
        let (v4, v6) = (
            read(&format!("/proc/net/{protocol}")),
            read(&format!("/proc/net/{protocol}6")),
        );
        v4.lines()
            .chain(v6.lines())
            .filter_map(local_port)
            .collect()
    };
    OwnPorts {
        ephemeral: (
            bounds.next().unwrap_or(32_768),
            bounds.next().unwrap_or(60_999),
        ),
        tcp: sockets("tcp"),
        udp: sockets("udp"),
    }
}

/// The local port of a line of /proc/net/tcp: its second word is ADDRESS:PORT, hexadecimal.
fn local_port(line: &str) -> Option<u16> {
    let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_read() {
        let line = "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0";
        assert_eq!(local_port(line), Some(8080));
        assert_eq!(
            local_port("  sl  local_address rem_address   st tx_queue"),
            None
        );
    }

    #[test]
    fn ephemeral_and_listening_ports_are_the_nodes() {
        let ports = OwnPorts {
            ephemeral: (32_768, 60_999),
            tcp: BTreeSet::from([8080]),
            udp: BTreeSet::new(),
        };
        assert!(ports.contains(0, 8080) && !ports.contains(1, 8080));
        assert!(ports.contains(1, 40_000) && !ports.contains(2, 40_000));
    }
}
