//! The first packet of a flow, at every hook where packets go out: whose is it,
//! does it leave through an outside device, may it open a session?

use crate::{
    abi::{Delivery, Half},
    classify::{self, Sender, sender},
    packet::{
        ethernet, ipv4,
        transport::{self, Transport},
    },
    reason::Reason,
    session::{Opening, Refusal},
    verdict::Verdict,
    world::{Frame, Hop, RouteQuery, World},
};

/// How packets leave a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// XDP: with the Ethernet header rewritten.
    Redirect,
    /// tcx on the direct path: the kernel writes the Ethernet header.
    Neighbour,
    /// tcx egress: on the way out already.
    Stack,
}

impl Way {
    /// How a next hop cached for this way is meant.
    #[inline(always)]
    pub const fn delivery(self) -> Delivery {
        match self {
            Self::Redirect => Delivery::Xdp,
            Self::Neighbour => Delivery::Neighbour,
            Self::Stack => Delivery::Stack,
        }
    }

    /// On the stack path: XDP leaves the mark to the tcx program behind it.
    #[inline(always)]
    pub const fn by_stack(self) -> Verdict {
        match self {
            Self::Redirect => Verdict::Pass,
            Self::Neighbour => Verdict::Mark,
            Self::Stack => Verdict::Stack,
        }
    }

    /// Not to be translated: only at a client's own device does that have to be said.
    #[inline(always)]
    pub const fn alone(self) -> Verdict {
        match self {
            Self::Neighbour => Verdict::Alone,
            Self::Redirect | Self::Stack => Verdict::Pass,
        }
    }
}

/// A packet on its way out, as this hook found it.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Its IP header.
    pub packet: ipv4::Packet,
    /// Its transport header.
    pub transport: Transport,
    /// Why it cannot be translated, if it has no transport header that can.
    pub unfit: Option<Reason>,
    /// The device it came in through; 0 at the outside device, where that has been checked.
    pub ingress: u32,
    /// How it leaves.
    pub way: Way,
}

impl Arrival {
    /// Nothing.
    pub const EMPTY: Self = Self {
        packet: ipv4::Packet::EMPTY,
        transport: Transport::EMPTY,
        unfit: None,
        ingress: 0,
        way: Way::Stack,
    };

    /// Reads the transport header.
    #[inline(always)]
    pub fn new<F: Frame>(frame: &F, packet: ipv4::Packet, ingress: u32, way: Way) -> Self {
        let mut transport = Transport::EMPTY;
        let unfit = transport::parse(frame, &packet, &mut transport).err();
        Self {
            packet,
            transport,
            unfit,
            ingress,
            way,
        }
    }
}

/// Whether the packet belongs to a session.
#[inline(always)]
pub fn known<W: World>(world: &W, arrival: &Arrival) -> bool {
    let key = transport::flow(&arrival.packet, &arrival.transport);
    arrival.unfit.is_none() && world.forward(&key).is_some()
}

/// The forward half of a packet on its way out: its session's, or that of a
/// session opened for it.
///
/// # Errors
/// What becomes of the packet when it can have none.
#[inline(always)]
pub fn session<'a, F: Frame, W: World>(
    frame: &F,
    world: &'a W,
    arrival: &Arrival,
) -> Result<&'a mut Half, Verdict> {
    if arrival.unfit.is_none()
        && let Some(half) = world.forward(&transport::flow(&arrival.packet, &arrival.transport))
    {
        return Ok(half);
    }
    let headers = transport::headers(&arrival.packet, &arrival.transport);
    // Every step takes the memory anew: two of them never hold it at once.
    let opening = || world.opening().ok_or(Verdict::Drop(Reason::Contention));
    {
        let opening = opening()?;
        opening.wire_length = frame.wire_length(arrival.packet.length, headers);
        opening.arrival = *arrival;
    }
    if !world.admit() {
        let opening = opening()?;
        return Err(match opening.refusal {
            Refusal::Pass => arrival.way.alone(),
            Refusal::ByStack => arrival.way.by_stack(),
            Refusal::Drop => Verdict::Drop(opening.reason),
        });
    }
    let mapped = world.map();
    let created = mapped && world.create_reverse() && world.create_forward();
    if mapped && !created {
        world.withdraw();
    }
    if !created {
        let opening = opening()?;
        if matches!(
            opening.reason,
            Reason::PortsExhausted | Reason::ClientCap | Reason::MappingRate
        ) {
            tell(frame, world, arrival, opening.client, opening.reason);
        }
        return Err(Verdict::Drop(opening.reason));
    }
    world
        .forward(&opening()?.key)
        .ok_or(Verdict::Drop(Reason::Contention))
}

