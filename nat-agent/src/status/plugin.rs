//! `kubectl nat`: natctl on the node of a pod, by its agent. It asks and runs everything through kubectl, which
//! knows the cluster and who is asking.

use std::{
    ffi::OsStr,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand};

use super::command::{Output, Wanted};

/// What kubectl looks for in PATH.
pub const NAME: &str = "kubectl-nat";
/// Of deploy/base.
const LABEL: &str = "app.kubernetes.io/name=nat-agent";
const CONTAINER: &str = "nat-agent";
/// No answer, as natctl has it.
const NO_ANSWER: u8 = 2;

/// Shows what natctl's egress NAT does in a cluster: `natctl`, run by the agent of a pod's node.
#[derive(Debug, Parser)]
#[command(name = "kubectl nat", version)]
struct Cli {
    #[command(flatten)]
    cluster: Cluster,
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Args)]
struct Cluster {
    /// The pod's namespace; otherwise kubectl's own
    #[arg(short, long, global = true)]
    namespace: Option<String>,
    /// As kubectl has it
    #[arg(long, global = true)]
    context: Option<String>,
    /// As kubectl has it
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<String>,
    /// The agents' namespace
    #[arg(
        long,
        global = true,
        default_value = "natctl-system",
        value_name = "NAMESPACE"
    )]
    agents: String,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// `natctl status` of a pod's node, of a node, or of every node
    Status {
        #[command(flatten)]
        place: Place,
        /// For a person, or for a program
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        /// Exit with 1 if an agent does not run or anything is wrong
        #[arg(long)]
        check: bool,
    },
    /// `natctl flows`: a pod's sessions, or those of a node, or of every node
    Flows {
        #[command(flatten)]
        place: Place,
        /// For a person, or for a program
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        wanted: Wanted,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// The pod
    pod: Option<String>,
    /// This node, whichever pods it has
    #[arg(long, conflicts_with = "pod")]
    node: Option<String>,
}

/// Runs the plugin on this process's arguments.
pub fn run() -> ExitCode {
    let code = ask(&Cli::parse()).unwrap_or_else(|error| {
        eprintln!("kubectl nat: {error:#}");
        NO_ANSWER
    });
    ExitCode::from(code)
}

/// The worst of the nodes' exit codes.
fn ask(cli: &Cli) -> Result<u8> {
    let cluster = &cli.cluster;
    let (place, words) = match &cli.question {
        Question::Status {
            place,
            output,
            check,
        } => (place, status_words(*output, *check)),
        Question::Flows {
            place,
            output,
            wanted,
        } => (place, flows_words(*output, wanted)),
    };
    let pod = place.pod.as_deref().map(|pod| cluster.pod(pod));
    let pod = pod.transpose()?;
    let node = pod.as_ref().map(|pod| &pod.node).or(place.node.as_ref());
    let agents = cluster.agents(node.map(String::as_str))?;
    let client = pod.filter(|_| matches!(cli.question, Question::Flows { .. }));
    let client = client.map(|pod| format!("--client={}", pod.client));
    let words: Vec<String> = words.into_iter().chain(client).collect();
    let mut worst = 0;
    for agent in &agents {
        if agents.len() > 1 {
            println!("NODE {}", agent.node);
        }
        worst = worst.max(cluster.natctl(&agent.name, &words)?);
    }
    Ok(worst)
}

fn status_words(output: Output, check: bool) -> Vec<String> {
    let check = check.then(|| "--check".to_owned());
    ["status".to_owned(), output.word()]
        .into_iter()
        .chain(check)
        .collect()
}

fn flows_words(output: Output, wanted: &Wanted) -> Vec<String> {
    ["flows".to_owned(), output.word()]
        .into_iter()
        .chain(wanted.words())
        .collect()
}

/// A pod as it was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Pod {
    node: String,
    /// What the agent calls it.
    client: String,
}

/// A node's agent.
#[derive(Debug, PartialEq, Eq)]
struct Agent {
    node: String,
    name: String,
}

