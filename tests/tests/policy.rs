//! Beside other people's netfilter rules, and against packets that try to get around the translation.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use nat_tests::agent::{Agent, Bed};
use nat_tests::config::Config;
use nat_tests::lab::{self, EGRESS, Lab, NODE, SERVER, SERVER_2};
use nat_tests::programs::{self, Nginx, TcpEcho, TcpTalk, UdpEcho};
use nat_tests::wire;

const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, 9000);

/// A CNI's masquerade and a policy that denies one destination.
const RULES: &str = "
table ip cni {
  chain postrouting {
    type nat hook postrouting priority srcnat
    ip saddr 10.244.0.0/16 oifname eth0 counter masquerade
  }
  chain forward {
    type filter hook forward priority 0; policy drop
    ct state established,related accept
    ip daddr 203.0.113.3 counter drop
    ip saddr 10.244.0.0/16 ct state new accept
  }
}";

/// The policy sees the pod's own addresses and holds; the masquerade takes others' packets and not ours.
#[test]
fn a_policy_and_a_masquerade_stay_in_force() -> Result<()> {
    // The third pod is no client: its packets show that the masquerade works.
    let bed = Bed::start(lab::pods(3), |mut config| {
        config.clients.pop();
        config
    })?;
    let lab = &bed.lab;
    lab.node.nft(RULES)?;
    let nginx = Nginx::start(lab, 4)?;
    let _echo = (
        UdpEcho::start(&lab.server, ECHO)?,
        TcpEcho::start(&lab.server, ECHO)?,
    );
    for host in &lab.hosts[..2] {
        ensure!(*programs::seen_by_nginx(host, SERVER, "")?.ip() == EGRESS[0]);
        programs::download(lab, &nginx, host, SERVER, "")?;
        ensure!(*programs::udp_ask(&programs::udp_socket(host, 4000, ECHO)?)?.ip() == EGRESS[0]);
        ensure!(programs::ping(host, SERVER, 2, "")? == 2);
        ensure!(
            programs::ping(host, SERVER_2, 2, "-W 1")? == 0,
            "the policy was bypassed"
        );
        let denied = TcpTalk::connect(host, 0, SocketAddrV4::new(SERVER_2, 80));
        ensure!(denied.is_err(), "the policy was bypassed");
    }
    ensure!(
        *programs::seen_by_nginx(&lab.hosts[2], SERVER, "")?.ip() == NODE,
        "the masquerade of the others"
    );
    let denied = lab.sniffer().total(|flow| flow.destination == SERVER_2);
    ensure!(
        denied.frames == 0,
        "{denied:?} went to the denied destination"
    );
    // conntrack knows the pods' connections by the pods' addresses, untranslated both ways.
    let tracked = lab
        .node
        .enter(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"))?;
    if let Ok(tracked) = tracked {
        ensure!(
            tracked.contains("src=10.244.1.11") && !tracked.contains(&EGRESS[0].to_string()),
            "{tracked}"
        );
    }
    bed.finish()
}

/// The policy stands in force for a pod that is moved behind an egress address while its connection is open.
#[test]
fn rules_that_came_first_work_as_well() -> Result<()> {
    let lab = lab::pods(1).build()?;
    lab.node.nft(RULES)?;
    let config = Config::new(&lab);
    let bed = Bed {
        agent: Agent::start(&lab, &config)?,
        lab,
    };
    let host = &bed.lab.hosts[0];
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    ensure!(*programs::udp_ask(&programs::udp_socket(host, 4000, ECHO)?)?.ip() == EGRESS[0]);
    ensure!(programs::ping(host, SERVER_2, 1, "-W 1")? == 0);
    bed.finish()
}

/// Sends a datagram from `host` with `source` as its source address.
fn send_as(lab: &Lab, host: usize, source: Ipv4Addr) -> Result<()> {
    let packet = wire::packet(wire::UDP, SocketAddrV4::new(source, 4000), ECHO, b"spoofed");
    programs::send_raw(&programs::raw_socket(&lab.hosts[host])?, &packet)
}

#[test]
fn a_spoofed_source_is_dropped_and_counted() -> Result<()> {
    for path in ["path: stack", "path: direct"] {
        let bed = Bed::start(lab::pods(2), |config| config.pool(path))?;
        let lab = &bed.lab;
        let _echo = UdpEcho::start(&lab.server, ECHO)?;
        ensure!(
            *programs::udp_ask(&programs::udp_socket(&lab.hosts[0], 4000, ECHO)?)?.ip()
                == EGRESS[0]
        );
        lab.sniffer().clear();
        // Another pod's, nobody's, the node's, an egress address, and a stranger's.
        let sources = [
            lab.hosts[1].address,
            Ipv4Addr::new(10, 244, 1, 99),
            NODE,
            EGRESS[0],
            Ipv4Addr::new(8, 8, 8, 8),
        ];
        for source in sources {
            let before = bed.agent.status()?.drops("spoofed");
            send_as(lab, 0, source)?;
            let counted = bed.agent.status()?.drops("spoofed") - before;
            ensure!(counted == 1, "{path}: {counted} counted for {source}");
        }
        let out = lab.sniffer().total(|flow| flow.protocol == wire::UDP);
        ensure!(out.frames == 0, "{path}: {out:?} left");
        bed.finish()?;
    }
    Ok(())
}

/// A client's address that comes in elsewhere is not translated there, and must not leave untranslated.
#[test]
fn a_clients_address_from_another_device_does_not_leave() -> Result<()> {
    for path in ["path: stack", "path: direct"] {
        let bed = Bed::start(lab::pods(2), |mut config| {
            config.clients.pop();
            config.pool(path)
        })?;
        // The kernel's own check must not be what stops it.
        for device in ["all", bed.lab.hosts[1].device.as_str()] {
            let name = format!("net.ipv4.conf.{device}.rp_filter");
            bed.lab.node.sysctl(&name, "0")?;
        }
        send_as(&bed.lab, 1, bed.lab.hosts[0].address)?;
        ensure!(programs::ping(&bed.lab.hosts[0], SERVER, 1, "")? == 1);
        ensure!(
            bed.lab
                .sniffer()
                .total(|flow| flow.protocol == wire::UDP)
                .frames
                == 0
        );
        let counted = bed.agent.status()?.drops("untranslated");
        ensure!(counted == 1, "{path}: {counted} counted");
        bed.finish()?;
    }
    Ok(())
}

/// What cannot be translated does not leave as it is.
#[test]
fn untranslatable_packets_are_dropped_and_counted() -> Result<()> {
    const SCTP: u8 = 132;
    let timestamp_request = [
        13, 0, 0xf2, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    for path in ["path: stack", "path: direct"] {
        let bed = Bed::start(lab::pods(1), |config| config.pool(path))?;
        let host = &bed.lab.hosts[0];
        let (own, socket) = (
            SocketAddrV4::new(host.address, 0),
            programs::raw_socket(host)?,
        );
        let cases: [(&str, u8, &[u8]); 2] = [
            ("unsupported-protocol", SCTP, &[0; 16]),
            ("unsupported-icmp", wire::ICMP, &timestamp_request),
        ];
        for (reason, protocol, payload) in cases {
            programs::send_raw(&socket, &wire::packet(protocol, own, ECHO, payload))?;
            let counted = bed.agent.status()?.drops(reason);
            ensure!(counted == 1, "{path}: {counted} counted as {reason}");
        }
        ensure!(
            bed.lab.sniffer().total(|_| true).frames == 0,
            "{path}: something left"
        );
        ensure!(programs::ping(host, SERVER, 1, "")? == 1);
        bed.finish()?;
    }
    Ok(())
}

/// RFC 6888 REQ-6: an excluded destination is reached with the client's own address, all others are not.
#[test]
fn excluded_destinations_are_left_alone() -> Result<()> {
    for path in ["path: stack", "path: direct"] {
        let bed = Bed::start(lab::pods(2), |config| {
            config.pool(path).pool("exclude: [203.0.113.3/32]")
        })?;
        let lab = &bed.lab;
        lab.sniffer().allow_toward(SERVER_2);
        lab.server.ip(&format!(
            "route add 10.244.1.0/24 via {NODE} src {SERVER_2}"
        ))?;
        let other = SocketAddrV4::new(SERVER_2, 9000);
        let _echoes = [ECHO, other].map(|at| UdpEcho::start(&lab.server, at));
        for host in &lab.hosts {
            let socket = programs::udp_socket(host, 4000, other)?;
            let seen = programs::udp_ask(&socket)?;
            ensure!(
                seen == SocketAddrV4::new(host.address, 4000),
                "{path}: excluded, but seen as {seen}"
            );
            socket.connect(ECHO)?;
            ensure!(*programs::udp_ask(&socket)?.ip() == EGRESS[0]);
            ensure!(programs::ping(host, SERVER_2, 2, "")? == 2);
        }
        bed.finish().with_context(|| path)?;
    }
    Ok(())
}
