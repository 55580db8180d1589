//! `cargo xtask demo`: real programs in two pods reach a server from one egress address.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use nat_tests::agent::{self, Agent};
use nat_tests::config::Config;
use nat_tests::lab::{self, EGRESS, Host, Lab, OUTSIDE, SERVER};
use nat_tests::netns;
use nat_tests::process::{self, Port, Process};
use nat_tests::programs::{self, Nginx};
use nat_tests::{sys, wire};

/// What a demo that stays up is called.
const KEPT: &str = "natdemo";
/// Both pods use it as their source port, toward the same server: without translation of ports they would collide.
const SAME_PORT: u16 = 40000;
/// Both pods' echo identifier.
const SAME_ID: u16 = 4242;
const UDP_PORT: u16 = 9000;
const FILE_MIB: usize = 16;

/// Shows real programs in two pods that reach a server from one egress address.
#[derive(Parser)]
struct Arguments {
    /// Leave everything up to explore, and say how.
    #[arg(long)]
    keep: bool,
    /// Remove what an earlier demo with --keep left up, and end.
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if process::check_interrupt().is_err() => {
            eprintln!("\nInterrupted; everything is removed.");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        sys::is_root(),
        "it makes network namespaces and loads eBPF programs: run it as root"
    );
    if arguments.clean {
        lab::remove(KEPT);
        println!("Removed what the demo had left up.");
        return Ok(());
    }
    if arguments.keep {
        let up = netns::names().any(|name| name.starts_with(KEPT));
        ensure!(
            !up,
            "a demo is up already; remove it with: {}",
            clean_command()
        );
    }
    process::heed_interrupts()?;
    demonstrate(arguments.keep)
}

fn demonstrate(keep: bool) -> Result<()> {
    let start = Instant::now();
    println!("natctl: two pods, one egress address, {}\n", EGRESS[0]);
    let mut lab = build(keep)?;
    let mut agent = start_agent(&lab)?;
    let mut nginx = Nginx::start(&lab, FILE_MIB)?;
    let mut echo = start_udp_server(&lab)?;
    downloads(&lab)?;
    datagrams(&lab)?;
    pings(&lab)?;
    witness(&lab)?;
    step(7, "What the agent says of it: natctl status");
    println!("{}", indent(&agent.natctl("status")?));
    if keep {
        explain(&lab, &agent);
        agent.keep();
        nginx.keep();
        echo.keep();
        return lab.keep();
    }
    lab.verdict()?;
    drop((agent, nginx, echo, lab));
    println!(
        "Everything is removed again. It took {:.1} s.",
        start.elapsed().as_secs_f32()
    );
    println!("`cargo xtask demo --keep` leaves it up to explore.");
    Ok(())
}

fn step(number: u32, what: &str) {
    println!("{number}. {what}");
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("     {line}\n")).collect()
}

fn build(keep: bool) -> Result<Lab> {
    step(
        1,
        "Network namespaces: two pods on a node, and a server in the outside world",
    );
    let builder = if keep {
        lab::pods(2).prefix(KEPT)
    } else {
        lab::pods(2)
    };
    let lab = builder.build()?;
    println!("     pod1 {}  \\", lab.hosts[0].address);
    println!(
        "                        node {} --- outside link --- server {SERVER}",
        lab::NODE
    );
    println!("     pod2 {}  /", lab.hosts[1].address);
    println!(
        "     The server knows no way to the pods' addresses, and nobody has {} configured.\n",
        EGRESS[0]
    );
    Ok(lab)
}

fn start_agent(lab: &Lab) -> Result<Agent> {
    step(
        2,
        "nat-agent on the node loads its eBPF programs, with this configuration:",
    );
    let config = Config::new(lab);
    println!("{}", indent(&config.to_string()));
    Agent::start(lab, &config)
}

/// A UDP server that answers with the client's address and port, as socat sees them.
fn start_udp_server(lab: &Lab) -> Result<Process> {
    let mut command = lab.server.command("socat");
    command.arg(format!("UDP4-RECVFROM:{UDP_PORT},fork"));
    command.arg("SYSTEM:read question; echo $SOCAT_PEERADDR\\:$SOCAT_PEERPORT");
    let mut process = Process::spawn(&mut command, &lab.directory().join("socat.log"))?;
    process.wait_listening(&lab.server, Port::Udp(UDP_PORT), Duration::from_secs(5))?;
    Ok(process)
}

/// Runs `work` for every pod at the same time.
fn at_once<T: Send>(lab: &Lab, work: impl Fn(&Host) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> = lab
            .hosts
            .iter()
            .map(|host| scope.spawn(|| work(host)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("the pod's thread"))
            .collect()
    })
}

fn pod(host: &Host) -> &str {
    host.name.rsplit('/').next().unwrap_or_default()
}

/// One line for what a pod did, and as whom the server saw it.
fn tell(host: &Host, port: u16, seen: SocketAddrV4, result: &str) {
    let own = format!("{}:{port}", host.address);
    println!(
        "     {}  {own:18}  the server saw {seen:20}  {result}",
        pod(host)
    );
}

/// Both must have come from the egress address, and from different ports.
fn check(seen: &[SocketAddrV4]) -> Result<()> {
    println!();
    ensure!(
        seen.iter().all(|seen| *seen.ip() == EGRESS[0]),
        "not the egress address: {seen:?}"
    );
    ensure!(
        seen.len() == 2 && seen[0] != seen[1],
        "two clients with one address and port: {seen:?}"
    );
    Ok(())
}

