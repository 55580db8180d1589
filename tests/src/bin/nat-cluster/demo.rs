//! `cargo xtask cluster demo`: natctl on a real cluster, as a person would install and use it.

use std::time::Instant;

use anyhow::{Result, ensure};
use nat_tests::cluster::{self, Cluster, Options};
use nat_tests::deploy::{self, NAMESPACE};
use nat_tests::pod::{Pod, Servers};
use nat_tests::process;
use nat_tests::sniffer::Sniffer;

use super::{NAME, explain};

/// Two: each with a pod that leaves from an address of its own.
const NODES: u8 = 2;

/// Shows it, and removes everything again, unless it is kept.
pub fn run(keep: bool) -> Result<()> {
    process::heed_interrupts()?;
    let began = Instant::now();
    step(
        1,
        "A cluster: API server, etcd, two nodes with kubelet and containerd",
    );
    let mut cluster = Cluster::up(&Options {
        name: Some(NAME.into()),
        nodes: NODES,
        ..Options::default()
    })?;
    step(2, "The agent on both nodes: kubectl apply -k deploy/base");
    deploy::install(&cluster)?;
    step(
        3,
        "A pool of two addresses and two annotated pods: kubectl apply -k deploy/example",
    );
    deploy::apply_example(&cluster)?;
    print(&cluster.kubectl("get egresspools")?);
    print(&cluster.kubectl(&format!("-n {} get pods -o wide", deploy::EXAMPLE))?);
    ask_the_server(&cluster)?;
    step(6, "What the first node's agent says of it: natctl status");
    let agent = deploy::agent_on(&cluster, &cluster.node(1)?)?;
    print(&cluster.kubectl(&format!("-n {NAMESPACE} exec {agent} -- natctl status"))?);
    if keep {
        cluster.keep();
        explain();
        return Ok(());
    }
    step(7, "Uninstalled: kubectl delete -k deploy/base");
    deploy::uninstall(&cluster)?;
    cluster.down()?;
    println!(
        "Everything is removed again. It took {:.0} s.",
        began.elapsed().as_secs_f32()
    );
    println!("`cargo xtask cluster demo --keep` leaves it up to explore.");
    Ok(())
}

/// As whom the pods were seen, by the server and by a sniffer on its link.
fn ask_the_server(cluster: &Cluster) -> Result<()> {
    let _servers = Servers::start(cluster)?;
    let sniffer = Sniffer::count(&cluster.outside(), cluster::DEVICE)?;
    step(4, "The server outside says as whom it sees them");
    let pods = Pod::examples(cluster)?;
    let mut own = Vec::new();
    for pod in &pods {
        let (tcp, udp, address) = (pod.seen()?, pod.seen_by_udp()?, pod.address()?);
        println!(
            "     {} is {address}, seen as {tcp} over TCP, as {udp} over UDP",
            pod.name
        );
        own.push(address);
    }
    println!();
    step(5, "A sniffer on the server's link");
    let leaked = sniffer.total(|flow| own.contains(&flow.source)).frames;
    let all = sniffer.total(|flow| flow.source != cluster::OUTSIDE).frames;
    println!("     {leaked} of {all} packets to the server came from a pod's own address\n");
    ensure!(leaked == 0, "a pod's packets left untranslated");
    sniffer.finish()?;
    Ok(())
}

fn step(number: u32, what: &str) {
    println!("{number}. {what}");
}

fn print(text: &str) {
    for line in text.lines() {
        println!("     {line}");
    }
    println!();
}
