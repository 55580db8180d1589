//! Sessions ended before their time: their client is gone, or has moved.

use std::collections::BTreeSet;

use anyhow::Result;
use ipnet::Ipv4Net;
use nat_common::abi::{FlowKey, Half, MappingKey};
use nat_common::session::reverse_key;

use crate::{bpf::tables::Tables, diff::ClientState};

/// Ends a client's sessions from these sources. Their ports rest as after any session.
///
/// # Errors
/// The kernel's.
pub fn sources(tables: &Tables, index: u16, sources: &BTreeSet<Ipv4Net>) -> Result<()> {
    let from = |address: [u8; 4]| {
        sources
            .iter()
            .any(|net| net.contains(&std::net::Ipv4Addr::from(address)))
    };
    sessions(tables, |key, half| half.client == index && from(key.source))?;
    let mut mappings: Vec<MappingKey> = Vec::new();
    tables.mappings.for_each(|key, mapping| {
        if mapping.client == index && from(key.address) {
            mappings.push(*key);
        }
    })?;
    Ok(tables.mappings.delete_all(&mappings)?)
}

/// Ends a client's sessions that are tied to another device or delivery than
/// it has now: the next packet opens them again, with the same port.
///
/// # Errors
/// The kernel's.
pub fn misplaced(tables: &Tables, client: &ClientState) -> Result<()> {
    let entry = &client.entry;
    sessions(tables, |_, half| {
        half.client == client.index && half.ingress != entry.ifindex
    })
}

/// The reverse halves go first: a packet in between finds its forward half or
/// opens the session anew, and never makes half of one.
fn sessions(tables: &Tables, ends: impl Fn(&FlowKey, &Half) -> bool) -> Result<()> {
    let (mut forward, mut reverse) = (Vec::new(), Vec::new());
    tables.forward.for_each(|key, half| {
        if ends(key, half) {
            forward.push(*key);
            reverse.push(reverse_key(key, half.address, half.port));
        }
    })?;
    tables.reverse.delete_all(&reverse)?;
    Ok(tables.forward.delete_all(&forward)?)
}
