//! Pods of a test cluster that talk to the servers outside.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Node, OUTSIDE};
use crate::deploy::EXAMPLE;
use crate::image::TOOLS;
use crate::process::{self, Process, eventually};
use crate::programs::{TcpEcho, UdpEcho};

/// Where [`Servers`] answer TCP.
pub const TCP: SocketAddrV4 = SocketAddrV4::new(OUTSIDE, 9000);
/// Where [`Servers`] answer UDP.
const UDP: SocketAddrV4 = SocketAddrV4::new(OUTSIDE, 9001);
/// How long a pod may take to start, to be programmed, or to be told something.
pub const PATIENCE: Duration = Duration::from_secs(120);

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Servers outside that say as whom they see who talks to them.
pub struct Servers {
    _tcp: TcpEcho,
    _udp: UdpEcho,
}

impl Servers {
    /// Starts them.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let outside = cluster.outside();
        Ok(Self {
            _tcp: TcpEcho::start(&outside, TCP)?,
            _udp: UdpEcho::start(&outside, UDP)?,
        })
    }
}

/// The manifest of a pod that runs a script and asks for an address. More can be set in it.
pub fn manifest(namespace: &str, name: &str, egress: &str, script: &str) -> Value {
    let annotations = json!({"natctl.io/egress-ip": egress});
    let command = ["sh", "-c", script];
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "annotations": annotations},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "tools", "image": TOOLS, "command": command}],
        },
    })
}

/// A pod.
pub struct Pod<'a> {
    cluster: &'a Cluster,
    namespace: &'static str,
    /// Its name.
    pub name: String,
}

impl<'a> Pod<'a> {
    /// Makes one on a node, and waits until it runs.
    pub fn create(node: &Node<'_>, cluster: &'a Cluster, name: &str, egress: &str) -> Result<Self> {
        Self::create_in(EXAMPLE, node, cluster, name, egress)
    }

    /// Likewise, in a namespace.
    pub fn create_in(
        namespace: &'static str,
        node: &Node<'_>,
        cluster: &'a Cluster,
        name: &str,
        egress: &str,
    ) -> Result<Self> {
        let mut wanted = manifest(namespace, name, egress, "exec sleep 2147483647");
        wanted["spec"]["nodeName"] = node.name().into();
        cluster.apply(&wanted.to_string())?;
        let pod = Self {
            cluster,
            namespace,
            name: name.into(),
        };
        pod.kubectl("wait --for=condition=Ready --timeout=180s pod/NAME")?;
        Ok(pod)
    }

