//! Ports run out, sessions expire, ports rest and are used again.

use std::collections::HashSet;
use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nat_tests::agent::Bed;
use nat_tests::lab::{self, Builder, EGRESS, Host, OUTSIDE, SERVER};
use nat_tests::process;
use nat_tests::programs::{self, UdpEcho};
use nat_tests::sniffer::Sniffer;
use nat_tests::wire;

const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, 9000);
const ADMINISTRATIVELY_PROHIBITED: u16 = 3 << 8 | 13;

/// Sockets of `host` on `ports`, each of which has been answered, and as whom.
fn open(host: &Host, ports: RangeInclusive<u16>) -> Result<Vec<(UdpSocket, SocketAddrV4)>> {
    let one = |port| {
        let socket = programs::udp_socket(host, port, ECHO)?;
        let seen = programs::udp_ask(&socket)
            .with_context(|| format!("{} from port {port}", host.name))?;
        Ok((socket, seen))
    };
    ports.map(one).collect()
}

fn all_different(sockets: &[(UdpSocket, SocketAddrV4)]) -> Result<()> {
    let distinct: HashSet<_> = sockets.iter().map(|(_, seen)| seen).collect();
    ensure!(
        distinct.len() == sockets.len(),
        "{} ports for {} sockets",
        distinct.len(),
        sockets.len()
    );
    Ok(())
}

/// Whether a new flow is refused: true with an ICMP error at the socket, false in silence.
fn refused(host: &Host, port: u16) -> Result<bool> {
    let socket = programs::udp_socket(host, port, ECHO)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let error = programs::udp_ask(&socket)
        .err()
        .context("there should have been no port left")?;
    let error = error
        .downcast_ref::<io::Error>()
        .with_context(|| format!("{error:#}"))?;
    match error.raw_os_error() {
        Some(libc::EHOSTUNREACH) => Ok(true),
        Some(libc::EAGAIN) => Ok(false),
        _ => Err(anyhow::anyhow!("refused with {error}")),
    }
}

fn cap(lab: Builder, path: &str) -> Result<()> {
    let bed = Bed::start(lab, |config| {
        config
            .pool(path)
            .pool("portsPerClient: 128")
            .pool("blockSize: 64")
    })?;
    let [pod1, pod2] = [&bed.lab.hosts[0], &bed.lab.hosts[1]];
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    let inside = Sniffer::count(&pod1.netns, OUTSIDE)?;
    let sockets = open(pod1, 20001..=20128)?;
    all_different(&sockets)?;
    ensure!(
        bed.agent.status()?.drops("client-cap") == 0,
        "refused before the last port"
    );
    let told = (30001..=30020)
        .map(|port| refused(pod1, port))
        .collect::<Result<Vec<_>>>()?;
    let told = told.iter().filter(|told| **told).count() as u64;
    let messages = inside
        .total(|f| f.protocol == wire::ICMP && f.destination_port == ADMINISTRATIVELY_PROHIBITED);
    ensure!(
        told >= 1 && messages.frames >= told,
        "{path}: {told} of 20 were told, by {messages:?}"
    );
    let counted = bed.agent.status()?.drops("client-cap");
    ensure!(counted >= 20, "{path}: {counted} refusals counted");
    // The neighbour has all of its own, and whoever has a port keeps it.
    all_different(&open(pod2, 20001..=20128)?)?;
    for (socket, seen) in &sockets {
        ensure!(programs::udp_ask(socket)? == *seen);
    }
    // The other protocols' ports are apart from UDP's.
    ensure!(programs::ping(pod1, SERVER, 2, "")? == 2);
    bed.finish()
}

