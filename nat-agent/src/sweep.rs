//! The sweep: sessions that have ended are removed, and their ports come back
//! after they have rested. In the manner of a garbage collector: what sessions
//! and mappings use is marked, everything else that is taken is free in time.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
    thread,
    time::Duration,
};

use anyhow::Result;
use nat_common::{
    abi::{Block, FlowKey, Half, MappingKey, NONE, PROTOCOLS, Pool, Slice},
    ports::{first_block, place_of, port_of},
    session::reverse_key,
};

use crate::{
    bpf::{pins::Pins, shared::GRACE, sys, tables::Tables},
    clock::{Clock, age},
    purge,
    state::{idle, state, timeout},
    usage::{Usage, held},
};

/// Ticks that a mapping without a session is left alone: its session may be
/// about to be inserted.
const NEW: u32 = 3;

/// Seconds that ports of an address rest whose pool is gone (RFC 6888 REQ-8).
const REST: u32 = 120;

/// What a sweep found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Sessions that live.
    pub live: u64,
    /// Sessions that were removed.
    pub ended: u64,
    /// Egress addresses that sessions, mappings or resting ports still use.
    pub busy: BTreeSet<Ipv4Addr>,
    /// Numbers of the clients that have sessions.
    pub talking: BTreeSet<u16>,
}

/// The sweep's memory: since when ports rest.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Tick since which each port has rested, by its slice's key and its protocol; 0: it does not.
    /// (A slice's number may be another slice's by the next sweep; its key is random.)
    resting: HashMap<(u64, u32), Vec<u32>>,
}

impl Sweep {
    /// Sweeps once.
    ///
    /// # Errors
    /// The kernel's; the next sweep goes on where this one stopped.
    pub fn run(&mut self, tables: &Tables, pins: &Pins, clock: &Clock) -> Result<Swept> {
        let pools: HashMap<u32, Pool> = tables.pools.entries()?.into_iter().collect();
        let mut usage = Usage::default();
        let mut swept = sessions(tables, clock, &pools, &mut usage);
        swept.talking = usage.clients().collect();
        mappings(tables, clock, &mut usage)?;
        self.ports(tables, pins, clock, &usage, &pools, &mut swept)?;
        Ok(swept)
    }

    fn ports(
        &mut self,
        tables: &Tables,
        pins: &Pins,
        clock: &Clock,
        usage: &Usage,
        pools: &HashMap<u32, Pool>,
        swept: &mut Swept,
    ) -> Result<()> {
        let homes = homes(tables)?;
        let slices = tables.used_slices()?;
        let keys: BTreeSet<u64> = slices.iter().map(|(_, slice)| slice.key).collect();
        self.resting.retain(|(key, _), _| keys.contains(key));
        for (number, slice) in slices {
            let rest = pools.get(&slice.pool).map_or(REST, |pool| pool.rest);
            let rest = Duration::from_secs(u64::from(rest));
            for place in 0..PROTOCOLS {
                let collector = Collector {
                    tables,
                    clock,
                    usage,
                    homes: &homes,
                    slice: &slice,
                    place,
                    rest,
                };
                let resting = self.resting.entry((slice.key, place)).or_default();
                collector.take_used();
                if collector.collect(resting) {
                    swept.busy.insert(slice.address.into());
                }
                let queue = sys::open_pin(&pins.queue(number * PROTOCOLS + place))?;
                collector.give_back(&queue)?;
            }
        }
        Ok(())
    }
}

