//! Links of pods that were clients and are none any more because they have ended. The kubelet takes a pod's link away
//! some time after the API shows its end, or, if it was deleted by force, after the API has forgotten it. What comes
//! from there meanwhile must leave neither as the pod nor as the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use nat_common::abi::DEVICE_EXCLUSIVE;

use super::{
    link,
    object::Pod,
    resolve::{Input, Resolved},
};

/// The links that the tables know as one client's own, and that are no living pod's. `owners` are the living pods.
pub fn ended(
    input: &Input<'_>,
    owners: &BTreeMap<Ipv4Addr, &Pod>,
    resolved: &Resolved,
) -> BTreeSet<String> {
    let known = |ifindex: u32| {
        let device = input.state.devices.get(&ifindex);
        device.is_some_and(|device| device.flags & DEVICE_EXCLUSIVE != 0)
    };
    let links = input.facts.links.iter();
    let links = links.filter(|(_, link)| known(link.ifindex));
    let mut left: BTreeSet<String> = links.map(|(name, _)| name.clone()).collect();
    let clients = resolved.clients.iter();
    for device in clients.filter_map(|client| client.device.as_ref()) {
        left.remove(device);
    }
    for link in resolved.left_alone.values() {
        left.remove(&link.device);
    }
    // Where the guard is off nobody keeps the links of pods that ask for nothing.
    if !left.is_empty() {
        let served: BTreeSet<&str> = names(resolved).collect();
        for (address, pod) in owners {
            let path = pod.path();
            if !served.contains(path.as_str()) {
                own(*address, &path, input).map(|device| left.remove(&device));
            }
        }
    }
    left
}

fn names(resolved: &Resolved) -> impl Iterator<Item = &str> {
    resolved.clients.iter().map(|client| client.name.as_str())
}

fn own(address: Ipv4Addr, path: &str, input: &Input<'_>) -> Option<String> {
    let known = input.state.clients.get(path);
    let known = known.map(|client| client.entry.ifindex);
    link::host_side(address, input.facts, known).ok()
}
