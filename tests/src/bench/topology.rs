//! Client, gateway and server: three network namespaces in a row.
//!
//! ```text
//! client: c0 --- g0 :gateway: g1 --- s0 :server
//! ```

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::abi::Macs;
use super::mix::{FIRST_DESTINATION, MAX_DESTINATIONS, nth};
use crate::netns::{self, Netns};

const C0: [u8; 6] = [2, 0, 0, 0, 1, 1];
const G0: [u8; 6] = [2, 0, 0, 0, 1, 2];
const G1: [u8; 6] = [2, 0, 0, 0, 2, 1];
const S0: [u8; 6] = [2, 0, 0, 0, 2, 2];

/// Names start with this: what a killed run left behind is removed by it.
pub const PREFIX: &str = "natb-";

/// Three namespaces in a row, with addresses, routes and neighbours, removed on drop.
pub struct Topology {
    /// Where the generator, or the pod, is.
    pub client: Netns,
    /// Where the candidate works.
    pub gateway: Netns,
    /// Where the sink, or the server, is.
    pub server: Netns,
}

impl Topology {
    /// Makes the namespaces and links them.
    pub fn create() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let create =
            |role| Netns::create(&format!("{PREFIX}{}-{number}-{role}", std::process::id()));
        let this = Self {
            client: create("client")?,
            gateway: create("gateway")?,
            server: create("server")?,
        };
        this.link()?;
        this.address()?;
        Ok(this)
    }

    fn link(&self) -> Result<()> {
        let veth = |near: &str, near_mac, far: &str, far_mac| {
            format!(
                "link add {near} address {} type veth peer name {far} address {} netns {}\n",
                colons(near_mac),
                colons(far_mac),
                self.gateway.name()
            )
        };
        self.client.ip(&veth("c0", C0, "g0", G0))?;
        self.server.ip(&veth("s0", S0, "g1", G1))
    }

    fn address(&self) -> Result<()> {
        self.client.ip(&format!(
            "address add 10.0.0.1/16 dev c0\nlink set c0 up\n\
             neighbour replace 10.0.255.254 lladdr {} dev c0 nud permanent\n\
             route add default via 10.0.255.254\n",
            colons(G0)
        ))?;
        self.server.ip(&format!(
            "address add {FIRST_DESTINATION}/24 dev s0\nlink set s0 up\n\
             neighbour replace 198.51.100.254 lladdr {} dev s0 nud permanent\n\
             route add default via 198.51.100.254\n",
            colons(G1)
        ))?;
        for (name, value) in [("ip_forward", "1"), ("conf.all.rp_filter", "0")] {
            self.gateway.sysctl(&format!("net.ipv4.{name}"), value)?;
        }
        self.gateway.ip(&gateway_addresses())
    }

    /// Makes the path one for bare frames: no checksums left to offload, and GRO at the gateway's
    /// receiving device. Without it frames redirected there are lost where there is no XDP program.
    pub fn for_frames(&self) -> Result<()> {
        self.client.run("ethtool -K c0 tx off")?;
        self.server.run("ethtool -K s0 tx off")?;
        self.gateway.run("ethtool -K g0 gro on")?;
        self.gateway.run("ethtool -K g1 gro on").map(drop)
    }

    /// Link-layer addresses of a frame from client to gateway.
    pub fn client_to_gateway(&self) -> Macs {
        macs(G0, C0)
    }

    /// Link-layer addresses of a frame from gateway to server.
    pub fn gateway_to_server(&self) -> Macs {
        macs(S0, G1)
    }
}

/// Addresses and neighbours of the gateway; the destinations are all the server.
fn gateway_addresses() -> String {
    let mut lines = format!(
        "address add 10.0.255.254/16 dev g0\naddress add 198.51.100.254/24 dev g1\n\
         link set g0 up\nlink set g1 up\n\
         neighbour replace 10.0.0.1 lladdr {} dev g0 nud permanent\n",
        colons(C0)
    );
    for destination in (0..MAX_DESTINATIONS).map(|n| nth(FIRST_DESTINATION, n)) {
        let mac = colons(S0);
        lines += &format!("neighbour replace {destination} lladdr {mac} dev g1 nud permanent\n");
    }
    lines
}

/// Removes what killed runs left behind: names hold the number of the process that made them.
pub fn remove_leftovers() {
    netns::names()
        .filter(|name| is_left(name))
        .for_each(|name| netns::remove(&name));
    for directory in ["/sys/fs/bpf", "/tmp"] {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(is_left)) {
            // What cannot be removed harms nobody: the next run uses other names.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn is_left(name: &str) -> bool {
    let owner = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next());
    owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists())
}

/// The index of a device in `namespace`.
pub fn device_index(namespace: &Netns, device: &str) -> Result<u32> {
    // Not from /sys, which shows the namespace that it was mounted in.
    let text = namespace.run(&format!("ip -o link show dev {device}"))?;
    let number = text.split(':').next().unwrap_or_default().trim();
    number
        .parse()
        .with_context(|| format!("{device} has no index: {text}"))
}

fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn macs(destination: [u8; 6], source: [u8; 6]) -> Macs {
    let mut words = [0; 6];
    for (word, pair) in words
        .iter_mut()
        .zip([destination, source].concat().chunks_exact(2))
    {
        *word = u16::from_ne_bytes([pair[0], pair[1]]);
    }
    words
}
