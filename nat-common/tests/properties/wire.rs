//! Packets for properties: built with checksums computed in full, and checked in full.

use nat_common::packet::transport::{ICMP, TCP, UDP};
use proptest::prelude::*;

/// What a packet is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// IANA protocol number.
    pub protocol: u8,
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    /// Source port, or echo identifier.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// Hops left.
    pub ttl: u8,
    /// Words of options that do nothing.
    pub options: u8,
    /// What follows the transport header.
    pub payload: Vec<u8>,
}

/// An address that packets may have on either end.
pub fn address() -> impl Strategy<Value = [u8; 4]> {
    (1..=223u8, any::<[u8; 3]>())
        .prop_filter("loopback", |(first, _)| *first != 127)
        .prop_map(|(first, [b, c, d])| [first, b, c, d])
}

/// Any packet that can be translated.
pub fn parts() -> impl Strategy<Value = Parts> {
    let ends = (address(), address(), 1..=u16::MAX, 1..=u16::MAX);
    let rest = (
        2..=255u8,
        0..=10u8,
        proptest::collection::vec(any::<u8>(), 0..200),
    );
    (prop::sample::select(vec![TCP, UDP, ICMP]), ends, rest)
        .prop_filter("land", |(_, (source, destination, ..), _)| {
            source != destination
        })
        .prop_map(
            |(
                protocol,
                (source, destination, source_port, destination_port),
                (ttl, options, payload),
            )| {
                Parts {
                    protocol,
                    source,
                    destination,
                    source_port,
                    destination_port,
                    ttl,
                    options,
                    payload,
                }
            },
        )
}

impl Parts {
    /// The frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0]);
        let transport = self.transport();
        let header = 20 + usize::from(self.options) * 4;
        frame.extend([0x45 + self.options, 0]);
        frame.extend(((header + transport.len()) as u16).to_be_bytes());
        frame.extend([1, 2, 0x40, 0, self.ttl, self.protocol, 0, 0]);
        frame.extend(self.source);
        frame.extend(self.destination);
        frame.resize(14 + header, 1);
        let checksum = sum(&frame[14..]);
        frame[24..26].copy_from_slice(&checksum);
        frame.extend(transport);
        frame
    }

    fn transport(&self) -> Vec<u8> {
        let ports = [
            self.source_port.to_be_bytes(),
            self.destination_port.to_be_bytes(),
        ]
        .concat();
        let (mut bytes, at) = match self.protocol {
            TCP => (
                [
                    &ports[..],
                    &[0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0],
                ]
                .concat(),
                16,
            ),
            UDP => (
                [
                    &ports[..],
                    &(8 + self.payload.len() as u16).to_be_bytes(),
                    &[0, 0],
                ]
                .concat(),
                6,
            ),
            _ => ([&[8, 0, 0, 0], &ports[..2], &[0, 1]].concat(), 2),
        };
        bytes.extend(&self.payload);
        let checksum = sum(&[self.pseudo_header(bytes.len()), bytes.clone()].concat());
        let checksum = if self.protocol == UDP && checksum == [0, 0] {
            [0xff, 0xff]
        } else {
            checksum
        };
        bytes[at..at + 2].copy_from_slice(&checksum);
        bytes
    }

    fn pseudo_header(&self, length: usize) -> Vec<u8> {
        if self.protocol == ICMP {
            return Vec::new();
        }
        let length = (length as u16).to_be_bytes();
        [
            &self.source[..],
            &self.destination,
            &[0, self.protocol],
            &length,
        ]
        .concat()
    }
}

/// The Internet checksum of these bytes, computed in full.
pub fn sum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
