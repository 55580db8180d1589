//! Packets made by hping3 and scapy to scan, to flood and to get around the translation: they are dropped and
//! counted by their reason, nothing of them leaves, and nobody else notices.

use std::collections::HashSet;
use std::convert::identity;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, ensure};
use nat_tests::agent::{self, Bed, Way};
use nat_tests::crafted;
use nat_tests::lab::{EGRESS, OUTSIDE, SERVER, SERVER_2};
use nat_tests::netns::Netns;
use nat_tests::process::{self, Process};
use nat_tests::programs::{self, Chatter, Nginx, TcpEcho, TcpTalk, UdpEcho};
use nat_tests::sniffer::Sniffer;
use nat_tests::wire;

const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, 9000);
/// How many packets hping3 sends of each kind.
const COUNT: u64 = 5;
const TIME_EXCEEDED: u16 = 11 << 8;

/// Fails unless `reason` counts `count` packets more after `send` and none of them has reached the outside.
fn dropped(bed: &Bed, reason: &str, count: u64, send: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = bed.agent.status()?.drops(reason);
    bed.lab.sniffer().clear();
    send()?;
    let counted = bed.agent.status()?.drops(reason) - before;
    ensure!(counted == count, "{counted} of {count} counted as {reason}");
    let left = bed.lab.sniffer().flows(|flow| flow.protocol != wire::ICMP);
    ensure!(left.is_empty(), "{reason}: {left:?} left");
    Ok(())
}

/// Fails unless everything that hping3 sends from `netns` with each of `options` is dropped for `reason`.
fn hping3_dropped(bed: &Bed, netns: &Netns, reason: &str, options: &[String]) -> Result<()> {
    dropped(bed, reason, COUNT * options.len() as u64, || {
        crafted::hping3(netns, COUNT, options)
    })
}

/// Flags that no segment has, of a live connection's ports, from inside and from outside.
#[test]
fn scans_by_tcp_flags_are_dropped() -> Result<()> {
    const FLAGS: [&str; 6] = ["", "-F -P -U", "-S -F", "-S -R", "-F", "-P -U"];
    agent::every_way(1, identity, |_, bed| {
        let host = &bed.lab.hosts[0];
        let _echo = TcpEcho::start(&bed.lab.server, ECHO)?;
        let mut talk = TcpTalk::connect(host, 40000, ECHO)?;
        let scan = |from: u16, to: SocketAddrV4| {
            FLAGS.map(|flags| format!("{flags} -k -s {from} -p {} {}", to.port(), to.ip()))
        };
        hping3_dropped(bed, &host.netns, "bad-tcp-flags", &scan(40000, ECHO))
            .context("from inside")?;
        let back = scan(ECHO.port(), talk.seen);
        hping3_dropped(bed, &bed.lab.server, "bad-tcp-flags", &back).context("from outside")?;
        talk.exchange(1000).context("the connection in between")
    })
}

/// A pod that floods meets its own cap; its neighbour's connections do not.
#[test]
fn a_syn_flood_hurts_its_sender_alone() -> Result<()> {
    const CAP: usize = 2048;
    const CONNECTIONS: usize = 1000;
    agent::every_way(
        2,
        |config| config.pool(format!("portsPerClient: {CAP}")),
        |_, bed| {
            let lab = &bed.lab;
            let _echo = TcpEcho::start(&lab.server, ECHO)?;
            let options = format!("-q -S -c 200000 -i u50 -s 1025 -p 81 {SERVER_2}");
            let mut flood = Process::spawn(
                &mut crafted::hping3_command(&lab.hosts[0].netns, &options),
                &lab.directory().join("hping3.log"),
            )?;
            process::eventually(programs::PATIENCE, "the flood to meet its cap", || {
                ensure!(bed.agent.status()?.drops("client-cap") > 1000);
                Ok(())
            })?;
            let connected = (0..CONNECTIONS)
                .filter(|_| {
                    TcpTalk::connect(&lab.hosts[1], 0, ECHO)
                        .and_then(|mut talk| talk.exchange(100))
                        .is_ok()
                })
                .count();
            ensure!(flood.is_running(), "the flood was over too soon");
            drop(flood);
            ensure!(
                connected * 1000 >= CONNECTIONS * 999,
                "{connected} of {CONNECTIONS} connections beside the flood"
            );
            let ports: HashSet<_> = lab
                .sniffer()
                .flows(|flow| flow.protocol == wire::TCP && flow.destination == SERVER_2)
                .iter()
                .map(|(flow, _)| flow.from())
                .collect();
            ensure!(ports.len() == CAP, "the flood got {} ports", ports.len());
            Ok(())
        },
    )
}