/// Whether the packet in the opening may open a session; if not, the opening
/// says what becomes of it otherwise.
#[inline(always)]
pub fn admit<W: World>(world: &W) -> bool {
    let Some(opening) = world.opening() else {
        return false;
    };
    match judge(world, opening) {
        Ok(None) => return true,
        Ok(Some(refusal)) => opening.refusal = refusal,
        Err(reason) => {
            opening.refusal = Refusal::Drop;
            opening.reason = reason;
        }
    }
    false
}

#[inline(always)]
fn judge<W: World>(world: &W, opening: &mut Opening) -> Result<Option<Refusal>, Reason> {
    let arrival = &opening.arrival;
    let packet = &arrival.packet;
    let ingress = if arrival.way == Way::Stack {
        None
    } else {
        Some(arrival.ingress)
    };
    match sender(world, packet, ingress)? {
        Sender::Client(index, _) => opening.client = index,
        // At the outside device the mark alone does not make it a client's: the
        // kernel keeps it on an answer whose source it has just changed back (a
        // Service's), or the configuration has changed since.
        Sender::Stranger | Sender::Excluded => return Ok(Some(Refusal::Pass)),
        // It was marked for a session that has ended since: the kernel has kept its source from
        // masquerade, so that it would leave as nobody's. Repeated it is not marked.
        Sender::Draining if arrival.way == Way::Stack => return Err(Reason::Contention),
        Sender::Draining => return Ok(Some(Refusal::Pass)),
    }
    opening.hop = Hop::EMPTY;
    if arrival.way != Way::Stack {
        let leaves = packet.ttl > 1 && route(world, arrival, &mut opening.hop);
        if !leaves || opening.wire_length > u32::from(opening.hop.mtu) {
            return Ok(Some(Refusal::ByStack));
        }
    }
    may_open(arrival)?;
    opening.key = transport::flow(packet, &arrival.transport);
    Ok(None)
}

#[inline(always)]
fn may_open(arrival: &Arrival) -> Result<(), Reason> {
    if let Some(reason) = arrival.unfit {
        return Err(reason);
    }
    if ipv4::bad_source(&arrival.packet) {
        return Err(Reason::BadSource);
    }
    if ipv4::bad_destination(&arrival.packet) {
        return Err(Reason::BadDestination);
    }
    if !arrival.transport.opens {
        return Err(Reason::NotAnOpening);
    }
    Ok(())
}

/// The way out, if it leads through an outside device that this hook can use.
#[inline(always)]
pub fn route<W: World>(world: &W, arrival: &Arrival, hop: &mut Hop) -> bool {
    let packet = &arrival.packet;
    if ipv4::bad_destination(packet) {
        return false;
    }
    let query = RouteQuery {
        ingress: arrival.ingress,
        source: packet.source,
        destination: packet.destination,
        protocol: packet.protocol,
        tos: packet.tos,
    };
    world.route(&query, hop)
        && match arrival.way {
            Way::Redirect => classify::leaves_by_xdp(world, hop),
            Way::Neighbour | Way::Stack => classify::leaves(world, hop),
        }
}

/// Has the agent tell the sender that there is no port for it, at most once a tick for each client.
#[inline(always)]
fn tell<F: Frame, W: World>(frame: &F, world: &W, arrival: &Arrival, index: u16, reason: Reason) {
    let (now, Some(client)) = (world.now(), world.client(index)) else {
        return;
    };
    // Tick 0 is the first second after the clock began, and the value of a new client.
    if arrival.packet.options || (client.noticed.get() == now && now != 0) {
        return;
    }
    if let Some(quote) = frame.load::<[u8; 28]>(ethernet::PAYLOAD) {
        client.noticed.set(now);
        world.notify(index, reason, &quote);
    }
}
