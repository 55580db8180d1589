//! XDP of an inside device, and tcx ingress of a client's device on the direct
//! path: translated where it comes in, and sent on past the kernel's stack.
//! What only the kernel can do (find a neighbour, answer with an ICMP error,
//! deliver to the node itself) takes the stack path.

use super::open::{self, Arrival, Way};
use crate::{
    abi::Half,
    packet::{
        ethernet::{self, Payload},
        ipv4,
        transport::{self, Transport},
    },
    reason::Reason,
    session,
    translate::{End, Rewrite, rewrite},
    verdict::Verdict,
    world::{Frame, Hop, World},
};

/// Translates a client's packet and sends it out.
#[inline(always)]
pub fn outbound<F: Frame, W: World>(frame: &mut F, world: &W, ingress: u32, way: Way) -> Verdict {
    if ethernet::payload(frame) != Payload::Ipv4 {
        return Verdict::Pass;
    }
    let packet = match ipv4::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Drop(reason),
    };
    let arrival = Arrival::new(frame, packet, ingress, way);
    match open::session(frame, world, &arrival) {
        Ok(half) => send(frame, world, &arrival, half),
        Err(verdict) => verdict,
    }
}

/// Sends a packet of a session: its next hop is cached, or looked up again.
#[inline(always)]
fn send<F: Frame, W: World>(
    frame: &mut F,
    world: &W,
    arrival: &Arrival,
    half: &mut Half,
) -> Verdict {
    let (packet, transport) = (&arrival.packet, &arrival.transport);
    if !session::belongs(world, half, arrival.ingress) {
        return Verdict::Drop(Reason::Spoofed);
    }
    let delivery = arrival.way.delivery();
    if !session::cached_hop(world, half, delivery) {
        let mut hop = Hop::EMPTY;
        if !open::route(world, arrival, &mut hop) {
            session::forget(half);
            return arrival.way.by_stack();
        }
        session::remember(world, half, &hop, delivery);
    }
    let headers = transport::headers(packet, transport);
    if packet.ttl <= 1 || frame.wire_length(packet.length, headers) > u32::from(half.mtu) {
        return arrival.way.by_stack();
    }
    session::stamp(world, half, transport.tcp_flags, packet.length);
    leave(frame, packet, transport, half, arrival.way).unwrap_or_else(Verdict::Drop)
}

/// Rewrites the packet and says where it goes.
#[inline(always)]
fn leave<F: Frame>(
    frame: &mut F,
    packet: &ipv4::Packet,
    transport: &Transport,
    half: &Half,
    way: Way,
) -> Result<Verdict, Reason> {
    let to = Rewrite {
        end: End::Source,
        address: half.address,
        port: half.port,
        hop: true,
    };
    // Read before the packet is written: a half may be reused for another flow at any time.
    let (ifindex, gateway) = (half.ifindex, half.gateway());
    if way == Way::Redirect {
        ethernet::readdress(frame, &half.destination_mac, &half.source_mac)?;
    }
    rewrite(frame, packet, transport, &to)?;
    Ok(match way {
        Way::Redirect => Verdict::Redirect { ifindex },
        Way::Neighbour | Way::Stack => Verdict::Neighbour { ifindex, gateway },
    })
}
