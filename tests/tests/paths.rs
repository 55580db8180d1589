//! Local pods: real programs over both paths, colliding ports, offloads, and what may come in.

use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nat_tests::agent::{Agent, Bed};
use nat_tests::config::Config;
use nat_tests::lab::{
    self, BEYOND, Builder, EGRESS, Lab, NODE, OUTSIDE, PodNetwork, Port, SERVER, SERVER_2,
};
use nat_tests::process;
use nat_tests::programs::{self, Iperf, Nginx, PATIENCE, TcpEcho, TcpTalk, UdpEcho};
use nat_tests::sniffer::Sniffer;
use nat_tests::wire;

const STACK: &str = "path: stack";
const DIRECT: &str = "path: direct";
const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, 9000);
/// Every address that the server has.
const SERVERS: [Ipv4Addr; 3] = [SERVER, SERVER_2, BEYOND];

fn start(lab: Builder, path: &str) -> Result<Bed> {
    Bed::start(lab, |config| config.pool(path))
}

/// Counts what the node's netfilter forwards.
fn watch_forwarding(lab: &Lab) -> Result<()> {
    lab.node.nft(
        "table inet watch {
           counter forwarded { }
           chain forward {
             type filter hook forward priority 0
             counter name forwarded
           }
         }",
    )
}

fn forwarded(lab: &Lab) -> Result<u64> {
    let text = lab.node.run("nft -j list counter inet watch forwarded")?;
    let listing: serde_json::Value = serde_json::from_str(&text)?;
    let entries = listing["nftables"].as_array().context("no nftables")?;
    entries
        .iter()
        .find_map(|entry| entry["counter"]["packets"].as_u64())
        .context("no counter")
}

fn programs_work(lab: &Lab) -> Result<()> {
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
        ensure!(programs::ping(host, SERVER, 3, "-s 1400 -M do")? == 3);
        ensure!(iperf.run(host, 1, "")?.bytes > 4 << 20);
        ensure!(iperf.run(host, 1, "--parallel 4 --reverse")?.bytes > 4 << 20);
        let udp = iperf.run(host, 1, "--udp --bitrate 10M --length 1200")?;
        ensure!(udp.bytes > 1 << 20 && udp.lost == 0, "{udp:?}");
        for port in [0, 4000, 65535] {
            let socket = programs::udp_socket(host, port, ECHO)?;
            ensure!(
                (0..20)
                    .map(|_| programs::udp_ask(&socket))
                    .all(|seen| seen.is_ok_and(|s| *s.ip() == EGRESS[0]))
            );
        }
    }
    Ok(())
}

fn counted(bed: &Bed) -> Result<()> {
    let status = bed.agent.status()?;
    for host in &bed.lab.hosts {
        let client = status.client(&host.name)?;
        for way in ["out", "in"] {
            let (packets, bytes) = (
                client[way]["packets"].as_u64(),
                client[way]["bytes"].as_u64(),
            );
            ensure!(
                packets > Some(100) && bytes > Some(4 << 20),
                "{way}: {client}"
            );
        }
    }
    Ok(())
}

#[test]
fn programs_on_the_stack_path() -> Result<()> {
    let bed = start(lab::pods(2), STACK)?;
    watch_forwarding(&bed.lab)?;
    programs_work(&bed.lab)?;
    ensure!(
        forwarded(&bed.lab)? > 1000,
        "the stack path goes through netfilter"
    );
    counted(&bed)?;
    bed.finish()
}

#[test]
fn programs_on_the_direct_path() -> Result<()> {
    let bed = start(lab::pods(2), DIRECT)?;
    watch_forwarding(&bed.lab)?;
    programs_work(&bed.lab)?;
    // The first packet to a neighbour that is not known yet may be left to the kernel.
    let forwarded = forwarded(&bed.lab)?;
    ensure!(
        forwarded < 20,
        "the direct path goes past netfilter, not {forwarded} packets through it"
    );
    counted(&bed)?;
    bed.finish()
}

#[test]
fn programs_on_bridged_pods() -> Result<()> {
    for path in [STACK, DIRECT] {
        let bed = start(lab::pods(2).pod_network(PodNetwork::Bridge), path)?;
        programs_work(&bed.lab).with_context(|| path)?;
        bed.finish()?;
    }
    Ok(())
}

