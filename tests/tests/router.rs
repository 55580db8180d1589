//! The node as a NAT router: clients routed in through a NIC, XDP in the driver on both sides.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use nat_tests::agent::Bed;
use nat_tests::config::Config;
use nat_tests::lab::{self, BEYOND, EGRESS, INSIDE, NODE, OUTSIDE, SERVER, SERVER_2};
use nat_tests::programs::{self, Chatter, Iperf, Nginx, TcpEcho, TcpTalk, UdpEcho};

const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, 9000);
const SERVERS: [Ipv4Addr; 3] = [SERVER, SERVER_2, BEYOND];

fn start(addresses: u8, change: impl FnOnce(Config) -> Config) -> Result<Bed> {
    Bed::start(lab::routed(addresses), change)
}

/// Both devices as `ip` shows them.
fn in_driver(bed: &Bed) -> Result<()> {
    for device in [OUTSIDE, INSIDE] {
        let shown = bed.lab.node.run(&format!("ip -d link show {device}"))?;
        ensure!(
            shown.contains(" xdp ") && !shown.contains("xdpgeneric"),
            "{shown}"
        );
        let status = bed.agent.status()?;
        let entry = status.device(device)?;
        let hooks = entry["hooks"].as_array().context("no hooks")?;
        ensure!(
            hooks
                .iter()
                .any(|hook| hook["hook"] == "xdp" && hook["mode"] == "native"),
            "{entry}"
        );
    }
    Ok(())
}

#[test]
fn programs_through_native_xdp() -> Result<()> {
    let bed = start(2, |config| config)?;
    in_driver(&bed)?;
    let lab = &bed.lab;
    let (nginx, iperf) = (Nginx::start(lab, 8)?, Iperf::start(lab, SERVER)?);
    let _echo = UdpEcho::start(&lab.server, ECHO)?;
    for host in &lab.hosts {
        for server in SERVERS {
            ensure!(*programs::seen_by_nginx(host, server, "")?.ip() == EGRESS[0]);
            programs::download(lab, &nginx, host, server, "")?;
            ensure!(
                programs::ping(host, server, 3, "")? == 3,
                "{}: ping {server}",
                host.name
            );
        }
        ensure!(iperf.run(host, 1, "")?.bytes > 4 << 20);
        ensure!(iperf.run(host, 1, "--reverse")?.bytes > 4 << 20);
        let udp = iperf.run(host, 1, "--udp --bitrate 10M --length 1200")?;
        ensure!(udp.bytes > 1 << 20 && udp.lost == 0, "{udp:?}");
        let socket = programs::udp_socket(host, 4000, ECHO)?;
        ensure!(
            (0..20)
                .map(|_| programs::udp_ask(&socket))
                .all(|seen| seen.is_ok_and(|s| *s.ip() == EGRESS[0]))
        );
    }
    bed.finish()
}

/// The same router without native XDP: by tcx, which needs no checksums in place, and in XDP's generic mode.
#[test]
fn programs_without_native_xdp() -> Result<()> {
    let as_is = lab::routed(1).offload_off(&[]).gro_on(&[]);
    for (lab, xdp, hook, mode) in [
        (as_is, "off", "tcx ingress", "tcx"),
        (lab::routed(1), "generic", "xdp", "generic"),
    ] {
        let bed = Bed::start(lab, |mut config| {
            for device in &mut config.devices {
                *device = device.replace("native", xdp);
            }
            config
        })?;
        let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
        for device in [OUTSIDE, INSIDE] {
            let status = bed.agent.status()?;
            let hooks = status.device(device)?["hooks"].clone();
            let wanted = |entry: &serde_json::Value| entry["hook"] == hook && entry["mode"] == mode;
            ensure!(
                hooks.as_array().context("no hooks")?.iter().any(wanted),
                "{xdp}: {hooks}"
            );
        }
        let (nginx, iperf) = (Nginx::start(lab, 4)?, Iperf::start(lab, SERVER)?);
        let _echo = UdpEcho::start(&lab.server, ECHO)?;
        let work = || -> Result<()> {
            let socket = programs::udp_socket(host, 4000, ECHO)?;
            ensure!(*programs::udp_ask(&socket)?.ip() == EGRESS[0]);
            programs::download(lab, &nginx, host, SERVER, "")?;
            ensure!(iperf.run(host, 1, "")?.bytes > 4 << 20);
            ensure!(programs::ping(host, SERVER, 3, "")? == 3);
            Ok(())
        };
        work().with_context(|| xdp)?;
        bed.finish()?;
    }
    Ok(())
}

