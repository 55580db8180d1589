//! What pods send before the agent knows them goes nowhere. The API server runs on the node of a
//! lab, whose pods are namespaces behind veths; agent, programs and rules are the real ones.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nat_tests::{
    agent::Agent,
    lab::{self, BEYOND, EGRESS, Host, Lab, NODE, PodNetwork, SERVER},
    process::eventually,
    programs::{self, UdpEcho},
};
use serde_json::json;

use super::{Lab as Api, on_node};

const SOON: Duration = Duration::from_secs(20);
const PORT: u16 = 9000;
const NODE_FILE: &str = "sweepInterval: 500ms\n";
const MASQUERADE: &str = "table ip cni {
  chain postrouting {
    type nat hook postrouting priority srcnat
    ip saddr 10.244.0.0/16 oifname eth0 masquerade
  }
}";

/// A lab with three pods: one with an egress address, one that asks for nothing, and one that the
/// API does not know of.
struct Bed<'a> {
    agent: Agent,
    api: Api,
    lab: &'a Lab,
}

impl<'a> Bed<'a> {
    async fn start(lab: &'a Lab) -> Result<Self> {
        let api = Api::start().await?;
        let pool = json!({
            "addresses": [EGRESS[0]], "allowedNamespaces": {}, "exclude": [BEYOND],
        });
        api.pool("office", pool).await?;
        api.pod("shop/asks", 1, 11, "office").await?;
        api.pod("shop/asks-not", 1, 12, "none").await?;
        let agent = api.agent_on(lab, NODE_FILE)?;
        // It stands before anything else does: nothing may get out from here on.
        eventually(SOON, "the guard", || {
            ensure!(
                lab.node
                    .run("nft list set ip natctl pods")?
                    .contains("10.244.1.0/24")
            );
            Ok(())
        })?;
        Ok(Self { agent, api, lab })
    }

    /// The pod without an annotation and the one with one get through.
    fn known_pods_pass(&self, unannotated: Ipv4Addr) -> Result<()> {
        for (host, wanted) in self.lab.hosts.iter().zip([EGRESS[0], unannotated]) {
            let seen = eventually(SOON, &host.name, || seen(host, SERVER))?;
            ensure!(seen == wanted, "{} is seen as {seen}", host.name);
        }
        Ok(())
    }

    /// What the stranger sends outside is dropped and counted; what no pool translates gets there.
    fn the_stranger_is_held_back(&self) -> Result<()> {
        let (stranger, known) = (&self.lab.hosts[2], &self.lab.hosts[1]);
        let before = self.agent.status()?.drops("guard");
        ensure!(programs::ping(stranger, SERVER, 2, "-W 1")? == 0);
        let held = self.agent.status()?.drops("guard") - before;
        ensure!(held == 2, "{held} packets were held back");
        ensure!(programs::ping(stranger, known.address, 1, "")? == 1);
        ensure!(programs::ping(stranger, BEYOND, 1, "")? == 1);
        Ok(())
    }

    /// Flushed, everything of it comes back.
    fn it_is_put_back(&self) -> Result<()> {
        self.lab.node.nft("flush ruleset")?;
        let list = "nft list chain ip natctl guard";
        eventually(SOON, "the guard to be back", || self.lab.node.run(list))?;
        self.the_stranger_is_held_back()?;
        self.lab.node.nft("flush chain ip natctl guard")?;
        eventually(SOON, "its rule to be back", || {
            ensure!(self.lab.node.run(list)?.contains("drop"));
            Ok(())
        })?;
        self.the_stranger_is_held_back()
    }
}

fn seen(host: &Host, server: Ipv4Addr) -> Result<Ipv4Addr> {
    let socket = programs::udp_socket(host, 0, SocketAddrV4::new(server, PORT))?;
    Ok(*programs::udp_ask(&socket)?.ip())
}

async fn guard(lab: &Lab) -> Result<()> {
    let mut bed = Bed::start(lab).await?;
    let own = lab.hosts[1].address;
    bed.known_pods_pass(own)?;
    bed.the_stranger_is_held_back()?;
    let status = bed.agent.status()?;
    let kubernetes = &status.0["kubernetes"];
    ensure!(kubernetes["leftAlone"] == 1, "{kubernetes}");
    ensure!(status.0["clients"].as_array().map(Vec::len) == Some(1));

    lab.node.nft(MASQUERADE)?;
    bed.known_pods_pass(NODE)?;
    bed.the_stranger_is_held_back()?;
    bed.agent.kill()?;
    bed.known_pods_pass(NODE)?;
    bed.the_stranger_is_held_back()?;
    bed.agent.restart()?;
    bed.it_is_put_back()?;
    bed.known_pods_pass(own)?;

    // An agent that starts while the API server is silent keeps what is there.
    bed.agent.kill()?;
    bed.api.server.stop_api()?;
    bed.agent.restart()?;
    bed.the_stranger_is_held_back()?;
    bed.known_pods_pass(own)?;
    bed.it_is_put_back()?;
    bed.api.server.start_api()?;
    bed.api.server.ready().await?;

    // As soon as the stranger is known it gets through.
    lab.sniffer().allow(lab.hosts[2].address);
    bed.api.pod("shop/known", 1, 13, "none").await?;
    eventually(SOON, "the third pod", || seen(&lab.hosts[2], SERVER))?;
    bed.agent.terminate()?;
    bed.agent.detach()?;
    ensure!(lab.node.run("nft list table ip natctl").is_err());
    Ok(())
}

fn on(network: PodNetwork) -> Result<()> {
    let lab = lab::pods(3).pod_network(network).build()?;
    lab.server
        .ip(&format!("route add 10.244.0.0/16 via {NODE}"))?;
    lab.sniffer().allow(lab.hosts[1].address);
    lab.sniffer().allow_toward(BEYOND);
    let _echo = UdpEcho::start(&lab.server, SocketAddrV4::new(SERVER, PORT))?;
    on_node(&lab, guard)?;
    lab.finish()
}

#[test]
fn what_nobody_has_looked_at_is_held_back() -> Result<()> {
    [PodNetwork::Routed, PodNetwork::Bridge]
        .into_iter()
        .try_for_each(|network| on(network).with_context(|| format!("{network:?}")))
}
