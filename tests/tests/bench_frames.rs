//! The benchmark's generator writes what it should: valid checksums, every flow once.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use nat_tests::bench::mix::{Mix, Order};
use nat_tests::bench::traffic::frames;

/// The ones' complement sum of `bytes`; 0xffff for what carries its own checksum.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + sum) as u16
}

#[test]
fn generated_frames_are_valid_and_visit_every_flow() -> Result<()> {
    for order in [Order::Fill, Order::Visit] {
        let mut flows = HashSet::new();
        for frame in frames(Mix::THOUSAND, order, 1024)? {
            let (ip, udp) = (&frame[14..34], &frame[34..]);
            ensure!(sum(ip) == 0xffff, "IPv4 checksum: {frame:02x?}");
            let pseudo = [&ip[12..20], &[0, 17], &udp[4..6]].concat();
            ensure!(
                sum(&[&pseudo, udp].concat()) == 0xffff,
                "UDP checksum: {frame:02x?}"
            );
            ensure!(
                udp[4..6] == [0, 26] && ip[2..4] == [0, 46],
                "lengths: {frame:02x?}"
            );
            // Both addresses and both ports.
            flows.insert([&ip[12..20], &udp[..4]].concat());
        }
        ensure!(
            flows.len() == 1024,
            "{order:?}: {} flows of 1024",
            flows.len()
        );
    }
    Ok(())
}
