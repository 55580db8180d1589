//! The agent on a real cluster, installed from deploy/ and from nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result, bail, ensure};
use nat_tests::agent;
use nat_tests::cluster::{self, Cluster, Node, OUTSIDE, Options};
use nat_tests::deploy::{self, EXAMPLE, NAMESPACE};
use nat_tests::pod::{PATIENCE, Pod, Servers, TCP};
use nat_tests::process::{self, Port, Process, eventually};
use nat_tests::sniffer::Sniffer;

/// The first of the ports that transfers go to.
const TRANSFER: u16 = 5201;
/// Of deploy/example/pool.yaml.
const OFFICE: [Ipv4Addr; 2] = [
    Ipv4Addr::new(203, 0, 113, 10),
    Ipv4Addr::new(203, 0, 113, 11),
];
/// Of [`POOL`].
const FIRST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
const SECOND: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 21);
const POOL: &str = "
apiVersion: natctl.io/v1alpha1
kind: EgressPool
metadata: {name: more}
spec:
  addresses: [203.0.113.20, 203.0.113.21]
  # Until its ports have rested an address stays on its node.
  rest: 1s
  allowedNamespaces: {matchLabels: {egress: office}}
";
/// Of [`BRIEF`], where flows and ports are soon forgotten.
const DRAINED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 30);
const BRIEF: &str = "
apiVersion: natctl.io/v1alpha1
kind: EgressPool
metadata: {name: brief}
spec:
  addresses: [203.0.113.30, 203.0.113.31]
  allowedNamespaces: {matchLabels: {egress: office}}
  rest: 1s
  timers: {tcpTransitory: 2s}
";
/// What containers get of BPF, NET_ADMIN, NET_RAW and PERFMON: capabilities(7).
const CAPABILITIES: u64 = 1 << 39 | 1 << 12 | 1 << 13 | 1 << 38;

/// A container of the agent: its process in its node.
fn agent_process(node: &Node<'_>) -> Result<String> {
    Ok(node.exec("pgrep -x nat-agent")?.trim().to_string())
}

