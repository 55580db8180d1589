//! Reads the status from the maps: one pass over sessions, mappings and blocks.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context, Result};
use nat_common::{
    abi::{self, ADDRESS_OWN, CLIENT_DRAINING, Ipv4, NONE, PROTOCOLS, Slice},
    reason::Reason,
};

use super::{
    devices, directory,
    directory::Directory,
    health,
    model::{
        Address, Arp, Client, ClientPorts, Device, Dropped, Ports, Protocols, SCHEMA, Status, Table,
    },
    tally::Tally,
};
use crate::{
    bpf::{pins::Pins, tables::Tables},
    keys, nft,
    report::{Report, unix_now},
    usage::{Counts, Usage},
};

/// The status.
///
/// # Errors
/// The kernel's.
pub fn status(pins: &Pins, tables: &Tables) -> Result<Status> {
    let running = pins.agent_runs();
    let (report, unreadable) = match Report::read(&tables.report) {
        Ok(report) => (report, None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    let parts = Parts::read(tables, report.as_ref())?;
    let (agent, time) = (health::agent(running, report.as_ref()), unix_now());
    let health = health::judge(&health::Evidence {
        time,
        agent: &agent,
        report: unreadable.as_deref().map_or(Ok(report.as_ref()), Err),
        addresses: &parts.addresses,
        clients: &parts.clients,
        tables: &parts.fill,
    });
    Ok(Status {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        bpffs: pins.directory().display().to_string(),
        time,
        health,
        agent,
        devices: parts.devices,
        addresses: parts.addresses,
        clients: parts.clients,
        cluster_ranges: report
            .as_ref()
            .map_or_else(Vec::new, |report| report.cluster_ranges.clone()),
        kubernetes: report.and_then(|report| report.kubernetes),
        drops: parts.drops,
        tables: parts.fill,
    })
}

/// What the maps themselves show.
struct Parts {
    devices: Vec<Device>,
    addresses: Vec<Address>,
    clients: Vec<Client>,
    drops: Vec<Dropped>,
    fill: Vec<Table>,
}

impl Parts {
    fn read(tables: &Tables, report: Option<&Report>) -> Result<Self> {
        let directory = Directory::read(tables).context("read the clients' names")?;
        let slices = tables.used_slices()?;
        let counted = Counted::read(tables, &slices).context("count sessions and ports")?;
        let table = tables.devices.entries().context("read DEVICES")?;
        let devices = devices::join(report.map_or(&[], |report| &report.devices), &table);
        let clients = Clients {
            tables,
            directory: &directory,
            counted: &counted,
            devices: &devices,
        }
        .all()?;
        Ok(Self {
            addresses: addresses(tables, &slices, &counted)?,
            fill: fill(tables, &slices, &counted)?,
            drops: drops(tables)?,
            devices,
            clients,
        })
    }
}

/// What one pass over the large maps counts.
struct Counted {
    tally: Tally,
    usage: Usage,
    sessions: u64,
    replies: u64,
    mappings: u64,
    blocks_held: u64,
    blocks: u64,
}

impl Counted {
    fn read(tables: &Tables, slices: &[(u32, Slice)]) -> Result<Self> {
        let (mut tally, mut usage) = (Tally::default(), Usage::default());
        let (mut sessions, mut replies, mut mappings) = (0, 0, 0);
        tables.forward.for_each(|key, half| {
            sessions += 1;
            tally.forward(half);
            usage.mark_session(key.protocol, half);
        });
        tables.reverse.for_each(|_, half| {
            replies += 1;
            tally.reverse(half);
        });
        tables.mappings.for_each(|key, mapping| {
            mappings += 1;
            tally.mapping(key.protocol, mapping);
            usage.mark(
                mapping.address,
                abi::protocol_index(key.protocol),
                mapping.port,
            );
        })?;
        let mut counted = Self {
            tally,
            usage,
            sessions,
            replies,
            mappings,
            blocks_held: 0,
            blocks: 0,
        };
        slices
            .iter()
            .for_each(|(_, slice)| counted.count_blocks(tables, slice));
        Ok(counted)
    }

    fn count_blocks(&mut self, tables: &Tables, slice: &Slice) {
        for place in 0..PROTOCOLS {
            let first = nat_common::ports::first_block(slice, place);
            for block in (first..first + slice.blocks).filter_map(|index| tables.blocks.get(index))
            {
                let owner = block.owner.get();
                self.blocks += 1;
                self.blocks_held += u64::from(owner != NONE);
                self.tally
                    .block(owner, place as usize, block.usable.get().count_ones());
            }
        }
    }
}

fn addresses(tables: &Tables, slices: &[(u32, Slice)], counted: &Counted) -> Result<Vec<Address>> {
    let mut users: HashMap<u32, u32> = HashMap::new();
    for (_, client) in directory::active(tables) {
        *users.entry(client.slice.get()).or_default() += 1;
    }
    let mut addresses = Vec::new();
    for (number, slice) in slices {
        let flags = tables
            .addresses
            .get(&slice.address)
            .context("read ADDRESSES")?
            .map(|address| address.flags);
        let pool = tables.pools.get(&slice.pool).context("read POOLS")?;
        let own = flags.is_some_and(|flags| flags & ADDRESS_OWN != 0);
        let ports = |place| ports(counted.usage.counts(tables, slice, place));
        addresses.push(Address {
            address: address(slice.address),
            pool: pool.map(|pool| directory::text(&pool.name)),
            own,
            arp: match flags {
                Some(_) if own => Arp::Kernel,
                Some(_) => Arp::Natctl,
                None => Arp::Nobody,
            },
            clients: users.get(number).copied().unwrap_or(0),
            ports: Protocols::new([ports(0), ports(1), ports(2)]),
        });
    }
    addresses.sort_by_key(|address| address.address);
    Ok(addresses)
}

fn address(bytes: Ipv4) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(bytes))
}

