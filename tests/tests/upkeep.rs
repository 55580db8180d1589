//! What the agent does without being asked: it puts right what others, or bad luck, have put wrong, and lets nothing
//! out while it starts.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::mem::offset_of;
use std::net::SocketAddrV4;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use nat_common::abi::Block;
use nat_tests::agent::{Agent, Bed};
use nat_tests::config::Config;
use nat_tests::lab::{self, EGRESS, Host, OUTSIDE, SERVER};
use nat_tests::process;
use nat_tests::programs::{self, UdpEcho};
use serde_json::Value;

const ECHO: SocketAddrV4 = SocketAddrV4::new(SERVER, 9000);
const SOON: Duration = Duration::from_secs(10);

fn udp_seen(host: &Host, port: u16) -> Result<SocketAddrV4> {
    programs::udp_ask(&programs::udp_socket(host, port, ECHO)?)
}

/// Somebody reloads the node's rules, a masquerade among them, and flushes ours away.
#[test]
fn a_flushed_rule_is_put_back() -> Result<()> {
    let bed = Bed::start(lab::pods(1), |config| config)?;
    let host = &bed.lab.hosts[0];
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    bed.lab.node.nft(
        "flush ruleset
         table ip cni {
           chain postrouting {
             type nat hook postrouting priority srcnat
             ip saddr 10.244.0.0/16 oifname eth0 masquerade
           }
         }",
    )?;
    process::eventually(SOON, "the rule to be back", || {
        bed.lab.node.run("nft list table ip natctl")
    })?;
    let seen = udp_seen(host, 4000)?;
    ensure!(
        *seen.ip() == EGRESS[0],
        "{seen}: the masquerade took what is marked"
    );
    bed.finish()
}

/// The guard stands at the outside device before any client's packets are marked for it: what is marked and finds no
/// guard would leave as it is.
#[test]
fn the_guard_comes_first() -> Result<()> {
    let mut lab = lab::pods(2).build()?;
    // A name that comes before the outside device's, by which the order must not go.
    let host = &mut lab.hosts[0];
    host.device = format!("a{}", host.device);
    lab.node.ip(&format!(
        "link set vethpod1 down\n\
         link set vethpod1 name {0}\n\
         link set {0} up\n\
         route add {1}/32 dev {0}",
        host.device, host.address
    ))?;
    let config = Config::new(&lab);
    let bed = Bed {
        agent: Agent::start(&lab, &config)?,
        lab,
    };
    let guard = link_number(&bed, OUTSIDE, "guard")?;
    for host in &bed.lab.hosts {
        let client = link_number(&bed, &host.device, "client")?;
        ensure!(
            guard < client,
            "{}'s program was attached before the guard: {client}, {guard}",
            host.device
        );
        ensure!(programs::ping(host, SERVER, 1, "")? == 1);
    }
    bed.finish()
}

/// A pool's path is changed and changed back: a pod's link has the path's program each time.
#[test]
fn a_link_follows_its_path_there_and_back() -> Result<()> {
    let bed = Bed::start(lab::pods(1), |config| config)?;
    let device = bed.lab.hosts[0].device.clone();
    for path in ["stack", "direct", "stack"] {
        let config = Config::new(&bed.lab).pool(format!("path: {path}"));
        let wanted = format!("client_{path}");
        bed.agent.write_config(config)?;
        process::eventually(SOON, &wanted, || {
            let program = link(&bed, &device, "client")?["prog_id"].to_string();
            let program = bpftool(&bed, &format!("prog show id {program}"))?;
            ensure!(program["name"] == *wanted, "{program}");
            Ok(())
        })?;
    }
    bed.finish()
}

/// A link that somebody else took away is put back.
#[test]
fn a_link_that_is_gone_is_put_back() -> Result<()> {
    let bed = Bed::start(lab::pods(1), |config| config)?;
    let device = bed.lab.hosts[0].device.clone();
    let before = link_number(&bed, &device, "client")?;
    fs::remove_file(pin(&bed, &device, "client"))?;
    process::eventually(SOON, "another link", || {
        ensure!(link_number(&bed, &device, "client")? > before);
        Ok(())
    })?;
    bed.finish()
}

/// The kernel's number of a pinned link: a later link has a greater one.
fn link_number(bed: &Bed, device: &str, job: &str) -> Result<u64> {
    let shown = link(bed, device, job)?;
    shown["id"].as_u64().with_context(|| format!("{shown}"))
}