/// The land attack: a packet that claims to come from where it goes.
#[test]
fn packets_from_their_own_destination_are_dropped() -> Result<()> {
    agent::every_way(1, identity, |way, bed| {
        let host = &bed.lab.hosts[0];
        let _echo = TcpEcho::start(&bed.lab.server, ECHO)?;
        let mut talk = TcpTalk::connect(host, 40000, ECHO)?;
        let land = |at: SocketAddrV4| {
            let (address, port) = (at.ip(), at.port());
            [format!("-S -k -a {address} -s {port} -p {port} {address}")]
        };
        hping3_dropped(bed, &bed.lab.server, "no-session", &land(talk.seen))?;
        // On a router's inside device strangers are none of ours.
        if way != Way::Xdp {
            hping3_dropped(bed, &host.netns, "spoofed", &land(ECHO))?;
        }
        talk.exchange(1000)
    })
}

#[test]
fn port_0_is_dropped() -> Result<()> {
    const PORTS: [&str; 4] = [
        "-S -s 5000 -p 0",
        "-S -s 0 -p 9000",
        "-2 -s 5000 -p 0",
        "-2 -s 0 -p 9000",
    ];
    agent::every_way(1, identity, |_, bed| {
        for (netns, to) in [
            (&bed.lab.hosts[0].netns, SERVER),
            (&bed.lab.server, EGRESS[0]),
        ] {
            let options = PORTS.map(|ports| format!("-k {ports} {to}"));
            hping3_dropped(bed, netns, "port-zero", &options)?;
        }
        Ok(())
    })
}

/// The node is a hop: what arrives with its last one ends here and its sender hears of it, what has one more leaves.
#[test]
fn a_packet_on_its_last_hop_does_not_leave() -> Result<()> {
    agent::every_way(1, identity, |_, bed| {
        let host = &bed.lab.hosts[0];
        let inside = Sniffer::count(&host.netns, OUTSIDE)?;
        let options = |ttl| format!("-2 -k -t {ttl} -s 5000 -p 900{ttl} {SERVER}");
        crafted::hping3(&host.netns, COUNT, &[options(0), options(1)])?;
        // By itself: hping3 ends early on answers to another one's packets.
        crafted::hping3(&host.netns, COUNT, &[options(2)])?;
        let left = bed.lab.sniffer().flows(|flow| flow.protocol == wire::UDP);
        ensure!(
            left.len() == 1 && left[0].0.destination_port == 9002 && left[0].1.frames == COUNT,
            "{left:?} left"
        );
        let told = inside.total(|flow| flow.destination_port == TIME_EXCEEDED);
        ensure!(told.frames > 0, "the sender was not told");
        Ok(())
    })
}

/// An answer whose hops run out here: whoever sent it does not learn whose it was.
#[test]
fn an_answer_on_its_last_hop_tells_the_outside_nothing() -> Result<()> {
    agent::every_way(1, identity, |_, bed| {
        let lab = &bed.lab;
        let _echo = UdpEcho::start(&lab.server, ECHO)?;
        let socket = programs::udp_socket(&lab.hosts[0], 4000, ECHO)?;
        programs::udp_ask(&socket)?;
        let before = bed.agent.status()?.drops("ttl-expired");
        lab.server.sysctl("net.ipv4.ip_default_ttl", "1")?;
        ensure!(programs::udp_ask(&socket).is_err(), "the answer came");
        ensure!(bed.agent.status()?.drops("ttl-expired") > before);
        let told = lab.sniffer().total(|flow| flow.protocol == wire::ICMP);
        ensure!(told.frames == 0, "{told:?}: the sender was told");
        Ok(())
    })
}

/// Fragments, last first, both ways, while the same client and another one transfer.
#[test]
fn fragments_disturb_nobody() -> Result<()> {
    const DATAGRAMS: u64 = 100;
    const PIECES: u64 = 3;
    agent::every_way(2, identity, |way, bed| {
        let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
        let (nginx, _servers) = (
            Nginx::start(lab, 16)?,
            (
                TcpEcho::start(&lab.server, ECHO)?,
                UdpEcho::start(&lab.server, ECHO)?,
            ),
        );
        let socket = programs::udp_socket(host, 4000, ECHO)?;
        let seen = programs::udp_ask(&socket)?;
        let chatter = Chatter::start(host, ECHO, 5)?;
        chatter.wait_rounds(5)?;
        let own = SocketAddrV4::new(host.address, 4000);
        let counted = std::thread::scope(|scope| -> Result<u64> {
            let before = bed.agent.status()?.drops("fragment");
            let download = scope.spawn(|| {
                programs::download(lab, &nginx, &lab.hosts[1], SERVER, "--limit-rate 2M")
            });
            let out = scope.spawn(|| fragments(bed, own, ECHO, DATAGRAMS));
            fragments(bed, ECHO, seen, DATAGRAMS)?;
            out.join().unwrap()?;
            ensure!(!download.is_finished(), "the transfer was over too soon");
            download.join().unwrap()?;
            Ok(bed.agent.status()?.drops("fragment") - before)
        })?;
        // On the stack path conntrack puts them together, and the kernel cuts them again until one is lost.
        let out = if way == Way::Stack { 1 } else { PIECES };
        ensure!(
            counted >= DATAGRAMS * (PIECES + out),
            "{counted} fragments counted"
        );
        chatter.wait_rounds(5)?;
        chatter.finish()?;
        let left = lab.sniffer().total(|flow| flow.protocol == wire::UDP);
        ensure!(left.frames == 1, "{left:?}: fragments left");
        ensure!(programs::udp_ask(&socket)? == seen);
        Ok(())
    })
}

