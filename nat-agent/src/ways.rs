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
    let (mut destination, mut link, mut gateway) = (Ipv4Addr::UNSPECIFIED, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => gateway = true,
            _ => {}
        }
    }
    let Some(link) = link else { return };
    let length = message.header.destination_prefix_length;
    if message.header.kind != RouteType::Unicast {
        return;
    }
    if length == 0 {
        out.insert(link);
    } else if !gateway && let Ok(net) = Ipv4Net::new(destination, length) {
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
