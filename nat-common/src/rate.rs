//! How many mappings a client may make in a tick (RFC 6888 REQ-4). Packets of sessions, and flows
//! from ports that have a mapping, never come here.

use crate::{
    abi::{Client, Slice},
    reason::Reason,
    world::World,
};

/// How often a race for the word is run again before the packet is given up.
const TRIES: u32 = 4;
/// Bits of [`Client::mapped`] that count; above them is the tick. (It is the same again after 65536
/// ticks, 18 hours: a client whose last mapping is exactly as old has fewer left in that tick.)
const COUNT_BITS: u32 = 16;
const COUNT: u32 = (1 << COUNT_BITS) - 1;

/// Takes one of the mappings that the client may make in this tick.
///
/// # Errors
/// `MappingRate` when there is none left, `Contention`.
#[inline(always)]
pub fn take<W: World>(world: &W, client: &Client, slice: &Slice) -> Result<(), Reason> {
    if slice.mappings == 0 {
        return Ok(());
    }
    let tick = world.now() << COUNT_BITS;
    for _ in 0..TRIES {
        let seen = client.mapped.load();
        let made = if seen & !COUNT == tick {
            seen & COUNT
        } else {
            0
        };
        if made >= slice.mappings {
            return Err(Reason::MappingRate);
        }
        if client.mapped.replace(seen, tick | (made + 1)) {
            return Ok(());
        }
    }
    Err(Reason::Contention)
}
