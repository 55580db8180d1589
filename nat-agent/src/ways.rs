//! The kernel's ways to addresses behind the node's links, by rtnetlink: routes,
//! neighbours, and what bridges have learned of their ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use nat_common::abi::Mac;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
        },
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};

use crate::facts::Ways;

/// Reads them.
///
/// # Errors
/// The kernel's.
pub async fn read(handle: &Handle) -> Result<Ways> {
    let every = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes: Vec<RouteMessage> = handle
        .route()
        .get(every)
        .execute()
        .try_collect()
        .await
        .context("list routes")?;
    let list = |family| {
        let request = handle.neighbours().get().set_address_family(family);
        request.execute().try_collect::<Vec<NeighbourMessage>>()
    };
    let neighbours = list(AddressFamily::Inet).await.context("list neighbours")?;
    let learned = list(AddressFamily::Bridge)
        .await
        .context("list what bridges have learned")?;
    Ok(ways(&routes, &neighbours, &learned))
}

/// Has the kernel look for a neighbour, as a packet to it would.
///
/// # Errors
/// The kernel's.
pub async fn seek(handle: &Handle, ifindex: u32, address: Ipv4Addr) -> Result<()> {
    let request = handle.neighbours().add(ifindex, address.into());
    request
        .state(NeighbourState::None)
        .flags(NeighbourFlags::Use)
        .replace()
        .execute()
        .await
        .with_context(|| format!("look for neighbour {address}"))
}

fn ways(
    routes: &[RouteMessage],
    neighbours: &[NeighbourMessage],
    learned: &[NeighbourMessage],
) -> Ways {
    let mut ways = Ways {
        neighbours: neighbours.iter().filter_map(neighbour).collect(),
        ports: learned.iter().filter_map(port).collect(),
        ..Ways::default()
    };
    routes
        .iter()
        .for_each(|message| route(message, &mut ways.routes, &mut ways.defaults));
    ways
}

fn route(message: &RouteMessage, routes: &mut BTreeMap<Ipv4Net, u32>, out: &mut BTreeSet<u32>) {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet || header.kind != RouteType::Unicast {
        return;
    }
    let (mut destination, mut links, mut gateway) = (Ipv4Addr::UNSPECIFIED, Vec::new(), false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Oif(index) => links.push(*index),
            RouteAttribute::MultiPath(hops) => {
                links.extend(hops.iter().map(|hop| hop.interface_index));
            }
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = true,
            _ => {}
        }
    }
    let length = header.destination_prefix_length;
    if length == 0 {
        out.extend(links);
    } else if !gateway
        && let [link] = links[..]
        && let Ok(net) = Ipv4Net::new(destination, length)
    {
        routes.entry(net).or_insert(link);
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<((u32, Ipv4Addr), Mac)> {
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
            _ => None,
        });
    Some(((message.header.ifindex, address?), mac(message)?))
}

fn port(message: &NeighbourMessage) -> Option<((u32, Mac), u32)> {
    // The port's own address is not behind it.
    if message.header.state == NeighbourState::Permanent {
        return None;
    }
    let bridge = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::Controller(index) => Some(*index),
            _ => None,
        });
    Some(((bridge?, mac(message)?), message.header.ifindex))
}

