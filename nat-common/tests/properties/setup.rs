//! Small worlds: some clients, one slice.

use std::cell::Cell;

use nat_common::{
    abi::{
        Address, Block, CLIENT_ACTIVE, Client, Delivery, NONE, PAGE_BLOCKS, PROTOCOLS, Page, Pages,
        Slice,
    },
    raw::Word,
};

use crate::host::{HostWorld, Tables};

/// How a world is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Clients, with the addresses 10.0.0.1 and so on.
    pub clients: u32,
    /// Blocks that each may hold for each protocol.
    pub cap: u32,
    /// First port of the slice.
    pub base: u32,
    /// Ports of the slice.
    pub size: u32,
    /// Ports in a block.
    pub block_size: u32,
    /// Sessions, and mappings, that fit.
    pub capacity: usize,
    /// Key of the permutation, and seed of the random numbers.
    pub key: u64,
}

impl Shape {
    /// One client that may have every port of a slice.
    pub const ALONE: Self = Self {
        clients: 1,
        cap: 1024,
        base: 1024,
        size: 1024,
        block_size: 64,
        capacity: 4096,
        key: 42,
    };

    /// The world.
    pub fn world(&self) -> HostWorld {
        let mut tables = Tables::new(self.capacity, self.capacity);
        tables.addresses.insert(EGRESS, Address { flags: 0 });
        let blocks = self.size.div_ceil(self.block_size);
        tables.slices.push(Slice {
            key: self.key,
            address: EGRESS,
            base: self.base,
            size: self.size,
            block_size: self.block_size,
            blocks,
            ..Slice::default()
        });
        for protocol in 0..PROTOCOLS {
            let first = protocol * blocks;
            tables
                .queues
                .borrow_mut()
                .push((first..first + blocks).collect());
            tables
                .blocks
                .extend((0..blocks).map(|block| self.block(block)));
        }
        for client in 0..self.clients {
            self.add_client(&mut tables, client);
        }
        let world = HostWorld::new(tables);
        world.seed.set(self.key);
        world
    }

    /// A block with its ports free; the last one may have fewer.
    fn block(&self, number: u32) -> Block {
        let ports = (self.size - number * self.block_size).min(self.block_size);
        let usable = u64::MAX >> (64 - ports);
        Block {
            free: Word::new(usable),
            usable: Cell::new(usable),
            owner: Cell::new(NONE),
            since: Cell::new(0),
        }
    }

    fn add_client(&self, tables: &mut Tables, index: u32) {
        let pages = self.cap.div_ceil(PAGE_BLOCKS as u32).max(1);
        let first = tables.pages.len() as u32;
        for page in 0..pages * PROTOCOLS {
            let slots = (self.cap - page % pages * PAGE_BLOCKS as u32).min(PAGE_BLOCKS as u32);
            let allowed = if slots == 0 {
                0
            } else {
                u64::MAX >> (64 - slots)
            };
            tables.pages.push(Page {
                allowed: Cell::new(allowed),
                ..Page::default()
            });
        }
        tables.sources.insert((inside(index), 32), index);
        tables.clients.push(Client {
            flags: Cell::new(CLIENT_ACTIVE),
            pages: Cell::new(Pages::new(first, pages)),
            delivery: Cell::new(Delivery::Stack as u32),
            ..Client::default()
        });
    }
}

/// The slice's address.
pub const EGRESS: [u8; 4] = [203, 0, 113, 1];

/// A client's address.
pub fn inside(index: u32) -> [u8; 4] {
    [10, 0, 0, index as u8 + 1]
}
