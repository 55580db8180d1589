//! The labs themselves: with plain forwarding instead of NAT, everything that the other tests rely on works, and the
//! sniffer catches what it must.

use std::fs;
use std::net::SocketAddrV4;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use nat_tests::lab::{self, Builder, EGRESS, Lab, PodNetwork, SERVER};
use nat_tests::netns;
use nat_tests::process::{self, eventually};
use nat_tests::programs::{self, Iperf, Nginx, TcpEcho, TcpTalk, UdpEcho};
use nat_tests::wire;

const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, 9000);
const PATIENCE: Duration = Duration::from_secs(5);

/// The server knows the way back to the inside, and inside addresses may be seen outside.
fn forwarding(builder: Builder) -> Result<Lab> {
    let lab = builder.build()?;
    lab.server
        .ip("route add 10.244.1.0/24 via 203.0.113.1\nroute add 192.168.10.0/24 via 203.0.113.1")?;
    lab.hosts
        .iter()
        .for_each(|host| lab.sniffer().allow(host.address));
    Ok(lab)
}

fn everything_works(lab: Lab) -> Result<()> {
    let (nginx, iperf) = (Nginx::start(&lab, 2)?, Iperf::start(&lab, SERVER)?);
    let (_udp, _tcp) = (
        UdpEcho::start(&lab.server, ECHO)?,
        TcpEcho::start(&lab.server, ECHO)?,
    );
    for host in &lab.hosts {
        ensure!(*programs::seen_by_nginx(host, SERVER, "")?.ip() == host.address);
        ensure!(*programs::seen_by_nginx(host, lab::BEYOND, "")?.ip() == host.address);
        programs::download(&lab, &nginx, host, SERVER, "")?;
        ensure!(programs::ping(host, SERVER, 3, "")? == 3);
        ensure!(programs::ping(host, "203.0.113.77".parse()?, 2, "-W 1")? == 0);
        let socket = programs::udp_socket(host, 4000, ECHO)?;
        ensure!(programs::udp_ask(&socket)? == SocketAddrV4::new(host.address, 4000));
        let mut talk = TcpTalk::connect(host, 4000, ECHO)?;
        ensure!(talk.seen == SocketAddrV4::new(host.address, 4000));
        talk.exchange(100_000)?;
    }
    let host = &lab.hosts[0];
    ensure!(iperf.run(host, 1, "")?.bytes > 1 << 20);
    ensure!(iperf.run(host, 1, "-R")?.bytes > 1 << 20);
    ensure!(iperf.run(host, 1, "-u -b 20M -l 1200")?.bytes > 1 << 20);
    lab.finish()
}

#[test]
fn pods_with_routes() -> Result<()> {
    everything_works(forwarding(lab::pods(2))?)
}

#[test]
fn pods_on_a_bridge() -> Result<()> {
    everything_works(forwarding(lab::pods(2).pod_network(PodNetwork::Bridge))?)
}

#[test]
fn routed_clients() -> Result<()> {
    everything_works(forwarding(lab::routed(2))?)
}

#[test]
fn gso_packets_are_seen_whole_and_offload_off_splits_them() -> Result<()> {
    for (ports, large) in [(&[][..], true), (&[lab::Port::Inside][..], false)] {
        let lab = forwarding(lab::pods(1).offload_off(ports))?;
        Iperf::start(&lab, SERVER)?.run(&lab.hosts[0], 1, "")?;
        let seen = lab
            .sniffer()
            .total(|flow| flow.protocol == wire::TCP && flow.destination == SERVER);
        ensure!((seen.largest > 10_000) == large, "{ports:?}: {seen:?}");
        lab.finish()?;
    }
    Ok(())
}

#[test]
fn the_sniffer_catches_a_foreign_source() -> Result<()> {
    // The pod's packets are forwarded as they are, and only egress addresses are allowed.
    let lab = lab::pods(1).build()?;
    let socket = programs::udp_socket(&lab.hosts[0], 4000, ECHO)?;
    socket.send(b"as myself")?;
    let caught = lab
        .finish()
        .expect_err("the pod's own address on the outside link went unnoticed")
        .to_string();
    ensure!(
        caught.contains("foreign source: protocol 17 10.244.1.11:4000 > 203.0.113.2:9000"),
        "{caught}"
    );
    Ok(())
}

#[test]
fn the_sniffer_catches_a_foreign_source_when_dropped() {
    let dropped = std::panic::catch_unwind(|| {
        let lab = lab::pods(1).build().unwrap();
        programs::udp_socket(&lab.hosts[0], 4000, ECHO)
            .unwrap()
            .send(b"as myself")
            .unwrap();
    });
    assert!(dropped.is_err());
}

#[test]
fn the_sniffer_catches_foreign_arp() -> Result<()> {
    let lab = lab::pods(0).build()?;
    // Linux asks with the address it will send from, on whatever device that is configured.
    lab.node.ip("address add 192.0.2.9/32 dev lo")?;
    lab.node
        .try_run("ping -n -c 1 -W 1 -I 192.0.2.9 203.0.113.99")?;
    let caught = lab
        .finish()
        .expect_err("a foreign sender in ARP went unnoticed")
        .to_string();
    ensure!(caught.contains("192.0.2.9"), "{caught}");
    Ok(())
}

