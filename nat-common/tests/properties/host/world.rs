//! The world over plain tables.

use std::cell::Cell;

use nat_common::{
    abi::{
        Address, Block, Client, Device, Event, FlowKey, Half, Ipv4, Mapping, MappingKey, Page,
        Slice,
    },
    reason::Reason,
    session::Opening,
    world::{Hop, InsertError, RouteQuery, World},
};

use super::{lent::Lent, tables::Tables};

/// Bytes that a frame may be longer than the device's MTU before the kernel's
/// lookup at tcx says so: an Ethernet header and a VLAN tag.
const FRAME_EXTRA: u32 = 18;

/// Where a prefix leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostRoute {
    /// Out, to a neighbour that is known.
    Known(Hop),
    /// Out, to a neighbour on the link that is not: the destination itself.
    Link(Hop),
    /// Nowhere that a packet could be sent past the kernel.
    Kernel,
}

/// Which kind of program asks: the kernel answers them differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// XDP needs the neighbour, and checks lengths itself.
    Xdp,
    /// tcx has neighbours found for it, and frames too long for the device refused.
    Tcx {
        /// Bytes of the frame; 0 for one that is cut later.
        length: u32,
    },
}

/// The world on the host.
pub struct HostWorld {
    /// The tables.
    pub tables: Tables,
    /// The clock.
    pub now: u32,
    /// State of the random numbers.
    pub seed: Cell<u64>,
    /// Routes: prefix, its length, where it leads. The longest that fits counts.
    pub routes: Vec<(Ipv4, u8, HostRoute)>,
    /// Who is asking.
    pub level: Level,
    opening: Lent<Opening>,
}

impl HostWorld {
    /// A world around these tables, without routes, at tick 0.
    pub fn new(tables: Tables) -> Self {
        Self {
            tables,
            now: 0,
            seed: Cell::new(1),
            routes: Vec::new(),
            level: Level::Xdp,
            opening: Lent::new(Opening::EMPTY),
        }
    }

    fn leads(&self, destination: &Ipv4) -> HostRoute {
        let fitting = self
            .routes
            .iter()
            .filter(|(prefix, length, _)| covers(prefix, *length, destination));
        fitting
            .max_by_key(|(_, length, _)| *length)
            .map_or(HostRoute::Kernel, |(.., route)| *route)
    }
}

/// Whether a prefix covers an address.
fn covers(prefix: &Ipv4, length: u8, address: &Ipv4) -> bool {
    let differing = u32::from_be_bytes(*prefix) ^ u32::from_be_bytes(*address);
    u32::from(length) <= differing.leading_zeros()
}

impl World for HostWorld {
    fn forward(&self, key: &FlowKey) -> Option<&mut Half> {
        self.tables.forward.get(key)
    }

    fn reverse(&self, key: &FlowKey) -> Option<&mut Half> {
        self.tables.reverse.get(key)
    }

    fn insert_forward(&self, key: &FlowKey, half: &Half) -> Result<(), InsertError> {
        self.tables.forward.insert(*key, *half)
    }

    fn insert_reverse(&self, key: &FlowKey, half: &Half) -> Result<(), InsertError> {
        self.tables.reverse.insert(*key, *half)
    }

    fn remove_reverse(&self, key: &FlowKey) {
        self.tables.reverse.remove(key);
    }

    fn mapping(&self, key: &MappingKey) -> Option<Mapping> {
        self.tables.mappings.borrow().get(key).copied()
    }

    fn insert_mapping(
        &self,
        key: &MappingKey,
        mapping: &Mapping,
        replace: bool,
    ) -> Result<(), InsertError> {
        let mut mappings = self.tables.mappings.borrow_mut();
        let exists = mappings.contains_key(key);
        if exists && !replace {
            return Err(InsertError::Exists);
        }
        if !exists && mappings.len() >= self.tables.mappings_capacity {
            return Err(InsertError::Full);
        }
        mappings.insert(*key, *mapping);
        Ok(())
    }

    fn remove_mapping(&self, key: &MappingKey) {
        self.tables.mappings.borrow_mut().remove(key);
    }

    fn client_of(&self, source: &Ipv4) -> Option<u16> {
        let sources = self.tables.sources.iter();
        let fitting = sources.filter(|((prefix, length), _)| covers(prefix, *length, source));
        fitting
            .max_by_key(|((_, length), _)| *length)
            .map(|(_, client)| *client as u16)
    }

    fn client(&self, index: u16) -> Option<&Client> {
        self.tables.clients.get(usize::from(index))
    }

    fn excluded(&self, pool: u32, destination: &Ipv4) -> bool {
        let mut excludes = self.tables.excludes.iter();
        excludes.any(|(of, prefix, length)| *of == pool && covers(prefix, *length, destination))
    }

    fn address(&self, address: &Ipv4) -> Option<Address> {
        self.tables.addresses.get(address).copied()
    }

    fn slice(&self, index: u32) -> Option<&Slice> {
        self.tables.slices.get(index as usize)
    }

    fn block(&self, index: u32) -> Option<&Block> {
        self.tables.blocks.get(index as usize)
    }

    fn page(&self, index: u32) -> Option<&Page> {
        self.tables.pages.get(index as usize)
    }

    fn pop_block(&self, queue: u32) -> Option<u32> {
        self.tables
            .queues
            .borrow_mut()
            .get_mut(queue as usize)?
            .pop_front()
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.tables.devices.get(&ifindex).copied()
    }

    fn now(&self) -> u32 {
        self.now
    }

    /// A step of a linear congruential generator (Knuth's MMIX constants).
    fn random(&self) -> u32 {
        let seed = self.seed.get();
        let next = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.seed.set(next);
        (next >> 32) as u32
    }

    fn generation(&self) -> u32 {
        self.tables.generation
    }

    fn route(&self, query: &RouteQuery, hop: &mut Hop) -> bool {
        match (self.leads(&query.destination), self.level) {
            (HostRoute::Known(known), Level::Tcx { length })
                if length > u32::from(known.mtu) + FRAME_EXTRA =>
            {
                false
            }
            (HostRoute::Link(_), Level::Xdp) | (HostRoute::Kernel, _) => false,
            (HostRoute::Known(found), _) => {
                *hop = found;
                true
            }
            (HostRoute::Link(link), Level::Tcx { .. }) => {
                *hop = Hop {
                    gateway: query.destination,
                    ..link
                };
                true
            }
        }
    }

    fn opening(&self) -> Option<&mut Opening> {
        Some(self.opening.lend())
    }

    fn notify(&self, client: u16, reason: Reason, quote: &[u8; 28]) {
        let event = Event {
            reason: reason as u32,
            client: u32::from(client),
            quote: *quote,
            padding: 0,
        };
        self.tables.events.borrow_mut().push(event);
    }
}
