//! Ports that the node itself uses are left out of the blocks of an egress
//! address that is also its own.

use std::cell::LazyCell;

use anyhow::Result;
use nat_common::{
    abi::{Block, PROTOCOLS, Slice},
    ports::{first_block, port_of},
};

use crate::{
    bpf::tables::Tables,
    diff::State,
    facts::{OwnPorts, own_ports},
};

/// Takes the node's ports out of its own addresses' blocks, and puts back those
/// that it no longer uses. A port that a session has at the moment is left to it.
///
/// Which ports the node uses is only read where an address is its own: it takes the
/// kernel a walk through all its tables of sockets.
///
/// # Errors
/// The kernel's.
pub fn reserve(tables: &Tables, state: &State) -> Result<()> {
    let ports = LazyCell::new(own_ports);
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
                if slice.entry.own {
                    reserve_in(&entry, place, number, block, &ports);
                } else {
                    let length = length(&entry, number);
                    (0..length).for_each(|bit| set(block, bit, false));
                }
            }
        }
    }
    Ok(())
}

/// Ports in a block: the slice's last one may be shorter.
fn length(slice: &Slice, number: u32) -> u32 {
    (slice.size - number * slice.block_size).min(slice.block_size)
}

fn reserve_in(slice: &Slice, place: u32, number: u32, block: &Block, ports: &OwnPorts) {
    for bit in 0..length(slice, number) {
        let port = port_of(slice, place, number, bit);
        set(block, bit, ports.contains(place, port));
    }
}

fn set(block: &Block, bit: u32, reserved: bool) {
    let mask = 1 << bit;
    let usable = block.usable.get();
    if reserved && usable & mask != 0 && block.free.fetch_and(!mask) & mask != 0 {
        block.usable.set(usable & !mask);
    } else if !reserved && usable & mask == 0 {
        block.usable.set(usable | mask);
        block.free.fetch_or(mask);
    }
}
