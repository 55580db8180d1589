//! Who the numbers in the maps are: clients and pools by number.

use std::{collections::HashMap, io};

use nat_common::abi::{CLIENT_ACTIVE, Client, Name, Pool};

use crate::{bpf::tables::Tables, keys};

/// Names and settings by number.
#[derive(Debug, Default)]
pub struct Directory {
    clients: HashMap<u32, Member>,
    pools: HashMap<u32, Pool>,
}

#[derive(Debug)]
struct Member {
    name: String,
    pool: u32,
}

impl Directory {
    /// Reads it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(tables: &Tables) -> io::Result<Self> {
        let mut directory = Self::default();
        for (number, pool) in tables.pools.entries()? {
            directory.pools.insert(number, pool);
        }
        for (number, client) in active(tables) {
            let name = tables.names.get(&number)?;
            let name = name.map_or_else(|| format!("client {number}"), |name| text(&name));
            directory.add_client(number, name, client.pool.get());
        }
        Ok(directory)
    }

    /// Adds a client.
    pub fn add_client(&mut self, number: u32, name: String, pool: u32) {
        self.clients.insert(number, Member { name, pool });
    }

    /// Adds a pool.
    pub fn add_pool(&mut self, number: u32, pool: Pool) {
        self.pools.insert(number, pool);
    }

    /// A client's name; `None` for one that is no client any more.
    pub fn client(&self, number: u32) -> Option<&str> {
        self.clients.get(&number).map(|member| member.name.as_str())
    }

    /// The number of the client of this name.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.clients
            .iter()
            .find(|(_, member)| member.name == name)
            .map(|(number, _)| *number)
    }

    /// The client's name that is most like this one: it ends like it (`web-0` for
    /// `default/web-0`), or nearly is it.
    pub fn nearest(&self, name: &str) -> Option<&str> {
        let names = || self.clients.values().map(|member| member.name.as_str());
        let likeness = |other: &str| (strsim::jaro_winkler(name, other) * 1000.0) as u32;
        let without_namespace = names()
            .filter(|other| other.rsplit('/').next() == Some(name))
            .min();
        // Equally near ones: always the same of them.
        without_namespace.or_else(|| {
            names()
                .filter(|other| likeness(other) > 700)
                .max_by_key(|other| (likeness(other), *other))
        })
    }

    /// A client's pool.
    pub fn pool_of(&self, client: u32) -> Option<&Pool> {
        self.pools.get(&self.clients.get(&client)?.pool)
    }
}

/// The clients, by number.
pub fn active(tables: &Tables) -> impl Iterator<Item = (u32, &Client)> {
    let clients =
        (0..tables.clients.len()).filter_map(|index| Some((index, tables.clients.get(index)?)));
    clients.filter(|(_, client)| client.flags.get() & CLIENT_ACTIVE != 0)
}

/// A name out of a map. It ends up on a terminal: control characters are replaced.
pub fn text(name: &Name) -> String {
    keys::name_of(name)
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned() {
        let mut name = Name {
            length: 9,
            bytes: [0; 320],
        };
        name.bytes[..9].copy_from_slice(b"web\x1b[31m0");
        assert_eq!(text(&name), "web\u{fffd}[31m0");
    }

    #[test]
    fn the_nearest_name() {
        let mut directory = Directory::default();
        for (number, name) in ["default/web-0", "default/web-1", "lab"]
            .into_iter()
            .enumerate()
        {
            directory.add_client(number as u32, name.into(), 0);
        }
        assert_eq!(directory.nearest("default/wbe-1"), Some("default/web-1"));
        assert_eq!(directory.nearest("web-1"), Some("default/web-1"));
        assert_eq!(directory.nearest("zzz"), None);
        assert_eq!(directory.number("lab"), Some(2));
    }
}