/// Removes sessions that have been idle for too long, and marks the others' ports.
fn sessions(
    tables: &Tables,
    clock: &Clock,
    pools: &HashMap<u32, Pool>,
    usage: &mut Usage,
) -> Swept {
    let mut swept = Swept::default();
    let mut suspects: Vec<(FlowKey, Half)> = Vec::new();
    let shortest = shortest_timers(pools);
    tables.forward.for_each(|key, half| {
        if clock.since(half.last_seen) > shortest {
            suspects.push((*key, *half));
        } else {
            swept.live += 1;
            usage.mark_session(key.protocol, half);
        }
    });
    let mut ending = Vec::new();
    for (key, half) in suspects {
        let back_key = reverse_key(&key, half.address, half.port);
        let back = tables.reverse.get(&back_key);
        if ended(tables, clock, pools, &key, &half, back.as_ref()) {
            add_totals(tables, &half, back.as_ref());
            ending.push((key, back_key));
        } else {
            swept.live += 1;
            usage.mark_session(key.protocol, &half);
        }
    }
    purge::remove(tables, &ending);
    purge::free(tables, &purge::removed(tables));
    swept.ended = ending.len() as u64;
    swept
}

/// No session ends earlier than this after its last packet.
fn shortest_timers(pools: &HashMap<u32, Pool>) -> Duration {
    let timers = |pool: &Pool| {
        pool.tcp_transitory
            .min(pool.udp)
            .min(pool.icmp)
            .min(pool.tcp_established)
    };
    Duration::from_secs(pools.values().map(timers).min().unwrap_or(0).into())
}

fn ended(
    tables: &Tables,
    clock: &Clock,
    pools: &HashMap<u32, Pool>,
    key: &FlowKey,
    forward: &Half,
    reverse: Option<&Half>,
) -> bool {
    let pool = tables
        .clients
        .get(u32::from(forward.client))
        .map(|client| client.pool.get());
    let Some(pool) = pool.and_then(|pool| pools.get(&pool)) else {
        return true;
    };
    let state = state(key.protocol, forward, reverse);
    idle(clock, forward, reverse) > timeout(key.protocol, state, pool)
}

/// A session's counters live on in its client's totals.
fn add_totals(tables: &Tables, forward: &Half, reverse: Option<&Half>) {
    let Some(client) = tables.clients.get(u32::from(forward.client)) else {
        return;
    };
    client
        .packets_out
        .set(client.packets_out.get() + u64::from(forward.packets));
    client
        .bytes_out
        .set(client.bytes_out.get() + forward.bytes());
    if let Some(reverse) = reverse {
        client
            .packets_in
            .set(client.packets_in.get() + u64::from(reverse.packets));
        client.bytes_in.set(client.bytes_in.get() + reverse.bytes());
    }
}

/// Removes mappings that no session uses, and marks the others' ports.
fn mappings(tables: &Tables, clock: &Clock, usage: &mut Usage) -> Result<()> {
    let now = clock.now();
    let mut unused: Vec<MappingKey> = Vec::new();
    let mut young = Vec::new();
    tables.mappings.for_each(|key, mapping| {
        let place = nat_common::abi::protocol_index(key.protocol);
        let port = u16::from_be_bytes(mapping.port);
        if usage.uses(mapping.address, place, port) {
            return;
        }
        if age(now, mapping.created) < NEW {
            young.push((mapping.address, place, mapping.port));
        } else {
            unused.push(*key);
        }
    })?;
    for (address, place, port) in young {
        usage.mark(address, place, port);
    }
    Ok(tables.mappings.delete_all(&unused)?)
}

/// Where each held block is: page and slot.
fn homes(tables: &Tables) -> Result<HashMap<u32, (u32, u32)>> {
    let mut homes = HashMap::new();
    for (index, _) in tables.names.entries()? {
        let Some(client) = tables.clients.get(index) else {
            continue;
        };
        let pages = client.pages.get();
        for number in pages.first()..pages.first() + pages.count() * PROTOCOLS {
            let Some(page) = tables.pages.get(number) else {
                continue;
            };
            let held = page.held.load();
            for slot in (0..64).filter(|slot| held & (1 << slot) != 0) {
                homes.insert(page.blocks[slot as usize].get(), (number, slot));
            }
        }
    }
    Ok(homes)
}

/// One slice and protocol.
struct Collector<'a> {
    tables: &'a Tables,
    clock: &'a Clock,
    usage: &'a Usage,
    homes: &'a HashMap<u32, (u32, u32)>,
    slice: &'a Slice,
    place: u32,
    rest: Duration,
}

