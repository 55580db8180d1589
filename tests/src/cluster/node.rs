//! A node, as the cluster and its tests see it.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::place::{Machine, Place};
use super::{Cluster, address, inside, kubectl, machine, network, root};
use crate::netns::Netns;
use crate::process::{self, Finished};

const READY: Duration = Duration::from_secs(120);
const COMMAND: Duration = Duration::from_secs(60);
const BOOT: Duration = Duration::from_secs(30);

/// A node of a cluster.
pub struct Node<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) number: u8,
}

impl Node<'_> {
    /// Its name in the API.
    pub fn name(&self) -> String {
        self.machine().to_string()
    }

    /// Its own address.
    pub fn address(&self) -> Ipv4Addr {
        address::node(self.number)
    }

    /// Its network namespace, which is another one after each boot.
    pub fn netns(&self) -> Netns {
        Netns::existing(&self.place().own(self.machine()))
    }

    /// A command that will run in its namespaces and on its root.
    pub fn command(&self, program: &str) -> Result<Command> {
        command(self.place(), self.number, program)
    }

    /// Runs the words of `line` in its namespaces and on its root, and returns what they printed.
    pub fn exec(&self, line: &str) -> Result<String> {
        self.try_exec(line)?
            .success()
            .with_context(|| format!("{}: {line}", self.name()))
    }

    /// Like [`Node::exec`], also when the program fails.
    pub fn try_exec(&self, line: &str) -> Result<Finished> {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().context("an empty command line")?)?;
        process::run(command.args(words), COMMAND)
    }

    /// Whether it is switched on.
    pub fn is_running(&self) -> bool {
        machine::init(self.place(), self.machine()).is_ok_and(|init| init.is_some())
    }

    /// Pulls its plug: its link is gone and every process ends at once. Its disk stays.
    pub fn kill(&self) -> Result<()> {
        ensure!(self.is_running(), "{} is not running", self.name());
        self.cut_off()
    }

    /// Boots it again on its disk and waits until it is ready.
    pub fn start(&self) -> Result<()> {
        ensure!(!self.is_running(), "{} is running", self.name());
        // It may have ended by itself.
        self.cut_off()?;
        let boot = self.boot()?;
        self.wait_ready(&boot)
    }

    fn cut_off(&self) -> Result<()> {
        // The link first: sockets of processes that end would still say so to others.
        network::unplug(self.place(), self.number)?;
        machine::kill(self.place(), self.machine())?;
        network::remove(self.place(), self.number);
        Ok(())
    }

    /// Imports an archive that lies among the cluster's images.
    pub(super) fn import(&self, archive: &OsStr) -> Result<()> {
        let (program, arguments) = inside::IMPORT;
        let mut command = self.command(program)?;
        command
            .args(arguments)
            .arg(Path::new(root::IMAGES).join(archive));
        process::run(&mut command, COMMAND)?
            .success()
            .with_context(|| format!("{} cannot import {}", self.name(), archive.display()))
            .map(drop)
    }

    /// Switches it on, and returns the id of this boot.
    pub(super) fn boot(&self) -> Result<String> {
        network::plug_in(self.place(), self.number, self.cluster.record.nodes)?;
        machine::start(self.place(), self.machine())?;
        let id = || boot_id(self.place(), self.number);
        machine::eventually(self.place(), self.machine(), BOOT, "its own root", id)
    }

    /// Waits until the API server has heard from this boot that the node is ready.
    pub(super) fn wait_ready(&self, boot: &str) -> Result<()> {
        let query =
            "jsonpath={.status.nodeInfo.bootID} {.status.conditions[?(@.type==\"Ready\")].status}";
        let (name, wanted) = (self.name(), format!("{boot} True"));
        machine::eventually(self.place(), self.machine(), READY, "ready", || {
            let found = kubectl::run(self.place(), &["get", "node", &name, "-o", query], "")?;
            ensure!(
                found == wanted,
                "the API server has {found:?} instead of {wanted:?}"
            );
            Ok(())
        })
    }

    fn machine(&self) -> Machine {
        Machine::Node(self.number)
    }

    fn place(&self) -> &Place {
        &self.cluster.place
    }
}

/// The API object of a node, made before the node itself so that it gets the pod network that the routes lead to.
pub fn object(number: u8) -> String {
    let (name, pods) = (Machine::Node(number), address::pods(number));
    format!(
        "apiVersion: v1\n\
         kind: Node\n\
         metadata: {{name: {name}, labels: {{kubernetes.io/hostname: {name}}}}}\n\
         spec: {{podCIDR: {pods}, podCIDRs: [{pods}]}}\n\
         ---\n"
    )
}

/// A command that will run inside a node, on its root.
fn command(place: &Place, number: u8, program: &str) -> Result<Command> {
    let init = machine::init(place, Machine::Node(number))?;
    let init = init.with_context(|| format!("node {number} is not running"))?;
    let mut command = Command::new("nsenter");
    command
        .args([
            "--target",
            &init.to_string(),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
        ])
        .args(["--root", "--wd", "--", program]);
    Ok(command)
}

/// The id of a node's boot, as the kubelet will tell the API server; an error while the node's root is not there yet.
fn boot_id(place: &Place, number: u8) -> Result<String> {
    let mut command = command(place, number, "cat")?;
    let id = process::run(command.arg(root::BOOT_ID), COMMAND)?
        .success()?
        .trim()
        .to_string();
    // Before the node has its own, this machine's is seen.
    ensure!(
        id != fs::read_to_string(root::BOOT_ID)?.trim(),
        "the node's root is not there yet"
    );
    Ok(id)
}
