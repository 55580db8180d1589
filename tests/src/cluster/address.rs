//! Who has which address. Everything lies in namespaces of the cluster's own, so clusters can have the same ones.

use std::net::Ipv4Addr;

/// The control plane, and the nodes' router.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Its Ethernet address. A bridge without one of its own changes it with its ports, and nodes would not find it.
pub const CONTROL_ETHERNET: &str = "02:00:00:77:00:01";
/// The length of the network that control plane and nodes are in.
pub const NODES_LENGTH: u8 = 24;
/// The router on the outside link.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The server on the outside link.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The length of the outside network.
pub const OUTSIDE_LENGTH: u8 = 24;
/// Addresses for pods to leave from: the router asks by ARP on the nodes' link who has them.
pub const EGRESS: &str = "203.0.113.0/24";
/// All Services.
pub const SERVICES: &str = "10.96.0.0/16";
/// The Service of the API server: the first address of all.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The API server's port.
pub const API_PORT: u16 = 6443;

/// A node's own address.
pub fn node(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, 10 + number)
}

/// The network of a node's pods, which lies in kube-proxy.yaml's `clusterCIDR`.
pub fn pods(number: u8) -> String {
    format!("10.244.{number}.0/24")
}

/// A node's Ethernet address, the same after each boot.
pub fn ethernet(number: u8) -> String {
    format!("02:00:00:77:00:{:02x}", 10 + number)
}