/// Two pods, one egress address, one source port, one server: both work, as two.
fn colliding(path: &str) -> Result<()> {
    let bed = start(lab::pods(2), path)?;
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
    apart(talks[0].seen, talks[1].seen)?;
    apart(asked[0], asked[1])?;
    for round in 1..50 {
        // Each exchange is checked for its own content: a mix-up would show.
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
    pings_with_one_id(lab)?;
    bed.finish()
}

fn apart(a: SocketAddrV4, b: SocketAddrV4) -> Result<()> {
    ensure!(*a.ip() == EGRESS[0] && *b.ip() == EGRESS[0], "{a} and {b}");
    ensure!(a.port() != b.port(), "both are {a}");
    Ok(())
}

fn pings_with_one_id(lab: &Lab) -> Result<()> {
    let received = std::thread::scope(|scope| {
        let ping = |host| scope.spawn(move || programs::ping(host, SERVER, 5, "-e 4242"));
        let threads: Vec<_> = lab.hosts.iter().map(ping).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect::<Result<Vec<_>>>()
    })?;
    ensure!(received == [5, 5], "{received:?} of 5 pings");
    let requests = lab
        .sniffer()
        .flows(|flow| flow.protocol == wire::ICMP && flow.destination_port == 8 << 8);
    ensure!(requests.len() == 2, "{requests:?}");
    apart(requests[0].0.from(), requests[1].0.from())
}

#[test]
fn colliding_ports_on_the_stack_path() -> Result<()> {
    colliding(STACK)
}

#[test]
fn colliding_ports_on_the_direct_path() -> Result<()> {
    colliding(DIRECT)
}

/// RFC 4787 REQ-1, while another pod holds the same source port.
#[test]
fn one_mapping_whatever_the_destination() -> Result<()> {
    for path in [STACK, DIRECT] {
        let bed = start(lab::pods(2), path)?;
        let lab = &bed.lab;
        let echoes = SERVERS.map(|server| SocketAddrV4::new(server, 9000));
        let _servers = echoes.map(|at| UdpEcho::start(&lab.server, at));
        let mut seen = Vec::new();
        for host in &lab.hosts {
            let socket = programs::udp_socket(host, 5000, ECHO)?;
            for echo in echoes {
                socket.connect(echo)?;
                seen.push(programs::udp_ask(&socket)?);
            }
        }
        ensure!(
            seen[..3].iter().all(|s| *s == seen[0]) && seen[3..].iter().all(|s| *s == seen[3]),
            "{seen:?}"
        );
        apart(seen[0], seen[3])?;
        bed.finish()?;
    }
    Ok(())
}

/// All of a pod's flows use the same address of its pool (RFC 4787 REQ-2), and a client may ask for one address.
#[test]
fn a_pod_keeps_to_one_address_of_its_pool() -> Result<()> {
    let bed = Bed::start(lab::pods(3), |mut config| {
        config.pools[0].addresses = EGRESS.to_vec();
        config.clients[2].egress = EGRESS[2].to_string();
        config
    })?;
    let lab = &bed.lab;
    let _servers =
        SERVERS.map(|server| UdpEcho::start(&lab.server, SocketAddrV4::new(server, 9000)));
    for host in &lab.hosts {
        let mut seen = Vec::new();
        for number in 0..20 {
            let server = SocketAddrV4::new(SERVERS[number % 3], 9000);
            seen.push(*programs::udp_ask(&programs::udp_socket(host, 0, server)?)?.ip());
        }
        seen.dedup();
        ensure!(
            seen.len() == 1 && EGRESS.contains(&seen[0]),
            "{} used {seen:?}",
            host.name
        );
        ensure!(
            host.name != lab.hosts[2].name || seen[0] == EGRESS[2],
            "{seen:?}"
        );
    }
    bed.finish()
}

/// Where checksums are left to offload, they must come out right; the sniffer checks those that are whole.
fn offloads(path: &str) -> Result<()> {
    let off: [&[Port]; 4] = [
        &[],
        // Whole from the pod on, as from a program that fills them in itself.
        &[Port::Inside, Port::Server],
        // Left open by pod and server, filled in by the kernel after our programs: both directions are then checked.
        &[Port::NodeOutside, Port::NodeInside],
        &[
            Port::Inside,
            Port::NodeInside,
            Port::NodeOutside,
            Port::Server,
        ],
    ];
    for ports in off {
        let bed = start(lab::pods(1).offload_off(ports), path)?;
        let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
        let nginx = Nginx::start(lab, 4)?;
        let _servers = (
            UdpEcho::start(&lab.server, ECHO)?,
            TcpEcho::start(&lab.server, ECHO)?,
        );
        let inside = Sniffer::guard(
            &host.netns,
            OUTSIDE,
            &[SERVER, Ipv4Addr::new(169, 254, 1, 1), NODE],
        )?;
        let all = || -> Result<()> {
            programs::download(lab, &nginx, host, SERVER, "")?;
            let socket = programs::udp_socket(host, 0, ECHO)?;
            (0..50).try_for_each(|_| programs::udp_ask(&socket).map(drop))?;
            let mut talk = TcpTalk::connect(host, 0, ECHO)?;
            (1..100).try_for_each(|length| talk.exchange(length))?;
            ensure!(programs::ping(host, SERVER, 3, "")? == 3);
            inside.finish()
        };
        all().with_context(|| format!("{path}, offload off at {ports:?}"))?;
        bed.finish()?;
    }
    Ok(())
}

#[test]
fn checksum_offload_on_and_off_on_the_stack_path() -> Result<()> {
    offloads(STACK)
}

#[test]
fn checksum_offload_on_and_off_on_the_direct_path() -> Result<()> {
    offloads(DIRECT)
}

/// Large packets from a pod reach the server unsplit, and the server's reach the pod.
fn gso(path: &str) -> Result<()> {
    let bed = start(lab::pods(1), path)?;
    let host = &bed.lab.hosts[0];
    let iperf = Iperf::start(&bed.lab, SERVER)?;
    let inside = Sniffer::count(&host.netns, OUTSIDE)?;
    iperf.run(host, 1, "")?;
    iperf.run(host, 1, "--reverse")?;
    let out = bed
        .lab
        .sniffer()
        .total(|flow| flow.source == EGRESS[0] && flow.protocol == wire::TCP);
    let back = inside.total(|flow| flow.source == SERVER && flow.protocol == wire::TCP);
    for (way, tally) in [("out", out), ("back", back)] {
        ensure!(
            tally.largest > 32_000,
            "{way}: the largest packet had {} bytes",
            tally.largest
        );
        let mean = tally.bytes / tally.frames;
        ensure!(mean > 4_000, "{way}: packets had {mean} bytes on average");
    }
    bed.finish()
}

#[test]
fn gso_packets_stay_whole_on_the_stack_path() -> Result<()> {
    gso(STACK)
}

#[test]
fn gso_packets_stay_whole_on_the_direct_path() -> Result<()> {
    gso(DIRECT)
}

/// Address-and-port-dependent filtering, and silence toward strangers (RFC 5382 REQ-4: no RST to an unsolicited SYN).
#[test]
fn strangers_reach_nobody() -> Result<()> {
    for path in [STACK, DIRECT] {
        let bed = start(lab::pods(1), path)?;
        let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
        let _echo = UdpEcho::start(&lab.server, ECHO)?;
        let socket = programs::udp_socket(host, 0, ECHO)?;
        let seen = programs::udp_ask(&socket)?;
        let before = bed.agent.status()?.drops("no-session");
        let inside = Sniffer::count(&host.netns, OUTSIDE)?;
        for stranger in [
            SocketAddrV4::new(SERVER, 9001),
            SocketAddrV4::new(SERVER_2, 9000),
        ] {
            lab.server
                .enter(|| UdpSocket::bind(stranger)?.send_to(b"let me in", seen))??;
        }
        let to = SocketAddrV4::new(EGRESS[0], 22).into();
        let connected = lab
            .server
            .enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)))?;
        let error = connected
            .expect_err("somebody answered a connection to the egress address")
            .kind();
        ensure!(error == std::io::ErrorKind::TimedOut, "{error:?}");
        ensure!(programs::udp_ask(&socket)? == seen);
        let from_strangers = inside.total(|flow| flow.protocol == wire::UDP && flow.from() != ECHO);
        ensure!(from_strangers.frames == 0, "{path}: {from_strangers:?}");
        let dropped = bed.agent.status()?.drops("no-session") - before;
        ensure!(dropped >= 3, "{path}: {dropped} counted");
        bed.finish()?;
    }
    Ok(())
}

