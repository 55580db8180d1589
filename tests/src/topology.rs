//! What a lab's namespaces are connected by: links, addresses, routes.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::lab::{BEYOND, Host, INSIDE, NODE, OUTSIDE, PodNetwork, SERVER, SERVER_2};
use crate::netns::Netns;

/// The outside link, with the node and the server at its ends.
pub fn set_up_outside(node: &Netns, server: &Netns) -> Result<()> {
    node.sysctl("net.ipv4.ip_forward", "1")?;
    // Loose: routes to pods and the world need not be symmetric for a NAT to work.
    node.sysctl("net.ipv4.conf.all.rp_filter", "2")?;
    node.sysctl("net.ipv4.conf.default.rp_filter", "2")?;
    node.ip(&format!(
        "link add {OUTSIDE} type veth peer name {OUTSIDE} netns {}",
        server.name()
    ))?;
    node.ip(&format!(
        "address add {NODE}/24 dev {OUTSIDE}\n\
         address add 169.254.1.1/32 dev lo\n\
         link set {OUTSIDE} up"
    ))?;
    server.ip(&format!(
        "address add {SERVER}/24 dev {OUTSIDE}\n\
         address add {SERVER_2}/24 dev {OUTSIDE}\n\
         address add {BEYOND}/32 dev lo\n\
         link set {OUTSIDE} up"
    ))?;
    node.ip(&format!("route add default via {SERVER}"))
}

/// `count` pods on the node.
pub fn add_pods(node: &Netns, prefix: &str, count: u8, network: PodNetwork) -> Result<Vec<Host>> {
    if network == PodNetwork::Bridge {
        node.ip("link add cni0 type bridge\naddress add 10.244.1.1/24 dev cni0\nlink set cni0 up")?;
    }
    (1..=count)
        .map(|number| add_pod(node, prefix, number, network))
        .collect()
}

fn add_pod(node: &Netns, prefix: &str, number: u8, network: PodNetwork) -> Result<Host> {
    let netns = Netns::create(&format!("{prefix}-pod{number}"))?;
    let device = format!("vethpod{number}");
    let address = Ipv4Addr::new(10, 244, 1, 10 + number);
    node.ip(&format!(
        "link add {device} type veth peer name {OUTSIDE} netns {}",
        netns.name()
    ))?;
    match network {
        PodNetwork::Routed => {
            node.ip(&format!(
                "link set {device} up\nroute add {address}/32 dev {device}"
            ))?;
            netns.ip(&format!(
                "address add {address}/32 dev {OUTSIDE}\n\
                 link set {OUTSIDE} up\n\
                 route add default via 169.254.1.1 dev {OUTSIDE} onlink"
            ))?;
        }
        PodNetwork::Bridge => {
            node.ip(&format!("link set {device} up master cni0"))?;
            netns.ip(&format!(
                "address add {address}/24 dev {OUTSIDE}\n\
                 link set {OUTSIDE} up\n\
                 route add default via 10.244.1.1"
            ))?;
        }
    }
    Ok(Host {
        netns,
        address,
        device,
        name: format!("default/pod{number}"),
    })
}

/// A client with `addresses` behind the node; a host for each.
pub fn add_client(node: &Netns, prefix: &str, addresses: u8) -> Result<Vec<Host>> {
    let netns = Netns::create(&format!("{prefix}-client"))?;
    node.ip(&format!(
        "link add {INSIDE} type veth peer name {OUTSIDE} netns {}\n\
         address add 192.168.10.1/24 dev {INSIDE}\n\
         link set {INSIDE} up",
        netns.name()
    ))?;
    let hosts: Vec<_> = (1..=addresses)
        .map(|number| Host {
            netns: netns.clone(),
            address: Ipv4Addr::new(192, 168, 10, 10 + number),
            device: INSIDE.to_string(),
            name: format!("lab/client{number}"),
        })
        .collect();
    for host in &hosts {
        netns.ip(&format!("address add {}/24 dev {OUTSIDE}", host.address))?;
    }
    netns.ip(&format!(
        "link set {OUTSIDE} up\nroute add default via 192.168.10.1"
    ))?;
    Ok(hosts)
}
