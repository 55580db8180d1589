//! Real programs and small servers for the labs: nginx, curl, iperf3, ping; UDP and TCP peers that tell a client as
//! whom they see it.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use crate::background::Background;
use crate::lab::{Host, Lab};
use crate::netns::Netns;
use crate::process::{self, Port, Process};
use crate::wire;

/// How long a peer may take to answer: far more than it needs, so that only a lost packet takes as long.
pub const PATIENCE: Duration = Duration::from_secs(3);
const START: Duration = Duration::from_secs(10);
/// How often a small server looks whether it should end.
const TICK: Duration = Duration::from_millis(100);

/// nginx in the lab's server namespace, on port 80: `/` answers with the client's address and port, `/big` is a file.
pub struct Nginx {
    process: Process,
    file: PathBuf,
    access_log: PathBuf,
}

impl Nginx {
    /// Starts it with a file of `mebibytes`, different at every place.
    pub fn start(lab: &Lab, mebibytes: usize) -> Result<Self> {
        let directory = lab.directory().join("nginx");
        fs::create_dir_all(&directory)?;
        let file = directory.join("big");
        fs::write(&file, noise(mebibytes << 20))?;
        let configuration = directory.join("nginx.conf");
        fs::write(
            &configuration,
            nginx_configuration(&directory.display().to_string()),
        )?;
        let mut command = lab.server.command("nginx");
        command
            .arg("-p")
            .arg(&directory)
            .arg("-c")
            .arg(&configuration);
        let mut process = Process::spawn(&mut command, &directory.join("output"))?;
        process.wait_listening(&lab.server, Port::Tcp(80), START)?;
        Ok(Self {
            process,
            file,
            access_log: directory.join("access.log"),
        })
    }

    /// The content of `/big`.
    pub fn content(&self) -> Result<Vec<u8>> {
        Ok(fs::read(&self.file)?)
    }

    /// Its access log so far.
    pub fn access_log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.access_log)?)
    }

    /// Leaves it running.
    pub fn keep(&mut self) {
        self.process.keep();
    }
}

fn nginx_configuration(directory: &str) -> String {
    format!(
        "daemon off; master_process off; user root; pid {directory}/pid; error_log {directory}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
           log_format lab '$remote_addr:$remote_port $request $status $body_bytes_sent';\n\
           access_log {directory}/access.log lab;\n\
           sendfile on; keepalive_timeout 3600s; client_body_temp_path {directory}; proxy_temp_path {directory};\n\
           fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};\n\
           server {{\n\
             listen 80; default_type application/octet-stream;\n\
             location = / {{ return 200 '$remote_addr:$remote_port'; }}\n\
             location = /big {{ root {directory}; }}\n\
           }}\n\
         }}\n"
    )
}

/// Bytes without a pattern that a wrong offset could hide in (xorshift).
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Runs curl for `url` in `netns`; `options` as on its command line.
pub fn curl(netns: &Netns, url: &str, options: &str) -> Result<String> {
    netns.run(&format!(
        "curl --silent --show-error --fail --max-time 30 {options} {url}"
    ))
}

/// Asks nginx at `server` as whom it sees `host`.
pub fn seen_by_nginx(host: &Host, server: Ipv4Addr, options: &str) -> Result<SocketAddrV4> {
    let options = format!("--interface {} {options}", host.address);
    let answer = curl(&host.netns, &format!("http://{server}/"), &options)?;
    answer
        .trim()
        .parse()
        .with_context(|| format!("nginx answered {answer:?}"))
}

/// Downloads `/big` from nginx at `server` and fails unless every byte arrived.
pub fn download(
    lab: &Lab,
    nginx: &Nginx,
    host: &Host,
    server: Ipv4Addr,
    options: &str,
) -> Result<()> {
    let file = lab.directory().join(format!("download-{}", host.address));
    let options = format!(
        "--interface {} --output {} {options}",
        host.address,
        file.display()
    );
    curl(&host.netns, &format!("http://{server}/big"), &options)?;
    ensure!(
        fs::read(&file)? == nginx.content()?,
        "{}: the file arrived changed",
        host.name
    );
    Ok(fs::remove_file(file)?)
}

/// An iperf3 server.
pub struct Iperf {
    _server: Process,
    address: Ipv4Addr,
}

/// What one iperf3 run moved.
#[derive(Debug)]
pub struct IperfReport {
    /// Bytes that the receiver got.
    pub bytes: u64,
    /// Bits in a second.
    pub rate: f64,
    /// UDP datagrams lost.
    pub lost: u64,
}

impl Iperf {
    /// Starts the server side in the lab's server namespace.
    pub fn start(lab: &Lab, address: Ipv4Addr) -> Result<Self> {
        let mut command = lab.server.command("iperf3");
        command.args(["--server", "--bind", &address.to_string(), "--forceflush"]);
        let mut server = Process::spawn(&mut command, &lab.directory().join("iperf3.log"))?;
        server.wait_listening(&lab.server, Port::Tcp(5201), START)?;
        Ok(Self {
            _server: server,
            address,
        })
    }

