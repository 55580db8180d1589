//! Operations carried out on the maps, and the maps read back as a state.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd},
    thread,
};

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use nat_common::abi::{
    ADDRESS_OWN, Address, Block, CLIENT_ACTIVE, CLIENT_CUT_OVER, CLIENT_DRAINING, NONE, ORPHAN,
    PAGE_BLOCKS, PROTOCOLS, Page, Pages, Pool, Slice,
};
use rand::{Rng, seq::SliceRandom};
use tracing::{info, warn};

use crate::{
    bpf::{layout::FIRST_PORT, pins::Pins, shared::GRACE, sys, tables::Tables},
    desired::{ClientEntry, PoolEntry, SliceEntry},
    diff::{ClientState, Operation, SliceState, State},
    keys::{excluded_key, excluded_of, name, name_of, prefix_key, prefix_of},
    purge,
};

/// Carries out one operation.
///
/// # Errors
/// The kernel's; the operation can be carried out again.
pub fn apply(tables: &Tables, pins: &Pins, state: &State, operation: &Operation) -> Result<()> {
    match operation {
        Operation::SetPool(name, index, entry) => set_pool(tables, name, *index, entry),
        Operation::RemovePool(_, index) => remove_pool(tables, *index),
        Operation::AddSlice(address, slice) => {
            let pool = pool_index(state, &slice.entry.pool);
            add_slice(tables, pins, *address, slice, pool)
        }
        Operation::SetSlice(address, slice) => {
            let pool = pool_index(state, &slice.entry.pool);
            let known = tables.slices.get(&slice.index)?.unwrap_or_default();
            let mappings = slice.entry.mappings;
            tables.slices.set(
                &slice.index,
                &Slice {
                    pool,
                    mappings,
                    ..known
                },
            )?;
            set_address(tables, *address, slice.entry.own)
        }
        Operation::RemoveSlice(address, slice) => remove_slice(tables, pins, *address, slice),
        Operation::SetDevice(ifindex, device) => Ok(tables.devices.set(ifindex, device)?),
        Operation::RemoveDevice(ifindex) => Ok(tables.devices.delete(ifindex).map(drop)?),
        Operation::RemoveSources(_, index, sources) => remove_sources(tables, *index, sources),
        Operation::SetClient(name, client) => set_client(tables, state, name, client),
        Operation::RemoveClient(name, client) => {
            info!(client = name, "client removed");
            remove_client(tables, client)
        }
    }
}

fn set_pool(tables: &Tables, text: &str, index: u32, entry: &PoolEntry) -> Result<()> {
    let [tcp_established, tcp_transitory, udp, icmp, rest] = entry.seconds;
    let direct = u32::from(entry.direct);
    let name = name(text);
    let pool = Pool {
        name,
        tcp_established,
        tcp_transitory,
        udp,
        icmp,
        rest,
        direct,
    };
    for net in &entry.excludes {
        tables.excludes.set(&excluded_key(index, *net), &1)?;
    }
    for key in excluded(tables, index)? {
        if excluded_of(&key).is_none_or(|(_, net)| !entry.excludes.contains(&net)) {
            tables.excludes.delete(&key)?;
        }
    }
    Ok(tables.pools.set(&index, &pool)?)
}

fn excluded(tables: &Tables, index: u32) -> Result<Vec<[u8; 12]>> {
    let keys = tables.excludes.entries()?.into_iter().map(|(key, _)| key);
    Ok(keys
        .filter(|key| excluded_of(key).is_some_and(|(pool, _)| pool == index))
        .collect())
}

fn remove_pool(tables: &Tables, index: u32) -> Result<()> {
    for key in excluded(tables, index)? {
        tables.excludes.delete(&key)?;
    }
    Ok(tables.pools.delete(&index).map(drop)?)
}

fn pool_index(state: &State, name: &str) -> u32 {
    state.pools.get(name).map_or(NONE, |(index, _)| *index)
}

