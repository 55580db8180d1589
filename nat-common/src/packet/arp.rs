//! ARP (RFC 826): requests for the egress addresses that this node answers for.

use network_types::arp::ArpHdr;

use super::ethernet;
use crate::{
    abi::{ADDRESS_OWN, Mac},
    world::{Frame, World},
};

const ETHERNET: [u8; 2] = [0, 1];
const IPV4: [u8; 2] = [8, 0];
const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];
const ARP: [u8; 2] = [8, 6];

/// Turns a request for an egress address into its answer, in place; false if
/// it is for somebody else (the kernel answers for the node's own addresses).
#[inline(always)]
pub fn answer<F: Frame, W: World>(frame: &mut F, world: &W, ifindex: u32) -> bool {
    let Some(request) = frame.load::<ArpHdr>(ethernet::PAYLOAD) else {
        return false;
    };
    if request.htype != ETHERNET || request.ptype != IPV4 || request.oper != REQUEST {
        return false;
    }
    match world.address(&request.tpa) {
        Some(address) if address.flags & ADDRESS_OWN == 0 => {}
        _ => return false,
    }
    let Some(device) = world.device(ifindex) else {
        return false;
    };
    write(frame, &request, device.mac).is_some()
}

#[inline(always)]
fn write<F: Frame>(frame: &mut F, request: &ArpHdr, ours: Mac) -> Option<()> {
    let theirs = request.sha;
    frame.store(0, &theirs)?;
    frame.store(6, &ours)?;
    frame.store(12, &ARP)?;
    let at = ethernet::PAYLOAD;
    frame.store(at + 6, &REPLY)?;
    frame.store(at + 8, &ours)?;
    frame.store(at + 14, &request.tpa)?;
    frame.store(at + 18, &theirs)?;
    frame.store(at + 24, &request.spa)
}