#[test]
fn colliding_ports() -> Result<()> {
    let bed = start(2, |config| config)?;
    let lab = &bed.lab;
    let (_udp, _tcp) = (
        UdpEcho::start(&lab.server, ECHO)?,
        TcpEcho::start(&lab.server, ECHO)?,
    );
    let mut talks = lab
        .hosts
        .iter()
        .map(|host| TcpTalk::connect(host, 40000, ECHO))
        .collect::<Result<Vec<_>>>()?;
    let sockets = lab
        .hosts
        .iter()
        .map(|host| programs::udp_socket(host, 40000, ECHO))
        .collect::<Result<Vec<_>>>()?;
    let asked = sockets
        .iter()
        .map(programs::udp_ask)
        .collect::<Result<Vec<_>>>()?;
    for (a, b) in [(talks[0].seen, talks[1].seen), (asked[0], asked[1])] {
        ensure!(
            *a.ip() == EGRESS[0] && *b.ip() == EGRESS[0] && a.port() != b.port(),
            "{a} and {b}"
        );
    }
    for round in 1..50 {
        talks
            .iter_mut()
            .try_for_each(|talk| talk.exchange(round * 100))?;
        ensure!(
            sockets
                .iter()
                .map(programs::udp_ask)
                .collect::<Result<Vec<_>>>()?
                == asked
        );
    }
    let received = std::thread::scope(|scope| {
        let ping = |host| scope.spawn(move || programs::ping(host, SERVER, 5, "-e 4242"));
        let threads: Vec<_> = lab.hosts.iter().map(ping).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Result<Vec<_>>>()
    })?;
    ensure!(received == [5, 5], "{received:?} of 5 pings");
    bed.finish()
}

/// A whole network as one client, as in the README's router.
#[test]
fn a_network_as_one_client() -> Result<()> {
    let bed = start(3, |mut config| {
        config.clients.clear();
        config.settings.push(format!(
            "clients:\n  - {{name: lab, addresses: [192.168.10.0/24], device: {INSIDE}, egress: {}}}",
            EGRESS[0]
        ));
        config
    })?;
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    let mut seen = Vec::new();
    for host in &bed.lab.hosts {
        seen.push(programs::udp_ask(&programs::udp_socket(host, 4000, ECHO)?)?);
    }
    ensure!(seen.iter().all(|seen| *seen.ip() == EGRESS[0]), "{seen:?}");
    seen.sort_unstable();
    seen.dedup();
    ensure!(seen.len() == 3, "{seen:?}");
    // The router itself is still there for its clients.
    ensure!(programs::ping(&bed.lab.hosts[0], Ipv4Addr::new(192, 168, 10, 1), 2, "")? == 2);
    bed.finish()
}

#[test]
fn the_agent_dies_and_returns_in_mid_transfer() -> Result<()> {
    let mut bed = start(1, |config| config)?;
    let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
    let _echo = TcpEcho::start(&lab.server, ECHO)?;
    let chatter = Chatter::start(host, ECHO, 20)?;
    chatter.wait_rounds(10)?;
    bed.agent.kill()?;
    chatter.wait_rounds(50)?;
    TcpTalk::connect(host, 0, ECHO)?
        .exchange(1000)
        .context("a new connection while the agent is away")?;
    bed.agent.restart()?;
    in_driver(&bed)?;
    chatter.wait_rounds(50)?;
    ensure!(chatter.finish()?.len() == 20);
    bed.finish()
}

/// An egress address that is the router's own: what is the node's still reaches the node.
#[test]
fn the_routers_own_address() -> Result<()> {
    let bed = start(1, |mut config| {
        config.pools[0].addresses = vec![NODE];
        config
    })?;
    let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
    let nginx = Nginx::start(lab, 4)?;
    let _listener = TcpEcho::start(&lab.node, SocketAddrV4::new(NODE, 7777))?;
    programs::download(lab, &nginx, host, SERVER, "")?;
    ensure!(*programs::seen_by_nginx(host, SERVER, "")?.ip() == NODE);
    let node = lab::Host {
        netns: lab.node.clone(),
        address: NODE,
        ..host.clone()
    };
    ensure!(*programs::seen_by_nginx(&node, SERVER, "")?.ip() == NODE);
    ensure!(programs::ping(&node, SERVER, 2, "")? == 2);
    let server = lab::Host {
        netns: lab.server.clone(),
        address: SERVER,
        ..host.clone()
    };
    TcpTalk::connect(&server, 0, SocketAddrV4::new(NODE, 7777))?.exchange(1000)?;
    bed.finish()
}