/// Blocks and their queues first, the slice next, the address last: only then
/// do packets find any of it.
fn add_slice(
    tables: &Tables,
    pins: &Pins,
    address: Ipv4Addr,
    state: &SliceState,
    pool: u32,
) -> Result<()> {
    let blocks = state.blocks();
    let size = 65_536 - FIRST_PORT;
    let slice = Slice {
        key: rand::rng().next_u64(),
        address: address.octets(),
        base: FIRST_PORT,
        size,
        block_size: state.entry.block_size,
        first_block: state.first_block,
        blocks,
        pool,
        mappings: state.entry.mappings,
    };
    for place in 0..PROTOCOLS {
        let first = state.first_block + place * blocks;
        for number in 0..blocks {
            tables
                .blocks
                .set(first + number, fresh_block(&slice, number));
        }
        let number = state.index * PROTOCOLS + place;
        add_queue(tables, pins, number, first..first + blocks)?;
    }
    tables.slices.set(&state.index, &slice)?;
    set_address(tables, address, state.entry.own)
}

/// A block with all its ports free; the slice's last one may be shorter.
fn fresh_block(slice: &Slice, number: u32) -> Block {
    let ports = (slice.size - number * slice.block_size).min(slice.block_size);
    let bits = if ports == 64 {
        u64::MAX
    } else {
        (1 << ports) - 1
    };
    let block = Block::default();
    block.free.fetch_or(bits);
    block.usable.set(bits);
    block.owner.set(NONE);
    block
}

/// A queue of blocks in random order.
fn add_queue(
    tables: &Tables,
    pins: &Pins,
    number: u32,
    blocks: std::ops::Range<u32>,
) -> Result<()> {
    let path = pins.queue(number);
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    let queue = sys::create_queue(blocks.len() as u32).context("create a queue of blocks")?;
    let mut order: Vec<u32> = blocks.collect();
    order.shuffle(&mut rand::rng());
    for block in order {
        sys::update(queue.as_fd(), &(), &block, sys::ANY)?;
    }
    sys::pin(queue.as_fd(), &path).with_context(|| format!("pin {}", path.display()))?;
    Ok(tables
        .free_blocks
        .set(&number, &(queue.as_raw_fd() as u32))?)
}

fn set_address(tables: &Tables, address: Ipv4Addr, own: bool) -> Result<()> {
    let flags = if own { ADDRESS_OWN } else { 0 };
    Ok(tables
        .addresses
        .set(&address.octets(), &Address { flags })?)
}