fn ports(counts: Counts) -> Ports {
    Ports {
        used: counts.used,
        free: counts.free,
        resting: counts.resting,
    }
}

/// What clients are made from.
struct Clients<'a> {
    tables: &'a Tables,
    directory: &'a Directory,
    counted: &'a Counted,
    devices: &'a [Device],
}

impl Clients<'_> {
    fn all(&self) -> Result<Vec<Client>> {
        let mut sources = sources(self.tables)?;
        let mut clients = Vec::new();
        for (number, client) in directory::active(self.tables) {
            clients.push(self.one(number, client, sources.remove(&number).unwrap_or_default())?);
        }
        clients.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(clients)
    }

    fn one(&self, number: u32, client: &abi::Client, addresses: Vec<String>) -> Result<Client> {
        let slice = match client.slice.get() {
            NONE => None,
            number => self.tables.slices.get(&number).context("read SLICES")?,
        };
        let slice = slice.filter(|slice| slice.size > 0);
        let sums = self.counted.tally.of(number);
        let (mut out, mut r#in) = (sums.out, sums.r#in);
        out.add(client.packets_out.get(), client.bytes_out.get());
        r#in.add(client.packets_in.get(), client.bytes_in.get());
        let ports = |place: u32| ClientPorts {
            used: sums.used[place as usize],
            held: sums.held[place as usize],
            most: slice.map_or(0, |slice| self.allowed(client, place) * slice.block_size),
        };
        let draining = client.flags.get() & CLIENT_DRAINING != 0;
        let ifindex = client.ifindex.get();
        let device = self.devices.iter().find(|device| device.ifindex == ifindex);
        Ok(Client {
            name: self.directory.client(number).unwrap_or_default().to_owned(),
            addresses,
            device: device.and_then(|device| device.name.clone()),
            ifindex,
            pool: self
                .directory
                .pool_of(number)
                .map(|pool| directory::text(&pool.name)),
            egress: slice.map(|slice| address(slice.address)),
            blocked: slice.is_none() && !draining,
            draining,
            flows: sums.flows,
            ports: Protocols::new([ports(0), ports(1), ports(2)]),
            out,
            r#in,
        })
    }

    /// Blocks of a protocol that the client may hold.
    fn allowed(&self, client: &abi::Client, place: u32) -> u32 {
        let run = client.pages.get();
        let first = run.first() + place * run.count();
        let pages = (first..first + run.count()).filter_map(|index| self.tables.pages.get(index));
        pages.map(|page| page.allowed.get().count_ones()).sum()
    }
}

/// The clients' own addresses and networks, by client, in their order.
fn sources(tables: &Tables) -> Result<HashMap<u32, Vec<String>>> {
    let entries = tables
        .sources
        .entries()
        .context("read SOURCES")?
        .into_iter();
    let mut networks: Vec<_> = entries
        .filter_map(|(key, client)| Some((keys::prefix_of(&key)?, client)))
        .collect();
    networks.sort_unstable();
    let mut sources: HashMap<u32, Vec<String>> = HashMap::new();
    for (network, client) in networks {
        let text = if network.prefix_len() == 32 {
            network.addr().to_string()
        } else {
            network.to_string()
        };
        sources.entry(client).or_default().push(text);
    }
    Ok(sources)
}

/// What the guard has dropped, which no map counts.
fn held_back() -> Option<Dropped> {
    nft::held_back().map(|count| Dropped {
        reason: "guard",
        count,
        sentence: "A pod sent before the agent knew it, to a destination that some pool translates.",
    })
}

fn drops(tables: &Tables) -> Result<Vec<Dropped>> {
    let dropped = |reason: &Reason| {
        let count = tables.drops(*reason).context("read DROPS")?;
        Ok(Dropped {
            reason: reason.name(),
            count,
            sentence: reason.sentence(),
        })
    };
    let counted: Result<Vec<Dropped>> = Reason::ALL.iter().map(dropped).collect();
    let mut drops = counted?;
    drops.extend(held_back());
    Ok(drops)
}

fn fill(tables: &Tables, slices: &[(u32, Slice)], counted: &Counted) -> Result<Vec<Table>> {
    let clients: Vec<u32> = directory::active(tables)
        .map(|(_, client)| client.pages.get().count())
        .collect();
    let pages: u32 = clients.iter().map(|pages| pages * PROTOCOLS).sum();
    let entry = |name, used, capacity: u32| Table {
        name,
        used,
        capacity: u64::from(capacity),
    };
    Ok(vec![
        entry("sessions", counted.sessions, tables.forward.capacity()),
        entry("replies", counted.replies, tables.reverse.capacity()),
        entry(
            "mappings",
            counted.mappings,
            Tables::capacity(&tables.mappings)?,
        ),
        Table {
            name: "blocks",
            used: counted.blocks_held,
            capacity: counted.blocks,
        },
        entry("clients", clients.len() as u64, tables.clients.len()),
        entry("pages", u64::from(pages), tables.pages.len()),
        entry(
            "addresses",
            slices.len() as u64,
            Tables::capacity(&tables.slices)?,
        ),
        entry(
            "sources",
            tables.sources.entries()?.len() as u64,
            Tables::capacity(&tables.sources)?,
        ),
        entry(
            "exclusions",
            tables.excludes.entries()?.len() as u64,
            Tables::capacity(&tables.excludes)?,
        ),
    ])
}
