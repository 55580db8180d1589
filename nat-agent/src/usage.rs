//! Which ports are in use: marked in one pass over sessions and mappings, in
//! constant memory, as a garbage collector marks.

use std::{collections::HashMap, io};

use nat_common::{
    abi::{Block, Half, Ipv4, NONE, PROTOCOLS, Port, Slice, protocol_index},
    ports::first_block,
};

use crate::bpf::tables::Tables;

/// Ports of one address and protocol: a bit each.
const WORDS: usize = 65_536 / 64;

/// Ports in use by live sessions and mappings.
#[derive(Debug, Default)]
pub struct Usage {
    ports: HashMap<(Ipv4, u32), Vec<u64>>,
    /// A bit for each client number.
    clients: Vec<u64>,
}

/// Ports of one slice and protocol by what they are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// In use by a session or a mapping.
    pub used: u32,
    /// May be handed out now: in the queue's blocks or in a client's.
    pub free: u32,
    /// Taken, no longer in use, and not yet to be handed out again.
    pub resting: u32,
}

impl Usage {
    /// Marks the ports of all mappings.
    ///
    /// # Errors
    /// The kernel's.
    pub fn mark_mappings(&mut self, tables: &Tables) -> io::Result<()> {
        tables.mappings.for_each(|key, mapping| {
            self.mark(mapping.address, protocol_index(key.protocol), mapping.port);
        })
    }

    /// Marks the port and the client of a session, by its forward half.
    pub fn mark_session(&mut self, protocol: u8, forward: &Half) {
        self.mark(forward.address, protocol_index(protocol), forward.port);
        let client = usize::from(forward.client);
        if self.clients.len() <= client / 64 {
            self.clients.resize(client / 64 + 1, 0);
        }
        self.clients[client / 64] |= 1 << (client % 64);
    }

    /// The clients that have sessions, by number.
    pub fn clients(&self) -> impl Iterator<Item = u16> {
        numbers(&self.clients)
    }

    /// Marks a port.
    pub fn mark(&mut self, address: Ipv4, place: u32, port: Port) {
        let port = usize::from(u16::from_be_bytes(port));
        let words = self
            .ports
            .entry((address, place))
            .or_insert_with(|| vec![0; WORDS]);
        words[port / 64] |= 1 << (port % 64);
    }

    /// Whether a port is in use.
    pub fn uses(&self, address: Ipv4, place: u32, port: u16) -> bool {
        let port = usize::from(port);
        self.ports
            .get(&(address, place))
            .is_some_and(|w| w[port / 64] & (1 << (port % 64)) != 0)
    }

    /// Whether any port of an address is in use.
    pub fn uses_address(&self, address: Ipv4) -> bool {
        (0..PROTOCOLS).any(|place| self.ports.contains_key(&(address, place)))
    }

    /// The ports in use of an address and protocol.
    pub fn ports(&self, address: Ipv4, place: u32) -> impl Iterator<Item = u16> {
        numbers(self.ports.get(&(address, place)).map_or(&[], Vec::as_slice))
    }

    /// How many ports of an address and protocol are in use.
    pub fn used(&self, address: Ipv4, place: u32) -> u32 {
        self.ports
            .get(&(address, place))
            .map_or(0, |w| w.iter().map(|word| word.count_ones()).sum())
    }

    /// What the ports of a slice are doing, for one protocol.
    pub fn counts(&self, tables: &Tables, slice: &Slice, place: u32) -> Counts {
        let first = first_block(slice, place);
        let mut counts = Counts {
            used: self.used(slice.address, place),
            ..Counts::default()
        };
        let mut taken = 0;
        for block in (first..first + slice.blocks).filter_map(|index| tables.blocks.get(index)) {
            let free = block.free.load() & block.usable.get();
            counts.free += free.count_ones();
            taken += (block.usable.get() & !free).count_ones();
        }
        counts.resting = taken.saturating_sub(counts.used);
        counts
    }
}

/// The numbers of the bits that are set.
fn numbers(words: &[u64]) -> impl Iterator<Item = u16> {
    words.iter().enumerate().flat_map(|(index, word)| {
        let bits = (0..64).filter(move |bit| word & (1 << bit) != 0);
        bits.map(move |bit| (index * 64 + bit) as u16)
    })
}

/// Whether a client holds the block.
pub fn held(block: &Block) -> bool {
    block.owner.get() != NONE
}
