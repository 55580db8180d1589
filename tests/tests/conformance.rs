//! What the RFCs ask of live sessions, with real stacks at both ends and packets that scapy puts in between.

use std::convert::identity;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nat_tests::agent::{self, Bed};
use nat_tests::crafted;
use nat_tests::lab::{EGRESS, Host, Lab, OUTSIDE, SERVER, SERVER_2};
use nat_tests::programs::{self, PATIENCE, TcpEcho, TcpTalk, UdpEcho, tcp_connect};
use nat_tests::sniffer::Sniffer;
use serde_json::Value;

const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, 9000);
/// The source port of all of a client's sessions.
const PORT: u16 = 40000;

/// One flow of the first host toward [`ECHO`].
fn flow(bed: &Bed, protocol: &str) -> Result<Value> {
    let host = &bed.lab.hosts[0];
    let mut flows = bed.agent.flows(&format!(
        "--client {} --protocol {protocol} --port {}",
        host.name,
        ECHO.port()
    ))?;
    ensure!(flows.len() == 1, "{flows:?}");
    Ok(flows.remove(0))
}

/// A script that sends ICMP errors from `routers` to `to`, and prints how many. All codes of types 3, 11 and 12 quote
/// packets of the sessions `tcp` and `udp`, given by source and destination; then come forged ones.
fn icmp_errors(
    routers: &[Ipv4Addr],
    to: SocketAddrV4,
    tcp: [SocketAddrV4; 2],
    udp: [SocketAddrV4; 2],
) -> String {
    let routers: Vec<_> = routers.iter().map(|router| format!("'{router}'")).collect();
    let ends = |ends: [SocketAddrV4; 2]| {
        ends.map(|end| format!("'{}', {}", end.ip(), end.port()))
            .join(", ")
    };
    format!(
        "def quote(protocol, source, sport, destination, dport):\n\
         \x20   return raw(IP(src=source, dst=destination) / protocol(sport=sport, dport=dport) / b'quoted')\n\
         live = [quote(TCP, {tcp}), quote(UDP, {udp})]\n\
         forged = [quote(TCP, '{to}', 7, '192.0.2.1', 7), quote(UDP, '10.244.1.11', {PORT}, '{to}', 1), b'short']\n\
         kinds = [(3, code) for code in range(16)] + [(11, 0), (11, 1), (12, 0), (12, 1), (12, 2)]\n\
         errors = [ICMP(type=kind, code=code, nexthopmtu=68) / inner for kind, code in kinds for inner in live]\n\
         errors += [ICMP(type=kind, code=1) / inner for kind in (3, 11, 12) for inner in forged]\n\
         errors += [ICMP(type=3, code=3, chksum=1) / inner for inner in live]\n\
         sent = [IP(src=router, dst='{to}') / error for router in [{routers}] for error in errors]\n\
         send(sent)\n\
         print(len(sent))",
        tcp = ends(tcp),
        udp = ends(udp),
        to = to.ip(),
        routers = routers.join(", "),
    )
}

