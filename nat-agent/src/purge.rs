//! Sessions ended before their time: their client is gone, or has moved.

use std::{collections::BTreeSet, net::Ipv4Addr, thread};

use anyhow::Result;
use ipnet::Ipv4Net;
use nat_common::abi::{Delivery, FlowKey, Half, MappingKey};
use nat_common::session::reverse_key;

use crate::{
    bpf::{shared::GRACE, tables::Tables},
    diff::ClientState,
};

/// Ends a client's sessions from these sources. Their ports rest as after any session.
///
/// # Errors
/// The kernel's.
pub fn sources(tables: &Tables, index: u16, sources: &BTreeSet<Ipv4Net>) -> Result<()> {
    let from = |address: [u8; 4]| {
        sources
            .iter()
            .any(|net| net.contains(&Ipv4Addr::from(address)))
    };
    let mut ending = Vec::new();
    tables.forward.for_each(|key, half| {
        if half.client == index && from(key.source) {
            ending.push((*key, reverse_key(key, half.address, half.port)));
        }
    });
    end(tables, &ending);
    let mut mappings: Vec<MappingKey> = Vec::new();
    tables.mappings.for_each(|key, mapping| {
        if mapping.client == index && from(key.address) {
            mappings.push(*key);
        }
    })?;
    Ok(tables.mappings.delete_all(&mappings)?)
}

/// Ends a client's sessions whose answers go straight to another device than it
/// has now: the next packet opens them again, with the same port.
pub fn misplaced(tables: &Tables, client: &ClientState) {
    let mut ending = Vec::new();
    tables.reverse.for_each(|key, half| {
        let tied = [Delivery::Peer as u8, Delivery::Neighbour as u8].contains(&half.delivery);
        if half.client == client.index && tied && half.ifindex != client.entry.ifindex {
            ending.push((forward_key(key, half), *key));
        }
    });
    end(tables, &ending);
}

/// Ends all sessions of an egress address; how many they were.
///
/// # Errors
/// The kernel's.
pub fn address(tables: &Tables, address: Ipv4Addr) -> Result<usize> {
    let address = address.octets();
    let mut ending = Vec::new();
    tables.forward.for_each(|key, half| {
        if half.address == address {
            ending.push((*key, reverse_key(key, half.address, half.port)));
        }
    });
    end(tables, &ending);
    let mut mappings: Vec<MappingKey> = Vec::new();
    tables.mappings.for_each(|key, mapping| {
        if mapping.address == address {
            mappings.push(*key);
        }
    })?;
    tables.mappings.delete_all(&mappings)?;
    Ok(ending.len())
}

/// Ends a client's sessions that have another egress address than it has now.
pub fn elsewhere(tables: &Tables, client: &ClientState) {
    let egress = client.entry.egress.octets();
    let mut ending = Vec::new();
    tables.forward.for_each(|key, half| {
        if half.client == client.index && half.address != egress {
            ending.push((*key, reverse_key(key, half.address, half.port)));
        }
    });
    end(tables, &ending);
}

/// The key of the forward half, given the reverse one.
fn forward_key(key: &FlowKey, reverse: &Half) -> FlowKey {
    FlowKey {
        source: reverse.address,
        destination: key.source,
        source_port: reverse.port,
        destination_port: key.source_port,
        ..*key
    }
}

/// Ends sessions, by the keys of their halves.
fn end(tables: &Tables, sessions: &[(FlowKey, FlowKey)]) {
    free(tables, &remove(tables, sessions));
}

/// Slots whose flows were removed, by number.
pub struct Removed {
    forward: Vec<u32>,
    reverse: Vec<u32>,
}

/// Removes sessions, by the keys of their halves; their slots are to be freed.
///
/// The reverse halves go first: a packet in between finds its forward half or
/// opens the session anew, and never makes half of one.
pub fn remove(tables: &Tables, sessions: &[(FlowKey, FlowKey)]) -> Removed {
    let reverse = sessions.iter().map(|(_, key)| tables.reverse.remove(key));
    let reverse = reverse.flatten().collect();
    let forward = sessions.iter().map(|(key, _)| tables.forward.remove(key));
    let forward = forward.flatten().collect();
    Removed { forward, reverse }
}

/// All slots that are to be freed, whoever removed their flows: packets that could
/// not open a session whole, or an agent that died in a sweep, too.
pub fn removed(tables: &Tables) -> Removed {
    Removed {
        forward: tables.forward.removed(),
        reverse: tables.reverse.removed(),
    }
}

/// Frees slots as soon as no packet can be reading them.
pub fn free(tables: &Tables, removed: &Removed) {
    if !(removed.reverse.is_empty() && removed.forward.is_empty()) {
        thread::sleep(GRACE);
        tables.reverse.free(&removed.reverse);
        tables.forward.free(&removed.forward);
    }
}
