//! The node's file changes while an agent with real programs runs: what can change does, and what is refused leaves
//! everything as it was, while pods are followed on.

use std::{
    fmt::Display,
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::fs::symlink,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nat_tests::{
    agent::Agent,
    lab::{self, BEYOND, EGRESS, Lab, NODE},
    process::eventually,
    programs::{self, UdpEcho},
};
use serde_json::json;

use super::{Lab as Api, on_node};

const SOON: Duration = Duration::from_secs(20);
const ECHO: SocketAddrV4 = SocketAddrV4::new(BEYOND, 9000);
const START: &str = "sweepInterval: 500ms\n";
const POD_RANGE: &str = "10.99.0.0/24";

struct Bed<'a> {
    agent: Agent,
    api: Api,
    lab: &'a Lab,
}

impl<'a> Bed<'a> {
    async fn start(lab: &'a Lab) -> Result<Self> {
        let api = Api::start().await?;
        let pool = json!({"addresses": [EGRESS[0]], "allowedNamespaces": {}});
        api.pool("office", pool).await?;
        api.pod("shop/web-0", 1, 11, "office").await?;
        let agent = api.agent_on(lab, START)?;
        let bed = Self { agent, api, lab };
        bed.is_seen_as(EGRESS[0])?;
        Ok(bed)
    }

    /// As whom the server sees the first pod.
    fn is_seen_as(&self, wanted: Ipv4Addr) -> Result<()> {
        eventually(SOON, "the server", || {
            let socket = programs::udp_socket(&self.lab.hosts[0], 0, ECHO)?;
            let seen = *programs::udp_ask(&socket)?.ip();
            ensure!(seen == wanted, "it is seen as {seen}");
            Ok(())
        })
    }

    /// Whether the guard takes these for pods' addresses.
    fn guards(&self, range: &str, wanted: bool) -> Result<()> {
        eventually(SOON, range, || {
            // Without a guard there is no such set.
            let pods = self.lab.node.run("nft list set ip natctl pods");
            let pods = pods.unwrap_or_default();
            ensure!(pods.contains(range) == wanted, "{pods}");
            Ok(())
        })
    }

    /// Whether it is so many seconds, rounded up, between two sweeps.
    fn sweeps_every(&self, seconds: u64) -> Result<()> {
        eventually(SOON, "another interval", || {
            let agent = &self.agent.status()?.0["agent"];
            ensure!(agent["sweepInterval"] == seconds, "{agent}");
            Ok(())
        })
    }

    fn is_well(&self) -> Result<()> {
        eventually(SOON, "all to be well", || self.agent.status()?.is_well())
    }

    /// The file is refused for this reason, and a pod that comes now is served all the same.
    async fn refuses(&self, file: impl Display, words: &str) -> Result<()> {
        self.agent.write_config(file)?;
        eventually(SOON, words, || {
            let problems = self.agent.status()?.problems();
            let refused = "the configuration file is refused: ";
            ensure!(
                problems.contains(refused) && problems.contains(words),
                "{problems}"
            );
            Ok(())
        })?;
        self.guards(POD_RANGE, true)?;
        self.api.pod("shop/web-1", 1, 12, "office").await?;
        eventually(SOON, "the new pod", || {
            self.agent.status()?.client("shop/web-1").map(drop)
        })?;
        self.api.delete("shop/web-1").await?;
        eventually(SOON, "its end", || {
            ensure!(self.agent.status()?.client("shop/web-1").is_err());
            Ok(())
        })
    }

    /// The file as Kubernetes mounts one of a ConfigMap: it leads through a link, and the link is replaced.
    fn swap(&self, version: &str, file: impl Display) -> Result<()> {
        let config = self.agent.config();
        let directory = config.parent().context("a file in a directory")?;
        fs::create_dir(directory.join(version))?;
        fs::write(
            directory.join(version).join("config.yaml"),
            file.to_string(),
        )?;
        let new = directory.join("..data_tmp");
        symlink(version, &new)?;
        fs::rename(&new, directory.join("..data"))?;
        if !config.is_symlink() {
            symlink("..data/config.yaml", &new)?;
            fs::rename(new, config)?;
        }
        Ok(())
    }
}

async fn changes(lab: &Lab) -> Result<()> {
    let mut bed = Bed::start(lab).await?;
    bed.guards("10.244.1.0/24", true)?;
    let file = format!("{START}podRanges: [{POD_RANGE}]\n");
    bed.agent.write_config(&file)?;
    bed.guards(POD_RANGE, true)?;
    bed.is_seen_as(EGRESS[0])?;

    bed.refuses("podRange: [10.98.0.0/24]\n", "config.yaml:1:1: podRange")
        .await?;
    bed.refuses("limits: {clients: 17}\n", "limits cannot change")
        .await?;
    bed.refuses("decidedBit: 7\n", "decidedBit is a constant")
        .await?;
    bed.agent.write_config(&file)?;
    bed.is_well()?;

    bed.agent.write_config(format!("{START}guard: off\n"))?;
    bed.guards("10.244.1.0/24", false)?;
    bed.swap("..1", format!("{START}clusterRanges: [{BEYOND}]\n"))?;
    bed.guards("10.244.1.0/24", true)?;
    bed.is_seen_as(lab.hosts[0].address)?;
    bed.swap("..2", "sweepInterval: 1h\n")?;
    bed.is_seen_as(EGRESS[0])?;
    bed.sweeps_every(3600)?;
    bed.swap("..3", START)?;
    bed.sweeps_every(1)?;
    bed.is_well()?;
    bed.agent.terminate()?;
    // The next one starts with what the file says now.
    bed.agent.restart()?;
    bed.is_seen_as(EGRESS[0])?;
    bed.agent.terminate()
}

#[test]
fn the_nodes_file_is_watched() -> Result<()> {
    let lab = lab::pods(2).build()?;
    lab.server
        .ip(&format!("route add 10.244.0.0/16 via {NODE}"))?;
    lab.sniffer().allow_toward(BEYOND);
    let _echo = UdpEcho::start(&lab.server, ECHO)?;
    on_node(&lab, changes)?;
    lab.finish()
}
