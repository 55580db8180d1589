//! The cluster itself: with nothing of ours in it, everything that tests of the agent will rely on works.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nat_tests::cluster::{self, Cluster, Cni, OUTSIDE, Options, Place};
use nat_tests::image;
use nat_tests::netns;
use nat_tests::process::{self, eventually};
use nat_tests::programs::TcpEcho;
use nat_tests::sniffer::Sniffer;
use nat_tests::wire;

const WEB: &str = include_str!("../cluster/web.yaml");
/// Of web.yaml.
const WEB_SERVICE: &str = "10.96.0.80";
const ECHO: SocketAddrV4 = SocketAddrV4::new(OUTSIDE, 9000);
const PATIENCE: Duration = Duration::from_secs(60);

/// A pod of web.yaml.
struct Pod {
    name: String,
    address: Ipv4Addr,
}

impl Pod {
    /// The one on node `number`, ready.
    fn on(cluster: &Cluster, number: u8) -> Result<Self> {
        let query = "-o jsonpath={.items[*].metadata.name},{.items[*].status.podIP}";
        let node = cluster.node(number)?.name();
        let pods = format!("pods -l app=web --field-selector spec.nodeName={node}");
        // A rollout may be taken for complete before every node has its pod.
        eventually(PATIENCE, "a pod that is ready", || {
            cluster.kubectl(&format!("wait --for=condition=Ready --timeout=10s {pods}"))
        })?;
        let found = cluster.kubectl(&format!("get {pods} {query}"))?;
        let (name, address) = found.split_once(',').context("no answer")?;
        let address = address
            .parse()
            .with_context(|| format!("pods on {node}: {found}"))?;
        Ok(Self {
            name: name.to_string(),
            address,
        })
    }

    fn exec(&self, cluster: &Cluster, line: &str) -> Result<String> {
        cluster.kubectl(&format!("exec {} -- {line}", self.name))
    }

    /// What the web server at `host` answers to this pod.
    fn get(&self, cluster: &Cluster, host: &str) -> Result<String> {
        let answer = self.exec(
            cluster,
            &format!("curl --silent --max-time 3 http://{host}/"),
        )?;
        Ok(answer.trim().to_string())
    }

    /// What its own web server answers.
    fn words(&self, node: &str) -> String {
        format!("{} on {node}", self.name)
    }
}

fn up(cni: Cni, nodes: u8) -> Result<(Cluster, Vec<Pod>)> {
    let options = Options {
        cni,
        nodes,
        ..Options::default()
    };
    let cluster = Cluster::up(&options)?;
    cluster.apply(WEB)?;
    cluster.kubectl("rollout status daemonset/web --timeout=60s")?;
    let pods = (1..=nodes)
        .map(|number| Pod::on(&cluster, number))
        .collect::<Result<_>>()?;
    Ok((cluster, pods))
}

/// Every pod reaches every pod under its address, and all of them by the Service.
fn pods_and_service(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    for from in pods {
        for (to, node) in pods.iter().zip(cluster.nodes()) {
            let answer = from.get(cluster, &format!("{}:8080", to.address))?;
            ensure!(answer == to.words(&node.name()), "{answer:?}");
        }
    }
    let expected: BTreeSet<_> = pods
        .iter()
        .zip(cluster.nodes())
        .map(|(pod, node)| pod.words(&node.name()))
        .collect();
    // kube-proxy picks at random.
    let mut seen = BTreeSet::new();
    eventually(PATIENCE, "answers of all pods by the Service", || {
        seen.insert(pods[0].get(cluster, WEB_SERVICE)?);
        ensure!(seen == expected, "{seen:?} instead of {expected:?}");
        Ok(())
    })
}

/// The server outside sees each pod under its own address, and so does the sniffer beside it.
fn the_outside(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    let outside = cluster.outside();
    let sniffer = Sniffer::count(&outside, cluster::DEVICE)?;
    let _echo = TcpEcho::start(&outside, ECHO)?;
    for pod in pods {
        let greeting = pod.exec(
            cluster,
            &format!("nc.openbsd -d -w 2 {OUTSIDE} {}", ECHO.port()),
        )?;
        let seen: SocketAddrV4 = greeting.trim().parse()?;
        ensure!(
            *seen.ip() == pod.address,
            "{} was seen as {seen}",
            pod.address
        );
        let frames = sniffer.total(|flow| flow.protocol == wire::TCP && flow.source == pod.address);
        ensure!(frames.frames > 0, "the sniffer missed {}", pod.address);
    }
    sniffer.finish()
}