fn downloads(lab: &Lab) -> Result<()> {
    step(
        3,
        &format!(
            "TCP: curl in both pods at once, both from source port {SAME_PORT}, downloads from nginx"
        ),
    );
    let original = fs::read(lab.directory().join("nginx/big"))?;
    let files = at_once(lab, |host| {
        let file = lab.directory().join(format!("download-{}", pod(host)));
        // Slow enough that both connections exist at the same time.
        let options = format!(
            "--local-port {SAME_PORT} --limit-rate 16M --output {}",
            file.display()
        );
        let start = Instant::now();
        // The second answer says as whom nginx sees the connection that brought the first.
        let seen = programs::curl(
            &host.netns,
            &format!("http://{SERVER}/big --next --silent http://{SERVER}/"),
            &options,
        )?;
        ensure!(
            fs::read(&file)? == original,
            "{}: the file arrived changed",
            pod(host)
        );
        Ok((seen.trim().parse::<SocketAddrV4>()?, start.elapsed()))
    })?;
    for (host, (seen, time)) in lab.hosts.iter().zip(&files) {
        let result = format!(
            "{FILE_MIB} MiB in {:.1} s, every byte right",
            time.as_secs_f32()
        );
        tell(host, SAME_PORT, *seen, &result);
    }
    check(&files.iter().map(|(seen, _)| *seen).collect::<Vec<_>>())
}

fn datagrams(lab: &Lab) -> Result<()> {
    step(
        4,
        &format!(
            "UDP: socat in both pods, both from source port {SAME_PORT}; the server answers what it sees"
        ),
    );
    let seen = at_once(lab, |host| {
        let line = format!(
            "socat -t 2 - UDP4:{SERVER}:{UDP_PORT},bind={}:{SAME_PORT}",
            host.address
        );
        let mut command = host.netns.command("socat");
        command.args(line.split(' ').skip(1));
        let answer = process::run_with_input(&mut command, "who am I?\n", Duration::from_secs(5))?
            .success()?;
        answer
            .trim()
            .parse::<SocketAddrV4>()
            .with_context(|| format!("the answer was {answer:?}"))
    })?;
    lab.hosts
        .iter()
        .zip(&seen)
        .for_each(|(host, seen)| tell(host, SAME_PORT, *seen, "answered"));
    check(&seen)
}

fn pings(lab: &Lab) -> Result<()> {
    step(
        5,
        &format!("ICMP: ping in both pods, both with identifier {SAME_ID}"),
    );
    let received = at_once(lab, |host| {
        programs::ping(host, SERVER, 3, &format!("-e {SAME_ID}"))
    })?;
    ensure!(received == [3, 3], "{received:?} of 3 pings were answered");
    let requests = lab
        .sniffer()
        .flows(|flow| flow.protocol == wire::ICMP && flow.destination_port == 8 << 8);
    let seen: Vec<_> = requests.iter().map(|(flow, _)| flow.from()).collect();
    println!(
        "     pod1 and pod2: 3 of 3 answered each; the server saw {}",
        join(&seen)
    );
    check(&seen)
}

fn join(seen: &[SocketAddrV4]) -> String {
    seen.iter()
        .map(SocketAddrV4::to_string)
        .collect::<Vec<_>>()
        .join(" and ")
}

/// What a capture on the outside link says.
fn witness(lab: &Lab) -> Result<()> {
    step(
        6,
        "A capture on the outside link has read every frame that left the node",
    );
    let left = |source: Ipv4Addr| lab.sniffer().total(|flow| flow.source == source).frames;
    let all = lab.sniffer().total(|_| true).frames;
    let (ours, node) = (left(EGRESS[0]), left(lab::NODE));
    let others = all - ours - node;
    println!(
        "     {all} packets: {ours} from {}, {node} of the node's own, {others} from any other source\n",
        EGRESS[0]
    );
    ensure!(
        others == 0 && ours > 0,
        "every packet of the pods should have left from {}",
        EGRESS[0]
    );
    Ok(())
}

fn clean_command() -> &'static str {
    "cargo xtask demo --clean"
}

fn explain(lab: &Lab, agent: &Agent) {
    let enter = |name: &str| format!("nsenter --net=/run/netns/{}-{name}", lab.prefix());
    let natctl = format!("{} {}", enter("node"), show(&agent::natctl()));
    let pins = format!("--bpffs {}", agent.bpffs().display());
    println!("It stays up. To explore it:");
    println!(
        "     as whom a pod is seen   {} curl http://{SERVER}/",
        enter("pod1")
    );
    println!(
        "     what goes on outside    {} tcpdump -ni {OUTSIDE}",
        enter("server")
    );
    println!("     sessions                {natctl} flows {pins}");
    println!("     state and counters      {natctl} status {pins}");
    println!(
        "     change things live      edit {}",
        agent.config().display()
    );
    println!("To remove it:                {}", clean_command());
    // Whatever reads this through a pipe should have it before we end.
    let _ = std::io::stdout().flush();
}

fn show(path: &Path) -> String {
    path.canonicalize()
        .unwrap_or_else(|_| path.to_path_buf())
        .display()
        .to_string()
}
