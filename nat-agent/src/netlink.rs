//! The kernel's links, addresses, routes and neighbours, by rtnetlink: read
//! once, then followed by events.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context, Result};
use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
    },
};

use crate::{
    facts::{Facts, Kind, Link, Ways, forwarding},
    ways,
};

/// What an event asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing.
    #[default]
    None,
    /// Cached next hops may be wrong.
    Hops,
    /// The way to an address behind a link may be another.
    Ways,
    /// Links or addresses are others: the desired state may be.
    Links,
}

/// The connection to rtnetlink.
pub struct Netlink {
    handle: Handle,
    events: Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin>,
    /// Neighbours' Ethernet addresses, to tell a change from a change of state.
    neighbours: HashMap<(u32, IpAddr), Vec<u8>>,
    /// Whether the ways to addresses are asked for.
    ways: bool,
}

impl Netlink {
    /// Connects in the thread's network namespace. Call within a tokio runtime. With `ways`, facts
    /// have [`Facts::ways`], and their changes are noticed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connect(ways: bool) -> Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Rule,
        ];
        let (connection, handle, events) =
            new_multicast_connection(&groups).context("connect to rtnetlink")?;
        tokio::spawn(connection);
        let events = Box::new(events.map(|(message, _)| message));
        Ok(Self {
            handle,
            events,
            neighbours: HashMap::new(),
            ways,
        })
    }

    /// Reads what the node is like.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn facts(&self) -> Result<Facts> {
        let links: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .context("list links")?;
        let addresses: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .context("list addresses")?;
        Ok(Facts {
            links: links.iter().filter_map(link).collect::<BTreeMap<_, _>>(),
            addresses: addresses
                .iter()
                .filter_map(address)
                .collect::<BTreeSet<_>>(),
            forwarding: forwarding(),
            ways: match self.ways {
                true => ways::read(&self.handle).await?,
                false => Ways::default(),
            },
        })
    }

    /// Has the kernel look for a neighbour; the answer comes as an event.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn seek(&self, ifindex: u32, address: Ipv4Addr) -> Result<()> {
        ways::seek(&self.handle, ifindex, address).await
    }

    /// Waits for the next event and says what it asks for.
    pub async fn next(&mut self) -> Change {
        match self.events.next().await {
            Some(message) => self.judge(message),
            // The connection is gone; the sweep's own round goes on.
            None => std::future::pending().await,
        }
    }

    fn judge(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) -> Change {
        let NetlinkPayload::InnerMessage(message) = message.payload else {
            // The socket overflowed: anything may have changed.
            return Change::Links;
        };
        match message {
            RouteNetlinkMessage::NewNeighbour(message) => self.neighbour(&message, true),
            RouteNetlinkMessage::DelNeighbour(message) => self.neighbour(&message, false),
            RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_) => Change::Links,
            RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) if self.ways => {
                Change::Ways
            }
            _ => Change::Hops,
        }
    }

    /// Most neighbour events change a state, not an address.
    fn neighbour(&mut self, message: &NeighbourMessage, exists: bool) -> Change {
        if message.header.family == AddressFamily::Bridge {
            return self.moved();
        }
        let (mut address, mut mac) = (None, Vec::new());
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    address = Some(IpAddr::V4(*v4));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => mac.clone_from(bytes),
                _ => {}
            }
        }
        let Some(address) = address else {
            return Change::None;
        };
        let key = (message.header.ifindex, address);
        let before = if exists && !mac.is_empty() {
            self.neighbours.insert(key, mac.clone())
        } else {
            self.neighbours.remove(&key)
        };
        if before.unwrap_or_default() == mac {
            Change::None
        } else {
            self.moved().max(Change::Hops)
        }
    }

    /// An address is behind another port or neighbour.
    const fn moved(&self) -> Change {
        if self.ways {
            Change::Ways
        } else {
            Change::None
        }
    }
}

fn link(message: &LinkMessage) -> Option<(String, Link)> {
    let (mut name, mut mac, mut kind) = (None, [0; 6], Kind::Nic);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => mac = bytes.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::LinkInfo(infos) => kind = kind_of(infos),
            _ => {}
        }
    }
    let ifindex = message.header.index;
    name.map(|name| (name, Link { ifindex, mac, kind }))
}

/// Only devices made of software say what kind they are.
fn kind_of(infos: &[LinkInfo]) -> Kind {
    let mut kinds = infos.iter().filter_map(|info| match info {
        LinkInfo::Kind(InfoKind::Veth) => Some(Kind::Veth),
        LinkInfo::Kind(_) => Some(Kind::Virtual),
        _ => None,
    });
    kinds.next_back().unwrap_or(Kind::Nic)
}

