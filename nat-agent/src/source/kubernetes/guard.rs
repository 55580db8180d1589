//! What the guard holds back: packets of this node's pods that no program has looked at yet, toward
//! destinations that some pool translates. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use super::{judge::Judged, world::World};
use crate::snapshot::Guard;

/// The guard of a node whose pods have addresses of `pods`. `cluster` is never translated to.
pub fn guard(
    pods: &[Ipv4Net],
    cluster: &[IpNet],
    pools: &BTreeMap<String, Judged>,
    left_alone: Vec<String>,
) -> Guard {
    let specs = pools.values().filter_map(|judged| judged.spec.as_ref());
    let excluded: Vec<Vec<Ipv4Net>> = specs.map(|spec| v4(&spec.pool.exclude)).collect();
    Guard {
        // Where there is no pool nothing is translated, and nothing to be held back.
        pods: if excluded.is_empty() {
            Vec::new()
        } else {
            pods.to_vec()
        },
        untranslated: untranslated(&v4(cluster), &excluded),
        left_alone,
    }
}

/// Where this node's pods have their addresses: its podCIDRs, and what its file adds to them.
pub fn pod_ranges(node: &str, world: &World, extra: &[IpNet]) -> Vec<Ipv4Net> {
    let node = world.nodes.get(node);
    let every: Vec<IpNet> = node.map_or(&[][..], |node| &node.pods).to_vec();
    v4(&[&every[..], extra].concat())
}

/// The first address that the ranges lack.
pub fn uncovered(
    ranges: &[Ipv4Net],
    addresses: impl IntoIterator<Item = Ipv4Addr>,
) -> Option<Ipv4Addr> {
    let covered = |address: &Ipv4Addr| ranges.iter().any(|range| range.contains(address));
    addresses.into_iter().find(|address| !covered(address))
}

/// Destinations that no pool translates: the cluster's own, and what every pool excludes.
fn untranslated(cluster: &[Ipv4Net], excluded: &[Vec<Ipv4Net>]) -> Vec<Ipv4Net> {
    let mut excluded = excluded.iter().cloned();
    let first = excluded.next().unwrap_or_default();
    let common = excluded.fold(first, |common, next| intersection(&common, &next));
    Ipv4Net::aggregate(&[cluster, &common].concat())
}

/// What is in both: of two networks with an address in common, one is within the other.
fn intersection(a: &[Ipv4Net], b: &[Ipv4Net]) -> Vec<Ipv4Net> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut common = Vec::new();
    while let (Some(left), Some(right)) = (a.peek(), b.peek()) {
        if left.contains(*right) {
            common.extend(b.next());
        } else if right.contains(*left) {
            common.extend(a.next());
        } else if left < right {
            a.next();
        } else {
            b.next();
        }
    }
    common
}

/// The IPv4 networks, in order and none within another.
fn v4(networks: &[IpNet]) -> Vec<Ipv4Net> {
    let networks = networks.iter().filter_map(|network| match network {
        IpNet::V4(network) => Some(network.trunc()),
        IpNet::V6(_) => None,
    });
    Ipv4Net::aggregate(&networks.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::source::kubernetes::{object::Node, spec};

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn pools(specs: &[serde_json::Value]) -> BTreeMap<String, Judged> {
        let judged = |spec| Judged {
            refusal: None,
            spec: spec::read("p", spec).ok(),
        };
        let named = specs.iter().enumerate();
        named
            .map(|(number, spec)| (number.to_string(), judged(spec)))
            .collect()
    }

    fn of(specs: &[serde_json::Value]) -> Guard {
        let cluster = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        guard(&nets(&["10.244.1.0/24"]), &cluster, &pools(specs), vec![])
    }

    #[test]
    fn without_a_pool_nothing_is_held_back() {
        assert_eq!(of(&[]).pods, []);
        // One that was never accepted is none.
        assert_eq!(of(&[json!({"addresses": ["nonsense"]})]).pods, []);
    }

    #[test]
    fn a_pool_holds_back_all_that_it_does_not_exclude() {
        let guard = of(&[json!({"addresses": ["203.0.113.10"], "exclude": ["192.0.2.0/24"]})]);
        assert_eq!(guard.pods, nets(&["10.244.1.0/24"]));
        assert_eq!(guard.untranslated, nets(&["10.0.0.0/8", "192.0.2.0/24"]));
    }

    #[test]
    fn what_one_pool_excludes_another_may_translate() {
        let guard = of(&[
            json!({"addresses": ["203.0.113.10"], "exclude": ["192.0.2.0/24", "198.51.100.7"]}),
            json!({"addresses": ["203.0.113.11"], "include": ["192.0.2.0/25"]}),
        ]);
        assert_eq!(
            guard.untranslated,
            nets(&["10.0.0.0/8", "192.0.2.128/25", "198.51.100.7/32"])
        );
    }

    #[test]
    fn the_nodes_own_ranges_and_the_files() {
        let mut world = World::default();
        let pods = vec![
            "10.244.1.0/24".parse().unwrap(),
            "fd00:1::/64".parse().unwrap(),
        ];
        let node = Node {
            pods,
            ..Node::default()
        };
        world.nodes.insert("n1".to_owned(), node);
        let extra = ["10.50.0.0/16".parse().unwrap()];
        let ranges = pod_ranges("n1", &world, &extra);
        assert_eq!(ranges, nets(&["10.50.0.0/16", "10.244.1.0/24"]));
        assert_eq!(pod_ranges("n2", &world, &[]), []);
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        assert_eq!(uncovered(&ranges, [address("10.244.1.7")]), None);
        assert_eq!(
            uncovered(&ranges, [address("10.50.0.1"), address("10.244.2.7")]),
            Some(address("10.244.2.7"))
        );
    }

    /// Networks of a small part of the address space, where they often meet.
    fn networks() -> impl Strategy<Value = Vec<Ipv4Net>> {
        let network = (0_u8..=255, 24_u8..=32).prop_map(|(last, length)| {
            let address = Ipv4Addr::new(192, 0, 2, last);
            Ipv4Net::new(address, length).unwrap()
        });
        prop::collection::vec(network, 0..12)
    }

    proptest! {
        #[test]
        fn of_every_address_it_is_known_whether_a_pool_translates_it(
            cluster in networks(),
            pools in prop::collection::vec(networks(), 1..4),
        ) {
            let excluded: Vec<Vec<Ipv4Net>> = pools.iter().map(Ipv4Net::aggregate).collect();
            let found = untranslated(&cluster, &excluded);
            for last in 0..=255 {
                let address = Ipv4Addr::new(192, 0, 2, last);
                let within = |networks: &[Ipv4Net]| networks.iter().any(|net| net.contains(&address));
                let wanted = within(&cluster) || pools.iter().all(|excluded| within(excluded));
                prop_assert_eq!(within(&found), wanted, "{}", address);
            }
            // nft refuses intervals that meet.
            for (number, network) in found.iter().enumerate() {
                prop_assert!(found[number + 1..].iter().all(|other| !network.contains(other) && !other.contains(network)));
            }
        }
    }
}
