//! IPv4 (RFC 791): lengths, fragments, options, addresses that cannot be.

use network_types::ip::Ipv4Hdr;

use super::ethernet;
use crate::{abi::Ipv4, reason::Reason, world::Frame};

/// Frames as long as this cannot state their IP length.
const BIG: u32 = 65_536 + ethernet::PAYLOAD as u32;
/// End of options list.
const OPTION_END: u8 = 0;
/// No operation.
const OPTION_NOP: u8 = 1;
/// Loose source and record route.
const OPTION_LSRR: u8 = 131;
/// Strict source and record route.
const OPTION_SSRR: u8 = 137;
/// Where options begin.
const OPTIONS: usize = ethernet::PAYLOAD + Ipv4Hdr::LEN;
/// Bytes of options at most: a header of 60 bytes less the fixed 20.
const OPTIONS_MAX: usize = 40;

/// An IPv4 header whose lengths agree with the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Offset of the transport header in the frame.
    pub transport: usize,
    /// Bytes behind the IP header, as the header states.
    pub payload: u32,
    /// Total length, bytes.
    pub length: u32,
    /// Source address.
    pub source: Ipv4,
    /// Destination address.
    pub destination: Ipv4,
    /// IANA protocol number.
    pub protocol: u8,
    /// Hops left.
    pub ttl: u8,
    /// Type of service, for routing.
    pub tos: u8,
    /// Header checksum, as it stands.
    pub checksum: [u8; 2],
    /// A fragment: more follow, or it is not the first.
    pub fragment: bool,
    /// The header has options.
    pub options: bool,
}

impl Packet {
    /// All zero.
    pub const EMPTY: Self = Self {
        transport: 0,
        payload: 0,
        length: 0,
        source: [0; 4],
        destination: [0; 4],
        protocol: 0,
        ttl: 0,
        tos: 0,
        checksum: [0; 2],
        fragment: false,
        options: false,
    };
}

/// Reads the header.
///
/// # Errors
/// `Truncated` and `BadHeader`, where not even the addresses can be trusted.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F) -> Result<Packet, Reason> {
    let header = frame
        .load::<Ipv4Hdr>(ethernet::PAYLOAD)
        .ok_or(Reason::Truncated)?;
    let ihl = usize::from(header.vihl & 0x0f) * 4;
    if header.vihl >> 4 != 4 || ihl < Ipv4Hdr::LEN {
        return Err(Reason::BadHeader);
    }
    let length = match u16::from_be_bytes(header.tot_len) {
        // A segment of more than 64 KiB, still to be cut (BIG TCP, Linux 6.3).
        0 if frame.holds(BIG) => frame.length() - ethernet::PAYLOAD as u32,
        length => u32::from(length),
    };
    if length < ihl as u32 {
        return Err(Reason::BadHeader);
    }
    if !frame.holds(ethernet::PAYLOAD as u32 + length) {
        return Err(Reason::Truncated);
    }
    Ok(Packet {
        transport: ethernet::PAYLOAD + ihl,
        payload: length - ihl as u32,
        length,
        source: header.src_addr,
        destination: header.dst_addr,
        protocol: header.proto,
        ttl: header.ttl,
        tos: header.tos,
        checksum: header.check,
        fragment: (header.frags[0] & 0x3f) | header.frags[1] != 0,
        options: ihl > Ipv4Hdr::LEN,
    })
}

/// Refuses source routing; other options are carried along.
///
/// Looks at every byte in turn and only notes where the next option begins:
/// offsets that the packet decides would give the verifier a new state for each.
///
/// # Errors
/// `SourceRoute`, or `BadHeader` for options that do not fit their header.
#[inline(never)]
pub fn check_options<F: Frame>(frame: &F, end: usize) -> Result<(), Reason> {
    let mut next = OPTIONS;
    for at in OPTIONS..OPTIONS + OPTIONS_MAX {
        if at >= end {
            break;
        }
        // Two bytes at once: behind the last option there is a transport header.
        let [kind, length] = frame.load::<[u8; 2]>(at).ok_or(Reason::Truncated)?;
        if at != next {
            continue;
        }
        match kind {
            OPTION_END => break,
            OPTION_NOP => next = at + 1,
            OPTION_LSRR | OPTION_SSRR => return Err(Reason::SourceRoute),
            _ if length < 2 || at + usize::from(length) > end => return Err(Reason::BadHeader),
            _ => next = at + usize::from(length),
        }
    }
    Ok(())
}

/// A source that no packet on a wire may have (RFC 1122 section 3.2.1.3).
#[inline(always)]
pub fn bad_source(packet: &Packet) -> bool {
    matches!(packet.source[0], 0 | 127 | 224..) || packet.source == packet.destination
}

/// Multicast, broadcast, loopback, this-network: destinations that no router forwards.
#[inline(always)]
pub fn bad_destination(packet: &Packet) -> bool {
    matches!(packet.destination[0], 0 | 127 | 224..)
}
