//! Links of pods that were clients and are none any more because they have ended. The kubelet takes a pod's link away
//! some time after the API shows its end, or, if it was deleted by force, after the API has forgotten it. What comes
//! from there meanwhile must leave neither as the pod nor as the node.

use std::{collections::BTreeSet, net::Ipv4Addr};

use nat_common::abi::DEVICE_EXCLUSIVE;

use super::link;
use crate::{diff::State, facts::Facts};

/// The links that the tables know as one client's own, and that are no living pod's: `taken` are known to be one's, and
/// `others` are living pods whose links nobody keeps, by their addresses.
pub fn ended<'a>(
    facts: &Facts,
    state: &State,
    taken: &BTreeSet<&str>,
    others: impl Iterator<Item = (Ipv4Addr, &'a str)>,
) -> BTreeSet<String> {
    let known = |ifindex: u32| {
        let device = state.devices.get(&ifindex);
        device.is_some_and(|device| device.flags & DEVICE_EXCLUSIVE != 0)
    };
    let links = facts.links.iter();
    let links = links.filter(|(name, link)| known(link.ifindex) && !taken.contains(name.as_str()));
    let mut ended: BTreeSet<String> = links.map(|(name, _)| name.clone()).collect();
    if !ended.is_empty() {
        for (address, path) in others {
            let known = state.clients.get(path).map(|client| client.entry.ifindex);
            if let Ok(device) = link::host_side(address, facts, known) {
                ended.remove(&device);
            }
        }
    }
    ended
}
