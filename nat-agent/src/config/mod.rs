//! The configuration file: YAML text in, a [`Snapshot`] or everything that is wrong with it out.
//!
//! One step a file:
//!
//! ```text
//! tree      the YAML text as nodes, each with its line and column
//! fields    typed values out of a node; unknown, missing and malformed fields become problems
//! model     which fields there are, and their defaults
//! address   what an address, a network and a range of addresses look like
//! overlap   ranges that meet
//! validate  the rules between fields, and the snapshot
//! problem   what is wrong, where, and what to do
//! ```
//!
//! The text is not handed to a derived `Deserialize`: that stops at the first mistake, and a person
//! who repairs a file wants to see all of them. Nothing here looks at the machine; whether a device
//! exists is found out when the snapshot is applied.

mod address;
mod fields;
mod model;
mod overlap;
mod problem;
mod tree;
mod validate;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use address::Range;
pub use problem::{Mark, Place, Problem};

use ipnet::IpNet;
use problem::Problems;

use crate::snapshot::{Pool, Settings, Snapshot};

/// Reads a configuration from its text; `file_name` is only what problems call it.
///
/// # Errors
///
/// Every problem found, in the order of the file. A file is taken whole or not at all.
pub fn parse(file_name: &str, text: &str) -> Result<Snapshot, Vec<Problem>> {
    let mut problems = Problems::new(file_name);
    let file =
        tree::read(text, &mut problems).and_then(|root| model::File::read(&root, &mut problems));
    let snapshot = file.and_then(|file| validate::snapshot(file, &mut problems));
    match snapshot {
        Some(snapshot) if problems.is_empty() => Ok(snapshot),
        _ => Err(problems.into_sorted()),
    }
}

/// Reads the text of a node's file where Kubernetes names pools and clients: the same file, without
/// them.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_node(file_name: &str, text: &str) -> Result<Settings, Vec<Problem>> {
    let mut problems = Problems::new(file_name);
    let file = tree::read(text, &mut problems)
        .and_then(|root| model::File::read_node(&root, &mut problems));
    let settings = file.and_then(|file| validate::settings(file, &mut problems));
    match settings {
        Some(settings) if problems.is_empty() => Ok(settings),
        _ => Err(problems.into_sorted()),
    }
}

/// Reads one pool that is not written in a file, by the rules of an entry of `pools`: the pool, its
/// addresses left out, and the ranges of its addresses.
///
/// # Errors
///
/// Every problem found, as `field: what is wrong; what to do`.
pub fn pool(name: &str, fields: &serde_json::Value) -> Result<(Pool, Vec<Range>), Vec<String>> {
    let mut problems = Problems::new(name);
    let node = tree::named(name, fields);
    let pool = fields::Fields::open(&node, String::new(), model::POOL, &mut problems)
        .map(|fields| model::Pool::read(&fields, &mut problems))
        .and_then(|pool| validate::pool(pool, &mut problems));
    match pool {
        Some(pool) if problems.is_empty() => Ok(pool),
        _ => Err(problems.into_sorted().iter().map(Problem::words).collect()),
    }
}

/// Reads an address or a network, as the file has them.
///
/// # Errors
///
/// What is wrong; what to do.
pub fn network(text: &str) -> Result<IpNet, String> {
    address::network(text)
}

/// Reads a configuration file.
///
/// # Errors
///
/// As [`parse`], and a single problem if the file cannot be read.
pub fn load(path: &std::path::Path) -> Result<Snapshot, Vec<Problem>> {
    read(path).and_then(|(name, text)| parse(&name, &text))
}

/// Reads a node's file, as [`parse_node`].
///
/// # Errors
///
/// As [`parse_node`], and a single problem if the file cannot be read.
pub fn load_node(path: &std::path::Path) -> Result<Settings, Vec<Problem>> {
    read(path).and_then(|(name, text)| parse_node(&name, &text))
}

fn read(path: &std::path::Path) -> Result<(String, String), Vec<Problem>> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((name, text)),
        Err(error) => Err(vec![Problem::unreadable(name, &error)]),
    }
}

/// The fields of an entry of `pools`.
pub fn pool_fields() -> impl Iterator<Item = &'static str> {
    model::POOL.iter().copied()
}
