//! Pods that send from their first instant, on nodes that masquerade what they do not know: nobody outside may see
//! them under another address than their egress address.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nat_tests::background::Background;
use nat_tests::cluster::{self, Cluster, Cni, Node, OUTSIDE, Options};
use nat_tests::deploy::{self, NAMESPACE};
use nat_tests::netns::Netns;
use nat_tests::pod;
use nat_tests::process::{self, Finished, eventually};
use nat_tests::programs::TcpEcho;
use nat_tests::sniffer::Sniffer;
use nat_tests::wire::Flow;
use serde_json::{Value, json};

const TCP: SocketAddrV4 = SocketAddrV4::new(OUTSIDE, 9000);
const UDP: SocketAddrV4 = SocketAddrV4::new(OUTSIDE, 9001);
const EGRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
/// In each way of starting them, of which there are three on routed pods and four on bridged ones.
const PODS: usize = 34;
/// All of them, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(240);
const QUICK: Duration = Duration::from_secs(30);
/// The pods' namespace, and the pool that they ask for: of [`OBJECTS`].
const STARTS: &str = "starts";
const CONFLIST: &str = "/etc/cni/net.d/10-pods.conflist";
const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: starts, labels: {egress: starts}}
---
apiVersion: natctl.io/v1alpha1
kind: EgressPool
metadata: {name: starts}
spec:
  addresses: [203.0.113.20]
  allowedNamespaces: {matchLabels: {egress: starts}}
";
/// As kindnet and flannel have it: what pods send out of the cluster gets the node's address.
const MASQUERADE: &str = "
table ip node-masquerade {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 10.244.0.0/16 ip daddr != { 10.244.0.0/16, 224.0.0.0/4 } masquerade fully-random
    }
}
";
const UNGUARDED: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: unguarded, namespace: natctl-system}
data:
  node.yaml: 'guard: off'
";
/// What a pod does: NAME's first word is on its way before anything else happens.
const SCRIPT: &str = "for word in 1 2; do \
                      echo NAME-$word | nc.openbsd -u -q 0 198.51.100.2 9001; \
                      nc.openbsd -d -w 1 198.51.100.2 9000 > /dev/null; done; true";

/// As whom each word was heard first.
type Heard = Arc<Mutex<BTreeMap<String, Ipv4Addr>>>;

/// A server outside that notes as whom it sees each word it hears for the first time.
struct Ear {
    heard: Heard,
    _server: Background,
}

impl Ear {
    fn open(outside: &Netns) -> Result<Self> {
        let socket = outside.enter(|| UdpSocket::bind(UDP))??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let heard = Heard::default();
        let record = heard.clone();
        let server = Background::start(move |_| listen(&socket, &record));
        Ok(Self {
            heard,
            _server: server,
        })
    }

    fn heard(&self) -> BTreeMap<String, Ipv4Addr> {
        process::lock(&self.heard).clone()
    }
}

fn listen(socket: &UdpSocket, heard: &Heard) {
    let mut buffer = [0; 256];
    let Ok((length, SocketAddr::V4(from))) = socket.recv_from(&mut buffer) else {
        return;
    };
    let word = String::from_utf8_lossy(&buffer[..length]);
    let mut heard = process::lock(heard);
    heard.entry(word.trim().to_string()).or_insert(*from.ip());
}

/// A cluster of one node that masquerades, with the agent on it and servers outside.
struct Stage {
    cluster: Cluster,
    /// The network configuration before natctl came.
    conflist: String,
    ear: Ear,
    sniffer: Sniffer,
    _tcp: TcpEcho,
}