    /// The pods of deploy/example, by their nodes' order.
    pub fn examples(cluster: &'a Cluster) -> Result<Vec<Self>> {
        let on = |node: Node<'_>| {
            let name = cluster.kubectl(&format!(
                "-n {EXAMPLE} get pods -l app=client --field-selector spec.nodeName={} \
                 -o jsonpath={{.items[0].metadata.name}}",
                node.name()
            ))?;
            Ok(Self {
                cluster,
                namespace: EXAMPLE,
                name,
            })
        };
        cluster.nodes().map(on).collect()
    }

    /// kubectl in its namespace; NAME stands for its name.
    pub fn kubectl(&self, line: &str) -> Result<String> {
        let line = line.replace("NAME", &self.name);
        self.cluster
            .kubectl(&format!("-n {} {line}", self.namespace))
    }

    /// Its own address.
    pub fn address(&self) -> Result<Ipv4Addr> {
        let address = self.kubectl("get pod NAME -o jsonpath={.status.podIP}")?;
        address.parse().context(address)
    }

    /// Changes its annotation: `=VALUE`, or `-` to take it away.
    pub fn annotate(&self, egress: &str) -> Result<()> {
        let line = format!("annotate --overwrite pod NAME natctl.io/egress-ip{egress}");
        self.kubectl(&line).map(drop)
    }

    /// Removes it.
    pub fn delete(&self) -> Result<()> {
        self.kubectl("delete pod NAME").map(drop)
    }

    /// As whom the server outside sees a TCP connection of it.
    pub fn seen(&self) -> Result<Ipv4Addr> {
        let (host, port) = (TCP.ip(), TCP.port());
        let line = format!("exec NAME -- timeout 5 nc.openbsd -d -w 2 {host} {port}");
        self.source(&self.kubectl(&line)?)
    }

    /// As whom the server outside sees a datagram of it.
    pub fn seen_by_udp(&self) -> Result<Ipv4Addr> {
        let mut command = self.cluster.kubectl_command()?;
        let script = format!(
            "echo x | timeout 5 nc.openbsd -u -w 1 {} {}",
            UDP.ip(),
            UDP.port()
        );
        let arguments = ["-n", self.namespace, "exec", &self.name, "--", "sh", "-c"];
        let finished = process::run(command.args(arguments).arg(script), PATIENCE)?;
        self.source(&finished.stdout)
    }

    fn source(&self, answer: &str) -> Result<Ipv4Addr> {
        let seen = answer.split_whitespace().next();
        let seen = seen.with_context(|| format!("{} got no answer", self.name))?;
        Ok(*seen.parse::<SocketAddrV4>().context("no address")?.ip())
    }

    /// Waits until the server outside sees it as `address`.
    pub fn wait_seen_as(&self, address: Ipv4Addr) -> Result<()> {
        eventually(PATIENCE, &self.name, || {
            let seen = self.seen()?;
            ensure!(seen == address, "seen as {seen} instead of {address}");
            Ok(())
        })
    }

    /// Waits for an Event, and returns what it says.
    pub fn wait_told(&self, reason: &str) -> Result<String> {
        eventually(PATIENCE, reason, || {
            let told = self.kubectl(&format!(
                "get events --field-selector involvedObject.name=NAME,reason={reason} \
                 -o jsonpath={{.items[*].type}}:{{.items[*].message}}"
            ))?;
            ensure!(told.len() > 1, "{} was not told {reason}", self.name);
            Ok(told)
        })
    }

    /// Transfers data over some connections, for so many seconds; it ends before if one of them does.
    pub fn transfer(&self, port: u16, seconds: u32) -> Result<Process> {
        self.run(&format!(
            "iperf3 -c {OUTSIDE} -p {port} -t {seconds} -P 4 -b 2M"
        ))
    }

    /// Listens at a TCP port, until the value is dropped.
    pub fn listen(&self, port: u16) -> Result<Process> {
        let mut server = self.run(&format!("nc.openbsd -n -v -l -k -p {port}"))?;
        server.wait_for_output(0, PATIENCE, |output| {
            output.contains("Listening").then_some(())
        })?;
        Ok(server)
    }

    /// Whether a TCP connection can be made.
    pub fn reaches(&self, address: Ipv4Addr, port: u16) -> Result<bool> {
        let mut command = self.cluster.kubectl_command()?;
        let (namespace, name) = (self.namespace, &self.name);
        let line = format!("-n {namespace} exec {name} -- nc.openbsd -z -w 2 {address} {port}");
        let finished = process::run(command.args(line.split_whitespace()), PATIENCE)?;
        Ok(finished.status.success())
    }

    /// Runs the words of `line` inside, beside the test.
    fn run(&self, line: &str) -> Result<Process> {
        let mut command = self.cluster.kubectl_command()?;
        command.args(["-n", self.namespace, "exec", &self.name, "--"]);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let log = format!("natkube-{}-{number}", std::process::id());
        Process::spawn(
            command.args(line.split_whitespace()),
            &std::env::temp_dir().join(log),
        )
    }

    /// Pings the server outside some 20 times a second, for a while, from now on.
    pub fn ping(&self) -> Result<Ping> {
        let process = self.run(&format!("ping -i 0.05 {OUTSIDE}"))?;
        eventually(PATIENCE, "an answer", || {
            ensure!(process.output().contains("bytes from"));
            Ok(())
        })?;
        Ok(Ping(process))
    }
}

/// A running ping.
pub struct Ping(Process);

impl Ping {
    /// Ends it. Fails unless every one was answered, in order.
    pub fn finish(self) -> Result<()> {
        let output = self.0.output();
        let mut numbers = output
            .lines()
            .filter(|line| line.ends_with(" ms"))
            .filter_map(|line| line.split_once("icmp_seq=")?.1.split_whitespace().next());
        let missing = numbers
            .by_ref()
            .zip(1_u32..)
            .find(|(number, expected)| number.parse() != Ok(*expected));
        ensure!(missing.is_none(), "{missing:?} came instead:\n{output}");
        Ok(())
    }
}
