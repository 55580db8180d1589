//! nat-agent: follows a configuration and programs the data plane.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nat_agent::{
    bpf::pins::{DEFAULT, Pins},
    config, nft, run,
    source::{
        Source,
        file::File,
        kubernetes::{Kubernetes, pool},
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
    let pins = Pins::new(arguments.bpffs);
    match arguments.command {
        Some(Command::Check { config }) => Ok(check(&config)),
        Some(Command::Crds) => {
            print!("{}", pool::crds());
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Detach) => detach(&pins).map(|()| ExitCode::SUCCESS),
        None => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the runtime")?;
            let node = arguments.node.filter(|_| arguments.kubernetes);
            runtime
                .block_on(agent(node.as_deref(), arguments.config.as_deref(), &pins))
                .map(|()| ExitCode::SUCCESS)
        }
    }
}

async fn agent(node: Option<&str>, file: Option<&Path>, pins: &Pins) -> Result<()> {
    let source = match (node, file) {
        (Some(node), file) => Source::Kubernetes(Box::new(Kubernetes::connect(node, file).await?)),
        (None, Some(file)) => Source::File(Box::new(File::open(file)?)),
        (None, None) => anyhow::bail!(
            "--config FILE is missing, or --kubernetes; docs/configuration.md and \
             docs/kubernetes.md describe both"
        ),
    };
    run::run(source, pins).await
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
    if !pins.directory().exists() {
        nft::remove()?;
        println!("nothing is pinned at {}", pins.directory().display());
        return Ok(());
    }
    let lock = pins.lock()?;
    pins.remove()?;
    drop(lock);
    nft::remove()?;
    println!(
        "removed: programs, maps and sessions at {}, nft table ip {}",
        pins.directory().display(),
        nft::TABLE
    );
    Ok(())
}
