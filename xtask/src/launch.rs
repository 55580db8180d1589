//! `cargo xtask demo` and `cargo xtask bench`: build, then become the program from
//! the tests crate that does it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{
    build::{self, Built},
    setup::{self, Purpose},
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
    /// Print results as text or json
    #[arg(short, long, default_value = "text", value_parser = ["text", "json"])]
    output: String,
    /// Only the benchmarks of these names
    names: Vec<String>,
    /// More arguments for nat-bench
    #[arg(last = true)]
    more: Vec<String>,
}

pub fn demo(args: &DemoArgs) -> Result<()> {
    let built = prepare()?;
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
    let built = prepare()?;
    let mut command = program(&built, "nat-bench");
    command.args(["-o", &args.output]);
    become_it(command.args(&args.names).args(&args.more))
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
    eprintln!();
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().display()))
}
