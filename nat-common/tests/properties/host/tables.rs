//! All tables of the data plane, as plain collections.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
};

use nat_common::{
    abi::{Address, Block, Client, Device, Event, Ipv4, Mapping, MappingKey, Page, Slice},
    raw::{Word, Word32},
    reason::REASONS,
};

use super::halves::Halves;

/// The tables' contents.
#[derive(Debug)]
pub struct Tables {
    /// What clients send, by flow.
    pub forward: Halves,
    /// What answers them, by flow.
    pub reverse: Halves,
    /// External endpoint of each internal one.
    pub mappings: RefCell<BTreeMap<MappingKey, Mapping>>,
    /// How many mappings there may be.
    pub mappings_capacity: usize,
    /// Client number by source prefix.
    pub sources: BTreeMap<(Ipv4, u8), u32>,
    /// Clients by number.
    pub clients: Vec<Client>,
    /// Destinations that a pool leaves alone: pool, prefix, its length.
    pub excludes: Vec<(u32, Ipv4, u8)>,
    /// Egress addresses.
    pub addresses: BTreeMap<Ipv4, Address>,
    /// Slices by number.
    pub slices: Vec<Slice>,
    /// Blocks of all slices.
    pub blocks: Vec<Block>,
    /// Pages of all clients.
    pub pages: Vec<Page>,
    /// Free blocks: a queue for each slice and protocol.
    pub queues: RefCell<Vec<VecDeque<u32>>>,
    /// Devices by ifindex.
    pub devices: BTreeMap<u32, Device>,
    /// Generation of cached next hops.
    pub generation: u32,
    /// Drops by reason.
    pub drops: Vec<u64>,
    /// What the agent was told.
    pub events: RefCell<Vec<Event>>,
}

impl Tables {
    /// Empty tables of these sizes.
    pub fn new(sessions: usize, mappings: usize) -> Self {
        Self {
            forward: Halves::new(sessions),
            reverse: Halves::new(sessions),
            mappings: RefCell::default(),
            mappings_capacity: mappings,
            sources: BTreeMap::new(),
            clients: Vec::new(),
            excludes: Vec::new(),
            addresses: BTreeMap::new(),
            slices: Vec::new(),
            blocks: Vec::new(),
            pages: Vec::new(),
            queues: RefCell::default(),
            devices: BTreeMap::new(),
            generation: 1,
            drops: vec![0; REASONS as usize],
            events: RefCell::default(),
        }
    }

    /// Every entry in words, one a line: two tables are equal when these are.
    /// Padding is among the fields, so no byte is left out.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        add(&mut lines, "forward", self.forward.all());
        add(&mut lines, "reverse", self.reverse.all());
        add(&mut lines, "mapping", self.mappings.borrow().iter());
        add(&mut lines, "source", &self.sources);
        add(&mut lines, "client", self.clients.iter().enumerate());
        add(&mut lines, "exclude", &self.excludes);
        add(&mut lines, "address", &self.addresses);
        add(&mut lines, "slice", self.slices.iter().enumerate());
        add(&mut lines, "block", self.blocks.iter().enumerate());
        add(&mut lines, "page", self.pages.iter().enumerate());
        add(&mut lines, "queue", self.queues.borrow().iter().enumerate());
        add(&mut lines, "device", &self.devices);
        add(&mut lines, "generation", [self.generation]);
        add(&mut lines, "drops", self.drops.iter().enumerate());
        add(&mut lines, "event", self.events.borrow().iter());
        lines
    }
}

fn add<T: Debug>(lines: &mut Vec<String>, table: &str, entries: impl IntoIterator<Item = T>) {
    lines.extend(
        entries
            .into_iter()
            .map(|entry| format!("{table} {entry:?}")),
    );
}

impl Clone for Tables {
    fn clone(&self) -> Self {
        Self {
            forward: self.forward.clone(),
            reverse: self.reverse.clone(),
            mappings: self.mappings.clone(),
            mappings_capacity: self.mappings_capacity,
            sources: self.sources.clone(),
            clients: self.clients.iter().map(client).collect(),
            excludes: self.excludes.clone(),
            addresses: self.addresses.clone(),
            slices: self.slices.clone(),
            blocks: self.blocks.iter().map(block).collect(),
            pages: self.pages.iter().map(page).collect(),
            queues: self.queues.clone(),
            devices: self.devices.clone(),
            generation: self.generation,
            drops: self.drops.clone(),
            events: self.events.clone(),
        }
    }
}

// The shared values of the layout are no `Clone` on purpose: who copies one
// while packets change it gets half of each. Here nothing else runs.

fn client(client: &Client) -> Client {
    Client {
        flags: client.flags.clone(),
        ifindex: client.ifindex.clone(),
        slice: client.slice.clone(),
        pool: client.pool.clone(),
        pages: client.pages.clone(),
        delivery: client.delivery.clone(),
        noticed: client.noticed.clone(),
        mapped: Word32::new(client.mapped.load()),
        packets_out: client.packets_out.clone(),
        bytes_out: client.bytes_out.clone(),
        packets_in: client.packets_in.clone(),
        bytes_in: client.bytes_in.clone(),
    }
}

fn block(block: &Block) -> Block {
    Block {
        free: Word::new(block.free.load()),
        usable: block.usable.clone(),
        owner: block.owner.clone(),
        since: block.since.clone(),
    }
}

fn page(page: &Page) -> Page {
    Page {
        open: Word::new(page.open.load()),
        held: Word::new(page.held.load()),
        allowed: page.allowed.clone(),
        blocks: page.blocks.clone(),
    }
}
