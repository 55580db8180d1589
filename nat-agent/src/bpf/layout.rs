//! Which maps there are, their shapes and sizes.
//!
//! aya reuses a pinned map of any shape: what is pinned is checked here before
//! it is used, and refused whole with the way out.

use std::{os::fd::AsFd, path::Path};

use anyhow::{Context, Result, bail};
use nat_common::{
    abi::{
        Address, Block, Bucket, Client, Device, Event, Mapping, MappingKey, Name, PAGE_BLOCKS,
        PROTOCOLS, Page, Pool, Report, SLOTS, Settings, Slice,
    },
    reason::REASON_SLOTS,
};

use super::{pins::Pins, sys};
use crate::snapshot::Limits;

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PER_CPU_ARRAY: u32 = 6;
const LPM_TRIE: u32 = 11;
const ARRAY_OF_MAPS: u32 = 12;
const RING_BUFFER: u32 = 27;

/// Ports from 1024 on: what a slice of a whole address has.
pub const FIRST_PORT: u32 = 1024;
/// Blocks for one address and protocol when they have 64 ports each.
const BLOCKS_PER_ADDRESS: u32 = (65_536 - FIRST_PORT).div_ceil(64);

/// A map of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its name, in the object and as a pin.
    pub name: &'static str,
    /// `BPF_MAP_TYPE_*`.
    pub kind: u32,
    /// Bytes of a key.
    pub key: usize,
    /// Bytes of a value.
    pub value: usize,
    /// Entries.
    pub entries: u32,
    /// What one entry is meant to hold: 1, but for a bucket half of its slots.
    pub holds: u32,
}

const fn shape(name: &'static str, kind: u32, key: usize, value: usize, entries: u32) -> Shape {
    Shape {
        name,
        kind,
        key,
        value,
        entries,
        holds: 1,
    }
}

/// A session table.
const fn flows(name: &'static str, limits: &Limits) -> Shape {
    Shape {
        holds: SLOTS as u32 / 2,
        ..shape(name, ARRAY, 4, size_of::<Bucket>(), buckets(limits))
    }
}

/// Blocks of all slices.
pub const fn blocks(limits: &Limits) -> u32 {
    limits.addresses * PROTOCOLS * BLOCKS_PER_ADDRESS
}

/// Buckets of a session table: twice as many slots as sessions, as a power of two.
pub const fn buckets(limits: &Limits) -> u32 {
    (limits.sessions * 2)
        .div_ceil(SLOTS as u32)
        .next_power_of_two()
}

/// Pages of all clients: one for each client and protocol, and as many again as
/// all addresses' blocks fill.
pub const fn pages(limits: &Limits) -> u32 {
    limits.clients * PROTOCOLS + blocks(limits).div_ceil(PAGE_BLOCKS as u32)
}

/// All maps, sized by the limits.
pub fn shapes(limits: &Limits) -> Vec<Shape> {
    let address = limits.addresses;
    vec![
        flows("FORWARD", limits),
        flows("REVERSE", limits),
        shape(
            "MAPPINGS",
            HASH,
            size_of::<MappingKey>(),
            size_of::<Mapping>(),
            limits.sessions,
        ),
        shape("SOURCES", LPM_TRIE, 8, 4, 65_536),
        shape("CLIENTS", ARRAY, 4, size_of::<Client>(), limits.clients),
        shape("EXCLUDES", LPM_TRIE, 12, 4, 65_536),
        shape("ADDRESSES", HASH, 4, size_of::<Address>(), address),
        shape("SLICES", ARRAY, 4, size_of::<Slice>(), address),
        shape("BLOCKS", ARRAY, 4, size_of::<Block>(), blocks(limits)),
        shape("PAGES", ARRAY, 4, size_of::<Page>(), pages(limits)),
        shape("FREE_BLOCKS", ARRAY_OF_MAPS, 4, 4, address * PROTOCOLS),
        shape("DEVICES", HASH, 4, size_of::<Device>(), 4096),
        shape("SETTINGS", ARRAY, 4, size_of::<Settings>(), 1),
        shape("DROPS", PER_CPU_ARRAY, 4, 8, REASON_SLOTS),
        shape("EVENTS", RING_BUFFER, 0, 0, 65_536),
        shape("NAMES", HASH, 4, size_of::<Name>(), 65_536),
        shape("POOLS", HASH, 4, size_of::<Pool>(), 1024),
        shape("REPORT", ARRAY, 4, size_of::<Report>(), 1),
    ]
}

/// Bytes that an event takes in the ring buffer, its header included.
pub const EVENT_BYTES: usize = size_of::<Event>() + 8;

/// Checks what is pinned against what these limits and this version want.
///
/// # Errors
/// The first difference, with what to do.
pub fn check(pins: &Pins, limits: &Limits) -> Result<()> {
    for shape in shapes(limits) {
        let path = pins.map(shape.name);
        if path.exists() {
            check_one(&path, &shape).with_context(|| pins.way_out())?;
        }
    }
    Ok(())
}

fn check_one(path: &Path, shape: &Shape) -> Result<()> {
    let fd = sys::open_pin(path).with_context(|| format!("open {}", path.display()))?;
    let info = sys::map_info(fd.as_fd())?;
    let found = (
        info.map_type,
        info.key_size as usize,
        info.value_size as usize,
    );
    if found != (shape.kind, shape.key, shape.value) {
        bail!(
            "{} has another layout (type {}, keys of {}, values of {} bytes; wanted {}, {}, {})",
            path.display(),
            found.0,
            found.1,
            found.2,
            shape.kind,
            shape.key,
            shape.value,
        );
    }
    if info.max_entries != shape.entries {
        bail!(
            "{} was made for {} entries, the configuration's limits want {}",
            path.display(),
            info.max_entries * shape.holds,
            shape.entries * shape.holds,
        );
    }
    Ok(())
}
