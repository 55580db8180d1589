//! The agent dies, returns, is replaced, gets new configuration, and goes: the data plane stays until it is told.

use std::net::SocketAddrV4;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nat_tests::agent::{Agent, Bed};
use nat_tests::config::Config;
use nat_tests::lab::{self, EGRESS, Host, Lab, OUTSIDE, SERVER};
use nat_tests::process;
use nat_tests::programs::{self, Chatter, Nginx, TcpEcho, TcpTalk, UdpEcho};

const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, 9000);

fn udp_seen(host: &Host, port: u16) -> Result<SocketAddrV4> {
    programs::udp_ask(&programs::udp_socket(host, port, ECHO)?)
}

/// Connections talk and a download runs while `change` happens to the agent; none of them may notice.
fn undisturbed(path: &str, change: impl FnOnce(&mut Bed, &Chatter) -> Result<()>) -> Result<()> {
    let mut bed = Bed::start(lab::pods(2), |config| config.pool(path))?;
    let nginx = Nginx::start(&bed.lab, 16)?;
    let _servers = (
        TcpEcho::start(&bed.lab.server, ECHO)?,
        UdpEcho::start(&bed.lab.server, ECHO)?,
    );
    let hosts = bed.lab.hosts.clone();
    let socket = programs::udp_socket(&hosts[1], 4000, ECHO)?;
    let seen = programs::udp_ask(&socket)?;
    let chatter = Chatter::start(&hosts[0], ECHO, 20)?;
    chatter.wait_rounds(5)?;
    let copy = Netless::of(&bed.lab, &hosts[1], &nginx)?;
    change(&mut bed, &chatter)?;
    chatter.wait_rounds(20)?;
    copy.finish(&nginx)?;
    ensure!(
        programs::udp_ask(&socket)? == seen,
        "the UDP mapping changed"
    );
    let mut talks = chatter.finish()?;
    ensure!(talks.len() == 20 && talks.iter_mut().all(|talk| talk.exchange(5000).is_ok()));
    let status = bed.agent.status()?;
    ensure!(
        status.flows(&hosts[0].name)? >= 20 && status.is_running(),
        "{}",
        status.0
    );
    bed.finish()
}

/// A download of about four seconds in the background.
struct Netless {
    process: process::Process,
    file: std::path::PathBuf,
}

impl Netless {
    fn of(lab: &Lab, host: &Host, nginx: &Nginx) -> Result<Self> {
        let file = lab.directory().join("slow-download");
        let rate = nginx.content()?.len() / 4;
        let mut command = host.netns.command("curl");
        command.args([
            "--silent",
            "--show-error",
            "--fail",
            "--limit-rate",
            &rate.to_string(),
            "--output",
        ]);
        command.arg(&file).arg(format!("http://{SERVER}/big"));
        let process = process::Process::spawn(&mut command, &lab.directory().join("curl.log"))?;
        Ok(Self { process, file })
    }

    fn finish(mut self, nginx: &Nginx) -> Result<()> {
        let status = self.process.wait(Duration::from_secs(20))?;
        ensure!(
            status.success(),
            "the download: {status} {}",
            self.process.output()
        );
        ensure!(
            std::fs::read(&self.file)? == nginx.content()?,
            "the download came out changed"
        );
        Ok(())
    }
}

fn killed_and_restarted(path: &str) -> Result<()> {
    undisturbed(path, |bed, chatter| {
        for _ in 0..2 {
            bed.agent.kill()?;
            chatter.wait_rounds(20).context("while the agent is away")?;
            let new = TcpTalk::connect(&bed.lab.hosts[0], 0, ECHO)?;
            ensure!(
                *new.seen.ip() == EGRESS[0],
                "a new connection while the agent is away: {}",
                new.seen
            );
            let status = bed.agent.status()?;
            ensure!(
                !status.is_running() && status.health() == "agentDown",
                "{}",
                status.0
            );
            ensure!(status.flows(&bed.lab.hosts[0].name)? >= 20, "{}", status.0);
            bed.agent.natctl("status")?;
            bed.agent.restart()?;
            chatter.wait_rounds(20).context("with the agent back")?;
        }
        Ok(())
    })
}

#[test]
fn killed_and_restarted_on_the_stack_path() -> Result<()> {
    killed_and_restarted("path: stack")
}

#[test]
fn killed_and_restarted_on_the_direct_path() -> Result<()> {
    killed_and_restarted("path: direct")
}

fn replaced(path: &str) -> Result<()> {
    undisturbed(path, |bed, chatter| {
        bed.agent.terminate()?;
        chatter.wait_rounds(20).context("after SIGTERM")?;
        bed.agent.use_copy_of_binary()?;
        bed.agent.restart()?;
        chatter.wait_rounds(20).context("with the second build")
    })
}