impl Collector<'_> {
    fn blocks(&self) -> impl Iterator<Item = (u32, &Block)> {
        let first = first_block(self.slice, self.place);
        (0..self.slice.blocks).filter_map(move |number| {
            let block = self.tables.blocks.get(first + number)?;
            Some((number, block))
        })
    }

    /// Takes every port in use, if it should be free: two packets that opened a
    /// mapping and its sessions at once, while a table was full, may leave one so.
    fn take_used(&self) {
        let first = first_block(self.slice, self.place);
        for port in self.usage.ports(self.slice.address, self.place) {
            if let Some((number, bit)) = place_of(self.slice, self.place, port)
                && let Some(block) = self.tables.blocks.get(first + number)
            {
                block.free.fetch_and(!(1 << bit));
            }
        }
    }

    /// Frees the ports that have rested; whether any is still taken.
    fn collect(&self, resting: &mut Vec<u32>) -> bool {
        let mut busy = false;
        for (number, block) in self.blocks().filter(|(_, block)| held(block)) {
            let taken = block.usable.get() & !block.free.load();
            let mut freed = 0;
            for bit in (0..64).filter(|bit| taken & (1 << bit) != 0) {
                if self.has_rested(number, bit, resting) {
                    freed |= 1 << bit;
                }
            }
            busy |= taken != freed;
            if freed != 0 {
                block.free.fetch_or(freed);
                self.open(first_block(self.slice, self.place) + number);
            }
        }
        busy
    }

    fn has_rested(&self, number: u32, bit: u32, resting: &mut Vec<u32>) -> bool {
        if resting.is_empty() {
            // Only slices and protocols that are used take memory.
            resting.resize(self.slice.size as usize, 0);
        }
        let port = port_of(self.slice, self.place, number, bit);
        let Some(since) = resting.get_mut((u32::from(port) - self.slice.base) as usize) else {
            return false;
        };
        if self.usage.uses(self.slice.address, self.place, port) {
            *since = 0;
            return false;
        }
        if *since == 0 {
            *since = self.clock.now().max(1);
            // One sweep at least: a session may have been inserted since the marking.
            return false;
        }
        let rested = self.clock.since(*since) >= self.rest;
        if rested {
            *since = 0;
        }
        rested
    }

    /// Lets the owner take from the block again.
    fn open(&self, block: u32) {
        if let Some((page, slot)) = self.homes.get(&block)
            && let Some(page) = self.tables.pages.get(*page)
        {
            page.open.fetch_or(1 << slot);
        }
    }

    /// Gives blocks that are all free back to the queue's tail.
    ///
    /// Nobody takes from them any more before their owner loses them: all free
    /// bits are taken first, and packets that saw the slot open are waited for.
    fn give_back(&self, queue: &std::os::fd::OwnedFd) -> Result<()> {
        let first = first_block(self.slice, self.place);
        let emptied: Vec<(u32, &Block)> = self
            .blocks()
            .filter(|(_, block)| held(block) && block.free.replace(block.usable.get(), 0))
            .map(|(number, block)| (first + number, block))
            .collect();
        if emptied.is_empty() {
            return Ok(());
        }
        let pages = || {
            emptied.iter().filter_map(|(index, _)| {
                let (page, slot) = self.homes.get(index)?;
                Some((self.tables.pages.get(*page)?, *slot))
            })
        };
        for (page, slot) in pages() {
            page.open.fetch_and(!(1 << slot));
        }
        thread::sleep(GRACE);
        for (page, slot) in pages() {
            page.open.fetch_and(!(1 << slot));
            page.blocks[slot as usize].set(NONE);
            page.held.fetch_and(!(1 << slot));
        }
        for (index, block) in emptied {
            block.owner.set(NONE);
            block.free.fetch_or(block.usable.get());
            sys::update(std::os::fd::AsFd::as_fd(queue), &(), &index, sys::ANY)?;
        }
        Ok(())
    }
}
