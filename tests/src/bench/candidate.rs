//! What is compared: ways to get a packet through the gateway.

use std::any::Any;

use anyhow::Result;

use super::agent::{Agent, Path, Setup};
use super::conntrack;
use super::mix::Mix;
use super::topology::Topology;
use super::traffic;

/// Keeps a candidate in place; dropping it removes the candidate.
pub type Installed = Box<dyn Any>;

/// One way through the gateway.
pub trait Candidate {
    /// Its name in tables and rows.
    fn name(&self) -> &'static str;
    /// Whether frames arrive with an egress address.
    fn translates(&self) -> bool;
    /// Sets it up in the topology's gateway.
    fn install(&self, topology: &Topology, mix: &Mix) -> Result<Installed>;
}

/// `bpf_redirect` in XDP and nothing else: the limit.
pub struct PlainRedirect;

impl Candidate for PlainRedirect {
    fn name(&self) -> &'static str {
        "redirect"
    }

    fn translates(&self) -> bool {
        false
    }

    fn install(&self, topology: &Topology, _: &Mix) -> Result<Installed> {
        Ok(Box::new(traffic::attach_redirect(topology)?))
    }
}

/// The kernel's own forwarding, without NAT and without netfilter.
pub struct Kernel;

impl Candidate for Kernel {
    fn name(&self) -> &'static str {
        "kernel"
    }

    fn translates(&self) -> bool {
        false
    }

    fn install(&self, _: &Topology, _: &Mix) -> Result<Installed> {
        Ok(Box::new(()))
    }
}

/// `nft ... snat to`: each client's egress address from a map.
pub struct Nft;

impl Candidate for Nft {
    fn name(&self) -> &'static str {
        "nft"
    }

    fn translates(&self) -> bool {
        true
    }

    fn install(&self, topology: &Topology, mix: &Mix) -> Result<Installed> {
        let pairs: Vec<String> = mix
            .pairs()
            .map(|(client, egress)| format!("{client} : {egress}"))
            .collect();
        topology.gateway.nft(&format!(
            "table ip bench {{ chain postrouting {{\n\
             type nat hook postrouting priority srcnat;\n\
             oifname g1 snat to ip saddr map {{ {} }}\n}}\n}}\n",
            pairs.join(", ")
        ))?;
        conntrack::keep_flows(&topology.gateway)?;
        Ok(Box::new(()))
    }
}

/// natctl as a router: XDP on both devices.
pub struct Router;

impl Candidate for Router {
    fn name(&self) -> &'static str {
        "natctl"
    }

    fn translates(&self) -> bool {
        true
    }

    fn install(&self, topology: &Topology, mix: &Mix) -> Result<Installed> {
        let setup = Setup {
            mix: *mix,
            path: Path::Stack,
            router: true,
        };
        Ok(Box::new(Agent::start(&topology.gateway, &setup)?))
    }
}

/// natctl for a local pod: tcx on its veth.
pub struct Local(pub Path);

impl Candidate for Local {
    fn name(&self) -> &'static str {
        match self.0 {
            Path::Direct => "direct",
            Path::Stack => "stack",
        }
    }

    fn translates(&self) -> bool {
        true
    }

    fn install(&self, topology: &Topology, mix: &Mix) -> Result<Installed> {
        if self.0 == Path::Stack {
            topology.gateway.nft(CLUSTER_RULES)?;
        }
        let setup = Setup {
            mix: *mix,
            path: self.0,
            router: false,
        };
        Ok(Box::new(Agent::start(&topology.gateway, &setup)?))
    }
}

/// What the stack path is there for: a policy that tracks connections, and the masquerade rule of
/// a network plugin that must not touch our packets. `nft`, the peer, is spared both.
const CLUSTER_RULES: &str = "table ip cluster {\n\
    chain postrouting { type nat hook postrouting priority srcnat;\n\
        ip saddr 10.0.0.0/16 oifname g1 masquerade; }\n\
    chain forward { type filter hook forward priority filter; policy drop;\n\
        ct state established,related accept; ip saddr 10.0.0.0/16 accept; }\n}\n";
