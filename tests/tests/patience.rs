//! What takes minutes to see: the timers' defaults. All of it in one test, which waits once.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nat_tests::agent::Bed;
use nat_tests::config::Pool;
use nat_tests::crafted;
use nat_tests::lab::{self, EGRESS, Lab, SERVER, SERVER_2};
use nat_tests::process::{self, Process};
use nat_tests::programs::{self, PATIENCE, TcpEcho, TcpTalk, UdpEcho};

const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, 9000);
/// A server that speaks when it is told to.
const SILENT: SocketAddrV4 = SocketAddrV4::new(SERVER, 9001);
/// Where pings are answered late.
const SLOW: Ipv4Addr = SERVER_2;
/// All ports that a client of the second pool has.
const PORTS: u16 = 64;

/// What is under way at the same time.
struct Waiting<'a> {
    bed: &'a Bed,
    since: Instant,
}

#[test]
fn silence_resets_late_answers_and_rest() -> Result<()> {
    let bed = Bed::start(lab::pods(2), |mut config| {
        config.pools.push(Pool {
            name: "brief".to_string(),
            addresses: vec![EGRESS[1]],
            settings: vec![
                "timers: {udp: 2s}".to_string(),
                format!("portsPerClient: {PORTS}"),
            ],
        });
        config.clients[1].egress = "brief".to_string();
        config
    })?;
    let _servers = (
        UdpEcho::start(&bed.lab.server, ECHO)?,
        TcpEcho::start(&bed.lab.server, ECHO)?,
    );
    let waiting = Waiting {
        bed: &bed,
        since: Instant::now(),
    };
    thread::scope(|scope| {
        let all = [
            ("silence", scope.spawn(|| waiting.udp_silence())),
            ("a late answer", scope.spawn(|| waiting.late_echo_reply())),
            ("a reset", scope.spawn(|| waiting.data_long_after_a_reset())),
            ("rest", scope.spawn(|| waiting.ports_rest())),
        ];
        all.into_iter()
            .try_for_each(|(what, thread)| thread.join().unwrap().context(what))
    })?;
    bed.finish()
}

impl Waiting<'_> {
    fn lab(&self) -> &Lab {
        &self.bed.lab
    }

    fn sleep_until(&self, seconds: u64) {
        let until = self.since + Duration::from_secs(seconds);
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }

    /// RFC 4787 REQ-5: a UDP mapping lives two minutes without a packet in either direction.
    fn udp_silence(&self) -> Result<()> {
        let server = self.lab().server.enter(|| UdpSocket::bind(SILENT))??;
        server.set_read_timeout(Some(PATIENCE))?;
        let socket = programs::udp_socket(&self.lab().hosts[0], 4000, SILENT)?;
        let mut buffer = [0; 64];
        socket.send(b"before")?;
        let (_, seen) = server.recv_from(&mut buffer)?;
        thread::sleep(Duration::from_secs(125));
        server.send_to(b"after", seen)?;
        ensure!(socket.recv(&mut buffer)? == 5, "an answer did not arrive");
        socket.send(b"again")?;
        ensure!(
            server.recv_from(&mut buffer)?.1 == seen,
            "the mapping changed"
        );
        Ok(())
    }

    /// RFC 5508 REQ-2: the answer to a ping arrives when it comes after 59 s.
    fn late_echo_reply(&self) -> Result<()> {
        let (host, server) = (&self.lab().hosts[0], &self.lab().server);
        server.sysctl("net.ipv4.icmp_echo_ignore_all", "1")?;
        let script = format!(
            "ask = sniff(iface='eth0', count=1, lfilter=lambda p: ICMP in p and p[ICMP].type == 8,\n\
             \x20           started_callback=lambda: print('listening', flush=True))[0]\n\
             time.sleep(59)\n\
             send(IP(src='{SLOW}', dst=ask[IP].src)\n\
             \x20    / ICMP(type=0, id=ask[ICMP].id, seq=ask[ICMP].seq) / ask[ICMP].payload)"
        );
        let mut slow = Process::spawn(
            &mut crafted::scapy_command(server, &script),
            &self.lab().directory().join("scapy.log"),
        )?;
        slow.wait_for_output(0, Duration::from_secs(20), |said| {
            said.contains("listening").then_some(())
        })?;
        let mut ping = host.netns.command("ping");
        ping.args(["-n", "-c", "1", "-W", "65", &SLOW.to_string()]);
        let asked = Instant::now();
        process::run(&mut ping, Duration::from_secs(80))?.success()?;
        ensure!(
            asked.elapsed() >= Duration::from_secs(59),
            "somebody answered at once"
        );
        Ok(())
    }

    /// RFC 7857: a session that was reset is there for four minutes more.
    fn data_long_after_a_reset(&self) -> Result<()> {
        let host = &self.lab().hosts[0];
        let mut talk = TcpTalk::connect(host, 4000, ECHO)?;
        crafted::scapy(&self.lab().server, &crafted::reset(ECHO, talk.seen))?;
        self.sleep_until(125);
        let flows = format!("--client {} --protocol tcp", host.name);
        let flows = self.bed.agent.flows(&flows)?;
        ensure!(
            flows.len() == 1 && flows[0]["state"] == "reset",
            "{flows:?}"
        );
        talk.exchange(10_000)
    }

    /// RFC 6888 REQ-8: a port rests for two minutes before anybody gets it.
    fn ports_rest(&self) -> Result<()> {
        let host = &self.lab().hosts[1];
        for port in 20_000..20_000 + PORTS {
            programs::udp_ask(&programs::udp_socket(host, port, ECHO)?)?;
        }
        let ended = process::eventually(Duration::from_secs(15), "sessions to end", || {
            let resting = self
                .bed
                .agent
                .status()?
                .ports(EGRESS[1], "udp", "resting")?;
            ensure!(resting == u64::from(PORTS), "{resting} resting");
            Ok(Instant::now())
        })?;
        let again = || {
            let socket = programs::udp_socket(host, 30_000, ECHO)?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            programs::udp_ask(&socket)
        };
        while ended.elapsed() < Duration::from_secs(115) {
            ensure!(again().is_err(), "given out after {:?}", ended.elapsed());
            thread::sleep(Duration::from_secs(5));
        }
        process::eventually(Duration::from_secs(30), "a port that has rested", again)?;
        ensure!(
            ended.elapsed() > Duration::from_secs(117),
            "given out after {:?}",
            ended.elapsed()
        );
        Ok(())
    }
}
