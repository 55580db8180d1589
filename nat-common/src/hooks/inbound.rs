//! XDP and tcx ingress of an outside device: answers are translated back and
//! delivered; what is for an egress address and answers nobody is dropped.

use crate::{
    abi::{ADDRESS_OWN, DEVICE_GENERIC, Delivery, Half},
    packet::{
        arp,
        ethernet::{self, Payload},
        ipv4,
        transport::{self, Transport},
    },
    reason::Reason,
    session,
    translate::{End, Rewrite, rewrite},
    verdict::Verdict,
    world::{Frame, Hop, RouteQuery, World},
};

/// Which program is asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// XDP: delivers what XDP sent, leaves the rest to tcx.
    Xdp,
    /// tcx: delivers everything that comes this far.
    Tcx,
}

/// Translates an answer back and delivers it.
#[inline(always)]
pub fn inbound<F: Frame, W: World>(
    frame: &mut F,
    world: &W,
    ingress: u32,
    layer: Layer,
) -> Verdict {
    match ethernet::payload(frame) {
        Payload::Ipv4 => {}
        Payload::Arp if answers(world, ingress, layer) && arp::answer(frame, world, ingress) => {
            return Verdict::Reply;
        }
        Payload::Arp | Payload::Other => return Verdict::Pass,
    }
    let packet = match ipv4::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Drop(reason),
    };
    let mut transport = Transport::EMPTY;
    if let Err(reason) = transport::parse(frame, &packet, &mut transport) {
        return unknown(world, &packet, reason);
    }
    let Some(half) = world.reverse(&transport::flow(&packet, &transport)) else {
        return unknown(world, &packet, Reason::NoSession);
    };
    deliver(frame, world, &packet, &transport, half, ingress, layer).unwrap_or_else(Verdict::Drop)
}

/// Whether ARP is this layer's to answer. It is tcx's, on every device: what native
/// XDP sends back on a veth stays there until something else goes the same way.
/// Only behind generic XDP tcx lacks the Ethernet header to do it.
#[inline(always)]
fn answers<W: World>(world: &W, ingress: u32, layer: Layer) -> bool {
    layer == Layer::Tcx
        || world
            .device(ingress)
            .is_some_and(|device| device.flags & DEVICE_GENERIC != 0)
}

/// No session: the kernel's, unless it is for an address that is ours alone.
#[inline(always)]
fn unknown<W: World>(world: &W, packet: &ipv4::Packet, reason: Reason) -> Verdict {
    match world.address(&packet.destination) {
        Some(address) if address.flags & ADDRESS_OWN == 0 => Verdict::Drop(reason),
        _ => Verdict::Pass,
    }
}

/// An answer, delivered as its session says.
#[inline(always)]
fn deliver<F: Frame, W: World>(
    frame: &mut F,
    world: &W,
    packet: &ipv4::Packet,
    transport: &Transport,
    half: &mut Half,
    ingress: u32,
    layer: Layer,
) -> Result<Verdict, Reason> {
    let by_xdp = half.delivery == Delivery::Xdp as u8;
    if layer == Layer::Xdp && !by_xdp {
        return Ok(Verdict::Pass);
    }
    let mut to = Rewrite {
        end: End::Destination,
        address: half.address,
        port: half.port,
        hop: half.delivery != Delivery::Stack as u8,
    };
    if layer == Layer::Xdp {
        return redirect(frame, world, packet, transport, half, ingress, to);
    }
    to.hop = to.hop && !by_xdp;
    // On the stack path, too: the kernel would tell the sender, and quote the client's own address.
    if packet.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    session::stamp(world, half, transport.tcp_flags, packet.length);
    rewrite(frame, packet, transport, &to)?;
    Ok(match half.delivery {
        d if d == Delivery::Peer as u8 => Verdict::Peer {
            ifindex: half.ifindex,
        },
        d if d == Delivery::Neighbour as u8 => Verdict::Neighbour {
            ifindex: half.ifindex,
            gateway: half.address,
        },
        _ => Verdict::Stack,
    })
}

/// By XDP to the client's next hop, cached or looked up; up the stack where
/// only the kernel knows the way.
#[inline(always)]
fn redirect<F: Frame, W: World>(
    frame: &mut F,
    world: &W,
    packet: &ipv4::Packet,
    transport: &Transport,
    half: &mut Half,
    ingress: u32,
    mut to: Rewrite,
) -> Result<Verdict, Reason> {
    if packet.ttl <= 1 {
        return Err(Reason::TtlExpired);
    }
    if !session::cached_hop(world, half, Delivery::Xdp) {
        let query = RouteQuery {
            ingress,
            source: packet.source,
            destination: half.address,
            protocol: packet.protocol,
            tos: packet.tos,
        };
        let mut hop = Hop::EMPTY;
        if world.route(&query, &mut hop) {
            session::remember(world, half, &hop, Delivery::Xdp);
        } else {
            session::forget(half);
        }
    }
    session::stamp(world, half, transport.tcp_flags, packet.length);
    let headers = transport::headers(packet, transport);
    if frame.wire_length(packet.length, headers) > u32::from(half.mtu) {
        to.hop = false;
        rewrite(frame, packet, transport, &to)?;
        return Ok(Verdict::Stack);
    }
    ethernet::readdress(frame, &half.destination_mac, &half.source_mac)?;
    rewrite(frame, packet, transport, &to)?;
    Ok(Verdict::Redirect {
        ifindex: half.ifindex,
    })
}
