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
        config.pool("timers: {udp: 10s}").pool("rest: 1s")
    })?;
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    let host = bed.lab.hosts[0].clone();
    udp_seen(&host, 4000)?;
    bed.agent.kill()?;
    bed.agent.restart()?;
    ensure!(bed.agent.status()?.flows(&host.name)? == 1);
    process::eventually(Duration::from_secs(30), "the old flow to expire", || {
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

/// A client that was taken out comes back: its link was let go meanwhile.
#[test]
fn a_client_comes_back() -> Result<()> {
    let mut bed = Bed::start(lab::pods(2), |config| config)?;
    let hosts = bed.lab.hosts.clone();
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    let all = Config::new(&bed.lab);
    // The agent has seen to its links more than once.
    bed.agent.reload(all.clone().pool("rest: 1s"))?;
    let mut one = all.clone();
    one.clients.pop();
    bed.agent.reload(one)?;
    bed.agent.reload(all)?;
    let status = bed.agent.status()?;
    ensure!(status.health() == "ok", "{}", status.problems());
    status.device(&hosts[1].device)?;
    ensure!(*udp_seen(&hosts[1], 4000)?.ip() == EGRESS[0]);
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
    let count = files.len();
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
    // The log lies beside the file: writing it must not make the agent read the file again and again.
    thread::sleep(Duration::from_millis(500));
    let said = bed.agent.log().matches("is refused").count();
    ensure!(
        said <= 2 * count,
        "{said} refusals in the log for {count} bad files"
    );
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

/// `natctl` tells the same with the agent and without, and finds flows by client, address and port.
#[test]
fn natctl_shows_what_goes_on() -> Result<()> {
    let mut bed = Bed::start(lab::pods(2), |config| config)?;
    let hosts = bed.lab.hosts.clone();
    let _servers = (
        TcpEcho::start(&bed.lab.server, ECHO)?,
        UdpEcho::start(&bed.lab.server, ECHO)?,
    );
    let mut talk = TcpTalk::connect(&hosts[0], 5000, ECHO)?;
    talk.exchange(10_000)?;
    let seen = udp_seen(&hosts[1], 5001)?;
    for agent_runs in [true, false] {
        if !agent_runs {
            bed.agent.kill()?;
        }
        let tcp = bed.agent.flows("--client default/pod1")?;
        ensure!(tcp.len() == 1, "{tcp:?}");
        ensure!(
            tcp[0]["protocol"] == "tcp" && tcp[0]["state"] == "established",
            "{tcp:?}"
        );
        ensure!(tcp[0]["egress"]["port"] == talk.seen.port(), "{tcp:?}");
        ensure!(tcp[0]["out"]["bytes"].as_u64() > Some(10_000), "{tcp:?}");
        let udp = bed.agent.flows(&format!("--port {}", seen.port()))?;
        ensure!(
            udp.len() == 1 && udp[0]["inside"]["port"] == 5001,
            "{udp:?}"
        );
        ensure!(
            bed.agent
                .flows(&format!("--address {}", hosts[1].address))?
                .len()
                == 1
        );
        ensure!(bed.agent.flows(&format!("--address {}", EGRESS[0]))?.len() == 2);
        ensure!(bed.agent.flows("--port 9")?.is_empty());
        let status = bed.agent.status()?;
        ensure!(status.is_running() == agent_runs, "{}", status.0);
        ensure!(status.ports(EGRESS[0], "tcp", "used")? == 1, "{}", status.0);
        ensure!(status.client("default/pod1")?["egress"] == EGRESS[0].to_string());
    }
    bed.finish()
}

/// A pod is replaced by another with the same address and the same name of its link: other pods do not notice, the
/// new one is translated, and nothing of it leaves before.
#[test]
fn a_pods_link_is_replaced() -> Result<()> {
    let bed = Bed::start(lab::pods(2), |config| config)?;
    let hosts = bed.lab.hosts.clone();
    let _servers = (
        TcpEcho::start(&bed.lab.server, ECHO)?,
        UdpEcho::start(&bed.lab.server, ECHO)?,
    );
    let mut talk = TcpTalk::connect(&hosts[1], 0, ECHO)?;
    udp_seen(&hosts[0], 4000)?;
    let (node, device, address) = (&bed.lab.node, &hosts[0].device, hosts[0].address);
    node.ip(&format!("link del {device}"))?;
    talk.exchange(1000)
        .context("another pod while the link was gone")?;
    node.ip(&format!(
        "link add {device} type veth peer name {OUTSIDE} netns {}",
        hosts[0].netns.name()
    ))?;
    // The pod speaks as soon as it can: the programs may come later, its own address must not get out.
    hosts[0].netns.ip(&format!(
        "address add {address}/32 dev {OUTSIDE}\nlink set {OUTSIDE} up\n\
         route add default via 169.254.1.1 dev {OUTSIDE} onlink"
    ))?;
    node.ip(&format!(
        "link set {device} up\nroute add {address}/32 dev {device}"
    ))?;
    process::eventually(Duration::from_secs(10), "the new link to be served", || {
        let socket = programs::udp_socket(&hosts[0], 0, ECHO)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        ensure!(*programs::udp_ask(&socket)?.ip() == EGRESS[0]);
        Ok(())
    })?;
    talk.exchange(1000)?;
    bed.finish()
}

/// A file that is changed while the agent is away applies when it returns.
#[test]
fn a_change_while_it_is_away() -> Result<()> {
    let mut bed = Bed::start(lab::pods(1), |config| config)?;
    let host = bed.lab.hosts[0].clone();
    let _servers = (
        TcpEcho::start(&bed.lab.server, ECHO)?,
        UdpEcho::start(&bed.lab.server, ECHO)?,
    );
    let mut talk = TcpTalk::connect(&host, 0, ECHO)?;
    let mut config = Config::new(&bed.lab);
    config.pools[0].addresses = vec![EGRESS[1]];
    bed.agent.kill()?;
    bed.agent.write_config(&config)?;
    ensure!(*udp_seen(&host, 4000)?.ip() == EGRESS[0]);
    bed.agent.restart()?;
    ensure!(*udp_seen(&host, 4001)?.ip() == EGRESS[1]);
    talk.exchange(1000).context("what was open before")?;
    bed.finish()
}

/// Pins that do not fit are refused with the way out, and go on working meanwhile.
#[test]
fn pins_of_another_shape_are_refused() -> Result<()> {
    let mut bed = Bed::start(lab::pods(1), |config| config)?;
    let host = bed.lab.hosts[0].clone();
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    let seen = udp_seen(&host, 4000)?;
    bed.agent.kill()?;

    let mut larger = Config::new(&bed.lab);
    larger.settings.push("limits: {sessions: 1024}".to_owned());
    bed.agent.write_config(larger)?;
    refused(&mut bed, &["limits want 1024", "nat-agent detach"])?;
    ensure!(
        udp_seen(&host, 4000)? == seen,
        "the refused agent touched the data plane"
    );

    bed.agent.write_config(Config::new(&bed.lab))?;
    bed.agent.detach()?;
    let maps = bed.agent.pins().join("maps");
    std::fs::create_dir_all(&maps)?;
    let foreign = maps.join("SETTINGS");
    let create = "map create {} type array key 4 value 8 entries 1 name SETTINGS"
        .replace("{}", &foreign.to_string_lossy());
    let mut bpftool = std::process::Command::new("bpftool");
    process::run(bpftool.args(create.split(' ')), Duration::from_secs(10))?.success()?;
    refused(&mut bed, &["another layout", "nat-agent detach"])?;

    bed.agent.detach()?;
    bed.agent.restart()?;
    ensure!(*udp_seen(&host, 4000)?.ip() == EGRESS[0]);
    bed.finish()
}

/// The agent does not start, and says all of `words`.
fn refused(bed: &mut Bed, words: &[&str]) -> Result<()> {
    let from = bed.agent.log().len();
    ensure!(bed.agent.restart().is_err(), "it started all the same");
    let log = bed.agent.log();
    let missing = |word: &&&str| !log[from..].contains(**word);
    let missing: Vec<_> = words.iter().filter(missing).collect();
    ensure!(missing.is_empty(), "no {missing:?} in\n{}", &log[from..]);
    // It has ended by itself; what is left is its process handle.
    let _ = bed.agent.kill();
    Ok(())
}
