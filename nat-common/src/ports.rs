//! Address, slice, block, port: who owns what, and how a port is taken.
//!
//! Every level is a plain lookup from the level above. A client takes ports
//! from the blocks it holds; when they are full it pops the next block of its
//! slice's queue, up to its cap. Taking a port is O(1), for the last one too.

use crate::{
    abi::{BLOCK_PORTS, Block, Client, Ipv4, MAX_PAGES, PROTOCOLS, Page, Slice, protocol_index},
    permute::permute,
    raw,
    reason::Reason,
    world::World,
};

/// How often a race for a bit is run again before the packet is given up.
const TRIES: u32 = 4;

/// A port taken, and where it goes back to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The egress address.
    pub address: Ipv4,
    /// The port.
    pub port: u16,
    /// Index of its block.
    pub block: u32,
    /// Its bit in the block.
    pub bit: u32,
}

impl Taken {
    /// Nothing.
    pub const EMPTY: Self = Self {
        address: [0; 4],
        port: 0,
        block: 0,
        bit: 0,
    };
}

/// Takes a free port of the client's for a protocol.
///
/// # Errors
/// `ClientCap`, `PortsExhausted`, `Contention`, or `NoAddress` for a client or
/// tables without.
#[inline(always)]
pub fn take<W: World>(
    world: &W,
    index: u16,
    client: &Client,
    protocol: u8,
) -> Result<Taken, Reason> {
    // Read once: the agent may give the client another address meanwhile.
    let number = client.slice.get();
    let slice = world.slice(number).ok_or(Reason::NoAddress)?;
    let place = protocol_index(protocol);
    let pages = client.pages.get();
    let first = pages.first() + place * pages.count();
    for page in 0..MAX_PAGES {
        if page >= pages.count() {
            break;
        }
        let page = world.page(first + page).ok_or(Reason::NoAddress)?;
        if let Some((block, bit)) = take_held(world, page, slice, place) {
            return Ok(taken(slice, block, bit, place));
        }
    }
    for page in 0..MAX_PAGES {
        if page >= pages.count() {
            break;
        }
        let page = world.page(first + page).ok_or(Reason::NoAddress)?;
        if page.allowed.get() & !page.held.load() != 0 {
            let queue = number * PROTOCOLS + place;
            let (block, bit) = take_new(world, page, queue, index)?;
            return Ok(taken(slice, block, bit, place));
        }
    }
    Err(Reason::ClientCap)
}

/// Gives a port back that was never used.
#[inline(always)]
pub fn put_back<W: World>(world: &W, taken: &Taken) {
    if let Some(block) = world.block(taken.block) {
        block.free.fetch_or(1 << (taken.bit & 63));
    }
}

/// A port of a block that the page holds already. A round takes a port, or finds
/// a block full and closes its slot, or loses a race.
#[inline(always)]
fn take_held<W: World>(world: &W, page: &Page, slice: &Slice, place: u32) -> Option<(u32, u32)> {
    for _ in 0..TRIES {
        let open = page.open.load();
        if open == 0 {
            return None;
        }
        let slot = lowest(open);
        let index = page.blocks.get(slot as usize)?.get();
        // A block that is not there was given back by the agent a moment ago;
        // one of another slice is left from the client's previous address.
        let own = index.wrapping_sub(first_block(slice, place)) < slice.blocks;
        let block = if own { world.block(index) } else { None };
        if let Some(block) = block {
            if let Some(bit) = take_bit(world, block) {
                return Some((index, bit));
            }
            if block.free.load() != 0 {
                continue;
            }
        }
        page.open.fetch_and(!(1 << slot));
        // The agent may have freed a port of it just before.
        if block.is_some_and(|block| block.free.load() != 0) {
            page.open.fetch_or(1 << slot);
        }
    }
    None
}

/// A port of a block fresh from the queue.
#[inline(always)]
fn take_new<W: World>(
    world: &W,
    page: &Page,
    queue: u32,
    client: u16,
) -> Result<(u32, u32), Reason> {
    let slot = claim_slot(page).ok_or(Reason::Contention)?;
    let Some(index) = world.pop_block(queue) else {
        page.held.fetch_and(!(1 << slot));
        return Err(Reason::PortsExhausted);
    };
    let (Some(block), Some(place)) = (world.block(index), page.blocks.get(slot as usize)) else {
        page.held.fetch_and(!(1 << slot));
        return Err(Reason::NoAddress);
    };
    block.owner.set(u32::from(client));
    block.since.set(world.now());
    place.set(index);
    // Nobody else knows the block until its slot opens: this cannot lose a race.
    let bit = take_bit(world, block);
    page.open.fetch_or(1 << slot);
    bit.map(|bit| (index, bit)).ok_or(Reason::PortsExhausted)
}

/// A slot for one more block, if the cap leaves one.
#[inline(always)]
fn claim_slot(page: &Page) -> Option<u32> {
    for _ in 0..TRIES {
        let room = page.allowed.get() & !page.held.load();
        if room == 0 {
            return None;
        }
        let slot = lowest(room);
        if page.held.fetch_or(1 << slot) & (1 << slot) == 0 {
            return Some(slot);
        }
    }
    None
}

/// Takes one of the block's free bits: the first at or after a random one.
/// `None` when it is full, or when another CPU took the same bit.
#[inline(always)]
fn take_bit<W: World>(world: &W, block: &Block) -> Option<u32> {
    let free = block.free.load();
    if free == 0 {
        return None;
    }
    let start = world.random() % BLOCK_PORTS;
    let bit = (lowest(free.rotate_right(start)) + start) % BLOCK_PORTS;
    (block.free.fetch_and(!(1 << bit)) & (1 << bit) != 0).then_some(bit)
}

/// The place of the lowest bit set, of a word that is not 0: the ones below it,
/// counted. BPF has no instruction for it, and a search would give the verifier
/// 64 ways to follow.
#[inline(always)]
fn lowest(word: u64) -> u32 {
    let below = (word & word.wrapping_neg()).wrapping_sub(1);
    // The compiler counts by a table, whose values the verifier does not know.
    (raw::opaque(u64::from(below.count_ones())) & 63) as u32
}

#[inline(always)]
fn taken(slice: &Slice, block: u32, bit: u32, place: u32) -> Taken {
    let port = port_of(slice, place, block - first_block(slice, place), bit);
    Taken {
        address: slice.address,
        port,
        block,
        bit,
    }
}

/// Index of a slice's first block for one protocol's place.
#[inline(always)]
pub fn first_block(slice: &Slice, place: u32) -> u32 {
    slice.first_block + place * slice.blocks
}

/// The port of a bit of a slice's block, for one protocol's place.
#[inline(always)]
pub fn port_of(slice: &Slice, place: u32, block: u32, bit: u32) -> u16 {
    let index = block * slice.block_size + bit;
    (slice.base + permute(slice.key ^ u64::from(place), slice.size, index)) as u16
}

/// Block (counted within the slice and protocol) and bit of a port: the inverse
/// of [`port_of`]; `None` for a port of another slice.
pub fn place_of(slice: &Slice, place: u32, port: u16) -> Option<(u32, u32)> {
    let offset = u32::from(port).checked_sub(slice.base)?;
    if offset >= slice.size {
        return None;
    }
    let index = crate::permute::invert(slice.key ^ u64::from(place), slice.size, offset);
    Some((index / slice.block_size, index % slice.block_size))
}