impl Cluster {
    fn kubectl<'a>(&'a self, namespace: Option<&'a str>) -> Command {
        let mut command = Command::new("kubectl");
        let options = [
            ("--context", self.context.as_deref()),
            ("--kubeconfig", self.kubeconfig.as_deref()),
            ("--namespace", namespace),
        ];
        for (option, value) in options {
            command.args(value.map(|value| format!("{option}={value}")));
        }
        command
    }

    /// What kubectl prints. Its complaints go to the person who asked.
    fn read(&self, namespace: Option<&str>, words: &[&str]) -> Result<String> {
        let mut command = self.kubectl(namespace);
        let output = command.args(words).stderr(Stdio::inherit()).output();
        let output = output.context("run kubectl: it has to be in PATH")?;
        ensure!(output.status.success(), "kubectl did not answer");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn pod(&self, name: &str) -> Result<Pod> {
        const FIELDS: &str = "jsonpath={.metadata.namespace} {.spec.nodeName}";
        let found = self.read(
            self.namespace.as_deref(),
            &["get", "pod", name, "-o", FIELDS],
        )?;
        let (namespace, node) = found.split_once(' ').unwrap_or((&found, ""));
        ensure!(!node.is_empty(), "{name} is on no node yet");
        Ok(Pod {
            node: node.to_owned(),
            client: format!("{namespace}/{name}"),
        })
    }

    /// The agents of a node, or of all.
    fn agents(&self, node: Option<&str>) -> Result<Vec<Agent>> {
        const FIELDS: &str =
            r#"jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name}{"\n"}{end}"#;
        let running = "--field-selector=status.phase=Running".to_owned();
        let selector = match node {
            Some(node) => format!("{running},spec.nodeName={node}"),
            None => running,
        };
        let words = ["get", "pods", "-l", LABEL, &selector, "-o", FIELDS];
        let agents = agents(&self.read(Some(&self.agents), &words)?);
        if agents.is_empty() {
            let place = node.map_or_else(String::new, |node| format!(" on {node}"));
            bail!(
                "no agent runs{place} in the namespace {}: `kubectl -n {0} get pods -o wide`",
                self.agents
            );
        }
        Ok(agents)
    }

    /// Runs natctl in an agent's pod; its exit code.
    fn natctl(&self, agent: &str, words: &[impl AsRef<OsStr>]) -> Result<u8> {
        let mut command = self.kubectl(Some(&self.agents));
        command.args(["exec", agent, "-c", CONTAINER, "--", "natctl"]);
        let status = command.args(words).status().context("run kubectl")?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(code.unwrap_or(NO_ANSWER))
    }
}

fn agents(lines: &str) -> Vec<Agent> {
    let split = |line: &str| {
        let (node, name) = line.split_once(' ')?;
        Some(Agent {
            node: node.to_owned(),
            name: name.to_owned(),
        })
    };
    let mut agents: Vec<Agent> = lines.lines().filter_map(split).collect();
    agents.sort_by(|one, other| one.node.cmp(&other.node));
    agents
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn words(line: &str) -> Vec<String> {
        let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
        match &cli.question {
            Question::Status { output, check, .. } => status_words(*output, *check),
            Question::Flows { output, wanted, .. } => flows_words(*output, wanted),
        }
    }

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn natctl_is_told_what_kubectl_was() {
        assert_eq!(
            words("nat status web-0 -n shop"),
            ["status", "--output=text"]
        );
        assert_eq!(
            words("nat -n shop flows web-0 --protocol tcp --port 443 --limit 5 -o json"),
            [
                "flows",
                "--output=json",
                "--port=443",
                "--protocol=tcp",
                "--limit=5"
            ]
        );
        assert_eq!(
            words("nat flows --address 192.0.2.0/24 --client shop/web-0"),
            [
                "flows",
                "--output=text",
                "--address=192.0.2.0/24",
                "--client=shop/web-0"
            ]
        );
    }

    #[test]
    fn a_pod_or_a_node_but_not_both() {
        assert!(Cli::try_parse_from(["nat", "status", "web-0", "--node", "n1"]).is_err());
    }

    #[test]
    fn agents_come_by_their_nodes_order() {
        let found = agents("n2 nat-agent-b\nn1 nat-agent-a\n");
        assert_eq!(found[0].name, "nat-agent-a");
        assert_eq!(found[1].node, "n2");
    }
}