    /// Runs a client at `host` for `seconds`, with `options` as on its command line (`-R`, `-u -b 100M`).
    pub fn run(&self, host: &Host, seconds: u32, options: &str) -> Result<IperfReport> {
        let line = format!(
            "iperf3 --client {} --bind {} --time {seconds} --json {options} --connect-timeout 3000",
            self.address, host.address
        );
        let report: Value = serde_json::from_str(&host.netns.run(&line)?)?;
        let end = &report["end"];
        let sum = [&end["sum_received"], &end["sum"]]
            .into_iter()
            .find(|sum| sum.is_object());
        let sum = sum.with_context(|| format!("iperf3 said {report}"))?;
        Ok(IperfReport {
            bytes: sum["bytes"].as_u64().context("no bytes")?,
            rate: sum["bits_per_second"].as_f64().context("no rate")?,
            lost: sum["lost_packets"].as_u64().unwrap_or(0),
        })
    }
}

/// Pings `destination` `count` times and returns how many answers came.
pub fn ping(host: &Host, destination: Ipv4Addr, count: u32, options: &str) -> Result<u32> {
    let line = format!(
        "ping -n -c {count} -i 0.1 -W 2 -I {} {options} {destination}",
        host.address
    );
    // ping exits with 1 when an answer is missing; the caller judges.
    let output = host.netns.try_run(&line)?;
    let received = output
        .stdout
        .split(',')
        .find_map(|part| part.trim().strip_suffix(" received"));
    received
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("ping said {output}"))
}

/// A UDP server that answers every datagram with "address:port datagram": as whom it sees the sender.
pub struct UdpEcho {
    _server: Background,
}

impl UdpEcho {
    /// Starts it in `netns` at `address`.
    pub fn start(netns: &Netns, address: SocketAddrV4) -> Result<Self> {
        let socket = netns.enter(|| UdpSocket::bind(address))??;
        socket.set_read_timeout(Some(TICK))?;
        let server = Background::start(move |_| {
            let mut buffer = [0; 2048];
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let answer = [from.to_string().as_bytes(), b" ", &buffer[..length]].concat();
                // The sender notices a missing answer.
                let _ = socket.send_to(&answer, from);
            }
        });
        Ok(Self { _server: server })
    }
}

/// A UDP socket at `host`, bound to `port` (0: any) and connected to `server`, so that ICMP errors reach it.
pub fn udp_socket(host: &Host, port: u16, server: SocketAddrV4) -> Result<UdpSocket> {
    let socket = host.netns.enter(|| -> Result<_> {
        let socket = UdpSocket::bind((host.address, port))?;
        socket.connect(server)?;
        Ok(socket)
    })??;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Asks a [`UdpEcho`] as whom it sees us: one datagram, no second try.
pub fn udp_ask(socket: &UdpSocket) -> Result<SocketAddrV4> {
    // Different each time: an answer to an earlier question must not pass for this one's.
    static QUESTION: AtomicU64 = AtomicU64::new(0);
    let question = format!("{}", QUESTION.fetch_add(1, Ordering::Relaxed));
    socket.send(question.as_bytes())?;
    let mut buffer = [0; 2048];
    let deadline = Instant::now() + PATIENCE;
    loop {
        let length = socket.recv(&mut buffer)?;
        let answer = std::str::from_utf8(&buffer[..length])?;
        match answer.split_once(' ') {
            Some((seen, echo)) if echo == question => return Ok(seen.parse()?),
            _ => ensure!(Instant::now() < deadline, "only {answer:?} came back"),
        }
    }
}

/// A TCP server that tells each client as whom it sees it, in one line, and then echoes.
pub struct TcpEcho {
    _server: Background,
}

impl TcpEcho {
    /// Starts it in `netns` at `address`.
    pub fn start(netns: &Netns, address: SocketAddrV4) -> Result<Self> {
        let listener = netns.enter(|| TcpListener::bind(address))??;
        listener.set_nonblocking(true)?;
        let server = Background::start(move |stop| match listener.accept() {
            Ok((stream, peer)) => {
                let stop = stop.clone();
                thread::spawn(move || echo(stream, peer, &stop));
            }
            Err(_) => thread::sleep(Duration::from_millis(1)),
        });
        Ok(Self { _server: server })
    }
}

/// Serves one connection. Errors end it, which the client sees.
fn echo(mut stream: TcpStream, peer: SocketAddr, stop: &AtomicBool) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    writeln!(stream, "{peer}")?;
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => stream.write_all(&buffer[..length])?,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Connects within `netns` from one address and port (0: any) to another.
pub fn tcp_connect(netns: &Netns, from: SocketAddrV4, to: SocketAddrV4) -> Result<TcpStream> {
    let stream = netns.enter(|| -> Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from(from).into())?;
        socket.connect_timeout(&SocketAddr::from(to).into(), PATIENCE)?;
        Ok(socket.into())
    })??;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A connection to a [`TcpEcho`].
