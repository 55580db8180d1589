//! nat-agent: follows a configuration and programs the data plane.

use std::{
    io::IsTerminal,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nat_agent::{
    bpf::pins::{DEFAULT, Pins},
    cni, config, detach, nft,
    probe::{self, Health},
    run::{self, End},
    source::{
        Source,
        file::File,
        kubernetes::{Kubernetes, home, pool},
    },
};
use tracing_subscriber::EnvFilter;

/// Gives clients a stable egress address, translated in eBPF.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    /// Configuration file (YAML); it is watched, and changes apply live.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve the annotated pods of --node; --config is the node's part of a file then, and optional.
    #[arg(long, requires = "node")]
    kubernetes: bool,
    /// The name of this node in Kubernetes.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node: Option<String>,
    /// Remove everything from the node at the end if this DaemonSet, the agent's own, has been deleted.
    #[arg(long, value_name = "NAMESPACE/NAME", requires = "kubernetes")]
    daemon_set: Option<home::Name>,
    /// Answer probes here: /livez and /readyz.
    #[arg(long, value_name = "ADDRESS:PORT")]
    health: Option<SocketAddr>,
    #[command(flatten)]
    plugin: cni::Options,
    /// Directory on a BPF file system for maps and links: one for each agent.
    #[arg(long, value_name = "DIR", default_value = DEFAULT, global = true)]
    bpffs: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Says whether a configuration file would be accepted, and changes nothing.
    Check {
        /// Configuration file (YAML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Prints the definitions of the custom resources (YAML).
    Crds,
    /// The CNI plugin's files on a node.
    #[command(subcommand)]
    Cni(cni::Command),
    /// Removes everything that nat-agent made: programs, maps, netfilter rule. Ends all sessions.
    Detach,
}

fn main() -> ExitCode {
    // What its library says of every attempt, the watches say once.
    let filter = EnvFilter::try_from_env("NAT_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match act(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("nat-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn act(arguments: Arguments) -> Result<ExitCode> {
    let pins = Pins::new(&arguments.bpffs);
    match &arguments.command {
        Some(Command::Check { config }) => Ok(check(config)),
        Some(Command::Crds) => {
            print!("{}", pool::crds());
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Cni(command)) => command.run().map(|()| ExitCode::SUCCESS),
        Some(Command::Detach) => detach(&pins).map(|()| ExitCode::SUCCESS),
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the runtime")?;
            runtime
                .block_on(agent(&arguments, &pins))
                .map(|()| ExitCode::SUCCESS)
        }
    }
}

async fn agent(arguments: &Arguments, pins: &Pins) -> Result<()> {
    let health = Health::default();
    let _probes = match arguments.health {
        Some(address) => Some(probe::serve(address, health.clone()).await?),
        None => None,
    };
    if run::run(source(arguments).await?, pins, health).await? == End::Uninstalled {
        arguments.plugin.uninstall()?;
        detach(pins)?;
    }
    Ok(())
}

async fn source(arguments: &Arguments) -> Result<Source> {
    let node = arguments.node.as_deref().filter(|_| arguments.kubernetes);
    Ok(match (node, arguments.config.as_deref()) {
        (Some(node), file) => {
            let home = arguments.daemon_set.as_ref();
            let mut kubernetes = Kubernetes::connect(node, file, home).await?;
            arguments.plugin.apply(&mut kubernetes);
            Source::Kubernetes(Box::new(kubernetes))
        }
        (None, Some(file)) => Source::File(Box::new(File::open(file)?)),
        (None, None) => anyhow::bail!(
            "--config FILE is missing, or --kubernetes; docs/configuration.md and \
             docs/kubernetes.md describe both"
        ),
    })
}

fn check(file: &Path) -> ExitCode {
    match config::load(file) {
        Ok(snapshot) => {
            println!(
                "{}: fine: {} pools, {} clients",
                file.display(),
                snapshot.pools.len(),
                snapshot.clients.len()
            );
            ExitCode::SUCCESS
        }
        Err(problems) => {
            for problem in problems {
                eprintln!("{problem}");
            }
            ExitCode::FAILURE
        }
    }
}

fn detach(pins: &Pins) -> Result<()> {
    let directory = pins.directory().display();
    if detach::detach(pins)? {
        println!(
            "removed: programs, maps and sessions at {directory}, nft table ip {}",
            nft::TABLE
        );
    } else {
        println!("nothing is pinned at {directory}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
