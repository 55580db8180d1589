//! The way from what the tables hold to what they should: a list of operations,
//! in an order in which nothing leaks and nothing is cut off. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use nat_common::abi::{Device, PROTOCOLS};

use crate::{
    bpf::layout::FIRST_PORT,
    desired::{ClientEntry, Desired, PoolEntry, SliceEntry},
    snapshot::Limits,
};

/// A slice in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceState {
    /// Its number.
    pub index: u32,
    /// Index of its first block.
    pub first_block: u32,
    /// What it was made for.
    pub entry: SliceEntry,
}

impl SliceState {
    /// Blocks for each protocol.
    pub const fn blocks(&self) -> u32 {
        (65_536 - FIRST_PORT).div_ceil(self.entry.block_size)
    }
}

/// A client in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientState {
    /// Its number.
    pub index: u16,
    /// Number of the slice its ports come from; `None` while its address has none.
    pub slice: Option<u32>,
    /// Index of its first page.
    pub first_page: u32,
    /// What it was made for.
    pub entry: ClientEntry,
}

/// What the tables hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Pools by name, with their numbers.
    pub pools: BTreeMap<String, (u32, PoolEntry)>,
    /// Slices by egress address.
    pub slices: BTreeMap<Ipv4Addr, SliceState>,
    /// Clients by name.
    pub clients: BTreeMap<String, ClientState>,
    /// Devices by number.
    pub devices: BTreeMap<u32, Device>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes a pool's settings and destinations.
    SetPool(String, u32, PoolEntry),
    /// Forgets a pool.
    RemovePool(String, u32),
    /// Makes an egress address usable.
    AddSlice(Ipv4Addr, SliceState),
    /// The address became the node's own, or ceased to be, or has another pool or rate.
    SetSlice(Ipv4Addr, SliceState),
    /// Gives an egress address up; what sessions use it end.
    RemoveSlice(Ipv4Addr, SliceState),
    /// Writes a device.
    SetDevice(u32, Device),
    /// Forgets a device.
    RemoveDevice(u32),
    /// Takes sources from a client and ends their sessions.
    RemoveSources(String, u16, BTreeSet<Ipv4Net>),
    /// Writes a client; its sources last.
    SetClient(String, ClientState),
    /// Forgets a client whose sources are gone.
    RemoveClient(String, ClientState),
}

impl State {
    /// Each client's egress address.
    pub fn egress(&self) -> BTreeMap<String, Ipv4Addr> {
        self.clients
            .iter()
            .map(|(name, client)| (name.clone(), client.entry.egress))
            .collect()
    }

    /// Records that an operation was done.
    pub fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::SetPool(name, index, entry) => {
                self.pools.insert(name.clone(), (*index, entry.clone()));
            }
            Operation::RemovePool(name, _) => drop(self.pools.remove(name)),
            Operation::AddSlice(address, slice) | Operation::SetSlice(address, slice) => {
                self.slices.insert(*address, slice.clone());
            }
            Operation::RemoveSlice(address, _) => drop(self.slices.remove(address)),
            Operation::SetDevice(ifindex, device) => drop(self.devices.insert(*ifindex, *device)),
            Operation::RemoveDevice(ifindex) => drop(self.devices.remove(ifindex)),
            Operation::RemoveSources(name, _, sources) => {
                if let Some(client) = self.clients.get_mut(name) {
                    client.entry.addresses.retain(|net| !sources.contains(net));
                }
            }
            Operation::SetClient(name, client) => {
                self.clients.insert(name.clone(), client.clone());
            }
            Operation::RemoveClient(name, _) => drop(self.clients.remove(name)),
        }
    }
}

/// The operations, and what could not be done and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do, in order.
    pub operations: Vec<Operation>,
    /// What has to wait, in plain words.
    pub problems: Vec<String>,
}

/// Plans the way from `state` to `desired`. Egress addresses in `busy` still
/// carry sessions and are kept until these have ended, but for the lost ones.
pub fn diff(state: &State, desired: &Desired, busy: &BTreeSet<Ipv4Addr>, limits: &Limits) -> Plan {
    let mut planner = Planner {
        state: state.clone(),
        limits: *limits,
        busy,
        plan: Plan::default(),
    };
    planner.round(desired);
    if !planner.plan.problems.is_empty() {
        // What was in the way may have gone at the end of the first round.
        planner.plan.problems.clear();
        planner.round(desired);
    }
    planner.plan
}

struct Planner<'a> {
    state: State,
    limits: Limits,
    busy: &'a BTreeSet<Ipv4Addr>,
    plan: Plan,
}

