//! The rules between fields, and the snapshot.

use std::collections::HashMap;
use std::net::IpAddr;

use super::address::Range;
use super::model::{self, Egress, File};
use super::overlap::{Claim, Kind, overlaps};
use super::problem::{At, Mark, Problems};
use crate::snapshot::{Client, Device, Pool, Role, Settings, Snapshot, bounds, defaults};

/// Checks the rules and makes the snapshot, unless there is any problem, found here or before.
pub(super) fn snapshot(file: File, problems: &mut Problems) -> Option<Snapshot> {
    names(&file, problems);
    devices(&file, problems);
    file.pools.iter().for_each(|pool| ports(pool, problems));
    capacity(&file, problems);
    addresses(&file, problems);
    egress(&file, problems);
    // Not before everything is known to be right: the pools' addresses could be billions.
    if problems.is_empty() {
        build(file)
    } else {
        None
    }
}

/// Checks what a node's file says where something else names pools and clients.
pub(super) fn settings(file: File, problems: &mut Problems) -> Option<Settings> {
    names(&file, problems);
    devices(&file, problems);
    Some(Settings {
        devices: file
            .devices
            .into_iter()
            .map(build_device)
            .collect::<Option<_>>()?,
        cluster_ranges: file.cluster_ranges.iter().map(|net| net.value).collect(),
        limits: file.limits,
        mark_bit: file.mark_bit,
        decided_bit: file.decided_bit,
        sweep_interval: file.sweep_interval,
        guard: file.guard,
        pod_ranges: file.pod_ranges.iter().map(|net| net.value).collect(),
    })
}

/// Checks one pool on its own. Its addresses stay ranges: they are not bounded by a node's tables.
pub(super) fn pool(pool: model::Pool, problems: &mut Problems) -> Option<(Pool, Vec<Range>)> {
    ports(&pool, problems);
    disjoint(pool.addresses.iter().map(egress_claim), problems);
    let ranges = pool.addresses.iter().map(|range| range.value).collect();
    let pool = build_pool(model::Pool {
        addresses: Vec::new(),
        ..pool
    })?;
    Some((pool, ranges))
}

fn names(file: &File, problems: &mut Problems) {
    unique(
        file.devices.iter().map(|device| &device.name),
        "list a device once",
        problems,
    );
    unique(
        file.pools.iter().map(|pool| &pool.name),
        "give each pool its own name",
        problems,
    );
    unique(
        file.clients.iter().map(|client| &client.name),
        "give each client its own name",
        problems,
    );
}

fn unique<'f>(
    names: impl Iterator<Item = &'f Option<At<String>>>,
    advice: &str,
    problems: &mut Problems,
) {
    let mut seen: HashMap<&str, &Mark> = HashMap::new();
    for name in names.flatten() {
        match seen.get(name.value.as_str()) {
            Some(first) => {
                let message = format!(
                    "`{}` is already the name {}; {advice}",
                    name.value,
                    at(first)
                );
                problems.add(name.mark.clone(), message);
            }
            None => drop(seen.insert(&name.value, &name.mark)),
        }
    }
}

fn devices(file: &File, problems: &mut Problems) {
    let outside = file
        .devices
        .iter()
        .any(|device| device.role == Role::Outside);
    if !outside && !file.devices.is_empty() {
        let message = "has no outside device, so nothing could be translated; \
                       give one of them `role: outside`";
        problems.add(file.devices_mark.clone(), message);
    }
}

/// Blocks are given whole, so the most ports are whole blocks, or less than one.
fn ports(pool: &model::Pool, problems: &mut Problems) {
    let ports = pool
        .ports_per_client
        .as_ref()
        .map_or(defaults::PORTS_PER_CLIENT, |ports| ports.value);
    let size = u32::from(
        pool.block_size
            .as_ref()
            .map_or(defaults::BLOCK_SIZE, |size| size.value),
    );
    let most = bounds::BLOCKS_PER_CLIENT.saturating_mul(size);
    let message = if ports > size && !ports.is_multiple_of(size) {
        let (below, above) = (ports - ports % size, ports - ports % size + size);
        format!(
            "{ports} ports are not whole blocks of {size} (blockSize); write {below} or {above}"
        )
    } else if ports > most {
        format!(
            "{ports} ports in blocks of {size} are more than {} blocks; \
             write at most {most}, or larger blocks",
            bounds::BLOCKS_PER_CLIENT
        )
    } else {
        return;
    };
    let given = pool.ports_per_client.as_ref().map(|ports| &ports.mark);
    let mark = given
        .or(pool.block_size.as_ref().map(|size| &size.mark))
        .unwrap_or(&pool.mark);
    let mark = Mark {
        place: mark.place,
        field: format!("{}.portsPerClient", pool.mark.field),
    };
    problems.add(mark, message);
}

