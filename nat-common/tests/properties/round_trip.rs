//! What goes out and is answered comes back as if nobody had been in between.

use nat_common::{
    hooks::{
        guard::guard,
        inbound::{Layer, inbound},
    },
    packet::transport::ICMP,
    verdict::Verdict,
};
use proptest::prelude::*;

use crate::{
    host::HostFrame,
    setup::{EGRESS, Shape, inside},
    wire::{Parts, parts, sum},
};

/// The answer to a packet: both ends swapped, which no checksum notices. An
/// echo request becomes its reply.
fn answer(frame: &[u8]) -> Vec<u8> {
    let mut answer = frame.to_vec();
    let at = 14 + usize::from(frame[14] & 15) * 4;
    answer[26..30].copy_from_slice(&frame[30..34]);
    answer[30..34].copy_from_slice(&frame[26..30]);
    if frame[23] == ICMP {
        answer[at] ^= 8;
        answer[at + 2..at + 4].fill(0);
        let checksum = sum(&answer[at..]);
        answer[at + 2..at + 4].copy_from_slice(&checksum);
    } else {
        answer[at..at + 2].copy_from_slice(&frame[at + 2..at + 4]);
        answer[at + 2..at + 4].copy_from_slice(&frame[at..at + 2]);
    }
    answer
}

proptest! {
    #[test]
    fn reverse_of_forward_is_the_packet(parts in parts(), key in any::<u64>()) {
        prop_assume!(parts.destination != EGRESS && parts.destination != inside(0));
        let parts = Parts { source: inside(0), ..parts };
        let world = Shape { key, ..Shape::ALONE }.world();

        let mut frame = HostFrame::new(parts.frame());
        prop_assert_eq!(guard(&mut frame, &world, true), Verdict::Stack);
        prop_assert_eq!(&frame.bytes[26..30], &EGRESS);

        let mut reply = HostFrame::new(answer(&frame.bytes));
        prop_assert_eq!(inbound(&mut reply, &world, 1, Layer::Tcx), Verdict::Stack);
        prop_assert_eq!(answer(&reply.bytes), parts.frame());
    }
}
