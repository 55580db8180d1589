//! Ethernet II (IEEE 802.3) and the tags in front of the payload.

use network_types::eth::{EthHdr, EtherType};

use crate::{abi::Mac, reason::Reason, world::Frame};

/// What an Ethernet frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// An IPv4 packet.
    Ipv4,
    /// An ARP message.
    Arp,
    /// Anything else, VLAN-tagged frames included: the kernel gives those to
    /// the VLAN's own device, where they come by again without the tag.
    Other,
}

/// Where the payload begins.
pub const PAYLOAD: usize = EthHdr::LEN;

/// What the frame carries; `Other` for a frame too short to say.
#[inline(always)]
pub fn payload<F: Frame>(frame: &F) -> Payload {
    if frame.tagged() {
        return Payload::Other;
    }
    match frame.ether_type() {
        Some(ether_type) if ether_type == EtherType::Ipv4 as u16 => Payload::Ipv4,
        Some(ether_type) if ether_type == EtherType::Arp as u16 => Payload::Arp,
        _ => Payload::Other,
    }
}

/// Writes both addresses of the Ethernet header.
///
/// # Errors
/// `Unwritable`.
#[inline(always)]
pub fn readdress<F: Frame>(frame: &mut F, destination: &Mac, source: &Mac) -> Result<(), Reason> {
    let [d0, d1, d2, d3, d4, d5] = *destination;
    let [s0, s1, s2, s3, s4, s5] = *source;
    frame
        .store(0, &[d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5])
        .ok_or(Reason::Unwritable)
}
