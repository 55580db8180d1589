//! Packets as the labs read and write them: on purpose not the project's own parser, which is under test.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;

/// Who talks to whom in one direction. For ICMP the source port is the echo id (0 for other messages) and the
/// destination port is type << 8 | code; for what has no ports, both are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// The IP protocol's number.
    pub protocol: u8,
    /// The source address.
    pub source: Ipv4Addr,
    /// The source port.
    pub source_port: u16,
    /// The destination address.
    pub destination: Ipv4Addr,
    /// The destination port.
    pub destination_port: u16,
}

impl Flow {
    /// Source address and port.
    pub fn from(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.source, self.source_port)
    }
}

/// What a frame turned out to be.
#[derive(Debug, PartialEq)]
pub enum Kind {
    /// IPv4, and what is wrong with its checksums as far as the bytes at hand tell.
    Ipv4(Flow, Option<BadChecksum>),
    /// ARP, with the sender's protocol address.
    Arp(Ipv4Addr),
    /// Something else, by its EtherType.
    Other(u16),
    /// Cut short.
    Truncated,
}

/// Which checksum does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadChecksum {
    /// The IPv4 header's.
    Header,
    /// The one of TCP, UDP or ICMP.
    Payload,
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            protocol,
            source,
            source_port,
            destination,
            destination_port,
        } = self;
        write!(
            f,
            "protocol {protocol} {source}:{source_port} > {destination}:{destination_port}"
        )
    }
}

/// Reads a frame from its Ethernet header. `partial`: its checksum was left to offload.
pub fn read(frame: &[u8], partial: bool) -> Kind {
    let Some(mut kind) = be16(frame, 12) else {
        return Kind::Truncated;
    };
    let mut at = 14;
    while matches!(kind, 0x8100 | 0x88a8) {
        let Some(inner) = be16(frame, at + 2) else {
            return Kind::Truncated;
        };
        (kind, at) = (inner, at + 4);
    }
    let read = match kind {
        0x0800 => read_ipv4(&frame[at..], partial),
        0x0806 => address(frame, at + 14).map(Kind::Arp),
        other => Some(Kind::Other(other)),
    };
    read.unwrap_or(Kind::Truncated)
}

fn read_ipv4(packet: &[u8], partial: bool) -> Option<Kind> {
    let header = usize::from(packet.first()? & 15) * 4;
    let total = usize::from(be16(packet, 2)?);
    let (source, destination) = (address(packet, 12)?, address(packet, 16)?);
    let payload = packet.get(header..)?;
    let mut flow = Flow {
        protocol: packet[9],
        source,
        source_port: 0,
        destination,
        destination_port: 0,
    };
    let fragment = be16(packet, 6)? & 0x3fff;
    if fragment & 0x1fff == 0 {
        (flow.source_port, flow.destination_port) =
            ports(flow.protocol, payload).unwrap_or_default();
    }
    let bad = if checksum(0, &packet[..header]) != 0 {
        Some(BadChecksum::Header)
    } else if fragment == 0 && !payload_fits(&flow, payload, total.checked_sub(header)?, partial) {
        Some(BadChecksum::Payload)
    } else {
        None
    };
    Some(Kind::Ipv4(flow, bad))
}

fn ports(protocol: u8, payload: &[u8]) -> Option<(u16, u16)> {
    match protocol {
        TCP | UDP => Some((be16(payload, 0)?, be16(payload, 2)?)),
        ICMP => {
            let echo = matches!(payload.first()?, 0 | 8);
            Some((if echo { be16(payload, 4)? } else { 0 }, be16(payload, 0)?))
        }
        _ => None,
    }
}

/// Whether the checksum of TCP, UDP or ICMP fits; true where the bytes at hand do not tell.
fn payload_fits(flow: &Flow, payload: &[u8], length: usize, partial: bool) -> bool {
    let field = match flow.protocol {
        TCP => 16,
        UDP => 6,
        ICMP => 2,
        _ => return true,
    };
    let Some(found) = be16(payload, field) else {
        return true;
    };
    let pseudo = if flow.protocol == ICMP {
        0
    } else {
        pseudo_header(flow, length)
    };
    if partial {
        return found == !checksum(pseudo, &[]);
    }
    let unsent = flow.protocol == UDP && found == 0;
    unsent || payload.len() < length || checksum(pseudo, &payload[..length]) == 0
}