/// What is listed must fit the tables.
fn capacity(file: &File, problems: &mut Problems) {
    let (most, mut wanted) = (u128::from(file.limits.addresses), 0u128);
    for pool in &file.pools {
        let before = wanted;
        wanted = pool
            .addresses
            .iter()
            .fold(wanted, |sum, range| sum.saturating_add(range.value.count()));
        // Only the pool that goes over: those after it would say the same again.
        if before <= most && wanted > most {
            problems.add(
                pool.addresses_mark.clone(),
                too_many_addresses(wanted - before, before, most),
            );
        }
    }
    let most = file.limits.clients as usize;
    if let Some(over) = file.clients.get(most) {
        let wanted = file.clients.len();
        let message = format!(
            "{wanted} clients are more than limits.clients ({most}); \
             raise it to {wanted} or more, or remove clients"
        );
        problems.add(over.mark.clone(), message);
    }
}

fn too_many_addresses(here: u128, before: u128, most: u128) -> String {
    let wanted = here + before;
    let others = if before == 0 {
        String::new()
    } else {
        format!(" after the {before} before them")
    };
    let raise = match wanted <= u128::from(bounds::ADDRESSES) {
        true => format!("raise it to {wanted} or more, or list fewer"),
        false => format!("list fewer (it can be raised to {})", bounds::ADDRESSES),
    };
    format!("{here} addresses{others} are more than limits.addresses ({most}); {raise}")
}

fn addresses(file: &File, problems: &mut Problems) {
    let egress = file.pools.iter().flat_map(|pool| &pool.addresses);
    let egress = egress.map(egress_claim);
    let clients = file.clients.iter().flat_map(|client| &client.addresses);
    let clients = clients.map(|at| Claim {
        kind: Kind::Client,
        range: Range::from(at.value),
        mark: &at.mark,
    });
    disjoint(egress.chain(clients), problems);
}

fn egress_claim(at: &At<Range>) -> Claim<'_> {
    Claim {
        kind: Kind::Egress,
        range: at.value,
        mark: &at.mark,
    }
}

fn disjoint<'f>(claims: impl Iterator<Item = Claim<'f>>, problems: &mut Problems) {
    let mut claims: Vec<_> = claims.collect();
    for (a, b) in overlaps(&mut claims) {
        let (mark, message) = overlap(a, b);
        problems.add(mark, message);
    }
}

/// Between two of a kind the later in the file is to blame; between two kinds the client, since its
/// range is easier to change.
fn overlap(a: &Claim<'_>, b: &Claim<'_>) -> (Mark, String) {
    let later = if a.kind == b.kind {
        b.mark.place > a.mark.place
    } else {
        b.kind == Kind::Client
    };
    let (other, blamed) = if later { (a, b) } else { (b, a) };
    let (range, theirs, place) = (&blamed.range, &other.range, at(other.mark));
    let message = match (blamed.kind, other.kind) {
        (Kind::Egress, _) => format!(
            "{range} overlaps {theirs} {place}; an egress address belongs to one pool, list it once"
        ),
        (_, Kind::Client) => format!(
            "{range} overlaps {theirs} {place}; an address belongs to one client, list it once"
        ),
        (_, Kind::Egress) => format!(
            "{range} overlaps the egress address {theirs} {place}; \
             inside and outside must differ (RFC 4787 REQ-7), change one of them"
        ),
    };
    (blamed.mark.clone(), message)
}