impl Stage {
    fn set(cni: Cni) -> Result<Self> {
        let cluster = Cluster::up(&Options {
            nodes: 1,
            cni,
            ..Options::default()
        })?;
        let node = cluster.node(1)?;
        node.netns().nft(MASQUERADE)?;
        let conflist = node.exec(&format!("cat {CONFLIST}"))?;
        deploy::install(&cluster)?;
        cluster.apply(OBJECTS)?;
        cluster.kubectl("-n starts wait --for=create serviceaccount/default --timeout=60s")?;
        let outside = cluster.outside();
        Ok(Self {
            ear: Ear::open(&outside)?,
            sniffer: Sniffer::count(&outside, cluster::DEVICE)?,
            _tcp: TcpEcho::start(&outside, TCP)?,
            conflist,
            cluster,
        })
    }

    fn node(&self) -> Result<Node<'_>> {
        self.cluster.node(1)
    }

    /// Starts pods at once, does `meanwhile`, and waits until all have said what they have to say.
    fn start(&self, batch: &str, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        let pods: Vec<Value> = (0..PODS).map(|number| pod(batch, number, SCRIPT)).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
        self.cluster.apply(&list.to_string())?;
        meanwhile()?;
        eventually(PATIENCE, "all pods to end", || {
            let line = format!(
                "-n starts get pods -l batch={batch} -o jsonpath={{.items[*].status.phase}}"
            );
            let phases = self.cluster.kubectl(&line)?;
            let ended = phases
                .split_whitespace()
                .filter(|phase| *phase == "Succeeded");
            ensure!(ended.count() == PODS, "{phases}");
            Ok(())
        })
    }

    fn remove(&self, batch: &str) -> Result<()> {
        let line = format!("-n starts delete pods -l batch={batch} --timeout=60s");
        self.cluster.kubectl(&line).map(drop)
    }

    /// Frames to the servers under another address than the pods' egress address.
    fn foreign(&self) -> u64 {
        let foreign = |flow: &Flow| {
            let ours = [TCP.port(), UDP.port()].contains(&flow.destination_port);
            ours && flow.destination == OUTSIDE && flow.source != EGRESS
        };
        self.sniffer.total(foreign).frames
    }

    /// How many pods' first words were heard from their egress address.
    fn first_words(&self, batch: &str) -> usize {
        let heard = self.ear.heard();
        let words = (0..PODS).map(|number| format!("{batch}-{number}-1"));
        words
            .filter(|word| heard.get(word) == Some(&EGRESS))
            .count()
    }

    /// How many pods were heard at all.
    fn pods_heard(&self, batch: &str) -> usize {
        let heard = self.ear.heard();
        let said = |number: &usize| {
            ["1", "2"].map(|word| heard.contains_key(&format!("{batch}-{number}-{word}")))
        };
        (0..PODS)
            .filter(|number| said(number).contains(&true))
            .count()
    }

    /// No pod of the batch was seen as anybody else.
    fn no_leak(&self, batch: &str) -> Result<usize> {
        let (foreign, first) = (self.foreign(), self.first_words(batch));
        eprintln!("  {batch}: {PODS} starts, {first} first words, {foreign} foreign frames");
        ensure!(
            foreign == 0,
            "{batch}: {foreign} frames left under a foreign address"
        );
        Ok(first)
    }

    /// No pod of the batch was seen as anybody else, and the first word of each was heard.
    fn judge(&self, batch: &str) -> Result<()> {
        let first = self.no_leak(batch)?;
        ensure!(
            first == PODS,
            "{batch}: {first} of {PODS} first words were heard"
        );
        self.remove(batch)
    }

    /// Kills the agent while pods start, whenever so many of them have been heard.
    fn kill_the_agent(&self, batch: &str, shares: &[usize]) -> Result<()> {
        for &share in shares {
            eventually(PATIENCE, "pods to start", || {
                let pods = self.pods_heard(batch);
                ensure!(pods >= share, "{pods} of {share} have");
                Ok(())
            })?;
            let node = self.node()?;
            eventually(PATIENCE, "an agent to kill", || {
                node.exec("pkill -9 -x nat-agent")
            })?;
        }
        Ok(())
    }

    /// The agent without its plugin, and the network configuration as it was.
    fn without_the_plugin(&self) -> Result<()> {
        let patch = r#"[{"op":"remove","path":"/spec/template/spec/initContainers"},{"op":"replace","path":"/spec/template/spec/containers/0/args","value":["--kubernetes","--config=/etc/natctl/node.yaml","--health=127.0.0.1:9819"]}]"#;
        self.cluster.kubectl(&format!(
            "-n {NAMESPACE} patch daemonset nat-agent --type=json -p {patch}"
        ))?;
        deploy::wait(&self.cluster)?;
        self.cluster.kubectl(&format!(
            "-n {NAMESPACE} exec daemonset/nat-agent -- nat-agent cni remove --conf-dir /host/cni/conf"
        ))?;
        let now = self.node()?.exec(&format!("cat {CONFLIST}"))?;
        ensure!(now == self.conflist, "it is not as it was: {now}");
        Ok(())
    }

    /// The agent without the guard, too.
    fn without_the_guard(&self) -> Result<()> {
        self.cluster.apply(UNGUARDED)?;
        let patch = r#"[{"op":"replace","path":"/spec/template/spec/volumes/0/configMap/name","value":"unguarded"}]"#;
        self.cluster.kubectl(&format!(
            "-n {NAMESPACE} patch daemonset nat-agent --type=json -p {patch}"
        ))?;
        deploy::wait(&self.cluster)
    }

    /// Calls the plugin as a runtime does.
    fn call(&self, command: &str, arguments: &str, address: &str) -> Result<Finished> {
        let input = format!(
            r#"{{"cniVersion": "1.1.0", "name": "pods", "type": "nat-cni", "timeout": 2,
                "prevResult": {{"ips": [{{"address": "{address}/24"}}]}}}}"#
        );
        let mut plugin = self.node()?.command("env")?;
        plugin.args([
            &format!("CNI_COMMAND={command}"),
            &format!("CNI_ARGS={arguments}"),
            "CNI_CONTAINERID=c1",
            "CNI_NETNS=/run/netns/none",
            "CNI_IFNAME=eth0",
            "/opt/cni/bin/nat-cni",
        ]);
        process::run_with_input(&mut plugin, &input, QUICK)
    }
}

