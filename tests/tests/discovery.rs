//! What other people's STUN client and server find out about the NAT (RFC 5780), with the port that it asks from
//! held by a neighbour, too.

use std::convert::identity;
use std::net::{SocketAddrV4, UdpSocket};
use std::thread;

use anyhow::{Context, Result, ensure};
use nat_tests::agent::{self, Bed};
use nat_tests::lab::{self, EGRESS, Host, Lab, SERVER_2};
use nat_tests::stun::{self, StunServer};
use nat_tests::{programs, wire};

/// The source port that everybody uses.
const PORT: u16 = 40000;
const INDEPENDENT_MAPPING: &str = "NAT with Endpoint Independent Mapping!";
const DEPENDENT_FILTERING: &str = "NAT with Address and Port Dependent Filtering!";

/// The one endpoint that `host` is seen as, whichever of the server's endpoints it asks.
fn mapped(host: &Host) -> Result<SocketAddrV4> {
    let found = stun::mapping(host, PORT)?;
    ensure!(found.behaviour == INDEPENDENT_MAPPING, "{found:?}");
    ensure!(
        found.seen.len() > 1 && found.seen.iter().all(|seen| *seen == found.seen[0]),
        "{found:?}"
    );
    Ok(found.seen[0])
}

/// Fails unless the hosts, known as these endpoints, are shut to every other endpoint of the server.
fn filtered(hosts: &[(&Host, SocketAddrV4)]) -> Result<()> {
    thread::scope(|scope| {
        // All at once: most of it is waiting for answers that must not come.
        let threads: Vec<_> = hosts
            .iter()
            .map(|(host, seen)| (scope.spawn(|| stun::filtering(host, PORT)), *seen))
            .collect();
        threads.into_iter().try_for_each(|(thread, seen)| {
            let found = thread.join().unwrap()?;
            ensure!(
                found.behaviour == DEPENDENT_FILTERING && found.seen == [seen],
                "{seen}: {found:?}"
            );
            Ok(())
        })
    })
}

/// Who has asked the server's alternate address.
fn at_the_alternate(lab: &Lab) -> Vec<SocketAddrV4> {
    let asked = lab.sniffer().flows(|flow| {
        flow.protocol == wire::UDP
            && flow.destination == SERVER_2
            && stun::PORTS.contains(&flow.destination_port)
    });
    asked.iter().map(|(flow, _)| flow.from()).collect()
}

/// RFC 4787 REQ-1 and REQ-8.
#[test]
fn mapping_is_independent_and_filtering_dependent() -> Result<()> {
    agent::every_way(2, identity, |_, bed| {
        let (lab, [pod1, pod2]) = (&bed.lab, [&bed.lab.hosts[0], &bed.lab.hosts[1]]);
        let _server = StunServer::start(lab)?;
        let neighbour = mapped(pod2).context("the first")?;
        let own = mapped(pod1).context("beside a neighbour on the same port")?;
        ensure!(
            *own.ip() == EGRESS[0] && *neighbour.ip() == EGRESS[0] && own != neighbour,
            "{own} and {neighbour}"
        );
        let mut asked = at_the_alternate(lab);
        asked.dedup();
        ensure!(
            asked.len() == 2 && asked.contains(&own) && asked.contains(&neighbour),
            "{asked:?} asked the alternate address, not {own} and {neighbour}"
        );
        ensure!(mapped(pod2)? == neighbour && mapped(pod1)? == own);
        filtered(&[(pod1, own), (pod2, neighbour)])
    })
}

/// RFC 4787 REQ-11: nothing of it changes when ports run low.
#[test]
fn mapping_is_independent_at_nine_tenths_of_the_ports() -> Result<()> {
    const USED: u16 = 58_100;
    let bed = Bed::start(lab::pods(2), |config| config.pool("portsPerClient: 64512"))?;
    let (lab, [pod1, pod2]) = (&bed.lab, [&bed.lab.hosts[0], &bed.lab.hosts[1]]);
    let _server = StunServer::start(lab)?;
    let sink = SocketAddrV4::new(stun::ADDRESSES[0], 9);
    let _sink = lab.server.enter(|| UdpSocket::bind(sink))??;
    programs::send_from_all(pod1, 1024..=1023 + USED, sink)?;
    let used = bed.agent.status()?.ports(EGRESS[0], "udp", "used")?;
    ensure!(
        used * 10 >= 64512 * 9,
        "{used} ports in use: not what this is about"
    );
    // Its port is one that the other pod has sent from as well.
    let own = mapped(pod2)?;
    ensure!(mapped(pod2)? == own);
    ensure!(mapped(pod1)? != own);
    filtered(&[(pod2, own)])?;
    bed.finish()
}