/// The agent announces its addresses and answers for them; nobody else's.
#[test]
fn arp_for_the_egress_addresses() -> Result<()> {
    let lab = lab::pods(1).build()?;
    let config = Config::new(&lab);
    let agent = Agent::start(&lab, &config)?;
    process::eventually(PATIENCE, "gratuitous ARP", || {
        ensure!(lab.sniffer().arp_from(EGRESS[0]) > 0);
        Ok(())
    })?;
    lab.sniffer().clear();
    for (address, answered) in [(EGRESS[0], true), (EGRESS[1], false)] {
        lab.server
            .try_run(&format!("ping -n -c 1 -W 1 {address}"))?;
        let neighbour = lab.server.run(&format!("ip neigh show {address}"))?;
        ensure!(neighbour.contains("lladdr") == answered, "{neighbour}");
        ensure!((lab.sniffer().arp_from(address) > 0) == answered);
    }
    Bed { agent, lab }.finish()
}

/// The node's own address as egress address: what is the node's still reaches the node, both ways.
#[test]
fn the_nodes_own_address_is_shared_with_it() -> Result<()> {
    for path in [STACK, DIRECT] {
        let bed = Bed::start(lab::pods(2), |mut config| {
            config.pools[0].addresses = vec![NODE];
            config.pool(path)
        })?;
        let lab = &bed.lab;
        let nginx = Nginx::start(lab, 4)?;
        let _echo = UdpEcho::start(&lab.server, ECHO)?;
        let _listener = TcpEcho::start(&lab.node, SocketAddrV4::new(NODE, 7777))?;
        let all = || -> Result<()> {
            for host in &lab.hosts {
                ensure!(*programs::seen_by_nginx(host, SERVER, "")?.ip() == NODE);
                programs::download(lab, &nginx, host, SERVER, "")?;
                let socket = programs::udp_socket(host, 41000, ECHO)?;
                let seen = programs::udp_ask(&socket)?;
                // 32768-60999 are the node's to use for itself (ip_local_port_range).
                ensure!(
                    *seen.ip() == NODE && !(32768..61000).contains(&seen.port()),
                    "{seen}"
                );
                ensure!(programs::ping(host, SERVER, 2, "")? == 2);
            }
            let node = lab::Host {
                netns: lab.node.clone(),
                address: NODE,
                ..lab.hosts[0].clone()
            };
            ensure!(*programs::seen_by_nginx(&node, SERVER, "")?.ip() == NODE);
            ensure!(programs::ping(&node, SERVER, 2, "")? == 2);
            let server = lab::Host {
                netns: lab.server.clone(),
                address: SERVER,
                ..lab.hosts[0].clone()
            };
            ensure!(programs::ping(&server, NODE, 2, "")? == 2);
            TcpTalk::connect(&server, 0, SocketAddrV4::new(NODE, 7777))?.exchange(1000)
        };
        all().with_context(|| path)?;
        bed.finish()?;
    }
    Ok(())
}