#[test]
fn the_sniffer_catches_a_wrong_checksum() -> Result<()> {
    let lab = forwarding(lab::pods(1))?;
    let host = &lab.hosts[0];
    let mut packet = wire::packet(
        wire::UDP,
        SocketAddrV4::new(host.address, 4000),
        ECHO,
        b"payload",
    );
    *packet.last_mut().unwrap() ^= 1;
    programs::send_raw(&programs::raw_socket(host)?, &packet)?;
    let caught = lab
        .finish()
        .expect_err("a wrong checksum went unnoticed")
        .to_string();
    ensure!(caught.contains("wrong checksum (Payload)"), "{caught}");
    Ok(())
}

#[test]
fn the_sniffer_does_not_vouch_for_nothing() -> Result<()> {
    let caught = lab::pods(0)
        .build()?
        .finish()
        .expect_err("a capture without a frame proves nothing")
        .to_string();
    ensure!(caught.contains("no frame"), "{caught}");
    Ok(())
}

#[test]
fn a_refusal_reaches_a_connected_udp_socket() -> Result<()> {
    // 3/13 as the agent's programs will send it, here from the node's netfilter.
    let lab = forwarding(lab::pods(1))?;
    lab.node.nft(
        "table inet t {
           chain c {
             type filter hook forward priority 0
             ip protocol udp reject with icmp admin-prohibited
           }
         }",
    )?;
    let host = &lab.hosts[0];
    let inside = nat_tests::sniffer::Sniffer::count(&host.netns, lab::OUTSIDE)?;
    let socket = programs::udp_socket(host, 4000, ECHO)?;
    let error = programs::udp_ask(&socket).unwrap_err();
    ensure!(
        error
            .downcast_ref::<std::io::Error>()
            .and_then(|e| e.raw_os_error())
            == Some(libc::EHOSTUNREACH)
    );
    ensure!(
        inside
            .total(|f| f.protocol == wire::ICMP && f.destination_port == 3 << 8 | 13)
            .frames
            == 1
    );
    programs::ping(host, SERVER, 1, "")?;
    lab.finish()
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    let lab = lab::pods(1).build()?;
    let (prefix, directory) = (lab.prefix().to_string(), lab.directory().to_path_buf());
    programs::ping(&lab.hosts[0], EGRESS[0], 1, "-W 1")?;
    ensure!(netns::names().any(|name| name.starts_with(&prefix)) && directory.exists());
    drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(
        || {
            let _lab = lab;
            panic!("as a failing test would");
        },
    )));
    let left = || {
        netns::names()
            .filter(|name| name.starts_with(&prefix))
            .count()
    };
    ensure!(left() == 0 && !directory.exists());
    Ok(())
}

#[test]
fn what_a_killed_process_left_is_removed() -> Result<()> {
    // No process has the largest id there is.
    let name = "nt4194304-7-pod1";
    let netns = netns::Netns::create(name)?;
    netns.keep();
    let directory = std::env::temp_dir().join("nt4194304-7");
    fs::create_dir_all(&directory)?;
    let log = directory.join("log");
    let mut sleeper = process::Process::spawn(netns.command("sleep").arg("1000"), &log)?;
    eventually(Duration::from_secs(2), "the process inside", || {
        let pids = process::run(Command::new("ip").args(["netns", "pids", name]), PATIENCE)?;
        ensure!(!pids.success()?.is_empty());
        Ok(())
    })?;
    drop(netns);
    lab::remove_leftovers();
    ensure!(!netns::names().any(|other| other == name) && !directory.exists());
    eventually(Duration::from_secs(2), "the end of the process", || {
        ensure!(!sleeper.is_running());
        Ok(())
    })
}

#[test]
fn programs_that_hang_or_fail_say_so() -> Result<()> {
    let lab = lab::pods(0).build()?;
    let mut command = lab.node.command("sh");
    let error = process::run(
        command.args(["-c", "echo partly; sleep 60"]),
        Duration::from_millis(300),
    )
    .unwrap_err();
    ensure!(
        format!("{error:#}").contains("partly") && format!("{error:#}").contains("still running"),
        "{error:#}"
    );
    let error = lab.node.run("ls /nowhere").unwrap_err();
    ensure!(format!("{error:#}").contains("/nowhere"), "{error:#}");
    let mut early = process::Process::spawn(
        lab.node.command("sh").args(["-c", "echo sorry"]),
        &lab.directory().join("l"),
    )?;
    let error = early
        .wait_listening(&lab.node, process::Port::Tcp(1), Duration::from_secs(5))
        .unwrap_err();
    ensure!(format!("{error:#}").contains("sorry"), "{error:#}");
    drop(lab.node.try_run("ping -n -c 1 203.0.113.2")?);
    lab.finish()
}