/// RFC 4787 REQ-12, RFC 5382 REQ-10, RFC 5508 REQ-6: no ICMP error, real or forged, ends or refreshes a session.
#[test]
fn icmp_errors_touch_no_session() -> Result<()> {
    agent::every_way(1, identity, |_, bed| {
        let host = &bed.lab.hosts[0];
        let _servers = (
            TcpEcho::start(&bed.lab.server, ECHO)?,
            UdpEcho::start(&bed.lab.server, ECHO)?,
        );
        let mut talk = TcpTalk::connect(host, PORT, ECHO)?;
        let socket = programs::udp_socket(host, PORT, ECHO)?;
        let seen = programs::udp_ask(&socket)?;
        let own = SocketAddrV4::new(host.address, PORT);
        // Long enough to tell an old session from a refreshed one.
        thread::sleep(Duration::from_secs(4));
        let before = [flow(bed, "tcp")?, flow(bed, "udp")?];
        let dropped = bed.agent.status()?.drops("unsupported-icmp");

        let coming = icmp_errors(&[SERVER, SERVER_2], seen, [talk.seen, ECHO], [seen, ECHO]);
        let going = icmp_errors(&[host.address], ECHO, [ECHO, own], [ECHO, own]);
        let sent = [(&bed.lab.server, coming), (&host.netns, going)]
            .iter()
            .map(|(netns, script)| Ok(crafted::scapy(netns, script)?.trim().parse::<u64>()?))
            .sum::<Result<u64>>()?;

        let counted = bed.agent.status()?.drops("unsupported-icmp") - dropped;
        ensure!(counted == sent, "{counted} of {sent} errors were counted");
        for (before, after) in before.iter().zip([flow(bed, "tcp")?, flow(bed, "udp")?]) {
            untouched(before, &after)?;
        }
        ensure!(programs::udp_ask(&socket)? == seen);
        talk.exchange(10_000)
    })
}

/// Fails if a packet has gone through a flow.
fn untouched(before: &Value, after: &Value) -> Result<()> {
    let idle = |flow: &Value| flow["idleSeconds"].as_u64();
    ensure!(
        idle(before) >= Some(2) && idle(after) >= idle(before),
        "refreshed: {before} became {after}"
    );
    let same = ["state", "out", "in"]
        .iter()
        .all(|field| before[field] == after[field]);
    ensure!(same, "{before} became {after}");
    Ok(())
}

/// Both ends of a connection that each of them opened.
fn both_say_hello(mut ends: [TcpStream; 2]) -> Result<()> {
    for (from, to) in [(0, 1), (1, 0)] {
        let sent = programs::noise(50_000);
        ends[from].write_all(&sent)?;
        let mut arrived = vec![0; sent.len()];
        ends[to].read_exact(&mut arrived)?;
        ensure!(arrived == sent, "arrived changed");
    }
    Ok(())
}

/// RFC 5382 REQ-2 and REQ-4: both ends connect to each other, whichever SYN comes first.
#[test]
fn crossed_syns_connect() -> Result<()> {
    agent::every_way(1, identity, |_, bed| {
        let _echo = TcpEcho::start(&bed.lab.server, ECHO)?;
        // Its mapping tells the server where to connect to.
        let talk = TcpTalk::connect(&bed.lab.hosts[0], PORT, ECHO)?;
        let drops = || anyhow::Ok(bed.agent.status()?.0["drops"].clone());
        let before = drops()?;
        both_say_hello(the_servers_first(bed, talk.seen)?)?;
        let between = drops()?;
        ensure!(between != before, "the server's SYN was not the first");
        both_say_hello(the_clients_first(bed, talk.seen)?)?;
        ensure!(drops()? == between, "a crossing SYN was refused");
        Ok(())
    })
}

/// The server's SYN comes before the session, and must not be answered.
fn the_servers_first(bed: &Bed, seen: SocketAddrV4) -> Result<[TcpStream; 2]> {
    let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
    let at = SocketAddrV4::new(SERVER, 9001);
    let own = SocketAddrV4::new(host.address, PORT);
    thread::scope(|scope| {
        let theirs = scope.spawn(|| tcp_connect(&lab.server, at, seen));
        thread::sleep(Duration::from_millis(300));
        let ours = tcp_connect(&host.netns, own, at).context("the second SYN is the client's");
        Ok([theirs.join().unwrap()?, ours?])
    })
}

/// The client's SYN opens the session and is lost behind the NAT.
fn the_clients_first(bed: &Bed, seen: SocketAddrV4) -> Result<[TcpStream; 2]> {
    let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
    let at = SocketAddrV4::new(SERVER, 9002);
    let own = SocketAddrV4::new(host.address, PORT);
    lab.server.nft(
        "table ip lossy {
           chain in {
             type filter hook input priority 0
             tcp dport 9002 drop
           }
         }",
    )?;
    thread::scope(|scope| {
        let ours = scope.spawn(|| tcp_connect(&host.netns, own, at));
        thread::sleep(Duration::from_millis(300));
        lab.server.nft("delete table ip lossy")?;
        let theirs = tcp_connect(&lab.server, at, seen).context("the second SYN is the server's");
        Ok([theirs?, ours.join().unwrap()?])
    })
}

