//! Local pods: real sockets in the client's namespace, through the gateway, to a real server.

use anyhow::{Context, Result};

use super::agent::Path;
use super::candidate::{Candidate, Installed, Kernel, Local, Nft};
use super::connections;
use super::cpu::{self, settle};
use super::mix::{FIRST_DESTINATION, Mix};
use super::report::{Bar, Pair, Report};
use super::rounds::{alternate, progress};
use super::roundtrip;
use super::suite::Options;
use super::topology::Topology;
use crate::process::{Port, Process};

const IPERF_PORT: u16 = 5201;
const START: std::time::Duration = std::time::Duration::from_secs(5);

/// What the pod does.
#[derive(Clone, Copy, Debug)]
pub enum Load {
    /// TCP as fast as it goes, over so many connections.
    Bulk(u32),
    /// Short TCP connections.
    Connections,
    /// One small UDP datagram to and fro.
    RoundTrip,
}

impl Load {
    fn unit(self) -> &'static str {
        match self {
            Self::Bulk(_) => "bit/s",
            Self::Connections => "connections/s",
            Self::RoundTrip => "us, median",
        }
    }

    /// What `direct` and `stack` are held to, against nft.
    fn bars(self) -> [Option<Bar>; 2] {
        match self {
            Self::RoundTrip => [None, None],
            _ => [Some(Bar::AtLeast(1.1)), Some(Bar::AtLeast(0.9))],
        }
    }

    fn measure(self, topology: &Topology, quick: bool) -> Result<f64> {
        match self {
            Self::Bulk(streams) => bulk(topology, streams, if quick { 1 } else { 2 }),
            Self::Connections => connections::per_second(topology, quick),
            Self::RoundTrip => roundtrip::median_microseconds(topology, quick),
        }
    }
}

/// Compares both paths with nft under this load.
pub fn run(name: &str, load: Load, options: &Options) -> Result<Report> {
    let candidates = options.chosen(candidates())?;
    let names: Vec<_> = candidates
        .iter()
        .map(|candidate| candidate.name())
        .collect();
    let mut nodes = Vec::new();
    for candidate in &candidates {
        progress(&format!("{name}: setting up {}", candidate.name()));
        nodes.push(Node::set_up(&**candidate).with_context(|| candidate.name())?);
    }
    settle()?;
    let figures = alternate(options.rounds, &names, |index| {
        load.measure(&nodes[index].topology, options.quick)
            .with_context(|| names[index])
    })?;
    let [direct, stack] = load.bars();
    let pairs = [("direct", direct), ("stack", stack)];
    let pairs = pairs.map(|(label, bar)| Pair {
        label,
        ours: label,
        peer: "nft",
        bar,
    });
    Ok(Report::new(name, load.unit(), figures, &pairs))
}

fn candidates() -> Vec<Box<dyn Candidate>> {
    vec![
        Box::new(Nft),
        Box::new(Kernel),
        Box::new(Local(Path::Direct)),
        Box::new(Local(Path::Stack)),
    ]
}

/// A node with one pod and a server outside. Fields are dropped in their order: the namespaces
/// last.
struct Node {
    _server: Process,
    _installed: Installed,
    topology: Topology,
    _logs: Logs,
}

impl Node {
    fn set_up(candidate: &dyn Candidate) -> Result<Self> {
        let topology = Topology::create()?;
        let installed = candidate.install(&topology, &Mix::POD)?;
        let logs = Logs::create(topology.server.name())?;
        let mut command = topology.server.command("iperf3");
        command.args(["-4", "-s", "-p", &IPERF_PORT.to_string()]);
        let mut server = Process::spawn(&mut command, &logs.0.join("iperf3"))?;
        server.wait_listening(&topology.server, Port::Tcp(IPERF_PORT), START)?;
        Ok(Self {
            _server: server,
            _installed: installed,
            topology,
            _logs: logs,
        })
    }
}

/// A directory that goes away again.
struct Logs(std::path::PathBuf);

impl Logs {
    fn create(name: &str) -> Result<Self> {
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory)?;
        Ok(Self(directory))
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        // Left in /tmp it harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// iperf3 for so many seconds: what arrived, in bits per second. The sender, with all that happens
/// in its context, and the receiver have a CPU each: left alone, the scheduler puts them on one in
/// some rounds and on two in others.
fn bulk(topology: &Topology, streams: u32, seconds: u32) -> Result<f64> {
    let line = format!(
        "iperf3 -c {FIRST_DESTINATION} -p {IPERF_PORT} -t {seconds} -P {streams} -A {},0 -J",
        cpu::measuring()?
    );
    let report: serde_json::Value = serde_json::from_str(&topology.client.run(&line)?)?;
    let received = &report["end"]["sum_received"]["bits_per_second"];
    received
        .as_f64()
        .with_context(|| format!("iperf3 says nothing: {report}"))
}
