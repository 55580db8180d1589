//! Finds the sessions that are wanted.

use anyhow::{Context, Result};
use nat_common::session::reverse_key;

use super::{Flows, filter::Filter, flow::Reader};
use crate::{
    bpf::{pins::Pins, tables::Tables},
    clock::Clock,
    report::{Report, unix_now},
    status::{directory::Directory, model::SCHEMA},
};

/// The sessions that the filter wants, the first `limit` of them.
///
/// # Errors
/// The kernel's.
pub fn flows<'a>(
    pins: &Pins,
    tables: &Tables,
    directory: &'a Directory,
    filter: &Filter,
    limit: Option<usize>,
) -> Result<Flows<'a>> {
    let settings = tables
        .settings
        .get(&0)
        .context("read SETTINGS")?
        .unwrap_or_default();
    let clock = Clock::new(settings);
    let mut found = Vec::new();
    tables.forward.for_each(|key, half| {
        if filter.wants(key, half) {
            found.push((*key, *half));
        }
    });
    // The table has no order; a person wants to find a line again.
    found.sort_unstable_by_key(|(key, _)| {
        (
            key.protocol,
            key.source,
            key.source_port,
            key.destination,
            key.destination_port,
        )
    });
    let matched = found.len() as u64;
    let reader = Reader {
        clock,
        now: clock.now(),
        directory,
    };
    let mut flows = Vec::new();
    for (key, forward) in found.iter().take(limit.unwrap_or(usize::MAX)) {
        let reverse = tables
            .reverse
            .get(&reverse_key(key, forward.address, forward.port));
        flows.push(reader.flow(key, forward, reverse.as_ref()));
    }
    Ok(Flows {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        bpffs: pins.directory().display().to_string(),
        time: unix_now(),
        agent_running: pins.agent_runs(),
        agent_heartbeat: Report::read(&tables.report)
            .ok()
            .flatten()
            .map(|report| report.heartbeat),
        matched,
        flows,
    })
}