/// Each example's address is one of the pool, and no two nodes have the same one.
fn the_example(pods: &[Pod<'_>]) -> Result<()> {
    let mut addresses = BTreeSet::new();
    for pod in pods {
        let address = eventually(PATIENCE, &pod.name, || pod.seen())?;
        ensure!(OFFICE.contains(&address), "{address}");
        ensure!(pod.seen_by_udp()? == address);
        addresses.insert(address);
    }
    ensure!(addresses.len() == pods.len(), "{addresses:?}");
    Ok(())
}

/// The agent has four capabilities, can get no others, and is under seccomp's filter.
fn without_privilege(node: &Node<'_>) -> Result<()> {
    let pid = agent_process(node)?;
    let status = node.exec(&format!("cat /proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim_start_matches(':').trim())
            .with_context(|| format!("no {name}"))
    };
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let found = u64::from_str_radix(field(set)?, 16)?;
        ensure!(found == CAPABILITIES, "{set} is {found:#x}");
    }
    ensure!(field("NoNewPrivs")? == "1" && field("Seccomp")? == "2");
    let mounts = node.exec(&format!("cat /proc/{pid}/mounts"))?;
    let root = mounts.lines().find(|line| line.contains(" / "));
    let options = root.and_then(|root| root.split_whitespace().nth(3));
    ensure!(options.context("no root")?.starts_with("ro"));
    Ok(())
}

/// A live pod's annotation is removed, added and changed.
fn annotations_change(cluster: &Cluster) -> Result<()> {
    let pod = Pod::create(&cluster.node(1)?, cluster, "changes", "none")?;
    let own = pod.address()?;
    ensure!(pod.seen()? == own && pod.seen_by_udp()? == own);
    pod.annotate(&format!("={FIRST}"))?;
    pod.wait_seen_as(FIRST)?;
    pod.annotate(&format!("={SECOND}"))?;
    pod.wait_seen_as(SECOND)?;
    pod.annotate("-")?;
    pod.wait_seen_as(own)?;
    pod.delete()
}

/// A connection outlives the annotation, and the address that it began with; new ones do not get it.
fn flows_are_drained(cluster: &Cluster, sniffer: &Sniffer) -> Result<()> {
    let node = cluster.node(1)?;
    let pod = Pod::create(&node, cluster, "drained", "203.0.113.31")?;
    let own = pod.address()?;
    pod.wait_seen_as(Ipv4Addr::new(203, 0, 113, 31))?;
    pod.annotate(&format!("={DRAINED}"))?;
    pod.wait_seen_as(DRAINED)?;
    let (_server, mut transfer) = transferring(cluster, &pod, TRANSFER + 10, 20)?;
    let transferred = |source: Ipv4Addr| {
        sniffer.total(|flow| flow.source == source && flow.destination_port == TRANSFER + 10)
    };
    eventually(PATIENCE, "the transfer", || {
        ensure!(transferred(DRAINED).frames > 100);
        Ok(())
    })?;
    pod.annotate("=203.0.113.31")?;
    pod.wait_seen_as(Ipv4Addr::new(203, 0, 113, 31))?;
    pod.annotate("-")?;
    pod.wait_seen_as(own)?;
    ensure!(pod.seen_by_udp()? == own);
    ensure!(status_line(cluster, &node, "drained")?.contains(": draining"));
    ensure!(transfer.is_running(), "{}", transfer.output());
    let status = transfer.wait(PATIENCE)?;
    ensure!(status.success(), "{}", transfer.output());
    ensure!(
        transferred(own).frames == 0,
        "a connection lost its address"
    );
    eventually(PATIENCE, "the end of the draining", || {
        ensure!(status_line(cluster, &node, "drained").is_err());
        Ok(())
    })?;
    pod.delete()
}

/// A cutover ends the connections of an address that is taken from a pod.
fn flows_are_cut(cluster: &Cluster) -> Result<()> {
    let pod = Pod::create(&cluster.node(1)?, cluster, "cut", "203.0.113.30")?;
    pod.kubectl("annotate pod NAME natctl.io/cutover=immediate")?;
    pod.wait_seen_as(DRAINED)?;
    let node = cluster.node(1)?;
    for (port, egress) in (TRANSFER + 20..).zip(["=203.0.113.31", "-"]) {
        let (_server, transfer) = transferring(cluster, &pod, port, 600)?;
        wait_flows(cluster, &node, port, true)?;
        pod.annotate(egress)?;
        wait_flows(cluster, &node, port, false)?;
        // With its connections it may have ended by itself.
        drop(transfer);
    }
    pod.delete()
}

/// Another node's claim to an address ends the flows that this node has there.
fn a_claim_is_lost(cluster: &Cluster) -> Result<()> {
    let [first, second] = [cluster.node(1)?, cluster.node(2)?];
    let loser = Pod::create(&first, cluster, "loser", "203.0.113.30")?;
    loser.wait_seen_as(DRAINED)?;
    let (_server, transfer) = transferring(cluster, &loser, TRANSFER + 30, 600)?;
    wait_flows(cluster, &first, TRANSFER + 30, true)?;
    let taker = Pod::create(&second, cluster, "taker", "203.0.113.30")?;
    taker.wait_told("AddressInUse")?;
    cluster.kubectl(&format!(
        "patch egresspool brief --subresource=status --type=merge -p \
         {{\"status\":{{\"slices\":[{{\"address\":\"{DRAINED}\",\"first\":1024,\"size\":64512,\
         \"node\":\"{}\",\"renewed\":\"now\"}}]}}}}",
        second.name()
    ))?;
    taker.wait_seen_as(DRAINED)?;
    wait_flows(cluster, &first, TRANSFER + 30, false)?;
    let status = natctl(cluster, &first, "status")?;
    let address = DRAINED.to_string();
    ensure!(
        !status.lines().any(|line| line.starts_with(&address)),
        "{status}"
    );
    loser.wait_told("AddressInUse")?;
    drop(transfer);
    taker.delete()?;
    loser.delete()
}

/// Waits until a node has flows to this port, or has none any more.
fn wait_flows(cluster: &Cluster, node: &Node<'_>, port: u16, some: bool) -> Result<()> {
    eventually(PATIENCE, "flows", || {
        let flows = natctl(cluster, node, "flows -o json")?;
        ensure!(flows.contains(&port.to_string()) == some, "{port}: {flows}");
        Ok(())
    })
}

fn natctl(cluster: &Cluster, node: &Node<'_>, arguments: &str) -> Result<String> {
    let agent = deploy::agent_on(cluster, node)?;
    cluster.kubectl(&format!(
        "-n {NAMESPACE} exec {agent} -- natctl {arguments}"
    ))
}

/// A client's line of `natctl status`.
fn status_line(cluster: &Cluster, node: &Node<'_>, pod: &str) -> Result<String> {
    let status = natctl(cluster, node, "status")?;
    let name = format!("{EXAMPLE}/{pod} ");
    let line = status.lines().find(|line| line.starts_with(&name));
    line.map(str::to_owned).context(status.clone())
}

/// A transfer of so many seconds, and its server.
fn transferring(
    cluster: &Cluster,
    pod: &Pod<'_>,
    port: u16,
    seconds: u32,
) -> Result<(Process, Process)> {
    let outside = cluster.outside();
    let mut command = outside.command("iperf3");
    command.args(["-s", "-p", &port.to_string()]);
    let log = std::env::temp_dir().join(format!("natkube-{}-s{port}", std::process::id()));
    let mut server = Process::spawn(&mut command, &log)?;
    server.wait_listening(&outside, Port::Tcp(port), PATIENCE)?;
    Ok((server, pod.transfer(port, seconds)?))
}

/// An address that another node uses blocks the pod, which is told so, until the other node is done with it.
fn another_nodes_address(cluster: &Cluster, sniffer: &Sniffer) -> Result<()> {
    let holder = Pod::create(&cluster.node(2)?, cluster, "holder", "203.0.113.20")?;
    eventually(PATIENCE, "the claim", || {
        let claims = cluster.kubectl("get egresspool more -o jsonpath={.status.slices}")?;
        ensure!(
            claims.contains("203.0.113.20") && claims.contains("n2"),
            "{claims}"
        );
        Ok(())
    })?;
    let waiting = Pod::create(&cluster.node(1)?, cluster, "waiting", "203.0.113.20")?;
    let told = waiting.wait_told("AddressInUse")?;
    ensure!(
        told.starts_with("Warning:203.0.113.20 is in use on node n2"),
        "{told}"
    );
    ensure!(waiting.seen().is_err(), "it was served on two nodes");
    let own = waiting.address()?;
    ensure!(sniffer.total(|flow| flow.source == own).frames == 0);
    holder.delete()?;
    waiting.wait_seen_as(FIRST)?;
    waiting.wait_told("EgressReady")?;
    waiting.delete()
}

/// The API forgets a pod at once that is deleted by force; its processes live on for a while, and send.
fn a_client_is_deleted_by_force(cluster: &Cluster, sniffer: &Sniffer) -> Result<()> {
    let node = cluster.node(1)?;
    let pod = Pod::create(&node, cluster, "forced", "203.0.113.20")?;
    pod.wait_seen_as(FIRST)?;
    let own = pod.address()?;
    let _ping = pod.ping()?;
    pod.kubectl("delete pod NAME --force --grace-period=0")?;
    eventually(PATIENCE, "its link to go", || {
        let route = node.exec(&format!("ip route show {own}"))?;
        ensure!(route.is_empty(), "{route}");
        Ok(())
    })?;
    let leaked = sniffer.flows(|flow| flow.source == own);
    ensure!(leaked.is_empty(), "it left as itself: {leaked:?}");
    Ok(())
}

/// A namespace that the pool does not allow gets nothing, and is told what to do.
fn a_foreign_namespace(cluster: &Cluster, sniffer: &Sniffer) -> Result<()> {
    let pod = Pod::create_in("default", &cluster.node(1)?, cluster, "foreign", "office")?;
    let told = pod.wait_told("NamespaceNotAllowed")?;
    ensure!(
        told.starts_with("Warning:") && told.contains("label the namespace"),
        "{told}"
    );
    ensure!(pod.seen().is_err());
    let own = pod.address()?;
    ensure!(sniffer.total(|flow| flow.source == own).frames == 0);
    // A tenant's mistake is no reason to hold an upgrade up.
    deploy::wait(cluster)?;
    pod.delete()
}

/// `kubectl nat` asks the agent of a pod's node, or all, in the agents' namespace.
fn kubectl_finds_the_agent(cluster: &Cluster, agents: &str, pods: &[Pod<'_>]) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("natkube-{}-bin", std::process::id()));
    fs::create_dir_all(&directory)?;
    symlink(agent::natctl(), directory.join("kubectl-nat"))?;
    let ask = |line: &str| {
        let mut command = cluster.kubectl_command()?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let more = [directory.clone(), cluster::programs()?];
        let path = std::env::join_paths(more.into_iter().chain(std::env::split_paths(&path)))?;
        command.env("PATH", path);
        command.args(["nat", "--agents", agents]);
        process::run(command.args(line.split_whitespace()), PATIENCE)?.success()
    };
    let status = ask("status")?;
    ensure!(
        status.contains("NODE n1") && status.contains("NODE n2"),
        "{status}"
    );
    for pod in pods {
        let egress = pod.seen()?.to_string();
        let client = format!("{EXAMPLE}/{}", pod.name);
        let flows = ask(&format!("flows {} -n {EXAMPLE}", pod.name))?;
        ensure!(
            flows.contains(&client) && flows.contains(&egress),
            "{flows}"
        );
        let node = ask(&format!("-n {EXAMPLE} status {} -o json", pod.name))?;
        ensure!(node.contains(&client), "{node}");
    }
    fs::remove_dir_all(directory)?;
    Ok(())
}

/// What a policy engine installs for a pod, and a masquerade rule as kindnet and flannel have it.
fn policy(pod: Ipv4Addr, friend: Ipv4Addr) -> String {
    let port = TCP.port();
    format!(
        "table ip policies {{
           chain forward {{
             type filter hook forward priority 0; policy accept
             ct state established,related accept
             ct state invalid drop
             ip saddr {pod} jump egress
             ip daddr {pod} jump ingress
           }}
           chain egress {{
             ct state new ip daddr {OUTSIDE} tcp dport {port} accept
             counter drop
           }}
           chain ingress {{
             ip saddr {friend} accept
             counter drop
           }}
           chain postrouting {{
             type nat hook postrouting priority srcnat
             ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 ip daddr != 10.77.0.0/24 masquerade
           }}
         }}\n"
    )
}

