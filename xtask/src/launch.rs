//! `cargo xtask demo`, `bench`, `cluster` and `image`: build, then become the program
//! from the tests crate that does it.

use std::{os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{
    build::{self, Built},
    run,
    setup::{self, Purpose},
    toolchain,
};

/// Show real programs in two pods that reach a server from one egress address
///
/// Lays out network namespaces for two pods, a node and a server, lets both pods talk
/// to the server from the same source port, prints what the server saw and what
/// natctl says of it, and removes everything again, on Ctrl-C too. Needs root.
#[derive(clap::Args)]
pub struct DemoArgs {
    /// Leave everything up to explore, and say how
    #[arg(long)]
    keep: bool,
    /// Only remove what an earlier demo left
    #[arg(long, conflicts_with = "keep")]
    clean: bool,
    /// More arguments for nat-demo
    #[arg(last = true)]
    more: Vec<String>,
}

/// Measure natctl against nftables, kernel forwarding and plain XDP redirect
///
/// Every figure is a ratio within one run, the median of alternating rounds with
/// minimum and maximum. Needs root and an otherwise idle machine.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// Measure the agent in a Kubernetes cluster of 100 nodes and 10,000 pods instead
    #[arg(long, conflicts_with = "names")]
    kubernetes: bool,
    /// Print results as text or json
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// Only the benchmarks of these names
    names: Vec<String>,
    /// More arguments for nat-bench
    #[arg(last = true)]
    more: Vec<String>,
}

/// Run a real Kubernetes cluster on this machine, each node in namespaces of its own
///
/// `cargo xtask cluster help` lists what it does: up, demo, down, kubectl, node, load, build.
/// Needs root; the first `up` builds Kubernetes, which takes minutes.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct ClusterArgs {
    /// up, demo, down, kubectl, node, load or build, and what they are told
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Make the agent's container image, without a container engine
///
/// Leaves an OCI archive, and the same files for deploy/Dockerfile.
#[derive(clap::Args)]
pub struct ImageArgs {
    /// Where to leave them; otherwise in the target directory
    directory: Option<PathBuf>,
}

pub fn demo(args: &DemoArgs) -> Result<()> {
    let built = prepare()?;
    eprintln!();
    let mut command = program(&built, "nat-demo");
    if args.keep {
        command.arg("--keep");
    }
    if args.clean {
        command.arg("--clean");
    }
    become_it(command.args(&args.more))
}

pub fn bench(args: &BenchArgs) -> Result<()> {
    if args.kubernetes {
        setup::ensure_root()?;
        setup::ensure(Purpose::Cluster)?;
    }
    let built = prepare()?;
    eprintln!();
    let mut command = program(&built, "nat-bench");
    command.args(["-o", &args.output]);
    if args.kubernetes {
        command.arg("--kubernetes");
    }
    become_it(command.args(&args.names).args(&args.more))
}

/// Only what makes things sees to what that takes: anything else shall not keep a
/// person waiting.
pub fn cluster(args: &ClusterArgs) -> Result<()> {
    match args.arguments.first().map(String::as_str) {
        Some("up") => {
            setup::ensure_root()?;
            setup::ensure(Purpose::Cluster)?;
        }
        Some("demo") => {
            setup::ensure_root()?;
            setup::ensure(Purpose::Cluster)?;
            let built = build::everything(true)?;
            eprintln!();
            return become_it(program(&built, "nat-cluster").args(&args.arguments));
        }
        Some("build") => setup::ensure(Purpose::Cluster)?,
        _ => {}
    }
    let program = build::quietly("nat-cluster")?;
    become_it(Command::new(program).args(&args.arguments))
}

pub fn image(args: &ImageArgs) -> Result<()> {
    setup::ensure(Purpose::Basics)?;
    let built = build::everything(true)?;
    let own = || toolchain::host_target_dir(&run::workspace()).join("image");
    let directory = args.directory.clone().unwrap_or_else(own);
    eprintln!();
    become_it(program(&built, "nat-image").arg(directory))
}

/// Both use the release build: it is what a person would run, and what the tests use.
fn prepare() -> Result<Built> {
    setup::ensure_root()?;
    setup::ensure(Purpose::Basics)?;
    build::everything(true)
}

fn program(built: &Built, name: &str) -> Command {
    let mut command = Command::new(built.program(name));
    command.envs(built.environment());
    command
}

/// Becomes the program, so that Ctrl-C and the exit code are its own.
fn become_it(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().display()))
}
