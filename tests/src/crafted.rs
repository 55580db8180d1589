//! hping3 and scapy: packets made to order, by programs that are not ours.

use std::net::SocketAddrV4;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::netns::Netns;
use crate::process;

/// Far more than any of them takes.
const LIMIT: Duration = Duration::from_secs(60);

/// hping3 in `netns`, with `options` as on its command line.
pub fn hping3_command(netns: &Netns, options: &str) -> Command {
    let mut command = netns.command("hping3");
    command
        .args(["-I", "eth0"])
        .args(options.split_whitespace());
    command
}

/// Runs hping3 once for each of `options`, all at once; each sends `count` packets.
pub fn hping3(netns: &Netns, count: u64, options: &[String]) -> Result<()> {
    let run = |options: &String| -> Result<()> {
        let options = format!("-n -c {count} -i u2000 {options}");
        let output = process::run(&mut hping3_command(netns, &options), LIMIT)?;
        // It ends with 1 when nothing was answered. Its own count may miss the last packet.
        ensure!(
            output.stderr.contains("packets transmitted"),
            "hping3 {options}: {output}"
        );
        Ok(())
    };
    // Each waits a second for answers before it ends.
    thread::scope(|scope| {
        let threads: Vec<_> = options
            .iter()
            .map(|options| scope.spawn(move || run(options)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap())
    })
}

/// Runs a script of scapy's in `netns` and returns what it printed.
pub fn scapy(netns: &Netns, script: &str) -> Result<String> {
    process::run(&mut scapy_command(netns, script), LIMIT)?.success()
}

/// A script of scapy's in `netns`.
pub fn scapy_command(netns: &Netns, script: &str) -> Command {
    // The system's own Python: another one on PATH may lack scapy.
    let mut command = netns.command("/usr/bin/python3");
    command
        .arg("-c")
        .arg(format!("from scapy.all import *\nconf.verb = 0\n{script}"));
    command
}

/// A script that sends a reset which ends no connection: it is far outside of any window.
pub fn reset(from: SocketAddrV4, to: SocketAddrV4) -> String {
    format!(
        "send(IP(src='{}', dst='{}') / TCP(sport={}, dport={}, flags='R', seq=1))",
        from.ip(),
        to.ip(),
        from.port(),
        to.port()
    )
}