/// An annotation is no way around a NetworkPolicy, and a masquerade is none around an annotation.
fn policies_stay_in_force(cluster: &Cluster, pods: &[Pod<'_>]) -> Result<()> {
    let [pod, friend] = pods else {
        bail!("two pods")
    };
    let (node, own) = (cluster.node(1)?, pod.address()?);
    let plain = Pod::create(&node, cluster, "plain", "none")?;
    node.netns().nft(&policy(own, friend.address()?))?;
    plain.wait_seen_as(node.address())?;
    ensure!(OFFICE.contains(&pod.seen()?), "what is allowed");
    ensure!(pod.seen_by_udp().is_err(), "egress was not denied");
    let _server = pod.listen(8080)?;
    ensure!(friend.reaches(own, 8080)?, "what is allowed in");
    ensure!(!plain.reaches(own, 8080)?, "ingress was not denied");
    let dropped = node.exec("nft list table ip policies")?;
    let counters = dropped
        .lines()
        .filter(|line| line.contains("counter packets"));
    ensure!(
        counters.clone().count() == 2 && counters.clone().all(|line| !line.contains("packets 0 ")),
        "{dropped}"
    );
    node.netns().nft("delete table ip policies")?;
    plain.delete()
}

/// The agents are killed, deleted and upgraded, and no connection notices, nor does a single ping.
fn agents_come_and_go(cluster: &Cluster, pods: &[Pod<'_>]) -> Result<()> {
    let mut servers = Vec::new();
    let mut transfers = Vec::new();
    for (pod, port) in pods.iter().zip(TRANSFER..) {
        let (server, transfer) = transferring(cluster, pod, port, 3600)?;
        servers.push(server);
        transfers.push(transfer);
    }
    let pings = pods.iter().map(Pod::ping).collect::<Result<Vec<_>>>()?;
    let node = cluster.node(1)?;
    let first = agent_process(&node)?;
    node.exec(&format!("kill -9 {first}"))?;
    eventually(PATIENCE, "another agent", || {
        ensure!(agent_process(&node)? != first);
        Ok(())
    })?;
    let name = deploy::agent_on(cluster, &cluster.node(2)?)?;
    cluster.kubectl(&format!("-n {NAMESPACE} delete pod {name}"))?;
    deploy::wait(cluster)?;
    deploy::upgrade(cluster)?;
    for (transfer, ping) in transfers.iter_mut().zip(pings) {
        // It would have ended with the first of its connections.
        ensure!(transfer.is_running(), "{}", transfer.output());
        ping.finish()?;
    }
    Ok(())
}

/// Without any one of its capabilities an agent does not start, and says which one it lacks.
fn each_capability_is_needed(cluster: &Cluster) -> Result<()> {
    let path = "/spec/template/spec/containers/0/securityContext/capabilities/add";
    let all = ["BPF", "NET_ADMIN", "NET_RAW", "PERFMON"];
    let give = |capabilities: &[&str]| {
        let value = format!("[\"{}\"]", capabilities.join("\",\""));
        cluster.kubectl(&format!(
            "-n {NAMESPACE} patch daemonset nat-agent --type=json \
             -p [{{\"op\":\"replace\",\"path\":\"{path}\",\"value\":{value}}}]"
        ))
    };
    for lacking in all {
        let others: Vec<&str> = all.into_iter().filter(|name| *name != lacking).collect();
        give(&others)?;
        eventually(PATIENCE, lacking, || {
            let logs = cluster.kubectl(&format!(
                "-n {NAMESPACE} logs -l app.kubernetes.io/name=nat-agent --tail=-1"
            ))?;
            let words = format!("with these capabilities: CAP_{lacking}:");
            ensure!(logs.contains(&words), "{logs}");
            Ok(())
        })?;
    }
    give(&all)?;
    deploy::wait(cluster)
}

/// `kubectl delete -k` leaves nothing on the nodes, and whoever has no annotation does not notice.
fn uninstalled(cluster: &Cluster, plain: &Pod<'_>, pods: &[Pod<'_>]) -> Result<()> {
    let ping = plain.ping()?;
    deploy::uninstall(cluster)?;
    nothing_is_left(cluster, pods)?;
    ping.finish()
}

fn nothing_is_left(cluster: &Cluster, pods: &[Pod<'_>]) -> Result<()> {
    for (node, pod) in cluster.nodes().zip(pods) {
        ensure!(agent_process(&node).is_err(), "an agent still runs");
        let left = node.exec("ls /sys/fs/bpf")?;
        ensure!(!left.contains("natctl"), "pins: {left}");
        let tables = node.exec("nft list tables")?;
        ensure!(!tables.contains("natctl"), "{tables}");
        let plugin = node.exec("find /etc/cni /opt/cni -name *nat*")?;
        ensure!(plugin.is_empty(), "{plugin}");
        let configuration = node.exec("grep -r nat-cni /etc/cni/net.d");
        ensure!(
            configuration.is_err(),
            "the plugin is still in {configuration:?}"
        );
        pod.wait_seen_as(pod.address()?)?;
    }
    Ok(())
}

/// Helm installs, upgrades and removes the same, in whatever namespace.
fn by_helm(cluster: &Cluster, pods: &[Pod<'_>]) -> Result<()> {
    const RELEASE: &str = "-n elsewhere natctl";
    let chart = deploy::manifests("helm");
    let chart = chart.display();
    cluster.helm(&format!("lint --strict {chart}"))?;
    cluster.helm(&format!(
        "install {RELEASE} {chart} --create-namespace --wait"
    ))?;
    // The pool went with its definition.
    deploy::apply_example(cluster)?;
    the_example(pods)?;
    kubectl_finds_the_agent(cluster, "elsewhere", pods)?;
    let first = agent_process(&cluster.node(1)?)?;
    cluster.helm(&format!(
        "upgrade {RELEASE} {chart} --set node.sweepInterval=2s"
    ))?;
    cluster.kubectl("-n elsewhere rollout status daemonset/nat-agent --timeout=180s")?;
    let second = agent_process(&cluster.node(1)?)?;
    ensure!(first != second, "the node's file was not rolled out");
    the_example(pods)?;
    cluster.helm(&format!("uninstall {RELEASE}"))?;
    eventually(PATIENCE, "the end of Helm's agents", || {
        nothing_is_left(cluster, pods)
    })?;
    cluster.kubectl("get egresspool office").map(drop)
}

fn two_nodes() -> Result<Cluster> {
    let cluster = Cluster::up(&Options {
        nodes: 2,
        ..Options::default()
    })?;
    deploy::install(&cluster)?;
    deploy::apply_example(&cluster)?;
    cluster.apply(POOL)?;
    Ok(cluster)
}

/// Fails if a pod of the example was seen outside as itself.
fn no_leak(sniffer: &Sniffer, pods: &[Pod<'_>]) -> Result<()> {
    for pod in pods {
        let own = pod.address()?;
        let foreign = sniffer.flows(|flow| flow.source == own);
        ensure!(
            foreign.is_empty(),
            "{} left as itself: {foreign:?}",
            pod.name
        );
    }
    Ok(())
}

#[test]
fn pods_get_what_they_ask_for() -> Result<()> {
    let cluster = two_nodes()?;
    let _servers = Servers::start(&cluster)?;
    let sniffer = Sniffer::count(&cluster.outside(), cluster::DEVICE)?;
    let pods = Pod::examples(&cluster)?;
    the_example(&pods)?;
    let listed = cluster.kubectl("get egresspool office")?;
    ensure!(listed.contains("[\"n1\",\"n2\"]"), "{listed}");
    kubectl_finds_the_agent(&cluster, NAMESPACE, &pods)?;
    cluster.apply(BRIEF)?;
    annotations_change(&cluster)?;
    flows_are_drained(&cluster, &sniffer)?;
    flows_are_cut(&cluster)?;
    a_claim_is_lost(&cluster)?;
    another_nodes_address(&cluster, &sniffer)?;
    a_foreign_namespace(&cluster, &sniffer)?;
    a_client_is_deleted_by_force(&cluster, &sniffer)?;
    policies_stay_in_force(&cluster, &pods)?;
    no_leak(&sniffer, &pods)?;
    sniffer.finish()?;
    cluster.down()
}

#[test]
fn agents_are_installed_replaced_and_removed() -> Result<()> {
    let cluster = two_nodes()?;
    let _servers = Servers::start(&cluster)?;
    let sniffer = Sniffer::count(&cluster.outside(), cluster::DEVICE)?;
    let pods = Pod::examples(&cluster)?;
    the_example(&pods)?;
    cluster
        .nodes()
        .try_for_each(|node| without_privilege(&node))?;
    agents_come_and_go(&cluster, &pods)?;
    each_capability_is_needed(&cluster)?;
    no_leak(&sniffer, &pods)?;
    let plain = Pod::create(&cluster.node(1)?, &cluster, "plain", "none")?;
    uninstalled(&cluster, &plain, &pods)?;
    by_helm(&cluster, &pods)?;
    sniffer.finish()?;
    cluster.down()
}
