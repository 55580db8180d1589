//! The agent's configuration file, as the labs write it.

use std::fmt::{self, Display};
use std::net::Ipv4Addr;

use crate::lab::{EGRESS, INSIDE, Lab, OUTSIDE};

/// What the agent is told: the configuration file's content.
#[derive(Clone, Debug)]
pub struct Config {
    /// Each a flow mapping, e.g. `name: eth0, xdp: native`.
    pub devices: Vec<String>,
    /// The pools.
    pub pools: Vec<Pool>,
    /// The clients.
    pub clients: Vec<Client>,
    /// Further lines at the top level.
    pub settings: Vec<String>,
}

/// A pool of egress addresses.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Further fields, a line each.
    pub settings: Vec<String>,
}

/// A client.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The node's device toward it.
    pub device: String,
    /// A pool's name or one of its addresses.
    pub egress: String,
}

impl Config {
    /// All of the lab's hosts behind the first egress address, in one pool called `office`. A lab with a routed
    /// client gets native XDP on both sides, one with pods the agent's own choice.
    pub fn new(lab: &Lab) -> Self {
        let routed = lab.hosts.iter().any(|host| host.device == INSIDE);
        let devices = if routed {
            vec![
                format!("name: {OUTSIDE}, xdp: native"),
                format!("name: {INSIDE}, role: inside, xdp: native"),
            ]
        } else {
            vec![format!("name: {OUTSIDE}")]
        };
        let clients = lab.hosts.iter().map(|host| Client {
            name: host.name.clone(),
            address: host.address,
            device: host.device.clone(),
            egress: "office".to_string(),
        });
        Self {
            devices,
            pools: vec![Pool {
                name: "office".to_string(),
                addresses: vec![EGRESS[0]],
                settings: Vec::new(),
            }],
            clients: clients.collect(),
            settings: vec!["sweepInterval: 500ms".to_string()],
        }
    }

    /// Adds a field to the first pool, e.g. `path: direct`.
    pub fn pool(mut self, line: impl Display) -> Self {
        self.pools[0].settings.push(line.to_string());
        self
    }
}

impl Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        writeln!(f, "devices:")?;
        self.devices
            .iter()
            .try_for_each(|device| writeln!(f, "  - {{{device}}}"))?;
        writeln!(f, "pools:")?;
        for Pool {
            name,
            addresses,
            settings,
        } in &self.pools
        {
            let addresses: Vec<_> = addresses.iter().map(Ipv4Addr::to_string).collect();
            writeln!(
                f,
                "  - name: {name}\n    addresses: [{}]",
                addresses.join(", ")
            )?;
            settings
                .iter()
                .try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        if !self.clients.is_empty() {
            writeln!(f, "clients:")?;
        }
        for Client {
            name,
            address,
            device,
            egress,
        } in &self.clients
        {
            writeln!(
                f,
                "  - {{name: {name}, addresses: [{address}], device: {device}, egress: {egress}}}"
            )?;
        }
        self.settings
            .iter()
            .try_for_each(|line| writeln!(f, "{line}"))
    }
}