fn remove_slice(tables: &Tables, pins: &Pins, address: Ipv4Addr, state: &SliceState) -> Result<()> {
    tables.addresses.delete(&address.octets())?;
    tables.slices.set(&state.index, &Slice::default())?;
    thread::sleep(GRACE);
    let ended = purge::address(tables, address)?;
    if ended > 0 {
        warn!("egress address {address} is given up: {ended} sessions have ended with it");
    }
    forget_blocks(tables, state);
    for place in 0..PROTOCOLS {
        let number = state.index * PROTOCOLS + place;
        tables.free_blocks.delete(&number)?;
        let path = pins.queue(number);
        if path.exists() {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Takes a slice's blocks from the clients that hold them: their numbers will be another slice's.
fn forget_blocks(tables: &Tables, state: &SliceState) {
    let blocks = state.first_block..state.first_block + state.blocks() * PROTOCOLS;
    for page in (0..tables.pages.len()).filter_map(|number| tables.pages.get(number)) {
        let held = page.held.load();
        for slot in (0..PAGE_BLOCKS).filter(|slot| held & (1 << slot) != 0) {
            if blocks.contains(&page.blocks[slot].get()) {
                page.open.fetch_and(!(1 << slot));
                page.blocks[slot].set(NONE);
                page.held.fetch_and(!(1 << slot));
            }
        }
    }
}

/// The sources first: from then on new packets are refused or a stranger's.
fn remove_sources(tables: &Tables, index: u16, sources: &BTreeSet<Ipv4Net>) -> Result<()> {
    for net in sources {
        tables.sources.delete(&prefix_key(*net))?;
    }
    thread::sleep(GRACE);
    purge::sources(tables, index, sources)
}

/// Name, pages, client; its sources last: only then do packets find it.
fn set_client(tables: &Tables, state: &State, text: &str, client: &ClientState) -> Result<()> {
    let index = u32::from(client.index);
    let entry = tables.clients.get(index).context("no such client number")?;
    tables.names.set(&index, &name(text))?;
    // Until all is done again: an agent that dies before it does it once more.
    let before = entry.flags.get();
    entry.flags.set(before & !CLIENT_CUT_OVER);
    set_pages(tables, entry.pages.get(), client);
    let pool = pool_index(state, &client.entry.pool);
    entry.slice.set(client.slice.unwrap_or(NONE));
    entry.pool.set(pool);
    entry.ifindex.set(client.entry.ifindex);
    entry.delivery.set(client.entry.delivery);
    entry
        .pages
        .set(Pages::new(client.first_page, client.entry.pages()));
    entry.flags.set(flags(&client.entry));
    for net in &client.entry.addresses {
        tables.sources.set(&prefix_key(*net), &index)?;
    }
    // Only who had another device has sessions that are tied to it: finding them takes a look at
    // all there are.
    let known = state.clients.get(text);
    if known.is_some_and(|known| known.entry.ifindex != client.entry.ifindex) {
        purge::misplaced(tables, client);
    }
    if client.entry.cut_over || client.entry.draining {
        // What packets began before is done then, for a look at sessions to find.
        thread::sleep(GRACE);
    }
    if client.entry.cut_over {
        purge::elsewhere(tables, client);
        entry.flags.set(entry.flags.get() | CLIENT_CUT_OVER);
    }
    Ok(())
}

fn flags(entry: &ClientEntry) -> u32 {
    let draining = if entry.draining { CLIENT_DRAINING } else { 0 };
    CLIENT_ACTIVE | draining
}

/// Prepares the client's pages. When their number changes they move: what the
/// old ones hold is copied, and what does not fit goes back as it empties.
fn set_pages(tables: &Tables, old: Pages, client: &ClientState) {
    let new = Pages::new(client.first_page, client.entry.pages());
    for place in 0..PROTOCOLS {
        for number in 0..new.count() {
            let index = new.first() + place * new.count() + number;
            if old != new {
                let page = Page::default();
                let from = old.first() + place * old.count() + number;
                if number < old.count()
                    && let Some(from) = tables.pages.get(from)
                {
                    copy(from, &page);
                }
                tables.pages.set(index, page);
            }
            if let Some(page) = tables.pages.get(index) {
                page.allowed.set(allowed(client.entry.blocks, number));
            }
        }
    }
}

fn copy(from: &Page, to: &Page) {
    to.held.fetch_or(from.held.load());
    to.open.fetch_or(from.open.load());
    for (from, to) in from.blocks.iter().zip(&to.blocks) {
        to.set(from.get());
    }
}

/// The slots of a page that a cap of so many blocks allows.
fn allowed(blocks: u32, page: u32) -> u64 {
    match blocks.saturating_sub(page * PAGE_BLOCKS as u32) {
        slots @ 0..64 => (1 << slots) - 1,
        _ => u64::MAX,
    }
}

/// Its blocks become orphans: the sweep gives them back when their ports have rested.
fn remove_client(tables: &Tables, client: &ClientState) -> Result<()> {
    let index = u32::from(client.index);
    let entry = tables.clients.get(index).context("no such client number")?;
    entry.flags.set(0);
    thread::sleep(GRACE);
    for block in (0..tables.blocks.len()).filter_map(|number| tables.blocks.get(number)) {
        if block.owner.get() == index {
            block.owner.set(ORPHAN);
        }
    }
    entry.mapped.fetch_and(0);
    let pages = entry.pages.replace(Pages::default());
    for number in 0..pages.count() * PROTOCOLS {
        tables.pages.set(pages.first() + number, Page::default());
    }
    for total in [
        &entry.packets_out,
        &entry.bytes_out,
        &entry.packets_in,
        &entry.bytes_in,
    ] {
        total.set(0);
    }
    Ok(tables.names.delete(&index).map(drop)?)
}

/// Reads what the tables hold.
///
/// # Errors
/// The kernel's.
pub fn read(tables: &Tables) -> Result<State> {
    let mut state = State {
        devices: tables.devices.entries()?.into_iter().collect(),
        ..State::default()
    };
    let excluded: Vec<_> = tables.excludes.entries()?;
    for (index, pool) in tables.pools.entries()? {
        let excluded = excluded.iter().filter_map(|(key, _)| excluded_of(key));
        let excludes = excluded
            .filter(|(pool, _)| *pool == index)
            .map(|(_, net)| net)
            .collect();
        let seconds = [
            pool.tcp_established,
            pool.tcp_transitory,
            pool.udp,
            pool.icmp,
            pool.rest,
        ];
        let entry = PoolEntry {
            seconds,
            direct: pool.direct != 0,
            excludes,
        };
        state.pools.insert(name_of(&pool.name), (index, entry));
    }
    let pools: BTreeMap<u32, String> = state
        .pools
        .iter()
        .map(|(name, (index, _))| (*index, name.clone()))
        .collect();
    read_slices(tables, &mut state, &pools)?;
    read_clients(tables, &mut state, &pools)?;
    Ok(state)
}

fn read_slices(tables: &Tables, state: &mut State, pools: &BTreeMap<u32, String>) -> Result<()> {
    for (index, slice) in tables.used_slices()? {
        let flags = tables
            .addresses
            .get(&slice.address)?
            .unwrap_or_default()
            .flags;
        let entry = SliceEntry {
            pool: pools.get(&slice.pool).cloned().unwrap_or_default(),
            block_size: slice.block_size,
            own: flags & ADDRESS_OWN != 0,
            mappings: slice.mappings,
        };
        let known = SliceState {
            index,
            first_block: slice.first_block,
            entry,
        };
        state.slices.insert(slice.address.into(), known);
    }
    Ok(())
}

fn read_clients(tables: &Tables, state: &mut State, pools: &BTreeMap<u32, String>) -> Result<()> {
    let mut sources: BTreeMap<u32, BTreeSet<Ipv4Net>> = BTreeMap::new();
    for (key, index) in tables.sources.entries()? {
        sources.entry(index).or_default().extend(prefix_of(&key));
    }
    let addresses: BTreeMap<u32, Ipv4Addr> = state
        .slices
        .iter()
        .map(|(address, slice)| (slice.index, *address))
        .collect();
    for (index, text) in tables.names.entries()? {
        let Some(client) = tables.clients.get(index) else {
            continue;
        };
        let pages = client.pages.get();
        let held = (0..pages.count()).filter_map(|number| tables.pages.get(pages.first() + number));
        let entry = ClientEntry {
            addresses: sources.remove(&index).unwrap_or_default(),
            ifindex: client.ifindex.get(),
            pool: pools.get(&client.pool.get()).cloned().unwrap_or_default(),
            egress: addresses
                .get(&client.slice.get())
                .copied()
                .unwrap_or(Ipv4Addr::UNSPECIFIED),
            delivery: client.delivery.get(),
            blocks: held.map(|page| page.allowed.get().count_ones()).sum(),
            draining: client.flags.get() & CLIENT_DRAINING != 0,
            cut_over: client.flags.get() & CLIENT_CUT_OVER != 0,
        };
        let slice = client.slice.get();
        let known = ClientState {
            index: index as u16,
            slice: (slice != NONE).then_some(slice),
            first_page: pages.first(),
            entry,
        };
        state.clients.insert(name_of(&text), known);
    }
    Ok(())
}