fn mac(message: &NeighbourMessage) -> Option<Mac> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use proptest::prelude::*;
    use rtnetlink::RouteNextHopBuilder;

    use super::*;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
    const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 7);
    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    fn to(net: &str) -> RouteMessageBuilder<Ipv4Addr> {
        let net: Ipv4Net = net.parse().unwrap();
        RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net.addr(), net.prefix_len())
    }

    fn of_routes(routes: &[RouteMessage]) -> Ways {
        ways(routes, &[], &[])
    }

    fn neighbour_of(
        family: AddressFamily,
        ifindex: u32,
        state: NeighbourState,
    ) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = family;
        message.header.ifindex = ifindex;
        message.header.state = state;
        message
    }

    /// Neighbour `address` at a link.
    fn at(ifindex: u32, address: Ipv4Addr, state: NeighbourState, mac: &[u8]) -> NeighbourMessage {
        let mut message = neighbour_of(AddressFamily::Inet, ifindex, state);
        let address = NeighbourAddress::Inet(address);
        message.attributes = vec![NeighbourAttribute::Destination(address)];
        // The kernel tells none while it knows none.
        if !mac.is_empty() {
            let mac = NeighbourAttribute::LinkLayerAddress(mac.to_vec());
            message.attributes.push(mac);
        }
        message
    }

    /// What a bridge knows to be behind a port.
    fn behind(port: u32, bridge: u32, state: NeighbourState, mac: Mac) -> NeighbourMessage {
        let mut message = neighbour_of(AddressFamily::Bridge, port, state);
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            NeighbourAttribute::Controller(bridge),
        ];
        message
    }

    #[test]
    fn links_of_default_routes_are_outside() {
        let ways = of_routes(&[
            to("0.0.0.0/0").output_interface(2).gateway(GATEWAY).build(),
            // A tunnel's has no gateway, a second one another metric.
            to("0.0.0.0/0").output_interface(3).priority(100).build(),
            to("0.0.0.0/1").output_interface(4).gateway(GATEWAY).build(),
        ]);
        assert_eq!(ways.defaults, BTreeSet::from([2, 3]));
        assert_eq!(ways.routes, BTreeMap::new());
    }

    #[test]
    fn a_default_route_over_several_links_has_them_all_outside() {
        let hop = |link| {
            let hop = RouteNextHopBuilder::new_ipv4().interface(link);
            hop.via(IpAddr::V4(GATEWAY)).unwrap().build()
        };
        let several = |net| to(net).multipath(vec![hop(2), hop(3)]).build();
        let ways = of_routes(&[several("0.0.0.0/0"), several("198.51.100.0/24")]);
        assert_eq!(ways.defaults, BTreeSet::from([2, 3]));
        assert_eq!(ways.routes, BTreeMap::new(), "one way, and there are two");
    }

    #[test]
    fn a_pods_own_route_leads_to_its_veth() {
        let v6 = Ipv6Addr::LOCALHOST;
        let ways = of_routes(&[
            to("10.244.1.7/32").output_interface(107).build(),
            // What the kernel lists after it is of a higher metric.
            to("10.244.1.7/32").output_interface(9).priority(9).build(),
            to("10.244.1.0/24").output_interface(5).build(),
            // Behind another node: not by a link of this one.
            to("10.244.2.0/24")
                .output_interface(2)
                .gateway(GATEWAY)
                .build(),
            to("10.244.3.0/24").output_interface(2).via(v6).build(),
        ]);
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let wanted = [(net("10.244.1.0/24"), 5), (net("10.244.1.7/32"), 107)];
        assert_eq!(ways.routes, BTreeMap::from(wanted));
    }

    #[test]
    fn what_is_no_way_is_no_route() {
        let kinds = [
            RouteType::Local,
            RouteType::Broadcast,
            RouteType::BlackHole,
            RouteType::Unreachable,
        ];
        let routes: Vec<RouteMessage> = kinds
            .into_iter()
            .flat_map(|kind| ["0.0.0.0/0", "10.244.1.7/32"].map(|net| (kind, net)))
            .map(|(kind, net)| to(net).output_interface(2).kind(kind).build())
            .chain([to("10.244.1.7/32").build()])
            .collect();
        assert_eq!(of_routes(&routes), Ways::default());
    }

    #[test]
    fn ipv6_is_not_taken_for_ipv4() {
        let v6 = || RouteMessageBuilder::<Ipv6Addr>::new().output_interface(2);
        let routes = [
            v6().build(),
            v6().destination_prefix(Ipv6Addr::LOCALHOST, 32).build(),
        ];
        let mut neighbour = neighbour_of(AddressFamily::Inet6, 5, NeighbourState::Reachable);
        neighbour.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(Ipv6Addr::LOCALHOST)),
            NeighbourAttribute::LinkLayerAddress(MAC.to_vec()),
        ];
        assert_eq!(ways(&routes, &[neighbour], &[]), Ways::default());
    }

    #[test]
    fn neighbours_are_known_by_their_ethernet_address() {
        use NeighbourState as State;
        let known = [State::Reachable, State::Stale, State::Delay, State::Probe];
        for state in known.into_iter().chain([State::Permanent, State::Noarp]) {
            let ways = ways(&[], &[at(5, POD, state, &MAC)], &[]);
            let wanted = BTreeMap::from([((5, POD), MAC)]);
            assert_eq!(ways.neighbours, wanted, "{state:?}");
        }
        for state in [State::Failed, State::Incomplete, State::None] {
            let ways = ways(&[], &[at(5, POD, state, &[])], &[]);
            assert_eq!(ways, Ways::default(), "{state:?}");
        }
        // Of a tunnel: no Ethernet address.
        let tunnel = at(5, POD, State::Noarp, &[192, 0, 2, 1]);
        assert_eq!(ways(&[], &[tunnel], &[]), Ways::default());
    }

    #[test]
    fn bridges_say_what_is_behind_their_ports() {
        use NeighbourState as State;
        let own = [2, 0, 0, 0, 0, 99];
        let mut no_bridge = behind(8, 5, State::Reachable, MAC);
        no_bridge.attributes.pop();
        let learned = [
            behind(7, 5, State::Reachable, MAC),
            behind(7, 5, State::Permanent, own),
            // The same address behind another bridge is something else.
            behind(17, 15, State::Stale, MAC),
            no_bridge,
        ];
        let ways = ways(&[], &[], &learned);
        let wanted = [((5, MAC), 7), ((15, MAC), 17)];
        assert_eq!(ways.ports, BTreeMap::from(wanted));
    }

    proptest! {
        /// Whatever else is in a list, a pod's own route is found, and no other link is a pod's.
        #[test]
        fn a_pods_route_is_found_among_any(
            others in prop::collection::btree_map((any::<u32>(), 1_u8..=32), (1_u32..50, any::<bool>()), 0..30),
            place in any::<prop::sample::Index>(),
        ) {
            let own = Ipv4Net::from(POD);
            let nets = others.iter().map(|((address, length), (link, gateway))| {
                let net = Ipv4Net::new((*address).into(), *length).unwrap().trunc();
                (net, *link, *gateway)
            });
            let nets: Vec<_> = nets.filter(|(net, ..)| *net != own).collect();
            let mut routes: Vec<RouteMessage> = nets.iter().map(|(net, link, gateway)| {
                let route = to(&net.to_string()).output_interface(*link);
                if *gateway { route.gateway(GATEWAY).build() } else { route.build() }
            }).collect();
            let place = place.index(routes.len() + 1);
            routes.insert(place, to("10.244.1.7/32").output_interface(107).build());
            let ways = of_routes(&routes);
            prop_assert_eq!(ways.routes.get(&own), Some(&107));
            prop_assert!(ways.defaults.is_empty());
            for (net, link) in ways.routes.iter().filter(|(net, _)| **net != own) {
                prop_assert!(nets.contains(&(*net, *link, false)));
            }
        }
    }
}