/// A pod makes mappings as fast as it can: it gets what it may in a second, its neighbour is not
/// affected, and what it has goes on.
#[test]
fn a_pod_that_maps_too_fast() -> Result<()> {
    const RATE: usize = 20;
    const TRIES: u16 = 500;
    let bed = Bed::start(lab::pods(2), |config| {
        config.pool(format!("mappingsPerSecond: {RATE}"))
    })?;
    let [pod1, pod2] = [&bed.lab.hosts[0], &bed.lab.hosts[1]];
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    let first = open(pod1, 10001..=10001)?;
    let start = Instant::now();
    programs::send_from_all(pod1, 20001..=20000 + TRIES, ECHO)?;
    let ticks = start.elapsed().as_secs() as usize + 2;
    all_different(&open(pod2, 20001..=20000 + RATE as u16)?)?;
    ensure!(programs::udp_ask(&first[0].0)? == first[0].1);
    let made = bed
        .lab
        .sniffer()
        .flows(|flow| flow.protocol == wire::UDP && flow.destination_port == ECHO.port());
    // Less the first one's and the neighbour's.
    let made = made.len() - 1 - RATE;
    ensure!(
        (RATE - 1..=RATE * ticks).contains(&made),
        "{made} mappings of {RATE} a second in {ticks} ticks"
    );
    let counted = bed.agent.status()?.drops("mapping-rate") as usize;
    ensure!(
        counted == usize::from(TRIES) - made,
        "{counted} refusals counted, {made} mappings made"
    );
    process::eventually(Duration::from_secs(5), "another second", || {
        open(pod1, 30001..=30001)
    })?;
    let told = (31001..=31000 + 2 * RATE as u16 + 20)
        .filter_map(|port| refused(pod1, port).ok())
        .filter(|told| *told);
    ensure!(told.count() >= 1, "nobody was told");
    bed.finish()
}

#[test]
fn a_pod_at_its_cap_on_the_stack_path() -> Result<()> {
    cap(lab::pods(2), "path: stack")
}

#[test]
fn a_pod_at_its_cap_on_the_direct_path() -> Result<()> {
    cap(lab::pods(2), "path: direct")
}

#[test]
fn a_routed_client_at_its_cap_through_xdp() -> Result<()> {
    cap(lab::routed(2), "path: stack")
}

/// An address to its last port: 64512 mappings without one failure, then refusals; expiry, rest, and use again.
#[test]
fn an_address_to_its_last_port() -> Result<()> {
    const PORTS: usize = 64512;
    let bed = Bed::start(lab::pods(3), |config| {
        config
            .pool("portsPerClient: 64512")
            .pool("rest: 8s")
            .pool("timers: {udp: 20s}")
    })?;
    let [pod1, pod2, pod3] = [0, 1, 2].map(|number| &bed.lab.hosts[number]);
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    let neighbour = open(pod2, 5000..=5000)?;
    let start = Instant::now();
    // The neighbour holds a block of 64; all but these are there for pod1.
    programs::send_from_all(pod1, 1024..=(1023 + (PORTS - 64) as u16), ECHO)?;
    ensure!(
        start.elapsed() < Duration::from_secs(15),
        "too slow: the first mappings may have expired"
    );
    let seen = bed
        .lab
        .sniffer()
        .flows(|flow| flow.protocol == wire::UDP && flow.destination_port == 9000);
    ensure!(
        seen.len() == PORTS - 64 + 1,
        "{} of {} flows have a port",
        seen.len(),
        PORTS - 64 + 1
    );
    let reserved = seen
        .iter()
        .filter(|(flow, _)| flow.source_port < 1024)
        .count();
    ensure!(reserved == 0, "{reserved} ports below 1024");
    ensure!(
        seen.iter().all(|(_, tally)| tally.frames == 1),
        "two flows shared a port"
    );
    ensure!(
        bed.agent.status()?.drops("ports-exhausted") == 0,
        "refused before the last port"
    );
    for (host, port) in [(pod1, 65535), (pod3, 5000)] {
        refused(host, port)?;
    }
    ensure!(bed.agent.status()?.drops("ports-exhausted") >= 2);
    // The neighbour has the rest of its block, and its mapping.
    all_different(&open(pod2, 5001..=5063)?)?;
    refused(pod2, 6000)?;
    ensure!(programs::udp_ask(&neighbour[0].0)? == neighbour[0].1);
    expire_and_reuse(&bed, pod3)
}