fn pseudo_header(flow: &Flow, length: usize) -> u32 {
    let words = |a: Ipv4Addr| sum(&a.octets());
    words(flow.source) + words(flow.destination) + u32::from(flow.protocol) + length as u32
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

/// The Internet checksum of `bytes`, with `start` added; 0 over bytes that hold a right one.
fn checksum(start: u32, bytes: &[u8]) -> u16 {
    let mut total = start + sum(bytes);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

/// An IPv4 packet around `payload`, whose checksum (if `protocol` has one) is filled in.
pub fn packet(
    protocol: u8,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    payload: &[u8],
) -> Vec<u8> {
    let body = match protocol {
        UDP => udp(source, destination, payload),
        TCP => tcp(source, destination, payload),
        _ => payload.to_vec(),
    };
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(source.ip().octets());
    packet.extend(destination.ip().octets());
    let total = (packet.len() + body.len()) as u16;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    let header = checksum(0, &packet).to_be_bytes();
    packet[10..12].copy_from_slice(&header);
    packet.extend(body);
    packet
}

fn udp(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut body = [source.port(), destination.port(), length, 0]
        .map(u16::to_be_bytes)
        .concat();
    body.extend(payload);
    fill(UDP, 6, source, destination, body)
}

/// A TCP SYN.
fn tcp(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut body = [
        source.port(),
        destination.port(),
        0,
        1,
        0,
        0,
        0x5002,
        0xffff,
        0,
        0,
    ]
    .map(u16::to_be_bytes)
    .concat();
    body.extend(payload);
    fill(TCP, 16, source, destination, body)
}

fn fill(
    protocol: u8,
    at: usize,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    mut body: Vec<u8>,
) -> Vec<u8> {
    let (source, destination) = (*source.ip(), *destination.ip());
    let flow = Flow {
        protocol,
        source,
        source_port: 0,
        destination,
        destination_port: 0,
    };
    let value = match checksum(pseudo_header(&flow, body.len()), &body) {
        0 => 0xffff,
        value => value,
    };
    body[at..at + 2].copy_from_slice(&value.to_be_bytes());
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(packet: &[u8]) -> Vec<u8> {
        [&[0; 12][..], &[8, 0], packet].concat()
    }

    #[test]
    fn what_is_written_reads_back_with_right_checksums() {
        let (a, b) = (
            "10.244.1.11:4000".parse().unwrap(),
            "203.0.113.2:9000".parse().unwrap(),
        );
        for protocol in [TCP, UDP] {
            let sent = frame(&packet(protocol, a, b, b"odd"));
            let Kind::Ipv4(flow, bad) = read(&sent, false) else {
                panic!()
            };
            assert_eq!((flow.from(), flow.protocol, bad), (a, protocol, None));
        }
    }

    #[test]
    fn a_changed_byte_is_a_bad_checksum() {
        let (a, b) = (
            "10.244.1.11:4000".parse().unwrap(),
            "203.0.113.2:9000".parse().unwrap(),
        );
        let sent = frame(&packet(UDP, a, b, b"payload"));
        for (at, wanted) in [
            (14 + 8, BadChecksum::Header),
            (14 + 20 + 9, BadChecksum::Payload),
        ] {
            let mut changed = sent.clone();
            changed[at] ^= 1;
            let Kind::Ipv4(_, bad) = read(&changed, false) else {
                panic!()
            };
            assert_eq!(bad, Some(wanted));
        }
    }

    #[test]
    fn vlan_tags_are_passed_over_and_short_frames_noticed() {
        let (a, b) = (
            "10.244.1.11:4000".parse().unwrap(),
            "203.0.113.2:9000".parse().unwrap(),
        );
        let tagged = [
            &[0; 12][..],
            &[0x81, 0, 0, 5, 8, 0],
            &packet(UDP, a, b, b"x"),
        ]
        .concat();
        assert!(matches!(read(&tagged, false), Kind::Ipv4(flow, None) if flow.from() == a));
        assert_eq!(read(&tagged[..20], false), Kind::Truncated);
    }
}
