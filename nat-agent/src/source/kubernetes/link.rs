//! The host's side of a pod's veth, found by the pod's address: the link of its /32 route, or the
//! bridge's port that its Ethernet address is behind.

use std::{fmt, net::Ipv4Addr};

use ipnet::Ipv4Net;

use crate::facts::{Facts, Kind};

/// Why a pod's link is not known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No route leads to the pod.
    Route,
    /// The pod is leaving, and the link that it had is gone.
    Gone,
    /// The runtime has made this link for it, which is not seen yet.
    Unseen(u32),
    /// The route leads to a link that pods are not behind.
    NotPods(String),
    /// The neighbour behind a bridge has not answered yet.
    Neighbour {
        /// The bridge's number.
        ifindex: u32,
        /// Its name.
        bridge: String,
    },
    /// The bridge has not seen yet behind which port the pod is.
    Port {
        /// The bridge's number.
        ifindex: u32,
        /// Its name.
        bridge: String,
    },
}

impl Missing {
    /// The link on which the kernel has to look for the pod.
    pub const fn sought(&self) -> Option<u32> {
        match self {
            Self::Neighbour { ifindex, .. } | Self::Port { ifindex, .. } => Some(*ifindex),
            Self::Route | Self::Gone | Self::Unseen(_) | Self::NotPods(_) => None,
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Route => f.write_str("no route leads to it yet"),
            Self::Gone => f.write_str("it is leaving, and its link is gone"),
            Self::Unseen(link) => write!(f, "link number {link} of this node is not seen yet"),
            Self::NotPods(link) => write!(f, "its route leads to {link}, which is no veth"),
            Self::Neighbour { bridge, .. } => {
                write!(f, "it has not answered ARP on {bridge} yet")
            }
            Self::Port { bridge, .. } => {
                write!(f, "{bridge} has not learned yet behind which port it is")
            }
        }
    }
}

/// Finds the link. `known` is the one it had: it keeps it while that exists and nothing else is
/// found, since neighbours come and go.
///
/// # Errors
///
/// Why it is not known yet.
pub fn host_side(address: Ipv4Addr, facts: &Facts, known: Option<u32>) -> Result<String, Missing> {
    find(address, facts).or_else(|missing| kept(known, facts).map_err(|_| missing))
}

/// The link that a pod had, if it still exists. A leaving pod gets no other: its address may be
/// another's already, and the way to it lead there.
///
/// # Errors
///
/// It had none, or that is gone.
pub fn kept(known: Option<u32>, facts: &Facts) -> Result<String, Missing> {
    let (name, kind) = known
        .and_then(|known| named(known, facts))
        .ok_or(Missing::Gone)?;
    match kind {
        Kind::Veth => Ok(name.to_owned()),
        Kind::Nic | Kind::Virtual => Err(Missing::Gone),
    }
}

/// The veth among links that the runtime has made or used for a pod; `None` if there is none.
///
/// # Errors
///
/// One of them is not seen yet.
pub fn announced(links: &[u32], facts: &Facts) -> Result<Option<String>, Missing> {
    let mut veth = None;
    for ifindex in links {
        let (name, kind) = named(*ifindex, facts).ok_or(Missing::Unseen(*ifindex))?;
        if kind == Kind::Veth {
            veth = Some(name.to_owned());
        }
    }
    Ok(veth)
}

fn find(address: Ipv4Addr, facts: &Facts) -> Result<String, Missing> {
    let routes = &facts.ways.routes;
    let covering = || {
        let covering = routes.iter().filter(|(net, _)| net.contains(&address));
        covering.max_by_key(|(net, _)| net.prefix_len())
    };
    // Most pods have a route of their own: the others need not be gone through.
    let own = routes.get_key_value(&Ipv4Net::from(address));
    let (net, ifindex) = own.or_else(covering).ok_or(Missing::Route)?;
    let (name, kind) = named(*ifindex, facts).ok_or(Missing::Route)?;
    match kind {
        Kind::Veth if net.prefix_len() == 32 => return Ok(name.to_owned()),
        Kind::Virtual => {}
        Kind::Veth | Kind::Nic => return Err(Missing::NotPods(name.to_owned())),
    }
    let bridge = name.to_owned();
    let ifindex = *ifindex;
    let Some(mac) = facts.ways.neighbours.get(&(ifindex, address)) else {
        return Err(Missing::Neighbour { ifindex, bridge });
    };
    let port = facts.ways.ports.get(&(ifindex, *mac));
    match port.and_then(|port| named(*port, facts)) {
        Some((port, Kind::Veth)) => Ok(port.to_owned()),
        Some((port, _)) => Err(Missing::NotPods(port.to_owned())),
        None => Err(Missing::Port { ifindex, bridge }),
    }
}