/// RFC 7857: a reset that the other end does not believe (it is out of the window) leaves the session to the data.
#[test]
fn data_after_a_reset_passes() -> Result<()> {
    agent::every_way(1, identity, |_, bed| {
        let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
        let _echo = TcpEcho::start(&lab.server, ECHO)?;
        let mut talk = TcpTalk::connect(host, PORT, ECHO)?;
        let own = SocketAddrV4::new(host.address, PORT);
        for (netns, from, to) in [(&lab.server, ECHO, talk.seen), (&host.netns, own, ECHO)] {
            crafted::scapy(netns, &crafted::reset(from, to))?;
            let flow = flow(bed, "tcp")?;
            ensure!(
                flow["state"] == "reset" && flow["timeoutSeconds"] == 240,
                "{flow}"
            );
            // Some sweeps later.
            thread::sleep(Duration::from_secs(2));
            talk.exchange(10_000)?;
        }
        Ok(())
    })
}

/// What an FTP client and server say of their own addresses, and what a SIP phone does.
fn talk_of_addresses(host: &Host, seen: SocketAddrV4) -> Vec<String> {
    let comma = |address: Ipv4Addr| address.to_string().replace('.', ",");
    let (inside, outside) = (host.address, *seen.ip());
    let body = format!(
        "v=0\r\no=- 1 1 IN IP4 {inside}\r\nc=IN IP4 {inside}\r\nt=0 0\r\nm=audio {PORT} RTP/AVP 0\r\n"
    );
    vec![
        format!("PORT {},156,64\r\n", comma(inside)),
        format!("EPRT |1|{inside}|{PORT}|\r\n"),
        format!("227 Entering Passive Mode ({},35,40)\r\n", comma(SERVER)),
        format!("227 Entering Passive Mode ({},35,40)\r\n", comma(outside)),
        format!(
            "INVITE sip:bob@{SERVER} SIP/2.0\r\nVia: SIP/2.0/UDP {inside}:5060;branch=z9hG4bK1;rport\r\n\
             Contact: <sip:alice@{inside}:5060>\r\nContent-Type: application/sdp\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ),
        format!(
            "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP {inside}:5060;received={outside};rport={}\r\n\r\n",
            seen.port()
        ),
    ]
}

/// RFC 4787 REQ-10: payloads that hold addresses arrive as they were sent, both ways, on the ports where a gateway
/// for their protocol would look.
#[test]
fn ftp_and_sip_arrive_unchanged() -> Result<()> {
    agent::every_way(1, identity, |_, bed| {
        let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
        for port in [21, 5060] {
            let at = SocketAddrV4::new(SERVER, port);
            let listener = lab.server.enter(|| TcpListener::bind(at))??;
            let own = SocketAddrV4::new(host.address, 5060);
            let client = tcp_connect(&host.netns, own, at)?;
            let server = listener.accept()?.0;
            server.set_read_timeout(Some(PATIENCE))?;
            let mut ends = [client, server];
            let words = talk_of_addresses(host, SocketAddrV4::new(EGRESS[0], port));
            for (from, to) in [(0, 1), (1, 0)] {
                for said in &words {
                    ends[from].write_all(said.as_bytes())?;
                    let mut heard = vec![0; said.len()];
                    ends[to].read_exact(&mut heard)?;
                    ensure!(heard == said.as_bytes(), "TCP {port}: {said:?} was changed");
                }
            }
            over_udp(lab, host, at)?;
        }
        Ok(())
    })
}

/// The same in datagrams.
fn over_udp(lab: &Lab, host: &Host, at: SocketAddrV4) -> Result<()> {
    let server = lab.server.enter(|| UdpSocket::bind(at))??;
    server.set_read_timeout(Some(PATIENCE))?;
    let client = programs::udp_socket(host, 5060, at)?;
    let mut buffer = [0; 2048];
    for said in talk_of_addresses(host, SocketAddrV4::new(EGRESS[0], 5060)) {
        client.send(said.as_bytes())?;
        let (length, from) = server.recv_from(&mut buffer)?;
        ensure!(
            &buffer[..length] == said.as_bytes(),
            "UDP {at}: {said:?} was changed"
        );
        server.send_to(said.as_bytes(), from)?;
        let length = client.recv(&mut buffer)?;
        ensure!(
            &buffer[..length] == said.as_bytes(),
            "UDP {at}: {said:?} was changed coming back"
        );
    }
    Ok(())
}

/// Frames with VLAN tags, one or two, go on as they came, whatever they hold: here what would belong to a live session.
#[test]
fn tagged_frames_are_left_alone() -> Result<()> {
    const COUNT: u64 = 10;
    agent::every_way(1, identity, |_, bed| {
        let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
        let _echo = UdpEcho::start(&lab.server, ECHO)?;
        let socket = programs::udp_socket(host, PORT, ECHO)?;
        let (seen, own) = (
            programs::udp_ask(&socket)?,
            SocketAddrV4::new(host.address, PORT),
        );
        let before = (flow(bed, "udp")?, bed.agent.status()?);
        lab.sniffer().clear();
        for (netns, device, from, to) in [
            (&lab.server, OUTSIDE, ECHO, seen),
            (&host.netns, host.device.as_str(), own, ECHO),
        ] {
            let (mac, behind) = behind(lab, device)?;
            crafted::scapy(netns, &tagged(&mac, from, to, COUNT))?;
            let arrived = behind.total(|flow| {
                flow.from() == from
                    && SocketAddrV4::new(flow.destination, flow.destination_port) == to
            });
            ensure!(
                arrived.frames == 2 * COUNT,
                "{device}: {arrived:?} went on as they came"
            );
            behind.finish()?;
        }
        let left = lab.sniffer().flows(|_| true);
        ensure!(left.is_empty(), "{left:?} left");
        let after = (flow(bed, "udp")?, bed.agent.status()?);
        ensure!(
            ["in", "out"]
                .iter()
                .all(|way| before.0[way] == after.0[way]),
            "they counted as the session's"
        );
        ensure!(
            before.1.0["drops"] == after.1.0["drops"],
            "they were dropped"
        );
        ensure!(programs::udp_ask(&socket)? == seen);
        Ok(())
    })
}

/// A device that the node has behind the programs of `device`, by a MAC address of its own, and what arrives there.
fn behind(lab: &Lab, device: &str) -> Result<(String, Sniffer)> {
    let name = format!("{device}-mac");
    lab.node.ip(&format!(
        "link add link {device} name {name} type macvlan mode private\nlink set {name} up"
    ))?;
    let shown: Value = serde_json::from_str(&lab.node.run(&format!("ip -j link show {name}"))?)?;
    let mac = shown[0]["address"].as_str().context("no address")?;
    Ok((mac.to_string(), Sniffer::count(&lab.node, &name)?))
}

fn tagged(mac: &str, from: SocketAddrV4, to: SocketAddrV4, count: u64) -> String {
    format!(
        "inner = IP(src='{}', dst='{}') / UDP(sport={}, dport={}) / b'tagged'\n\
         for tags in [Dot1Q(vlan=5), Dot1AD(vlan=6) / Dot1Q(vlan=7)]:\n\
         \x20   sendp(Ether(dst='{mac}') / tags / inner, iface='eth0', count={count})",
        from.ip(),
        to.ip(),
        from.port(),
        to.port()
    )
}