fn address(message: &AddressMessage) -> Option<Ipv4Addr> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use rtnetlink::packet_route::{neighbour::NeighbourState, route::RouteMessage};

    use super::*;

    const POD: NeighbourAddress = NeighbourAddress::Inet(Ipv4Addr::new(10, 244, 1, 7));

    /// A neighbour, as the kernel tells of it: without an Ethernet address while it knows none.
    fn at(address: NeighbourAddress, state: NeighbourState, mac: Option<u8>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 5;
        message.header.state = state;
        let mac = mac.map(|last| NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, last]));
        message.attributes = [NeighbourAttribute::Destination(address)]
            .into_iter()
            .chain(mac)
            .collect();
        message
    }

    fn judge(netlink: &mut Netlink, message: RouteNetlinkMessage) -> Change {
        netlink.judge(NetlinkMessage::from(message))
    }

    #[tokio::test]
    async fn a_neighbour_matters_when_its_address_is_another() {
        use NeighbourState as State;
        use RouteNetlinkMessage::{DelNeighbour, NewNeighbour};
        for (ways, moved) in [(true, Change::Ways), (false, Change::Hops)] {
            let mut netlink = Netlink::connect(ways).unwrap();
            let new = |state, mac| NewNeighbour(at(POD, state, mac));
            for (message, wanted) in [
                (new(State::Incomplete, None), Change::None),
                (new(State::Reachable, Some(7)), moved),
                (new(State::Stale, Some(7)), Change::None),
                (new(State::Reachable, Some(8)), moved),
                (new(State::Failed, None), moved),
                (new(State::Reachable, Some(8)), moved),
                (DelNeighbour(at(POD, State::Failed, None)), moved),
                (new(State::Reachable, Some(8)), moved),
                // Forgotten for its age: what was known of it is not wrong.
                (DelNeighbour(at(POD, State::Stale, Some(8))), Change::None),
                (new(State::Reachable, Some(8)), moved),
            ] {
                let words = format!("{message:?}");
                assert_eq!(judge(&mut netlink, message), wanted, "{words}");
            }
            let v6 = NeighbourAddress::Inet6(Ipv6Addr::LOCALHOST);
            let v6 = NewNeighbour(at(v6, State::Reachable, Some(7)));
            assert_eq!(judge(&mut netlink, v6), Change::None);
        }
    }

    #[tokio::test]
    async fn routes_and_ports_matter_where_ways_do() {
        let mut port = NeighbourMessage::default();
        port.header.family = AddressFamily::Bridge;
        for (ways, route, moved) in [
            (true, Change::Ways, Change::Ways),
            (false, Change::Hops, Change::None),
        ] {
            let mut netlink = Netlink::connect(ways).unwrap();
            for (message, wanted) in [
                (
                    RouteNetlinkMessage::NewRoute(RouteMessage::default()),
                    route,
                ),
                (
                    RouteNetlinkMessage::DelRoute(RouteMessage::default()),
                    route,
                ),
                (RouteNetlinkMessage::NewNeighbour(port.clone()), moved),
                (RouteNetlinkMessage::DelNeighbour(port.clone()), moved),
                (
                    RouteNetlinkMessage::DelLink(LinkMessage::default()),
                    Change::Links,
                ),
                (
                    RouteNetlinkMessage::NewAddress(AddressMessage::default()),
                    Change::Links,
                ),
            ] {
                let words = format!("{message:?}");
                assert_eq!(judge(&mut netlink, message), wanted, "{words}");
            }
        }
    }

    #[test]
    fn links_say_what_they_are() {
        let named = |infos: Option<Vec<LinkInfo>>| {
            let mut message = LinkMessage::default();
            message.header.index = 7;
            let infos = infos.map(LinkAttribute::LinkInfo);
            message.attributes = [LinkAttribute::IfName("it".to_owned())]
                .into_iter()
                .chain(infos)
                .collect();
            link(&message).map(|(_, link)| link.kind)
        };
        let kind = |kind| Some(vec![LinkInfo::Kind(kind)]);
        assert_eq!(named(None), Some(Kind::Nic));
        assert_eq!(named(kind(InfoKind::Veth)), Some(Kind::Veth));
        assert_eq!(named(kind(InfoKind::Bridge)), Some(Kind::Virtual));
        assert_eq!(link(&LinkMessage::default()), None);
    }
}