#[test]
fn replaced_by_a_second_build_on_the_stack_path() -> Result<()> {
    replaced("path: stack")
}

#[test]
fn replaced_by_a_second_build_on_the_direct_path() -> Result<()> {
    replaced("path: direct")
}

/// While programs are loaded anew there is no moment without them: a stream of pings loses none.
#[test]
fn no_packet_is_lost_while_it_restarts() -> Result<()> {
    let mut bed = Bed::start(lab::pods(1), |config| config)?;
    let host = bed.lab.hosts[0].clone();
    let received = thread::scope(|scope| -> Result<u32> {
        let pings = scope.spawn(|| programs::ping(&host, SERVER, 300, "-i 0.01"));
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(300));
            bed.agent.kill()?;
            bed.agent.restart()?;
        }
        pings.join().unwrap()
    })?;
    ensure!(received == 300, "{received} of 300 pings were answered");
    bed.finish()
}

/// The session's ports are known to the agent that returns: it hands none of them out again, and expires them.
#[test]
fn what_was_open_before_a_restart_is_swept_after_it() -> Result<()> {
    let mut bed = Bed::start(lab::pods(1), |config| {
        config.pool("timers: {udp: 3s}").pool("rest: 1s")
    })?;
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    let host = bed.lab.hosts[0].clone();
    udp_seen(&host, 4000)?;
    bed.agent.kill()?;
    bed.agent.restart()?;
    ensure!(bed.agent.status()?.flows(&host.name)? == 1);
    process::eventually(Duration::from_secs(15), "the old flow to expire", || {
        let status = bed.agent.status()?;
        ensure!(status.flows(&host.name)? == 0 && status.ports(EGRESS[0], "udp", "used")? == 0);
        Ok(())
    })?;
    bed.finish()
}

/// A client added and an egress address changed: applied live, what is open stays as it is.
#[test]
fn configuration_changes_live() -> Result<()> {
    let lab = lab::pods(2).build()?;
    let mut config = Config::new(&lab);
    config.pools[0].addresses = EGRESS[..2].to_vec();
    config.clients[0].egress = EGRESS[0].to_string();
    let second = config.clients.pop().context("two clients")?;
    let mut bed = Bed {
        agent: Agent::start(&lab, &config)?,
        lab,
    };
    let hosts = bed.lab.hosts.clone();
    let _servers = (
        TcpEcho::start(&bed.lab.server, ECHO)?,
        UdpEcho::start(&bed.lab.server, ECHO)?,
    );
    let mut talk = TcpTalk::connect(&hosts[0], 0, ECHO)?;
    ensure!(*talk.seen.ip() == EGRESS[0]);

    config.clients.push(second);
    config.clients[1].egress = EGRESS[1].to_string();
    bed.agent.reload(&config)?;
    ensure!(
        *udp_seen(&hosts[1], 4000)?.ip() == EGRESS[1],
        "the new client"
    );
    talk.exchange(1000)
        .context("an open connection while a client was added")?;

    config.clients[0].egress = EGRESS[1].to_string();
    bed.agent.reload(&config)?;
    ensure!(
        *udp_seen(&hosts[0], 4000)?.ip() == EGRESS[1],
        "a new flow after the change"
    );
    ensure!(*TcpTalk::connect(&hosts[0], 0, ECHO)?.seen.ip() == EGRESS[1]);
    bed.lab.sniffer().clear();
    talk.exchange(1000)
        .context("an open connection after its client's address changed")?;
    ensure!(
        bed.lab
            .sniffer()
            .total(|flow| flow.from() == talk.seen)
            .frames
            > 0,
        "it moved"
    );

    // From one path to the other.
    let direct = config.clone().pool("path: direct");
    bed.agent.reload(&direct)?;
    talk.exchange(1000)
        .context("an open connection after its pool's path changed")?;
    ensure!(
        *udp_seen(&hosts[0], 4001)?.ip() == EGRESS[1],
        "a new flow on the other path"
    );
    bed.finish()
}

/// A client taken out of the file is translated no more, and its ports come back.
#[test]
fn a_client_is_removed() -> Result<()> {
    let mut bed = Bed::start(lab::pods(2), |config| config.pool("rest: 1s"))?;
    let hosts = bed.lab.hosts.clone();
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    udp_seen(&hosts[0], 4000)?;
    udp_seen(&hosts[1], 4000)?;
    let mut config = Config::new(&bed.lab);
    config.clients.pop();
    bed.agent.reload(config.pool("rest: 1s"))?;
    ensure!(bed.agent.status()?.client(&hosts[1].name).is_err());
    process::eventually(Duration::from_secs(10), "its port to be free", || {
        ensure!(bed.agent.status()?.ports(EGRESS[0], "udp", "used")? == 1);
        Ok(())
    })?;
    ensure!(*udp_seen(&hosts[0], 4000)?.ip() == EGRESS[0]);
    bed.finish()
}