fn pod(batch: &str, number: usize, script: &str) -> Value {
    let name = format!("{batch}-{number}");
    let mut pod = pod::manifest(STARTS, &name, STARTS, &script.replace("NAME", &name));
    pod["metadata"]["labels"] = json!({"batch": batch});
    pod["spec"]["restartPolicy"] = "Never".into();
    pod
}

/// The CNI's own daemon writes its configuration anew, and the agent puts the plugin back.
fn the_plugin_stays(stage: &Stage) -> Result<()> {
    let node = stage.node()?;
    process::run_with_input(node.command("tee")?.arg(CONFLIST), &stage.conflist, QUICK)?
        .success()?;
    eventually(QUICK, "the plugin to be back", || {
        let now = node.exec(&format!("cat {CONFLIST}"))?;
        ensure!(now.contains("nat-cni"), "{now}");
        Ok(())
    })
}

/// CHECK, STATUS and VERSION, which this cluster's runtime does not call.
fn the_other_calls(stage: &Stage) -> Result<()> {
    let told = stage.call("VERSION", "", "10.244.1.1")?.success()?;
    ensure!(told.contains("1.1.0") && told.contains("0.4.0"), "{told}");
    stage.call("STATUS", "", "10.244.1.1")?.success()?;
    let stays = pod("stays", 0, "exec sleep 1000");
    stage.cluster.apply(&stays.to_string())?;
    let kubectl = |line: &str| stage.cluster.kubectl(&format!("-n starts {line}"));
    kubectl("wait --for=condition=Ready --timeout=60s pod/stays-0")?;
    let address = kubectl("get pod stays-0 -o jsonpath={.status.podIP}")?;
    let arguments = "K8S_POD_NAMESPACE=starts;K8S_POD_NAME=stays-0";
    stage.call("CHECK", arguments, &address)?.success()?;
    let other = stage.call("CHECK", arguments, "10.244.1.250")?;
    ensure!(
        !other.status.success() && other.stdout.contains("\"code\":100"),
        "{other}"
    );
    stage.remove("stays")
}

