//! tcx egress of an outside device: what is marked is translated, and no
//! client's own address gets past.

use super::open::{self, Arrival, Way};
use crate::{
    abi::Half,
    classify::{Sender, sender},
    packet::{
        ethernet::{self, Payload},
        ipv4,
    },
    reason::Reason,
    session,
    translate::{End, Rewrite, rewrite},
    verdict::Verdict,
    world::{Frame, World},
};

/// Translates what is marked; drops an unmarked packet with a client's address.
#[inline(always)]
pub fn guard<F: Frame, W: World>(frame: &mut F, world: &W, marked: bool) -> Verdict {
    if ethernet::payload(frame) != Payload::Ipv4 {
        return Verdict::Pass;
    }
    let packet = match ipv4::parse(frame) {
        Ok(packet) => packet,
        Err(reason) => return Verdict::Drop(reason),
    };
    if !marked {
        return stop(frame, world, packet);
    }
    let arrival = Arrival::new(frame, packet, 0, Way::Stack);
    match open::session(frame, world, &arrival) {
        Ok(half) => leave(frame, world, &arrival, half),
        Err(verdict) => verdict,
    }
}

/// An unmarked packet: a client's was never checked, and a draining one's belongs to no session.
#[inline(always)]
fn stop<F: Frame, W: World>(frame: &F, world: &W, packet: ipv4::Packet) -> Verdict {
    match sender(world, &packet, None) {
        Ok(Sender::Stranger | Sender::Excluded) => Verdict::Pass,
        Ok(Sender::Draining)
            if !open::known(world, &Arrival::new(frame, packet, 0, Way::Stack)) =>
        {
            Verdict::Pass
        }
        Ok(Sender::Draining | Sender::Client(..)) => Verdict::Drop(Reason::Untranslated),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// A marked packet of a session.
#[inline(always)]
fn leave<F: Frame, W: World>(
    frame: &mut F,
    world: &W,
    arrival: &Arrival,
    half: &mut Half,
) -> Verdict {
    let transport = &arrival.transport;
    session::stamp(world, half, transport.tcp_flags, arrival.packet.length);
    let to = Rewrite {
        end: End::Source,
        address: half.address,
        port: half.port,
        hop: false,
    };
    match rewrite(frame, &arrival.packet, transport, &to) {
        Ok(()) => Verdict::Stack,
        Err(reason) => Verdict::Drop(reason),
    }
}
