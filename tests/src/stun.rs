//! coturn: a STUN server with two addresses and two ports, and the client that finds out with its help how a NAT
//! behaves (RFC 5780).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::{Host, Lab, SERVER, SERVER_2};
use crate::process::{self, Port, Process};

/// The server's ports.
pub const PORTS: [u16; 2] = [3478, 3479];
/// The server's addresses.
pub const ADDRESSES: [Ipv4Addr; 2] = [SERVER, SERVER_2];

const START: Duration = Duration::from_secs(10);
/// Finding out takes waiting for answers that never come.
const DISCOVERY: Duration = Duration::from_secs(60);

/// The STUN server in the lab's server namespace.
pub struct StunServer {
    _process: Process,
}

impl StunServer {
    /// Starts it and waits for its four endpoints.
    pub fn start(lab: &Lab) -> Result<Self> {
        let directory = lab.directory();
        let mut command = lab.server.command("turnserver");
        command
            .args("-n --stun-only --no-auth --no-cli --no-tls --no-dtls --simple-log".split(' '))
            .args(["--log-file", "stdout"])
            .arg("--userdb")
            .arg(directory.join("turndb"))
            .arg("--pidfile")
            .arg(directory.join("turnserver.pid"))
            .arg(format!("--listening-port={}", PORTS[0]))
            .arg(format!("--alt-listening-port={}", PORTS[1]))
            .args(ADDRESSES.map(|address| format!("--listening-ip={address}")));
        let mut process = Process::spawn(&mut command, &directory.join("turnserver.log"))?;
        for port in PORTS {
            process.wait_listening(&lab.server, Port::Udp(port), START)?;
        }
        Ok(Self { _process: process })
    }
}

/// What was found out about a NAT.
#[derive(Debug)]
pub struct Discovery {
    /// Its behaviour in the tool's words.
    pub behaviour: String,
    /// As whom the server saw the client, for each of its answers.
    pub seen: Vec<SocketAddrV4>,
}

/// Finds out how the NAT maps `port` of `host`.
pub fn mapping(host: &Host, port: u16) -> Result<Discovery> {
    discover(host, port, "-m", "Mapping!")
}

/// Finds out what the NAT lets in to `port` of `host`.
pub fn filtering(host: &Host, port: u16) -> Result<Discovery> {
    discover(host, port, "-f", "Filtering!")
}

fn discover(host: &Host, port: u16, test: &str, verdict: &str) -> Result<Discovery> {
    let mut command = host.netns.command("turnutils_natdiscovery");
    command
        .arg(test)
        .args(["-L", &host.address.to_string()])
        .args(["-l", &port.to_string()])
        .arg(SERVER.to_string());
    let said = process::run(&mut command, DISCOVERY)?.success()?;
    let behaviour = said
        .lines()
        .rfind(|line| line.contains(verdict))
        .with_context(|| format!("no verdict: {said}"))?;
    let seen = said
        .lines()
        .filter_map(|line| line.split_once("UDP reflexive addr: "))
        .map(|(_, seen)| Ok(seen.trim().parse()?))
        .collect::<Result<_>>()?;
    Ok(Discovery {
        behaviour: behaviour.trim().to_string(),
        seen,
    })
}