pub struct TcpTalk {
    stream: BufReader<TcpStream>,
    /// As whom the server sees us.
    pub seen: SocketAddrV4,
    said: u64,
}

impl TcpTalk {
    /// Connects from `host`, from local `port` (0: any).
    pub fn connect(host: &Host, port: u16, server: SocketAddrV4) -> Result<Self> {
        let stream = tcp_connect(&host.netns, SocketAddrV4::new(host.address, port), server)?;
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let seen = line
            .trim()
            .parse()
            .with_context(|| format!("the server greeted with {line:?}"))?;
        Ok(Self {
            stream,
            seen,
            said: 0,
        })
    }

    /// Sends `length` bytes and fails unless the same come back.
    pub fn exchange(&mut self, length: usize) -> Result<()> {
        self.said += 1;
        let mut sent = noise(length);
        sent.iter_mut()
            .zip(self.said.to_be_bytes())
            .for_each(|(byte, mark)| *byte ^= mark);
        self.stream.get_mut().write_all(&sent)?;
        let mut received = vec![0; length];
        self.stream.read_exact(&mut received)?;
        ensure!(received == sent, "the echo came back changed");
        Ok(())
    }
}

/// Many TCP connections to a [`TcpEcho`] that talk without a pause in the background.
pub struct Chatter {
    threads: Vec<JoinHandle<Result<TcpTalk>>>,
    rounds: Arc<Vec<AtomicU64>>,
    stop: Arc<AtomicBool>,
}

impl Chatter {
    /// Opens `count` connections from `host` and starts talking on each.
    pub fn start(host: &Host, server: SocketAddrV4, count: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
        let talks = (0..count)
            .map(|_| TcpTalk::connect(host, 0, server))
            .collect::<Result<Vec<_>>>()?;
        let threads = talks.into_iter().enumerate().map(|(number, mut talk)| {
            let (stop, rounds) = (stop.clone(), rounds.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    talk.exchange(2000)?;
                    rounds[number].fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(talk)
            })
        });
        Ok(Self {
            threads: threads.collect(),
            rounds,
            stop,
        })
    }

    /// Waits until every connection has completed `more` further exchanges.
    pub fn wait_rounds(&self, more: u64) -> Result<()> {
        let start: Vec<_> = self
            .rounds
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        process::eventually(
            Duration::from_secs(20),
            "progress on every connection",
            || {
                let slow = start
                    .iter()
                    .zip(self.rounds.iter())
                    .filter(|(s, now)| now.load(Ordering::Relaxed) < **s + more);
                let (slow, ended) = (
                    slow.count(),
                    self.threads
                        .iter()
                        .filter(|thread| thread.is_finished())
                        .count(),
                );
                ensure!(
                    slow == 0,
                    "{slow} of {} connections stand still, {ended} are lost",
                    start.len()
                );
                Ok(())
            },
        )
    }

    /// Ends it: the connections, still open, or the first error that any of them met.
    pub fn finish(self) -> Result<Vec<TcpTalk>> {
        self.stop.store(true, Ordering::Relaxed);
        let join = |thread: JoinHandle<Result<TcpTalk>>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        self.threads.into_iter().map(join).collect()
    }
}

/// A socket at `host` that sends ready-made IPv4 packets with any source address.
pub fn raw_socket(host: &Host) -> Result<Socket> {
    host.netns.enter(|| -> Result<_> {
        let socket = Socket::new(
            Domain::IPV4,
            Type::RAW,
            Some(Protocol::from(libc::IPPROTO_RAW)),
        )?;
        socket.set_header_included_v4(true)?;
        Ok(socket)
    })?
}

/// Sends an IPv4 packet as it is.
pub fn send_raw(socket: &Socket, packet: &[u8]) -> Result<()> {
    let destination: [u8; 4] = packet.get(16..20).context("no IPv4 packet")?.try_into()?;
    socket.send_to(packet, &SocketAddr::from((destination, 0)).into())?;
    Ok(())
}

/// Sends one datagram to `server` from each of `ports` of `host`, whether or not it has a socket there.
pub fn send_from_all(host: &Host, ports: RangeInclusive<u16>, server: SocketAddrV4) -> Result<()> {
    let socket = raw_socket(host)?;
    for port in ports {
        let from = SocketAddrV4::new(host.address, port);
        send_raw(&socket, &wire::packet(wire::UDP, from, server, b"one"))?;
        // A veth's queue holds 1000 packets; none may be lost on the way.
        if port % 100 == 0 {
            thread::sleep(Duration::from_micros(500));
        }
    }
    Ok(())
}