fn egress(file: &File, problems: &mut Problems) {
    for client in &file.clients {
        let Some(egress) = &client.egress else {
            continue;
        };
        if pool_of(file, &egress.value).is_some() {
            continue;
        }
        let message = match &egress.value {
            // It may be in what could not be read.
            Egress::Address(_) if file.pools.iter().any(|pool| !pool.complete) => continue,
            Egress::Address(address) => {
                format!("{address} belongs to no pool; add it to the addresses of one")
            }
            Egress::Pool(_) if file.pools.iter().any(|pool| pool.name.is_none()) => continue,
            Egress::Pool(name) => format!("there is no pool `{name}`; write {}", known_pools(file)),
        };
        problems.add(egress.mark.clone(), message);
    }
}

fn known_pools(file: &File) -> String {
    const SHOWN: usize = 8;
    let mut names: Vec<_> = file
        .pools
        .iter()
        .flat_map(|pool| &pool.name)
        .map(|name| name.value.as_str())
        .collect();
    names.dedup();
    match names.len() {
        0 => "the name of a pool, and add it to `pools`".to_owned(),
        count if count > SHOWN => format!("a pool's name ({}, ...)", names[..SHOWN].join(", ")),
        _ => format!(
            "a pool's name ({}), or one address of a pool",
            names.join(", ")
        ),
    }
}

fn pool_of<'f>(file: &'f File, egress: &Egress) -> Option<&'f model::Pool> {
    file.pools.iter().find(|pool| match egress {
        Egress::Pool(name) => pool.name.as_ref().is_some_and(|at| at.value == *name),
        Egress::Address(address) => pool
            .addresses
            .iter()
            .any(|range| range.value.contains(*address)),
    })
}

/// Where something else is, for a message.
fn at(mark: &Mark) -> String {
    format!("of {} (line {})", mark.field, mark.place.line)
}

/// `None` only where a name is missing, which is a problem already.
fn build(file: File) -> Option<Snapshot> {
    let clients = file
        .clients
        .iter()
        .map(|client| build_client(&file, client))
        .collect::<Option<_>>()?;
    Some(Snapshot {
        clients,
        lost: Vec::new(),
        ended: Vec::new(),
        cluster_ranges: file.cluster_ranges.iter().map(|net| net.value).collect(),
        devices: file
            .devices
            .into_iter()
            .map(build_device)
            .collect::<Option<_>>()?,
        pools: file
            .pools
            .into_iter()
            .map(build_pool)
            .collect::<Option<_>>()?,
        limits: file.limits,
        mark_bit: file.mark_bit,
        decided_bit: file.decided_bit,
        sweep_interval: file.sweep_interval,
        guard: None,
    })
}

fn build_device(device: model::Device) -> Option<Device> {
    Some(Device {
        name: device.name?.value,
        role: device.role,
        xdp: device.xdp,
    })
}

fn build_pool(pool: model::Pool) -> Option<Pool> {
    Some(Pool {
        name: pool.name?.value,
        addresses: pool
            .addresses
            .iter()
            .flat_map(|range| range.value.addresses())
            .collect(),
        exclude: pool.exclude.iter().map(|net| net.value).collect(),
        ports_per_client: pool
            .ports_per_client
            .map_or(defaults::PORTS_PER_CLIENT, |ports| ports.value),
        block_size: pool
            .block_size
            .map_or(defaults::BLOCK_SIZE, |size| size.value),
        mappings_per_second: pool.mappings_per_second.map(|mappings| mappings.value),
        rest: pool.rest,
        path: pool.path,
        timers: pool.timers,
    })
}

fn build_client(file: &File, client: &model::Client) -> Option<Client> {
    let egress = &client.egress.as_ref()?.value;
    let pool = pool_of(file, egress)?;
    Some(Client {
        name: client.name.as_ref()?.value.clone(),
        addresses: client.addresses.iter().map(|net| net.value).collect(),
        device: Some(client.device.as_ref()?.value.clone()),
        pool: pool.name.as_ref()?.value.clone(),
        address: address_of(egress),
        draining: false,
        cut_over: false,
    })
}

fn address_of(egress: &Egress) -> Option<IpAddr> {
    match egress {
        Egress::Address(address) => Some(*address),
        Egress::Pool(_) => None,
    }
}
