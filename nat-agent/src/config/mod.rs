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

pub use problem::{Mark, Place, Problem};

use problem::Problems;

use crate::snapshot::Snapshot;

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

/// Reads a configuration file.
///
/// # Errors
///
/// As [`parse`], and a single problem if the file cannot be read.
pub fn load(path: &std::path::Path) -> Result<Snapshot, Vec<Problem>> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&name, &text),
        Err(error) => Err(vec![Problem::unreadable(name, &error)]),
    }
}