/// Where an address lives: with a host, or at the server.
fn home(bed: &Bed, address: SocketAddrV4) -> &Netns {
    let mut hosts = bed.lab.hosts.iter();
    let host = hosts.find(|host| host.address == *address.ip());
    host.map_or(&bed.lab.server, |host| &host.netns)
}

/// Sends datagrams in pieces, the last one first.
fn fragments(bed: &Bed, from: SocketAddrV4, to: SocketAddrV4, datagrams: u64) -> Result<()> {
    let script = format!(
        "whole = [IP(src='{}', dst='{}', id=i + 1) / UDP(sport={}, dport={}) / Raw(b'x' * 4000)\n\
         \x20        for i in range({datagrams})]\n\
         send([piece for one in whole for piece in reversed(fragment(one, 1400))])",
        from.ip(),
        to.ip(),
        from.port(),
        to.port(),
    );
    crafted::scapy(home(bed, from), &script).map(drop)
}

/// Source routes do not get past, in either direction; other options are carried along.
#[test]
fn source_routes_are_dropped_and_other_options_carried() -> Result<()> {
    agent::every_way(1, identity, |way, bed| {
        let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
        // The kernel's own refusal must not be what stops them.
        lab.node
            .sysctl("net.ipv4.conf.all.accept_source_route", "1")?;
        let echo = UdpEcho::start(&lab.server, ECHO)?;
        let socket = programs::udp_socket(host, 4000, ECHO)?;
        let seen = programs::udp_ask(&socket)?;
        drop(echo);
        let _silent = lab.server.enter(|| std::net::UdpSocket::bind(ECHO))??;
        let own = SocketAddrV4::new(host.address, 4000);
        for option in [
            "LSRR(routers=['198.51.100.1'])",
            "SSRR(routers=['198.51.100.1'])",
        ] {
            // The kernel itself refuses a strict route on which it is no stop.
            if way != Way::Stack || option.starts_with("LSRR") {
                dropped(bed, "source-route", COUNT, || {
                    with_option(bed, own, ECHO, option)
                })?;
            }
            dropped(bed, "source-route", COUNT, || {
                with_option(bed, ECHO, seen, option)
            })?;
        }
        for option in ["NOP()", "RR(routers=['0.0.0.0'] * 3)"] {
            lab.sniffer().clear();
            let inside = Sniffer::guard(&host.netns, OUTSIDE, &[SERVER, *GATEWAY[0], *GATEWAY[1]])?;
            with_option(bed, own, ECHO, option)?;
            with_option(bed, ECHO, seen, option)?;
            let out = lab.sniffer().total(|flow| flow.from() == seen);
            let back = inside.total(|flow| flow.from() == ECHO);
            for tally in [out, back] {
                ensure!(
                    tally.frames == COUNT && tally.largest > 14 + 20 + 8 + 7,
                    "{option}: {tally:?}"
                );
            }
            inside.finish()?;
        }
        Ok(())
    })
}

/// Who may speak to a client beside the server: its gateway, of a pod and of a routed client.
const GATEWAY: [&Ipv4Addr; 2] = [
    &Ipv4Addr::new(169, 254, 1, 1),
    &Ipv4Addr::new(192, 168, 10, 1),
];

/// Sends datagrams with an option in the IP header.
fn with_option(bed: &Bed, from: SocketAddrV4, to: SocketAddrV4, option: &str) -> Result<()> {
    let script = format!(
        "send(IP(src='{}', dst='{}', options=[IPOption_{option}])\n\
         \x20    / UDP(sport={}, dport={}) / b'option', count={COUNT})",
        from.ip(),
        to.ip(),
        from.port(),
        to.port(),
    );
    crafted::scapy(home(bed, from), &script).map(drop)
}
