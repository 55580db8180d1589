//! `cargo xtask cluster`: a real Kubernetes cluster on this machine.

mod demo;

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use nat_tests::cluster::{self, Cluster, Cni, Machine, Options, Place};
use nat_tests::{process, sys};

/// What a person's cluster is called; tests have others.
const NAME: &str = "natkube";

/// A Kubernetes cluster on this machine: API server, controller manager, scheduler, etcd, and nodes with real
/// kubelets, containerd and CNI plugins, each in namespaces of its own.
#[derive(Parser)]
#[command(bin_name = "cargo xtask cluster")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Make the cluster and wait until its nodes are ready
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(cluster::MOST_NODES)))]
        nodes: u8,
        /// How pods are connected to their node
        #[arg(long, value_enum, default_value_t)]
        cni: Cni,
    },
    /// Show natctl on a cluster of two nodes: installed, two annotated pods, what the outside sees, removed again
    Demo {
        /// Leave the cluster up to explore, and say how
        #[arg(long)]
        keep: bool,
    },
    /// Remove the cluster, whole or not
    Down,
    /// Run kubectl as the administrator
    Kubectl {
        /// What kubectl is told
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a command in a node, pull its plug, or boot it again
    Node {
        #[command(subcommand)]
        task: NodeTask,
    },
    /// Import image archives into the nodes
    Load {
        /// OCI archives, as `cargo xtask image` makes them
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Only build Kubernetes, etcd and Helm, or say where they are
    Build,
    /// Start a machine's first process
    #[command(hide = true)]
    Boot { cluster: String, machine: Machine },
    /// Be a machine's first process
    #[command(hide = true)]
    Init { cluster: String, machine: Machine },
}

#[derive(Subcommand)]
enum NodeTask {
    /// Run a command in a node's namespaces, on its root
    Exec {
        /// The node's number, from 1
        number: u8,
        /// The command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Pull the plug: all its processes end at once; its disk stays
    Kill {
        /// The node's number, from 1
        number: u8,
    },
    /// Boot it again on its disk
    Start {
        /// The node's number, from 1
        number: u8,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if process::check_interrupt().is_err() => {
            eprintln!("\nInterrupted; no unfinished cluster is left.");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    ensure!(
        sys::is_root() || matches!(task, Task::Build),
        "a cluster is made of namespaces, mounts and control groups: run this as root"
    );
    match task {
        Task::Up { nodes, cni } => up(nodes, cni),
        Task::Demo { keep } => demo::run(keep),
        Task::Down => down(),
        Task::Kubectl { arguments } => {
            become_it(Cluster::open(NAME)?.kubectl_command()?.args(arguments))
        }
        Task::Node { task } => node(task),
        Task::Load { archives } => {
            let cluster = Cluster::open(NAME)?;
            archives
                .iter()
                .try_for_each(|archive| cluster.load_image(archive))
        }
        Task::Build => {
            process::heed_interrupts()?;
            println!("{}", cluster::programs()?.display());
            Ok(())
        }
        Task::Boot { cluster, machine } => cluster::boot(&Place::new(&cluster)?, machine),
        Task::Init { cluster, machine } => cluster::run(&Place::new(&cluster)?, machine),
    }
}

fn up(nodes: u8, cni: Cni) -> Result<()> {
    process::heed_interrupts()?;
    let options = Options {
        name: Some(NAME.into()),
        nodes,
        cni,
    };
    Cluster::up(&options)?.keep();
    explain();
    Ok(())
}

/// How to look around.
fn explain() {
    println!("The cluster is up:");
    println!("     kubectl             cargo xtask cluster kubectl get nodes");
    println!("     in a node           cargo xtask cluster node exec 1 bash");
    println!(
        "     the server outside  ip netns exec {NAME}-outside bash   ({})",
        cluster::OUTSIDE
    );
    println!("To remove it:            cargo xtask cluster down");
}

fn down() -> Result<()> {
    if cluster::down(NAME)? {
        println!("The cluster is removed.");
    } else {
        println!("There is no cluster.");
    }
    Ok(())
}

fn node(task: NodeTask) -> Result<()> {
    let cluster = Cluster::open(NAME)?;
    match task {
        NodeTask::Exec { number, command } => {
            let (program, arguments) = command.split_first().context("an empty command")?;
            become_it(cluster.node(number)?.command(program)?.args(arguments))
        }
        NodeTask::Kill { number } => cluster.node(number)?.kill(),
        NodeTask::Start { number } => cluster.node(number)?.start(),
    }
}

/// Becomes the program, so that terminal, Ctrl-C and exit code are its own.
fn become_it(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().display()))
}
