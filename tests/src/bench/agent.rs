//! The agent under test: its configuration for a mix of flows, its start and its end.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cpu;
use super::mix::Mix;
use super::topology::PREFIX;
use crate::agent::binary;
use crate::config::{Client, Config, Pool};
use crate::netns::Netns;
use crate::process::Process;

/// For loading the programs and filling the queues of ports on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Which way a local pod's packets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Past the stack.
    Direct,
    /// Through it.
    Stack,
}

/// What the agent is to do.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// The clients and their egress addresses.
    pub mix: Mix,
    /// The path of local pods.
    pub path: Path,
    /// `g0` is an inside NIC with native XDP, as `g1`; else it is a pod's veth, and both are tcx.
    pub router: bool,
}

impl Setup {
    /// What the agent is told.
    pub fn config(&self) -> Config {
        let devices = if self.router {
            &[
                "name: g1, xdp: native",
                "name: g0, role: inside, xdp: native",
            ][..]
        } else {
            &["name: g1"]
        };
        let clients = self
            .mix
            .pairs()
            .enumerate()
            .map(|(number, (address, egress))| Client {
                name: format!("client-{number}"),
                address,
                device: "g0".into(),
                egress: egress.to_string(),
            });
        Config {
            devices: devices.iter().map(|device| device.to_string()).collect(),
            pools: vec![self.pool()],
            clients: clients.collect(),
            settings: self.limits(),
        }
    }

    fn pool(&self) -> Pool {
        let path = match self.path {
            Path::Direct => "direct",
            Path::Stack => "stack",
        };
        let mut addresses: Vec<_> = self.mix.pairs().map(|(_, egress)| egress).collect();
        addresses.dedup();
        let settings = vec![
            // 4,096 is the default.
            format!("portsPerClient: {}", self.mix.ports.max(4096)),
            format!("path: {path}"),
            // No flow ends between two rounds of a large benchmark.
            "timers: {udp: 3600s}".into(),
        ];
        Pool {
            name: "bench".into(),
            addresses,
            settings,
        }
    }

    /// The tables at their defaults (262,144 sessions) unless the mix needs larger ones.
    fn limits(&self) -> Vec<String> {
        if self.mix.flows() > 200_000 {
            vec!["limits: {sessions: 2097152}".into()]
        } else {
            Vec::new()
        }
    }
}

/// A running agent. Dropping it ends it and removes what it has pinned, and with the pins all else;
/// its nft table goes with the namespace.
pub struct Agent {
    process: Option<Process>,
    directory: PathBuf,
    bpffs: PathBuf,
}

impl Agent {
    /// Starts it in `namespace` and waits until everything is applied.
    pub fn start(namespace: &Netns, setup: &Setup) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let mut this = Self {
            process: None,
            directory: std::env::temp_dir().join(&name),
            bpffs: PathBuf::from("/sys/fs/bpf").join(&name),
        };
        fs::create_dir_all(&this.directory)?;
        let config = this.directory.join("config.yaml");
        fs::write(&config, setup.config().to_string())?;
        // Its sweeps belong to the cost of running it, but not to the measuring CPU.
        let mut command = namespace.command("taskset");
        command.args(["--cpu-list", &cpu::others()?]).arg(binary());
        command
            .arg("--config")
            .arg(&config)
            .arg("--bpffs")
            .arg(&this.bpffs);
        let log = this.directory.join("log");
        let process = this.process.insert(Process::spawn(&mut command, &log)?);
        process
            .wait_for_output(0, PATIENCE, |text| text.contains("ready: ").then_some(()))
            .context("nat-agent (NAT_AGENT names another one)")?;
        Ok(this)
    }

    /// Where it pins what it loads.
    pub fn bpffs(&self) -> &std::path::Path {
        &self.bpffs
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.take());
        for left in [&self.directory, &self.bpffs] {
            // What is not there need not be removed.
            let _ = fs::remove_dir_all(left);
        }
    }
}