fn named(ifindex: u32, facts: &Facts) -> Option<(&str, Kind)> {
    let mut links = facts.links.iter();
    let found = links.find(|(_, link)| link.ifindex == ifindex);
    found.map(|(name, link)| (name.as_str(), link.kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Link;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

    fn facts(routes: &[(&str, u32)]) -> Facts {
        let mut facts = Facts::default();
        for (name, ifindex, kind) in [
            ("eth0", 2, Kind::Nic),
            ("cni0", 3, Kind::Virtual),
            ("veth4", 4, Kind::Veth),
            ("veth5", 5, Kind::Veth),
        ] {
            let mac = [0; 6];
            facts
                .links
                .insert(name.to_owned(), Link { ifindex, mac, kind });
        }
        for (net, ifindex) in routes {
            facts.ways.routes.insert(net.parse().unwrap(), *ifindex);
        }
        facts
    }

    #[test]
    fn a_route_of_its_own() {
        let facts = facts(&[
            ("10.244.1.0/24", 3),
            ("10.244.1.7/32", 4),
            ("10.244.1.8/32", 5),
        ]);
        assert_eq!(host_side(POD, &facts, None), Ok("veth4".to_owned()));
    }

    #[test]
    fn a_port_of_a_bridge() {
        let mut facts = facts(&[("10.244.1.0/24", 3)]);
        let missing = host_side(POD, &facts, None).unwrap_err();
        assert_eq!(missing.sought(), Some(3));
        assert_eq!(missing.to_string(), "it has not answered ARP on cni0 yet");
        facts.ways.neighbours.insert((3, POD), MAC);
        let missing = host_side(POD, &facts, None).unwrap_err();
        assert_eq!(missing.sought(), Some(3));
        assert!(missing.to_string().contains("behind which port"));
        facts.ways.ports.insert((3, MAC), 5);
        assert_eq!(host_side(POD, &facts, None), Ok("veth5".to_owned()));
    }

    #[test]
    fn what_is_known_stays_while_it_exists() {
        let facts = facts(&[("10.244.1.0/24", 3)]);
        assert_eq!(host_side(POD, &facts, Some(4)), Ok("veth4".to_owned()));
        assert!(host_side(POD, &facts, Some(9)).is_err());
        assert!(
            host_side(POD, &facts, Some(2)).is_err(),
            "a NIC is nobody's veth"
        );
    }

    #[test]
    fn a_route_wins_over_what_is_known() {
        let facts = facts(&[("10.244.1.7/32", 5)]);
        assert_eq!(host_side(POD, &facts, Some(4)), Ok("veth5".to_owned()));
    }

    #[test]
    fn what_the_runtime_has_made() {
        let facts = facts(&[]);
        assert_eq!(announced(&[3, 4], &facts), Ok(Some("veth4".to_owned())));
        assert_eq!(announced(&[3], &facts), Ok(None));
        assert_eq!(announced(&[], &facts), Ok(None));
        assert_eq!(announced(&[4, 9], &facts), Err(Missing::Unseen(9)));
    }

    #[test]
    fn where_pods_are_not() {
        assert_eq!(host_side(POD, &facts(&[]), None), Err(Missing::Route));
        let on_nic = host_side(POD, &facts(&[("10.244.0.0/16", 2)]), None);
        assert_eq!(on_nic, Err(Missing::NotPods("eth0".to_owned())));
        let subnet = host_side(POD, &facts(&[("10.244.1.0/24", 4)]), None);
        assert_eq!(subnet, Err(Missing::NotPods("veth4".to_owned())));
        assert_eq!(
            host_side(POD, &facts(&[("10.244.1.7/32", 9)]), None),
            Err(Missing::Route)
        );
    }
}
