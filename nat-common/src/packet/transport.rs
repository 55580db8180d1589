//! The transport header, whichever of the three it is.

use super::{icmp, ipv4, tcp, udp};
use crate::{
    abi::{FlowKey, Port},
    raw,
    reason::Reason,
    world::Frame,
};

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// What translation needs of a transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// Source port; an echo request's identifier.
    pub source_port: Port,
    /// Destination port; an echo reply's identifier.
    pub destination_port: Port,
    /// Checksum, as it stands.
    pub checksum: [u8; 2],
    /// Length of the header, bytes.
    pub header: u8,
    /// TCP's FIN, SYN, RST and ACK; 0 for the others.
    pub tcp_flags: u8,
    /// The packet may open a session: no answer (TCP reset, SYN+ACK, echo reply).
    pub opens: bool,
}

impl Transport {
    /// All zero.
    pub const EMPTY: Self = Self {
        source_port: [0; 2],
        destination_port: [0; 2],
        checksum: [0; 2],
        header: 0,
        tcp_flags: 0,
        opens: false,
    };
}

/// Reads the transport header.
///
/// It is written to memory that has a value already: a result with fields would
/// carry bytes that were never written, which the verifier refuses.
///
/// # Errors
/// Why the packet cannot be translated; `transport` stays as it was.
#[inline(always)]
pub fn parse<F: Frame>(
    frame: &F,
    packet: &ipv4::Packet,
    transport: &mut Transport,
) -> Result<(), Reason> {
    if packet.fragment {
        return Err(Reason::Fragment);
    }
    if packet.options {
        ipv4::check_options(frame, packet.transport)?;
    }
    let (at, payload) = (packet.transport, packet.payload);
    match packet.protocol {
        TCP => tcp::parse(frame, at, payload, transport)?,
        UDP => udp::parse(frame, at, payload, transport)?,
        ICMP => return icmp::parse(frame, at, payload, transport),
        _ => return Err(Reason::UnsupportedProtocol),
    }
    if transport.source_port == [0, 0] || transport.destination_port == [0, 0] {
        return Err(Reason::PortZero);
    }
    Ok(())
}

/// Length of IP and transport headers together, bytes.
#[inline(always)]
pub fn headers(packet: &ipv4::Packet, transport: &Transport) -> u32 {
    packet.length - packet.payload + u32::from(transport.header)
}

/// The flow the packet belongs to, seen from its own direction.
#[inline(always)]
pub fn flow(packet: &ipv4::Packet, transport: &Transport) -> FlowKey {
    let [s0, s1, s2, s3] = packet.source;
    let [d0, d1, d2, d3] = packet.destination;
    let [p0, p1] = transport.source_port;
    let [q0, q1] = transport.destination_port;
    // In whole words: the kernel's hash reads the key in words, and a word that
    // was just written in pieces makes the processor wait.
    raw::flow_key([
        u64::from_ne_bytes([s0, s1, s2, s3, d0, d1, d2, d3]),
        u64::from_ne_bytes([p0, p1, q0, q1, packet.protocol, 0, 0, 0]),
    ])
}
