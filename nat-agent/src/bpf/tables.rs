//! All maps, opened from their pins: for the agent, and for commands while the
//! agent is down.

use anyhow::{Context, Result};
use nat_common::{
    abi::{
        Address, Block, Client, Device, Ipv4, Mapping, MappingKey, Name, Page, Pool, Report,
        Settings, Slice,
    },
    reason::Reason,
};

use super::{flows::Flows, map::Map, pins::Pins, shared::Shared, sys};

/// Key of an IPv4 prefix: its length, native, and its address.
pub type PrefixKey = [u8; 8];
/// Key of an excluded destination: the length over both, the pool's number, the address.
pub type ExcludedKey = [u8; 12];

/// The maps.
#[derive(Debug)]
pub struct Tables {
    /// What clients send, by flow.
    pub forward: Flows,
    /// What answers them, by flow.
    pub reverse: Flows,
    /// External endpoint of each internal one.
    pub mappings: Map<MappingKey, Mapping>,
    /// Client number by source prefix.
    pub sources: Map<PrefixKey, u32>,
    /// Clients by number.
    pub clients: Shared<Client>,
    /// Destinations that a pool leaves alone.
    pub excludes: Map<ExcludedKey, u32>,
    /// Egress addresses.
    pub addresses: Map<Ipv4, Address>,
    /// Slices by number.
    pub slices: Map<u32, Slice>,
    /// Blocks of all slices.
    pub blocks: Shared<Block>,
    /// Pages of all clients.
    pub pages: Shared<Page>,
    /// Queues of free blocks.
    pub free_blocks: Map<u32, u32>,
    /// Devices that programs are attached to.
    pub devices: Map<u32, Device>,
    /// What changes while programs run.
    pub settings: Map<u32, Settings>,
    /// Clients' names.
    pub names: Map<u32, Name>,
    /// Pools' settings.
    pub pools: Map<u32, Pool>,
    /// The agent's report.
    pub report: Map<u32, Report>,
    drops: Map<u32, u64>,
    cpus: usize,
}

impl Tables {
    /// Opens all maps.
    ///
    /// # Errors
    /// One is missing or has another layout.
    pub fn open(pins: &Pins) -> Result<Self> {
        let settings: Map<u32, Settings> = Map::open(&pins.map("SETTINGS"))?;
        let seed = settings.get(&0)?.unwrap_or_default().seed;
        Ok(Self {
            forward: Flows::open(&pins.map("FORWARD"), seed)?,
            reverse: Flows::open(&pins.map("REVERSE"), seed)?,
            mappings: Map::open(&pins.map("MAPPINGS"))?,
            sources: Map::open(&pins.map("SOURCES"))?,
            clients: Shared::open(&pins.map("CLIENTS"))?,
            excludes: Map::open(&pins.map("EXCLUDES"))?,
            addresses: Map::open(&pins.map("ADDRESSES"))?,
            slices: Map::open(&pins.map("SLICES"))?,
            blocks: Shared::open(&pins.map("BLOCKS"))?,
            pages: Shared::open(&pins.map("PAGES"))?,
            free_blocks: Map::open(&pins.map("FREE_BLOCKS"))?,
            devices: Map::open(&pins.map("DEVICES"))?,
            settings,
            names: Map::open(&pins.map("NAMES"))?,
            pools: Map::open(&pins.map("POOLS"))?,
            report: Map::open(&pins.map("REPORT"))?,
            drops: Map::open(&pins.map("DROPS"))?,
            cpus: aya::util::nr_cpus()
                .map_err(|(_, error)| error)
                .context("count CPUs")?,
        })
    }

    /// Packets dropped for a reason, on all CPUs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn drops(&self, reason: Reason) -> Result<u64> {
        let counters = sys::look_up_per_cpu(self.drops.fd(), reason as u32, self.cpus)?;
        Ok(counters.iter().sum())
    }

    /// Slices in use, by number.
    ///
    /// # Errors
    /// The kernel's.
    pub fn used_slices(&self) -> Result<Vec<(u32, Slice)>> {
        Ok(self
            .slices
            .entries()?
            .into_iter()
            .filter(|(_, slice)| slice.size > 0)
            .collect())
    }

    /// Capacity of a map.
    ///
    /// # Errors
    /// The kernel's.
    pub fn capacity<K: sys::Plain, V: sys::Plain>(map: &Map<K, V>) -> Result<u32> {
        Ok(sys::map_info(map.fd())?.max_entries)
    }
}
