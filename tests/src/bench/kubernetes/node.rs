//! This node: its namespace, one for all its pods, and one outside.
//!
//! Each pod has a veth of its own with a route to it, as with ptp. Their other ends are in one
//! namespace: a socket that is bound to one of them sends as that pod, and nothing else there sends.

use std::fmt::Write;
use std::net::Ipv4Addr;

use anyhow::Result;

use super::objects;
use super::scale::Scale;
use crate::bench::topology::PREFIX;
use crate::netns::Netns;
use crate::topology::set_up_outside;

/// Links made by one call of `ip`.
const BATCH: usize = 50;

/// The namespaces. Dropped, they are removed.
pub struct Node {
    /// Where the agent is.
    pub node: Netns,
    /// All its pods.
    pub pods: Netns,
    /// The API server, and whom pods talk to.
    pub outside: Netns,
}

impl Node {
    /// Makes the namespaces and as many veths as this node has pods.
    pub fn create(scale: &Scale) -> Result<Self> {
        let create = |role| Netns::create(&format!("{PREFIX}{}-k-{role}", std::process::id()));
        let this = Self {
            node: create("node")?,
            pods: create("pods")?,
            outside: create("outside")?,
        };
        set_up_outside(&this.node, &this.outside)?;
        // What is not translated arrives there, too.
        this.outside.sysctl("net.ipv4.conf.all.rp_filter", "0")?;
        this.outside.sysctl("net.ipv4.conf.eth0.rp_filter", "0")?;
        let pods: Vec<usize> = (0..scale.own).collect();
        pods.chunks(BATCH).try_for_each(|pods| this.add(pods))?;
        Ok(this)
    }

    fn add(&self, pods: &[usize]) -> Result<()> {
        let (mut near, mut far) = (String::new(), String::new());
        for pod in pods {
            let (device, address) = (device(*pod), address(*pod));
            let name = self.pods.name();
            writeln!(
                near,
                "link add veth{device} type veth peer name {device} netns {name}\n\
                 link set veth{device} up\nroute add {address}/32 dev veth{device}"
            )?;
            writeln!(
                far,
                "address add {address}/32 dev {device}\nlink set {device} up\n\
                 route add default via 169.254.1.1 dev {device} onlink metric {}",
                pod + 1
            )?;
        }
        self.node.ip(&near)?;
        self.pods.ip(&far)
    }
}

/// A pod's own end of its link.
pub fn device(pod: usize) -> String {
    format!("pod{pod}")
}

/// A pod's address.
pub fn address(pod: usize) -> Ipv4Addr {
    objects::pod_address(0, pod)
}