/// A node whose plug is pulled is gone at once, and comes back with its disk.
fn a_power_cut(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    let node = cluster.node(2)?;
    node.exec("touch /var/kept /run/lost")?;
    node.kill()?;
    ensure!(!node.is_running() && node.exec("true").is_err());
    let ping = |address: Ipv4Addr| {
        let finished = cluster
            .node(1)?
            .try_exec(&format!("ping -c 1 -W 1 {address}"))?;
        anyhow::Ok((finished.status.success(), finished))
    };
    for (address, expected) in [
        (node.address(), false),
        (pods[1].address, false),
        (pods[2].address, true),
    ] {
        let (answered, finished) = ping(address)?;
        ensure!(answered == expected, "{address}: {finished}");
    }
    node.start()?;
    ensure!(node.start().is_err(), "it was started twice");
    node.exec("test -e /var/kept -a ! -e /run/lost")?;
    eventually(
        PATIENCE,
        "the pod of the node that was booted again",
        || {
            let pod = Pod::on(cluster, 2)?;
            let answer = pods[0].get(cluster, &format!("{}:8080", pod.address))?;
            ensure!(answer == pod.words(&node.name()), "{answer:?}");
            Ok(())
        },
    )
}

/// The agent's image starts in a pod, and has what the agent calls.
fn the_agents_image(cluster: &Cluster) -> Result<()> {
    let archive = std::env::temp_dir().join(format!("nat-agent-{}.tar", std::process::id()));
    let image = image::agent()?;
    image.write(&archive)?;
    let loaded = cluster.load_image(&archive);
    fs::remove_file(&archive)?;
    loaded?;
    for command in ["nat-agent --version", "natctl --version", "nft --version"] {
        let name = command.split(' ').next().unwrap_or_default();
        cluster.kubectl(&format!(
            "run {name} --image {} --restart Never --command -- {command}",
            image.reference
        ))?;
        cluster.kubectl(&format!(
            "wait pod/{name} --for jsonpath={{.status.phase}}=Succeeded --timeout 60s"
        ))?;
        let said = cluster.kubectl(&format!("logs {name}"))?;
        ensure!(said.starts_with(name), "{command}: {said:?}");
    }
    Ok(())
}

#[test]
fn three_nodes_with_routed_pods() -> Result<()> {
    let (cluster, pods) = up(Cni::Ptp, 3)?;
    pods_and_service(&cluster, &pods)?;
    the_outside(&cluster, &pods)?;
    the_agents_image(&cluster)?;
    a_power_cut(&cluster, &pods)?;
    cluster.down()
}

#[test]
fn two_nodes_with_pods_on_bridges() -> Result<()> {
    let (cluster, pods) = up(Cni::Bridge, 2)?;
    pods_and_service(&cluster, &pods)?;
    the_outside(&cluster, &pods[..1])?;
    cluster.down()
}

/// Namespaces and control groups with a name that begins so.
fn traces(name: &str) -> Result<Vec<String>> {
    let mut find = Command::new("find");
    find.args([
        "/sys/fs/cgroup",
        "-maxdepth",
        "2",
        "-name",
        &format!("{name}-*"),
    ]);
    let groups = process::run(&mut find, PATIENCE)?.stdout;
    let namespaces = netns::names().filter(|other| other.starts_with(&format!("{name}-")));
    Ok(namespaces.chain(groups.lines().map(String::from)).collect())
}

/// A name of this process that [`Cluster::up`] does not give by itself.
fn own_name(number: u32) -> String {
    format!("natk{}x{}", std::process::id(), 900 + number)
}

#[test]
fn a_second_one_of_the_same_name_is_refused_and_the_first_removed_by_its_name() -> Result<()> {
    let name = own_name(1);
    let options = Options {
        name: Some(name.clone()),
        nodes: 1,
        ..Options::default()
    };
    Cluster::up(&options)?.keep();
    ensure!(!traces(&name)?.is_empty());
    let refused = Cluster::up(&options)
        .err()
        .context("there were two of one name")?;
    ensure!(refused.to_string().contains("cluster down"), "{refused:#}");
    Cluster::open(&name)?
        .kubectl("get nodes")
        .context("the first is no longer up")?;
    ensure!(cluster::down(&name)?, "it was not found");
    let left = traces(&name)?;
    ensure!(left.is_empty() && Cluster::open(&name).is_err(), "{left:?}");
    ensure!(!cluster::down(&name)?, "something was left");
    Ok(())
}

#[test]
fn an_attempt_that_fails_leaves_nothing() -> Result<()> {
    let name = own_name(2);
    // The namespace of its second node is there already.
    netns::Netns::create(&format!("{name}-n2"))?.keep();
    let options = Options {
        name: Some(name.clone()),
        ..Options::default()
    };
    ensure!(Cluster::up(&options).is_err());
    let left = traces(&name)?;
    ensure!(left.is_empty(), "{left:?}");
    ensure!(!Place::new(&name)?.directory().exists());
    Ok(())
}

#[test]
fn what_a_killed_process_left_is_removed() -> Result<()> {
    // No process has the largest id there is.
    let dead = Place::new("natk4194304x0")?;
    let living = Place::new(&own_name(3))?;
    for place in [&dead, &living] {
        netns::Netns::create(&place.own("n1"))?.keep();
        fs::create_dir_all(place.directory())?;
    }
    cluster::remove_leftovers()?;
    ensure!(traces(dead.name())?.is_empty() && !dead.directory().exists());
    ensure!(!traces(living.name())?.is_empty() && living.directory().exists());
    cluster::down(living.name())?;
    Ok(())
}