/// What the kernel says of a pinned link.
fn link(bed: &Bed, device: &str, job: &str) -> Result<Value> {
    let pin = pin(bed, device, job);
    bpftool(bed, &format!("link show pinned {}", pin.display()))
}

fn pin(bed: &Bed, device: &str, job: &str) -> PathBuf {
    bed.agent.pins().join(format!("links/{device}::{job}"))
}

fn bpftool(bed: &Bed, command: &str) -> Result<Value> {
    let shown = bed.lab.node.run(&format!("bpftool -j {command}"))?;
    Ok(serde_json::from_str(&shown)?)
}

/// The file changes after the agent has read it and before it watches.
#[test]
fn a_change_while_it_starts_is_not_missed() -> Result<()> {
    let mut bed = Bed::start(lab::pods(1), |config| config)?;
    let host = bed.lab.hosts[0].clone();
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    bed.agent.kill()?;
    bed.agent.use_config_apart()?;
    let old = Config::new(&bed.lab);
    let mut new = old.clone();
    new.pools[0].addresses = vec![EGRESS[1]];
    let writer = change_while_read(bed.agent.config(), &old, &new)?;
    bed.agent.restart()?;
    ensure!(writer.is_finished(), "the agent has not read the old file");
    writer.join().unwrap()?;
    process::eventually(SOON, "the change to apply", || {
        let seen = udp_seen(&host, 0)?;
        ensure!(*seen.ip() == EGRESS[1], "still {seen}");
        Ok(())
    })?;
    bed.finish()
}

/// Makes the first reader of `file` get `old`, and has `new` in its place before that reader is done.
fn change_while_read(
    file: &Path,
    old: &Config,
    new: &Config,
) -> Result<thread::JoinHandle<Result<()>>> {
    let (file, old, new) = (file.to_path_buf(), old.to_string(), new.to_string());
    let next = file.with_extension("next");
    fs::write(&next, new)?;
    fs::remove_file(&file)?;
    let mut mkfifo = std::process::Command::new("mkfifo");
    process::run(mkfifo.arg(&file), SOON)?.success()?;
    Ok(thread::spawn(move || {
        // Opens when the reader does; the reader goes on until it is closed.
        let mut pipe: File = OpenOptions::new().write(true).open(&file)?;
        pipe.write_all(old.as_bytes())?;
        Ok(fs::rename(next, file)?)
    }))
}

/// A port that is in use and yet free is taken again, before somebody else gets it.
#[test]
fn a_port_in_use_does_not_stay_free() -> Result<()> {
    let mut bed = Bed::start(lab::pods(1), |config| {
        config.pool("portsPerClient: 64").pool("blockSize: 64")
    })?;
    let host = bed.lab.hosts[0].clone();
    let _echo = UdpEcho::start(&bed.lab.server, ECHO)?;
    let first = programs::udp_socket(&host, 20_000, ECHO)?;
    let seen = programs::udp_ask(&first)?;
    let free = |bed: &Bed| bed.agent.status()?.ports(EGRESS[0], "udp", "free");
    let before = free(&bed)?;
    bed.agent.kill()?;
    set_free(&bed.agent.pins().join("maps/BLOCKS"))?;
    ensure!(
        free(&bed)? == before + 1,
        "the port is not free: the test proves nothing"
    );
    bed.agent.restart()?;
    ensure!(free(&bed)? == before, "the port in use is still free");
    let others = (20_001..20_064)
        .map(|port| udp_seen(&host, port))
        .collect::<Result<HashSet<_>>>()?;
    ensure!(
        others.len() == 63 && !others.contains(&seen) && programs::udp_ask(&first)? == seen,
        "{} others beside {seen}",
        others.len()
    );
    bed.finish()
}

/// Sets the one port free that is taken.
fn set_free(pin: &Path) -> Result<()> {
    const LENGTH: usize = size_of::<Block>();
    const FREE: Range<usize> = offset_of!(Block, free)..offset_of!(Block, free) + 8;
    const USABLE: Range<usize> = offset_of!(Block, usable)..offset_of!(Block, usable) + 8;
    let mut blocks: Array<MapData, [u8; LENGTH]> =
        Map::Array(MapData::from_pin(pin)?).try_into()?;
    for number in 0..blocks.len() {
        let mut block = blocks.get(&number, 0)?;
        if block[FREE] != block[USABLE] {
            block.copy_within(USABLE, FREE.start);
            return Ok(blocks.set(number, block, 0)?);
        }
    }
    bail!("no port is taken")
}
