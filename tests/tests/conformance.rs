//! What the RFCs ask of live sessions, with real stacks at both ends and packets that scapy puts in between.

use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket};
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

/// ICMP errors about packets of two sessions, given by the source and destination of what they quote: all codes of
/// types 3, 11 and 12, then forged ones. Prints how many it has sent.
fn icmp_errors(
    to: SocketAddrV4,
    tcp: (SocketAddrV4, SocketAddrV4),
    udp: (SocketAddrV4, SocketAddrV4),
) -> String {
    format!(
        "to = '{}'\n\
         def quote(protocol, source, sport, destination, dport):\n\
         \x20   return raw(IP(src=source, dst=destination) / protocol(sport=sport, dport=dport) / b'quoted')\n\
         live = [quote(TCP, '{}', {}, '{}', {}), quote(UDP, '{}', {}, '{}', {})]\n\
         forged = [quote(TCP, to, 7, '192.0.2.1', 7), quote(UDP, '10.244.1.11', {PORT}, to, 1), b'no packet']\n\
         kinds = [(3, code) for code in range(16)] + [(11, 0), (11, 1), (12, 0), (12, 1), (12, 2)]\n\
         errors = [IP(src=router, dst=to) / ICMP(type=kind, code=code, nexthopmtu=68) / Raw(inner)\n\
         \x20         for router in sources for kind, code in kinds for inner in live]\n\
         errors += [IP(src=router, dst=to) / ICMP(type=kind, code=1) / Raw(inner)\n\
         \x20          for router in sources for kind in (3, 11, 12) for inner in forged]\n\
         errors += [IP(src=router, dst=to) / ICMP(type=3, code=3, chksum=1) / Raw(inner)\n\
         \x20          for router in sources for inner in live]\n\
         send(errors)\n\
         print(len(errors))",
        to.ip(),
        tcp.0.ip(),
        tcp.0.port(),
        tcp.1.ip(),
        tcp.1.port(),
        udp.0.ip(),
        udp.0.port(),
        udp.1.ip(),
        udp.1.port(),
    )
}

/// RFC 4787 REQ-12, RFC 5382 REQ-10, RFC 5508 REQ-6: no ICMP error, real or forged, ends or refreshes a session.
#[test]
fn icmp_errors_touch_no_session() -> Result<()> {
    agent::every_way(
        1,
        |config| config,
        |_, bed| {
            let host = &bed.lab.hosts[0];
            let _servers = (
                TcpEcho::start(&bed.lab.server, ECHO)?,
                UdpEcho::start(&bed.lab.server, ECHO)?,
            );
            let mut talk = TcpTalk::connect(host, PORT, ECHO)?;
            let socket = programs::udp_socket(host, PORT, ECHO)?;
            let seen = programs::udp_ask(&socket)?;
            let own = SocketAddrV4::new(host.address, PORT);
            thread::sleep(Duration::from_secs(4));
            let before = [flow(bed, "tcp")?, flow(bed, "udp")?];
            let dropped = bed.agent.status()?.drops("unsupported-icmp");

            let sources = format!("sources = ['{SERVER}', '{SERVER_2}']\n");
            let coming = icmp_errors(seen, (talk.seen, ECHO), (seen, ECHO));
            let mut sent: u64 = crafted::scapy(&bed.lab.server, &(sources + &coming))?
                .trim()
                .parse()?;
            let sources = format!("sources = ['{}']\n", host.address);
            let going = icmp_errors(ECHO, (ECHO, own), (ECHO, own));
            sent += crafted::scapy(&host.netns, &(sources + &going))?
                .trim()
                .parse::<u64>()?;

            let counted = bed.agent.status()?.drops("unsupported-icmp") - dropped;
            ensure!(counted == sent, "{counted} of {sent} errors were counted");
            for (before, after) in before.iter().zip([flow(bed, "tcp")?, flow(bed, "udp")?]) {
                let idle = |flow: &Value| flow["idleSeconds"].as_u64();
                let counts = |flow: &Value| {
                    [
                        flow["state"].clone(),
                        flow["out"].clone(),
                        flow["in"].clone(),
                    ]
                };
                ensure!(
                    idle(&after) >= idle(before)
                        && idle(before) >= Some(2)
                        && counts(&after) == counts(before),
                    "{before} became {after}"
                );
            }
            ensure!(programs::udp_ask(&socket)? == seen);
            talk.exchange(10_000)
        },
    )
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
    agent::every_way(
        1,
        |config| config,
        |_, bed| {
            let (lab, host) = (&bed.lab, &bed.lab.hosts[0]);
            let _echo = TcpEcho::start(&lab.server, ECHO)?;
            let own = SocketAddrV4::new(host.address, PORT);
            // Its mapping tells the server where to connect to.
            let talk = TcpTalk::connect(host, PORT, ECHO)?;
            let unsolicited = || anyhow::Ok(bed.agent.status()?.drops("no-session"));

            let first = SocketAddrV4::new(SERVER, 9001);
            let before = unsolicited()?;
            let ends = thread::scope(|scope| -> Result<_> {
                let theirs = scope.spawn(|| tcp_connect(&lab.server, first, talk.seen));
                thread::sleep(Duration::from_millis(300));
                let ours =
                    tcp_connect(&host.netns, own, first).context("the second SYN is the client's");
                Ok([theirs.join().unwrap()?, ours?])
            })?;
            ensure!(
                unsolicited()? > before,
                "the server's SYN was not the first"
            );
            both_say_hello(ends)?;

            // The client's SYN opens the session and is lost behind the NAT.
            let second = SocketAddrV4::new(SERVER, 9002);
            lab.server.nft("table ip lossy { chain in { type filter hook input priority 0; tcp dport 9002 drop; }; }")?;
            let before = unsolicited()?;
            let ends = thread::scope(|scope| -> Result<_> {
                let ours = scope.spawn(|| tcp_connect(&host.netns, own, second));
                thread::sleep(Duration::from_millis(300));
                lab.server.nft("delete table ip lossy")?;
                let theirs = tcp_connect(&lab.server, second, talk.seen)
                    .context("the second SYN is the server's");
                Ok([theirs?, ours.join().unwrap()?])
            })?;
            ensure!(unsolicited()? == before, "a crossing SYN was refused");
            both_say_hello(ends)
        },
    )
}

/// RFC 7857: a reset that the other end does not believe (it is out of the window) leaves the session to the data.
#[test]
fn data_after_a_reset_passes() -> Result<()> {
    agent::every_way(
        1,
        |config| config,
        |_, bed| {
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
        },
    )
}

/// What an FTP client and server say of their own addresses, and what a SIP phone does.
fn talk_of_addresses(host: &Host, seen: SocketAddrV4) -> Vec<String> {
    let comma = |address: std::net::Ipv4Addr| address.to_string().replace('.', ",");
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
    agent::every_way(
        1,
        |config| config,
        |_, bed| {
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
        },
    )
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
    agent::every_way(
        1,
        |config| config,
        |_, bed| {
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
        },
    )
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