/// A bad file is refused whole, before and while it runs, with the place; what was in force stays.
#[test]
fn a_bad_file_changes_nothing() -> Result<()> {
    let mut bed = Bed::start(lab::pods(2), |config| config)?;
    let hosts = bed.lab.hosts.clone();
    let _servers = (
        TcpEcho::start(&bed.lab.server, ECHO)?,
        UdpEcho::start(&bed.lab.server, ECHO)?,
    );
    let mut talk = TcpTalk::connect(&hosts[0], 0, ECHO)?;
    let good = Config::new(&bed.lab);
    let mut other = good.clone();
    other.pools[0].addresses = vec![EGRESS[1]];
    let unknown = other.clone().pool("portPerClient: 10").to_string();
    let mut overlapping = other.clone();
    overlapping.clients[1].address = overlapping.clients[0].address;
    let mut nobodys = other.clone();
    nobodys.clients[0].egress = "192.0.2.1".to_string();
    let files = [
        (unknown, "portPerClient"),
        (overlapping.to_string(), "10.244.1.11"),
        (nobodys.to_string(), "192.0.2.1"),
        ("devices: [".to_string(), ""),
    ];
    for (file, words) in files {
        let checked = bed.agent.check(&file)?;
        let said = format!("{}{}", checked.stdout, checked.stderr);
        ensure!(
            !checked.status.success() && said.contains("checked.yaml:") && said.contains(words),
            "{said}"
        );
        let from = bed.agent.log().len();
        bed.agent.write_config(&file)?;
        bed.agent.wait_for_log(from, |log| {
            (log.contains("config.yaml:") && log.contains(words)).then_some(())
        })?;
        ensure!(
            *udp_seen(&hosts[1], 4000)?.ip() == EGRESS[0],
            "part of a refused file was applied"
        );
        talk.exchange(1000)?;
        process::eventually(Duration::from_secs(5), "a status that says so", || {
            let status = bed.agent.status()?;
            ensure!(
                status.health() == "degraded" && status.problems().contains("config.yaml"),
                "{}",
                status.0
            );
            Ok(())
        })?;
    }
    // A file that differs from the last good one, so that it is applied and not only accepted.
    let moved = good.clone().pool("portsPerClient: 2048");
    bed.agent.reload(&moved)?;
    ensure!(*udp_seen(&hosts[1], 4001)?.ip() == EGRESS[0]);
    process::eventually(
        Duration::from_secs(5),
        "good health with a good file",
        || {
            let status = bed.agent.status()?;
            ensure!(status.health() == "ok", "{}", status.0);
            Ok(())
        },
    )?;
    ensure!(bed.agent.check(&moved.to_string())?.status.success());
    bed.finish()
}

/// SIGTERM leaves everything, detach nothing.
#[test]
fn detach_removes_everything() -> Result<()> {
    for lab in [lab::pods(2), lab::routed(1)] {
        let before_lab = lab.build()?;
        let before = traces(&before_lab)?;
        let config = Config::new(&before_lab);
        let mut bed = Bed {
            agent: Agent::start(&before_lab, &config)?,
            lab: before_lab,
        };
        let host = bed.lab.hosts[0].clone();
        let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
        udp_seen(&host, 4000)?;
        ensure!(traces(&bed.lab)? != before && bed.agent.bpffs().exists());
        bed.agent.terminate()?;
        udp_seen(&host, 4001).context("after SIGTERM")?;
        bed.agent.detach()?;
        ensure!(
            !bed.agent.bpffs().exists(),
            "pins are left in {}",
            bed.agent.bpffs().display()
        );
        let after = traces(&bed.lab)?;
        ensure!(after == before, "left behind:\n{after}\nbefore:\n{before}");
        // A second time there is nothing to do, which is no error.
        bed.agent.detach()?;
        bed.finish()?;
    }
    Ok(())
}

/// Everything an agent may leave on a node: programs on devices, rules, addresses, parameters.
fn traces(lab: &Lab) -> Result<String> {
    let node = &lab.node;
    let programs = node.run("bpftool net show")?;
    let links = node.run("ip -d -o link show")?;
    let links: Vec<_> = links
        .split_whitespace()
        .filter(|word| word.starts_with("xdp"))
        .collect();
    let filters = node.run(&format!("tc qdisc show dev {OUTSIDE}"))?;
    let rules = node.run("nft list ruleset")?;
    Ok(format!(
        "{programs}\n{links:?}\n{filters}\n{rules}\n{}",
        node.run("ip -o addr show")?
    ))
}