/// 4787-13: a packet too large for the path is refused with ICMP 3/4, and transfers adapt.
#[test]
fn a_smaller_mtu_outside() -> Result<()> {
    for path in [STACK, DIRECT] {
        let lab = lab::pods(1).build()?;
        lab.node.ip(&format!("link set {OUTSIDE} mtu 1300"))?;
        lab.server.ip(&format!("link set {OUTSIDE} mtu 1300"))?;
        let config = Config::new(&lab).pool(path);
        let bed = Bed {
            agent: Agent::start(&lab, &config)?,
            lab,
        };
        let host = &bed.lab.hosts[0];
        let nginx = Nginx::start(&bed.lab, 4)?;
        programs::download(&bed.lab, &nginx, host, SERVER, "")?;
        let iperf = Iperf::start(&bed.lab, SERVER)?;
        ensure!(iperf.run(host, 1, "")?.bytes > 1 << 20, "{path}: upload");
        ensure!(programs::ping(host, SERVER, 2, "-s 1200 -M do")? == 2);
        let refused = host
            .netns
            .try_run(&format!("ping -n -c 2 -i 0.2 -W 1 -s 1400 -M do {SERVER}"))?;
        let said = format!("{}{}", refused.stdout, refused.stderr);
        ensure!(
            said.contains("mtu") && said.contains("1300"),
            "{path}: {said}"
        );
        bed.finish()?;
    }
    Ok(())
}

/// Two agents on one machine share nothing but the kernel.
#[test]
fn two_instances_do_not_meet() -> Result<()> {
    let mut first = start(lab::pods(1), DIRECT)?;
    let second = start(lab::pods(1).beside_others(), STACK)?;
    let mut talks = Vec::new();
    let _echoes = [&first, &second].map(|bed| TcpEcho::start(&bed.lab.server, ECHO));
    for bed in [&first, &second] {
        talks.push(TcpTalk::connect(&bed.lab.hosts[0], 4000, ECHO)?);
    }
    talks
        .iter_mut()
        .try_for_each(|talk| talk.exchange(10_000))?;
    first.agent.terminate()?;
    first.agent.detach()?;
    first.finish()?;
    talks[1].exchange(10_000)?;
    ensure!(second.agent.status()?.flows("default/pod1")? == 1);
    second.finish()
}
