//! The incremental checksum is the full one (RFC 1624), and UDP's zero stays special (RFC 768).

use nat_common::{
    packet::{
        checksum::{Delta, update, update_udp},
        ipv4,
        transport::{self, ICMP, TCP, Transport, UDP},
    },
    translate::{End, Rewrite, rewrite},
};
use proptest::prelude::*;

use crate::{
    host::HostFrame,
    wire::{Parts, address, parts, sum},
};

#[test]
fn the_example_of_rfc_1624() {
    let changed = update([0xdd, 0x2f], Delta::pair([0x55, 0x55], [0x32, 0x85]));
    assert_eq!(changed, [0, 0]);
}

/// A packet rewritten by the core.
fn rewritten(parts: &Parts, to: &Rewrite) -> Vec<u8> {
    let mut frame = HostFrame::new(parts.frame());
    let packet = ipv4::parse(&frame).expect("a whole packet");
    let mut transport = Transport::EMPTY;
    transport::parse(&frame, &packet, &mut transport).expect("a header that fits");
    rewrite(&mut frame, &packet, &transport, to).expect("a frame that can be written");
    frame.bytes
}

/// The same change, made to the parts before their checksums are computed.
fn rebuilt(parts: &Parts, to: &Rewrite) -> Vec<u8> {
    let mut parts = parts.clone();
    let port = u16::from_be_bytes(to.port);
    match to.end {
        End::Source => (parts.source, parts.source_port) = (to.address, port),
        End::Destination if parts.protocol == ICMP => {
            (parts.destination, parts.source_port) = (to.address, port)
        }
        End::Destination => (parts.destination, parts.destination_port) = (to.address, port),
    }
    parts.ttl -= u8::from(to.hop);
    parts.frame()
}

proptest! {
    #[test]
    fn incremental_is_full(
        parts in parts(),
        address in address(),
        port in 1..=u16::MAX,
        source in any::<bool>(),
        hop in any::<bool>(),
    ) {
        // An echo request has its identifier on its source's side.
        let end = if source || parts.protocol == ICMP { End::Source } else { End::Destination };
        let to = Rewrite { end, address, port: port.to_be_bytes(), hop };
        prop_assert_eq!(rewritten(&parts, &to), rebuilt(&parts, &to));
    }

    #[test]
    fn any_words_of_any_bytes(
        mut bytes in proptest::collection::vec(any::<u8>(), 6..100),
        address in any::<[u8; 4]>(),
        port in any::<[u8; 2]>(),
    ) {
        // Bytes that are all zero have the one sum that no packet has.
        bytes[0] |= 0x40;
        let before = sum(&bytes);
        let mut delta = Delta::quad([bytes[2], bytes[3], bytes[4], bytes[5]], address);
        bytes[2..6].copy_from_slice(&address);
        if bytes.len() >= 8 {
            delta = delta.and(Delta::pair([bytes[6], bytes[7]], port));
            bytes[6..8].copy_from_slice(&port);
        }
        prop_assert_eq!(update(before, delta), sum(&bytes));
    }
}

#[test]
fn udp_never_sends_a_computed_zero() {
    let mut zeros = 0;
    for word in 0..=u16::MAX {
        let parts = Parts {
            protocol: UDP,
            source: [10, 0, 0, 1],
            destination: [192, 0, 2, 1],
            source_port: 4000,
            destination_port: 53,
            ttl: 64,
            options: 0,
            payload: word.to_be_bytes().to_vec(),
        };
        let to = Rewrite {
            end: End::Source,
            address: [203, 0, 113, 1],
            port: [7, 208],
            hop: true,
        };
        let (got, full) = (rewritten(&parts, &to), rebuilt(&parts, &to));
        assert_eq!(got, full, "payload {word:#x}");
        zeros += u32::from(got[40..42] == [0xff, 0xff]);
    }
    assert!(zeros > 0, "some payload comes out as zero");
}

#[test]
fn no_udp_checksum_stays_none() {
    for from in 0..=255 {
        assert_eq!(
            update_udp([0, 0], Delta::quad([10, 0, 0, from], [203, 0, 113, 1])),
            [0, 0]
        );
    }
}

#[test]
fn tcp_sends_a_computed_zero() {
    let zero = |word: u16| {
        let parts = Parts {
            protocol: TCP,
            source: [10, 0, 0, 1],
            destination: [192, 0, 2, 1],
            source_port: 4000,
            destination_port: 80,
            ttl: 64,
            options: 0,
            payload: word.to_be_bytes().to_vec(),
        };
        let to = Rewrite {
            end: End::Source,
            address: [203, 0, 113, 1],
            port: [7, 208],
            hop: false,
        };
        let (got, full) = (rewritten(&parts, &to), rebuilt(&parts, &to));
        assert_eq!(got, full, "payload {word:#x}");
        got[50..52] == [0, 0]
    };
    assert!((0..=u16::MAX).any(zero), "some payload comes out as zero");
}