/// After the mappings' end the ports rest, and only then somebody else gets them.
fn expire_and_reuse(bed: &Bed, newcomer: &Host) -> Result<()> {
    let ports = |state| bed.agent.status()?.ports(EGRESS[0], "udp", state);
    let resting_since = process::eventually(Duration::from_secs(45), "ports to expire", || {
        ensure!(
            ports("used")? <= 64 && ports("resting")? > 60_000,
            "{} used, {} resting",
            ports("used")?,
            ports("resting")?
        );
        Ok(Instant::now())
    })?;
    refused(newcomer, 5001).context("a port was given out before it had rested")?;
    process::eventually(Duration::from_secs(30), "ports to have rested", || {
        ensure!(ports("free")? > 60_000, "{} free", ports("free")?);
        Ok(())
    })?;
    ensure!(
        resting_since.elapsed() > Duration::from_secs(4),
        "rested {:?} only",
        resting_since.elapsed()
    );
    all_different(&open(newcomer, 7000..=7200)?)
}

/// A pod gets its own ports back after they have expired and rested.
#[test]
fn expired_ports_are_used_again() -> Result<()> {
    let bed = Bed::start(lab::pods(1), |config| {
        config
            .pool("portsPerClient: 64")
            .pool("rest: 3s")
            .pool("timers: {udp: 2s, icmp: 2s}")
    })?;
    let host = &bed.lab.hosts[0];
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    for round in 0..2_u16 {
        let first = 20_000 + round * 1000;
        all_different(&open(host, first..=first + 63)?)?;
        refused(host, 30_000 + round)?;
        process::eventually(
            Duration::from_secs(20),
            "a new flow after expiry and rest",
            || {
                let socket = programs::udp_socket(host, 40_000 + round, ECHO)?;
                socket.set_read_timeout(Some(Duration::from_millis(200)))?;
                programs::udp_ask(&socket).map(drop)
            },
        )?;
        // That one is to expire as well, so that the next round finds all ports free.
        thread::sleep(Duration::from_secs(7));
    }
    ensure!(bed.agent.status()?.flows(&host.name)? == 0);
    bed.finish()
}

/// What goes on in either direction keeps a mapping (RFC 4787 REQ-6), silence ends it.
#[test]
fn traffic_keeps_a_mapping_and_silence_ends_it() -> Result<()> {
    let bed = Bed::start(lab::pods(1), |config| {
        config.pool("rest: 60s").pool("timers: {udp: 3s}")
    })?;
    let host = &bed.lab.hosts[0];
    let echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    let socket = programs::udp_socket(host, 4000, ECHO)?;
    let seen = programs::udp_ask(&socket)?;
    for _ in 0..8 {
        thread::sleep(Duration::from_secs(1));
        ensure!(
            programs::udp_ask(&socket)? == seen,
            "the mapping changed under way"
        );
    }
    drop(echo);
    let server = bed.lab.server.enter(|| UdpSocket::bind(ECHO))??;
    // Only outward.
    for _ in 0..8 {
        thread::sleep(Duration::from_secs(1));
        socket.send(b"outward")?;
    }
    server.send_to(b"still there?", seen)?;
    let mut buffer = [0; 64];
    ensure!(
        socket.recv(&mut buffer)? == 12,
        "outward traffic did not keep the mapping"
    );
    thread::sleep(Duration::from_secs(7));
    server.send_to(b"late", seen)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    ensure!(
        socket.recv(&mut buffer).is_err(),
        "a reply came through an expired mapping"
    );
    ensure!(bed.agent.status()?.drops("no-session") == 1);
    bed.finish()
}