/// A pod that starts while there is no agent says what it waits for, and goes on when there is one.
fn a_pod_waits_for_the_agent(stage: &Stage) -> Result<()> {
    let place = |selector: &str| {
        let patch =
            format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{selector}}}}}}}}}"#);
        stage.cluster.kubectl(&format!(
            "-n {NAMESPACE} patch daemonset nat-agent -p {patch}"
        ))
    };
    place(r#"{"nowhere":"yes"}"#)?;
    let node = stage.node()?;
    eventually(QUICK, "the agent to end", || {
        ensure!(node.exec("pgrep -x nat-agent").is_err());
        Ok(())
    })?;
    let status = stage.call("STATUS", "", "10.244.1.1")?;
    ensure!(
        !status.status.success() && status.stdout.contains("\"code\":50"),
        "{status}"
    );
    let waits = pod("waits", 0, SCRIPT);
    stage.cluster.apply(&waits.to_string())?;
    let told = eventually(Duration::from_secs(60), "the pod to be told", || {
        let told = stage.cluster.kubectl(
            "-n starts get events --field-selector involvedObject.name=waits-0 \
             -o jsonpath={.items[*].message}",
        )?;
        ensure!(
            told.contains("nat-agent did not answer at /run/natctl/agent.sock"),
            "{told}"
        );
        Ok(told)
    })?;
    ensure!(told.contains("look at this node's nat-agent pod"), "{told}");
    place("null")?;
    eventually(PATIENCE, "the pod to start", || {
        let heard = stage.ear.heard();
        let source = heard.get("waits-0-1").context("nothing was heard of it")?;
        ensure!(*source == EGRESS, "it was seen as {source}");
        Ok(())
    })?;
    stage.remove("waits")
}

/// All ways of starting pods on one kind of pod network.
fn all_ways(cni: Cni, name: &str, more: impl FnOnce(&Stage) -> Result<()>) -> Result<()> {
    let stage = Stage::set(cni)?;
    let batch = |what: &str| format!("{name}-{what}");
    stage.start(&batch("plugin"), || Ok(()))?;
    stage.judge(&batch("plugin"))?;
    let killed = batch("killed");
    stage.start(&killed, || {
        stage.kill_the_agent(&killed, &[PODS / 6, PODS / 2])
    })?;
    stage.judge(&killed)?;
    deploy::wait(&stage.cluster)?;
    more(&stage)?;
    stage.sniffer.finish()?;
    stage.cluster.down()
}

/// Without the plugin the guard holds pods back; without either they leave as the node.
fn the_guard_alone(stage: &Stage, name: &str) -> Result<()> {
    stage.without_the_plugin()?;
    let guarded = format!("{name}-guard");
    stage.start(&guarded, || stage.kill_the_agent(&guarded, &[PODS / 6]))?;
    stage.no_leak(&guarded)?;
    stage.remove(&guarded)?;
    deploy::wait(&stage.cluster)
}

/// Without either pods leave as the node.
fn nothing(stage: &Stage, name: &str) -> Result<()> {
    stage.without_the_guard()?;
    stage.start(&format!("{name}-nothing"), || Ok(()))?;
    ensure!(
        stage.foreign() > 0,
        "no leak where nothing prevents one: this test cannot see any"
    );
    Ok(())
}

#[test]
fn behind_routes() -> Result<()> {
    all_ways(Cni::Ptp, "ptp", |stage| {
        the_plugin_stays(stage)?;
        the_other_calls(stage)?;
        a_pod_waits_for_the_agent(stage)?;
        the_guard_alone(stage, "ptp")
    })
}

#[test]
fn behind_a_bridge() -> Result<()> {
    all_ways(Cni::Bridge, "bridge", |stage| {
        the_guard_alone(stage, "bridge")?;
        nothing(stage, "bridge")
    })
}