impl Planner<'_> {
    /// What new clients need comes before them, what old ones used goes after them.
    fn round(&mut self, desired: &Desired) {
        self.set_pools(desired);
        self.remake_slices(desired);
        self.add_slices(desired);
        self.set_devices(desired);
        self.remove_sources(desired);
        self.remove_clients(desired);
        self.set_clients(desired);
        self.remove_rest(desired);
    }

    fn step(&mut self, operation: Operation) {
        self.state.apply(&operation);
        self.plan.operations.push(operation);
    }

    fn problem(&mut self, problem: String) {
        self.plan.problems.push(problem);
    }

    fn set_pools(&mut self, desired: &Desired) {
        for (name, entry) in &desired.pools {
            let known = self.state.pools.get(name);
            if known.is_some_and(|(_, known)| known == entry) {
                continue;
            }
            let index = known.map_or_else(
                || free(self.state.pools.values().map(|(index, _)| *index)),
                |(index, _)| *index,
            );
            self.step(Operation::SetPool(name.clone(), index, entry.clone()));
        }
    }

    /// Slices whose blocks should have another size: made again when idle.
    fn remake_slices(&mut self, desired: &Desired) {
        for (address, slice) in self.state.slices.clone() {
            let Some(entry) = desired.slices.get(&address) else {
                continue;
            };
            if entry.block_size == slice.entry.block_size {
                if *entry != slice.entry {
                    let slice = SliceState {
                        entry: entry.clone(),
                        ..slice
                    };
                    self.step(Operation::SetSlice(address, slice));
                }
            } else if self.busy.contains(&address) {
                self.problem(format!(
                    "egress address {address} keeps blocks of {} ports until its sessions have ended",
                    slice.entry.block_size
                ));
            } else {
                self.step(Operation::RemoveSlice(address, slice));
            }
        }
    }

    fn add_slices(&mut self, desired: &Desired) {
        for (address, entry) in &desired.slices {
            if self.state.slices.contains_key(address) {
                continue;
            }
            let index = free(self.state.slices.values().map(|slice| slice.index));
            let mut slice = SliceState {
                index,
                first_block: 0,
                entry: entry.clone(),
            };
            let used = self.state.slices.values();
            let used = used
                .map(|slice| (slice.first_block, slice.blocks() * PROTOCOLS))
                .collect();
            let room = crate::bpf::layout::blocks(&self.limits);
            match gap(used, slice.blocks() * PROTOCOLS, room) {
                Some(first) if index < self.limits.addresses => {
                    slice.first_block = first;
                    self.step(Operation::AddSlice(*address, slice));
                }
                _ => self.problem(format!(
                    "there is no room for egress address {address}; raise limits.addresses or use \
                     larger blocks"
                )),
            }
        }
    }

    fn set_devices(&mut self, desired: &Desired) {
        for (ifindex, device) in &desired.devices {
            if self.state.devices.get(ifindex) != Some(device) {
                self.step(Operation::SetDevice(*ifindex, *device));
            }
        }
    }

    fn remove_sources(&mut self, desired: &Desired) {
        for (name, client) in self.state.clients.clone() {
            let wanted = desired.clients.get(&name).map(|entry| &entry.addresses);
            let kept = |net: &&Ipv4Net| !wanted.is_some_and(|wanted| wanted.contains(net));
            let sources: BTreeSet<Ipv4Net> = client
                .entry
                .addresses
                .iter()
                .filter(kept)
                .copied()
                .collect();
            if !sources.is_empty() {
                self.step(Operation::RemoveSources(name, client.index, sources));
            }
        }
    }

    fn remove_clients(&mut self, desired: &Desired) {
        for (name, client) in self.state.clients.clone() {
            if !desired.clients.contains_key(&name) {
                self.step(Operation::RemoveClient(name, client));
            }
        }
    }

    fn set_clients(&mut self, desired: &Desired) {
        for (name, entry) in &desired.clients {
            let known = self.state.clients.get(name);
            let slice = self
                .state
                .slices
                .get(&entry.egress)
                .map(|slice| slice.index);
            if known.is_some_and(|known| known.entry == *entry && known.slice == slice) {
                continue;
            }
            let index = match known {
                Some(client) => u32::from(client.index),
                None => free(
                    self.state
                        .clients
                        .values()
                        .map(|client| u32::from(client.index)),
                ),
            };
            match self.pages(known, entry) {
                Some(first_page) if index < self.limits.clients => {
                    let index = index as u16;
                    let client = ClientState {
                        index,
                        slice,
                        first_page,
                        entry: entry.clone(),
                    };
                    self.step(Operation::SetClient(name.clone(), client));
                }
                _ => self.problem(format!(
                    "there is no room for client {name}; raise limits.clients or lower \
                     portsPerClient"
                )),
            }
        }
    }

    /// Where the client's pages begin: where they are while they are enough.
    fn pages(&self, known: Option<&ClientState>, entry: &ClientEntry) -> Option<u32> {
        if let Some(known) = known
            && known.entry.pages() == entry.pages()
        {
            return Some(known.first_page);
        }
        // The old pages are left only after the new ones are filled: both are needed.
        let used = self.state.clients.values();
        let used = used.map(|client| (client.first_page, client.entry.pages() * PROTOCOLS));
        gap(
            used.collect(),
            entry.pages() * PROTOCOLS,
            crate::bpf::layout::pages(&self.limits),
        )
    }

    fn remove_rest(&mut self, desired: &Desired) {
        for (address, slice) in self.state.slices.clone() {
            if desired.slices.contains_key(&address) {
                continue;
            }
            if self.busy.contains(&address) && !desired.lost.contains(&address) {
                self.problem(format!(
                    "egress address {address} is no longer configured and stays until its \
                     sessions have ended"
                ));
            } else {
                self.step(Operation::RemoveSlice(address, slice));
            }
        }
        for (name, (index, _)) in self.state.pools.clone() {
            if !desired.pools.contains_key(&name) {
                self.step(Operation::RemovePool(name, index));
            }
        }
        for ifindex in self.state.devices.clone().into_keys() {
            if !desired.devices.contains_key(&ifindex) {
                self.step(Operation::RemoveDevice(ifindex));
            }
        }
    }
}

/// The lowest number that is not used.
fn free(used: impl Iterator<Item = u32>) -> u32 {
    let used: BTreeSet<u32> = used.collect();
    (0..)
        .find(|number| !used.contains(number))
        .unwrap_or(u32::MAX)
}

/// The first gap of `size` between runs (first, length) below `end`.
fn gap(mut used: Vec<(u32, u32)>, size: u32, end: u32) -> Option<u32> {
    used.sort_unstable();
    let mut first = 0;
    for (start, length) in used {
        if start >= first + size {
            break;
        }
        first = first.max(start + length);
    }
    (first + size <= end).then_some(first)
}
