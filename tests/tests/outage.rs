//! The API server away, agents restarted meanwhile, and a node without power: the pods' packets go on.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use nat_tests::cluster::{self, Cluster, Node, OUTSIDE, Options};
use nat_tests::deploy;
use nat_tests::pod::{self, PATIENCE, Servers, TCP};
use nat_tests::process::eventually;
use nat_tests::sniffer::Sniffer;
use nat_tests::status::Status;
use nat_tests::wire::Flow;

/// Opens a connection after the other, from its first instant on, and has a ping run beside them.
const BUSY: &str =
    "ping -i 0.1 OUTSIDE >/dev/null & while :; do nc.openbsd -d -w 2 OUTSIDE PORT; sleep 0.1; done";
const EGRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
const NAMESPACE: &str = "busy";
const TCP_PROTOCOL: u8 = 6;
const ICMP_PROTOCOL: u8 = 1;
/// The pod's namespace and the pool of its address.
const POOL: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: busy, labels: {egress: office}}
---
apiVersion: natctl.io/v1alpha1
kind: EgressPool
metadata: {name: more}
spec:
  addresses: [203.0.113.20]
  allowedNamespaces: {matchLabels: {egress: office}}
";

/// A pod that never rests, with an address for itself.
fn busy_pod(cluster: &Cluster, node: &Node<'_>) -> Result<()> {
    let script = BUSY
        .replace("OUTSIDE", &OUTSIDE.to_string())
        .replace("PORT", &TCP.port().to_string());
    let mut wanted = pod::manifest(NAMESPACE, "busy", &EGRESS.to_string(), &script);
    wanted["spec"]["nodeName"] = node.name().into();
    cluster.apply(&wanted.to_string()).map(drop)
}

struct Bed<'a> {
    node: Node<'a>,
    sniffer: Sniffer,
}

impl Bed<'_> {
    /// New connections and the old ping go on, from the egress address.
    fn goes_on(&self) -> Result<()> {
        let before = self.seen();
        eventually(PATIENCE, "new connections, and the old ping", || {
            let now = self.seen();
            ensure!(
                now.0 > before.0 + 3 && now.1 > before.1 + 3,
                "{before:?}, then {now:?}"
            );
            Ok(())
        })
    }

    /// TCP connections from the egress address, and pings.
    fn seen(&self) -> (usize, u64) {
        let ours = |flow: &Flow| flow.source == EGRESS;
        let connections = self
            .sniffer
            .flows(|flow| ours(flow) && flow.protocol == TCP_PROTOCOL);
        let pings = self
            .sniffer
            .total(|flow| ours(flow) && flow.protocol == ICMP_PROTOCOL);
        (connections.len(), pings.frames)
    }

    /// The agent's process, as the node sees it.
    fn agent(&self) -> Result<String> {
        Ok(self.node.exec("pgrep -x nat-agent")?.trim().to_owned())
    }

    /// What the agent's natctl says, which takes no API server.
    fn status(&self) -> Result<Status> {
        let line = format!(
            "nsenter --target {} --mount natctl status -o json",
            self.agent()?
        );
        let text = self.node.exec(&line)?;
        Ok(Status(serde_json::from_str(&text).context(text)?))
    }

    fn wait_for_problem(&self, words: &str) -> Result<()> {
        eventually(PATIENCE, words, || {
            let status = self.status()?;
            ensure!(
                status.health() == "degraded" && status.problems().contains(words),
                "{}",
                status.problems()
            );
            Ok(())
        })
    }
}

#[test]
fn pods_outlive_the_api_server_and_a_power_cut() -> Result<()> {
    let cluster = Cluster::up(&Options {
        nodes: 1,
        ..Options::default()
    })?;
    deploy::install(&cluster)?;
    cluster.apply(POOL)?;
    let _servers = Servers::start(&cluster)?;
    let bed = Bed {
        node: cluster.node(1)?,
        sniffer: Sniffer::count(&cluster.outside(), cluster::DEVICE)?,
    };
    busy_pod(&cluster, &bed.node)?;
    bed.goes_on()?;
    an_outage(&cluster, &bed)?;
    a_power_cut(&bed)?;
    let leaked = bed
        .sniffer
        .flows(|flow| flow.source.octets()[..2] == [10, 244]);
    ensure!(leaked.is_empty(), "left as itself: {leaked:?}");
    bed.sniffer.finish()?;
    cluster.down()
}

/// Without the API server, known pods are served, by an agent that is started meanwhile, too.
fn an_outage(cluster: &Cluster, bed: &Bed<'_>) -> Result<()> {
    cluster.stop_control_plane()?;
    bed.wait_for_problem("the API server has not answered since")?;
    bed.goes_on()?;
    let first = bed.agent()?;
    bed.node.exec(&format!("kill -9 {first}"))?;
    eventually(PATIENCE, "another agent", || {
        ensure!(bed.agent()? != first);
        Ok(())
    })?;
    bed.wait_for_problem("what was pinned is served as it was")?;
    bed.goes_on()?;
    cluster.start_control_plane()?;
    eventually(PATIENCE, "all to be well", || bed.status()?.is_well())?;
    bed.goes_on()
}

/// The node's plug is pulled; booted again, its pod starts with an agent that comes no sooner.
fn a_power_cut(bed: &Bed<'_>) -> Result<()> {
    bed.node.kill()?;
    bed.node.start()?;
    bed.goes_on()
}
