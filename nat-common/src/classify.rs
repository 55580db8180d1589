//! Whose a packet is, and whether it is to be translated.

use crate::{
    abi::{CLIENT_ACTIVE, CLIENT_DRAINING, Client, DEVICE_EXCLUSIVE, DEVICE_OUTSIDE, DEVICE_XDP},
    packet::ipv4,
    reason::Reason,
    world::{Hop, World},
};

/// What a packet on its way out is to us.
pub enum Sender<'a> {
    /// Not one of our clients.
    Stranger,
    /// A client's, to a destination that its pool leaves alone.
    Excluded,
    /// A client's that opens no sessions any more: translated only if it has one.
    Draining,
    /// A client's, to be translated wherever it leaves through an outside device.
    Client(u16, &'a Client),
}

/// Whose packet this is, by its source; `ingress` is the device it came in
/// through, `None` where the client's device has been checked before.
///
/// # Errors
/// `Spoofed`: a client's address on another device, or another address on a
/// device that is one client's own.
#[inline(always)]
pub fn sender<'a, W: World>(
    world: &'a W,
    packet: &ipv4::Packet,
    ingress: Option<u32>,
) -> Result<Sender<'a>, Reason> {
    let Some((index, client)) = client(world, packet) else {
        return match ingress {
            Some(ifindex) if has(world, ifindex, DEVICE_EXCLUSIVE) => Err(Reason::Spoofed),
            _ => Ok(Sender::Stranger),
        };
    };
    if let Some(ifindex) = ingress
        && client.ifindex.get() != ifindex
    {
        return Err(Reason::Spoofed);
    }
    if world.excluded(client.pool.get(), &packet.destination) {
        return Ok(Sender::Excluded);
    }
    if client.flags.get() & CLIENT_DRAINING != 0 {
        return Ok(Sender::Draining);
    }
    Ok(Sender::Client(index, client))
}

#[inline(always)]
fn client<'a, W: World>(world: &'a W, packet: &ipv4::Packet) -> Option<(u16, &'a Client)> {
    let index = world.client_of(&packet.source)?;
    let client = world.client(index)?;
    (client.flags.get() & CLIENT_ACTIVE != 0).then_some((index, client))
}

/// Whether what leaves through this hop is to be translated: egress addresses
/// are used on its device.
#[inline(always)]
pub fn leaves<W: World>(world: &W, hop: &Hop) -> bool {
    has(world, hop.ifindex, DEVICE_OUTSIDE)
}

/// Whether XDP takes the packet all the way: answers come back by XDP too.
#[inline(always)]
pub fn leaves_by_xdp<W: World>(world: &W, hop: &Hop) -> bool {
    has(world, hop.ifindex, DEVICE_OUTSIDE | DEVICE_XDP)
}

#[inline(always)]
fn has<W: World>(world: &W, ifindex: u32, flags: u32) -> bool {
    world
        .device(ifindex)
        .is_some_and(|device| device.flags & flags == flags)
}
