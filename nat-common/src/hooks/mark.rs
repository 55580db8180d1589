//! tcx ingress of a client's device, stack path: whose is it? The kernel routes
//! and filters it under the client's own address; [`super::guard`] translates.
//! Whatever goes on is marked as decided: what never came by here lacks that mark.

use crate::{
    classify::{Sender, sender},
    packet::{
        ethernet::{self, Payload},
        ipv4,
        transport::{self, Transport},
    },
    reason::Reason,
    session,
    verdict::Verdict,
    world::{Frame, World},
};

/// Checks the source and marks what is to be translated.
#[inline(always)]
pub fn mark<F: Frame, W: World>(frame: &F, world: &W, ingress: u32) -> Verdict {
    if ethernet::payload(frame) != Payload::Ipv4 {
        return Verdict::Pass;
    }
    let packet = match ipv4::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Drop(reason),
    };
    let mut transport = Transport::EMPTY;
    if transport::parse(frame, &packet, &mut transport).is_ok()
        && let Some(half) = world.forward(&transport::flow(&packet, &transport))
    {
        let own = session::belongs(world, half, ingress);
        return if own {
            Verdict::Mark
        } else {
            Verdict::Drop(Reason::Spoofed)
        };
    }
    // What cannot be translated is marked too: it may stay on this node.
    match sender(world, &packet, Some(ingress)) {
        Ok(Sender::Client(..)) => Verdict::Mark,
        Ok(Sender::Stranger | Sender::Excluded | Sender::Draining) => Verdict::Alone,
        Err(reason) => Verdict::Drop(reason),
    }
}
