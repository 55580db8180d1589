//! Ports that the node itself uses are left out of the blocks of an egress
//! address that is also its own.

use anyhow::Result;
use nat_common::{
    abi::PROTOCOLS,
    ports::{first_block, port_of},
};

use crate::{bpf::tables::Tables, diff::State, facts::OwnPorts};

/// Takes the node's ports out of its own addresses' blocks, and puts back those
/// that it no longer uses. A port that a session has at the moment is left to it.
///
/// # Errors
/// The kernel's.
pub fn reserve(tables: &Tables, state: &State, ports: &OwnPorts) -> Result<()> {
    for slice in state.slices.values() {
        let Some(entry) = tables.slices.get(&slice.index)? else {
            continue;
        };
        for place in 0..PROTOCOLS {
            for number in 0..entry.blocks {
                let index = first_block(&entry, place) + number;
                let Some(block) = tables.blocks.get(index) else {
                    continue;
                };
                let length = (entry.size - number * entry.block_size).min(entry.block_size);
                for bit in 0..length {
                    let port = port_of(&entry, place, number, bit);
                    let reserved = slice.entry.own && ports.contains(place, port);
                    set(block, bit, reserved);
                }
            }
        }
    }
    Ok(())
}

fn set(block: &nat_common::abi::Block, bit: u32, reserved: bool) {
    let mask = 1 << bit;
    let usable = block.usable.get();
    if reserved && usable & mask != 0 && block.free.fetch_and(!mask) & mask != 0 {
        block.usable.set(usable & !mask);
    } else if !reserved && usable & mask == 0 {
        block.usable.set(usable | mask);
        block.free.fetch_or(mask);
    }
}
