//! What changes in a packet: one address, one port, the checksums, the TTL.

use crate::{
    abi::{Ipv4, Port},
    packet::{
        checksum::{Delta, update},
        ethernet, icmp, ipv4, tcp,
        transport::{TCP, Transport, UDP},
        udp,
    },
    reason::Reason,
    world::{Frame, Patch},
};

/// Where TTL, protocol, checksum and source stand in the IP header.
const TTL: usize = ethernet::PAYLOAD + 8;

/// Which end of the packet is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The source: on the way out.
    Source,
    /// The destination: on the way in.
    Destination,
}

/// A rewrite of one end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Which end.
    pub end: End,
    /// Its new address.
    pub address: Ipv4,
    /// Its new port, or echo identifier.
    pub port: Port,
    /// Whether this node is a hop that the packet passes here: the kernel
    /// counts down what it forwards itself.
    pub hop: bool,
}

/// Rewrites the packet.
///
/// # Errors
/// `Unwritable`, with the packet possibly half written: it must be dropped.
#[inline(always)]
pub fn rewrite<F: Frame>(
    frame: &mut F,
    packet: &ipv4::Packet,
    transport: &Transport,
    rewrite: &Rewrite,
) -> Result<(), Reason> {
    let old = match rewrite.end {
        End::Source => packet.source,
        End::Destination => packet.destination,
    };
    let addresses = Delta::quad(old, rewrite.address);
    header(frame, packet, rewrite, addresses).ok_or(Reason::Unwritable)?;
    ports(frame, packet, transport, rewrite, addresses).ok_or(Reason::Unwritable)
}

/// The IP header: TTL, checksum, and the two addresses in one store.
#[inline(always)]
fn header<F: Frame>(
    frame: &mut F,
    packet: &ipv4::Packet,
    rewrite: &Rewrite,
    addresses: Delta,
) -> Option<()> {
    let ttl = if rewrite.hop {
        packet.ttl - 1
    } else {
        packet.ttl
    };
    let hop = Delta::pair([packet.ttl, packet.protocol], [ttl, packet.protocol]);
    let checksum = update(packet.checksum, addresses.and(hop));
    let (source, destination) = match rewrite.end {
        End::Source => (rewrite.address, packet.destination),
        End::Destination => (packet.source, rewrite.address),
    };
    let [s0, s1, s2, s3] = source;
    let [d0, d1, d2, d3] = destination;
    let [c0, c1] = checksum;
    frame.store(
        TTL,
        &[ttl, packet.protocol, c0, c1, s0, s1, s2, s3, d0, d1, d2, d3],
    )
}

/// The transport header: port and checksum.
#[inline(always)]
fn ports<F: Frame>(
    frame: &mut F,
    packet: &ipv4::Packet,
    transport: &Transport,
    rewrite: &Rewrite,
    addresses: Delta,
) -> Option<()> {
    let from_port = match rewrite.end {
        End::Source => transport.source_port,
        End::Destination => transport.destination_port,
    };
    let (port, checksum, pseudo) = match packet.protocol {
        TCP => (place(rewrite.end), tcp::CHECKSUM, true),
        UDP => (place(rewrite.end), udp::CHECKSUM, true),
        _ => (icmp::IDENTIFIER, icmp::CHECKSUM, false),
    };
    frame.store(packet.transport + port, &rewrite.port)?;
    let patch = Patch {
        checksum: transport.checksum,
        addresses: if pseudo { Some(addresses) } else { None },
        from_port,
        to_port: rewrite.port,
        zero_is_none: packet.protocol == UDP,
    };
    frame.patch(packet.transport + checksum, &patch)
}

/// Where an end's port stands in a TCP or UDP header.
#[inline(always)]
fn place(end: End) -> usize {
    match end {
        End::Source => 0,
        End::Destination => 2,
    }
}
