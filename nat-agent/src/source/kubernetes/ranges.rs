//! The cluster's own ranges: what is never translated to.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use super::world::World;
use crate::config::Range;

const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);

/// A range of the cluster and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRange {
    /// The range.
    pub net: Ipv4Net,
    /// Whose, for a sentence: `the pods of node n1`.
    pub whose: String,
}

/// Every IPv4 range that the API knows: nodes' pods and addresses, Services, link-local.
pub fn learned(world: &World) -> Vec<ClusterRange> {
    let mut ranges = Vec::new();
    let mut add = |net: IpNet, whose: String| {
        if let IpNet::V4(net) = net {
            let net = net.trunc();
            ranges.push(ClusterRange { net, whose });
        }
    };
    add(IpNet::V4(LINK_LOCAL), "link-local addresses".to_owned());
    for (name, node) in &world.nodes {
        for net in &node.pods {
            add(*net, format!("the pods of node {name}"));
        }
        for address in &node.addresses {
            add(IpNet::from(*address), format!("node {name}"));
        }
    }
    for (name, nets) in &world.services {
        for net in nets {
            add(*net, format!("Services (ServiceCIDR {name})"));
        }
    }
    ranges
}

/// The learned ranges and the node's own ones, as few networks as they are.
pub fn all(learned: &[ClusterRange], extra: &[IpNet]) -> Vec<IpNet> {
    let learned = learned.iter().map(|range| IpNet::V4(range.net));
    let every: Vec<IpNet> = learned.chain(extra.iter().copied()).collect();
    let mut networks = IpNet::aggregate(&every);
    networks.sort();
    networks
}

/// The first of the ranges that has an address in common with any of the others.
pub fn meeting<'r>(ranges: &'r [ClusterRange], addresses: &[Range]) -> Option<&'r ClusterRange> {
    ranges.iter().find(|range| {
        let range = Range::from(IpNet::V4(range.net));
        addresses.iter().any(|addresses| addresses.meets(&range))
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::source::kubernetes::object::Node;

    fn world() -> World {
        let mut world = World::default();
        for number in 0..4_u8 {
            let node = Node {
                pods: vec![
                    format!("10.244.{number}.0/24").parse().unwrap(),
                    "fd00::/64".parse().unwrap(),
                ],
                addresses: vec![
                    IpAddr::from([192, 0, 2, number]),
                    "fd01::1".parse().unwrap(),
                ],
                ..Node::default()
            };
            world.nodes.insert(format!("n{number}"), node);
        }
        let services = vec!["10.96.0.0/12".parse().unwrap()];
        world.services.insert("kubernetes".to_owned(), services);
        world
    }

    #[test]
    fn as_few_as_they_are() {
        let extra = ["10.0.0.0/16".parse().unwrap()];
        let all = all(&learned(&world()), &extra);
        let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "10.0.0.0/16",
                "10.96.0.0/12",
                "10.244.0.0/22",
                "169.254.0.0/16",
                "192.0.2.0/30"
            ]
        );
    }

    #[test]
    fn whose_a_range_is() {
        let learned = learned(&world());
        let meets = |text: &str| {
            let range = Range::from(text.parse::<IpNet>().unwrap());
            meeting(&learned, &[range]).map(|range| range.whose.as_str())
        };
        assert_eq!(meets("10.244.2.128/25"), Some("the pods of node n2"));
        assert_eq!(meets("192.0.2.3/32"), Some("node n3"));
        assert_eq!(meets("10.0.0.0/8"), Some("the pods of node n0"));
        assert_eq!(
            meets("10.97.0.1/32"),
            Some("Services (ServiceCIDR kubernetes)")
        );
        assert_eq!(meets("203.0.113.0/24"), None);
    }
}
