//! `cargo xtask test`: setup, build, lint, then every suite.

use std::{process::Command, time::Instant};

use anyhow::{Result, bail};

use crate::{
    beside::Beside,
    build::{self, Built},
    limit, lint, run,
    setup::{self, Purpose},
    suites::{self, Suite},
};

/// Set up, build, lint, and run the tests: host, programs in the kernel, namespaces
///
/// Needs root for all but the tests on the host.
#[derive(clap::Args)]
pub struct Args {
    /// Only these: names of suites, or lint
    names: Vec<String>,
    /// Leave out a suite, or lint; cluster leaves out all that takes Kubernetes
    #[arg(long, value_name = "NAME")]
    skip: Vec<String>,
    /// List the suites and run nothing
    #[arg(long)]
    list: bool,
    /// More arguments for the test binaries, such as a test's name
    #[arg(last = true)]
    more: Vec<String>,
}

/// The lints, by the name under which they are chosen or left out.
const LINT: &str = "lint";

pub fn main(args: &Args) -> Result<()> {
    let all = suites::all();
    if args.list {
        list(&all);
        return Ok(());
    }
    let begun = Instant::now();
    check_names(args, &all)?;
    let chosen: Vec<_> = all.iter().filter(|suite| args.wants_suite(suite)).collect();
    if chosen.iter().any(|suite| suite.kernel) {
        setup::ensure_root()?;
    }
    let clusters = chosen.iter().any(|suite| suite.kubernetes);
    setup::ensure(if clusters {
        Purpose::Cluster
    } else {
        Purpose::Basics
    })?;
    let built = build::everything(true)?;
    let mut failed = Vec::new();
    if args.wants(LINT) {
        note(&mut failed, LINT, lint::everything());
    }
    // A few suites build what they need themselves, and nobody waits for the others.
    if args.names.is_empty() {
        run::section("build: tests");
        run::visibly(run::cargo("test").args(["--release", "--no-run"]))?;
    }
    let mut kubernetes = None;
    if clusters {
        // The first time this takes minutes, and most of what other suites do is wait.
        run::section("build: Kubernetes, beside the tests");
        let program = built.program("nat-cluster");
        kubernetes = Some(Beside::start(Command::new(program).arg("build"))?);
    }
    for suite in &chosen {
        if suite.kubernetes
            && let Some(build) = kubernetes.take()
        {
            run::section("build: Kubernetes, the rest");
            build.finish()?;
        }
        run::section(format!("test: {}: {}", suite.name, suite.about));
        note(
            &mut failed,
            &suite.name,
            run_suite(suite, &built, &args.more),
        );
    }
    conclude(&failed, chosen.len(), begun)
}

impl Args {
    fn wants_suite(&self, suite: &Suite) -> bool {
        let (kubernetes, _) = suites::KUBERNETES[0];
        let without = suite.kubernetes && self.skip.iter().any(|name| name == kubernetes);
        !without && self.wants(&suite.name)
    }

    fn wants(&self, name: &str) -> bool {
        let among = |names: &[String]| names.iter().any(|n| n == name);
        (self.names.is_empty() || among(&self.names)) && !among(&self.skip)
    }
}

fn check_names(args: &Args, all: &[Suite]) -> Result<()> {
    for name in args.names.iter().chain(&args.skip) {
        if name != LINT && !all.iter().any(|suite| suite.name == *name) {
            bail!("there is no suite {name}: `cargo xtask test --list` lists them");
        }
    }
    Ok(())
}

fn list(all: &[Suite]) {
    println!("{LINT:16} formatting and clippy, host and BPF target");
    for suite in all {
        let root = if suite.kernel { " (root)" } else { "" };
        println!("{:16} {}{root}", suite.name, suite.about);
    }
}

fn run_suite(suite: &Suite, built: &Built, more: &[String]) -> Result<()> {
    let mut command = run::cargo("test");
    command
        .args(&suite.cargo)
        .arg("--")
        .args(suite.harness)
        .args(more)
        .envs(built.environment());
    limit::visibly(&mut command, suite.limit)
}

/// Goes on after a failure: what else fails helps to find out why.
fn note(failed: &mut Vec<String>, name: &str, result: Result<()>) {
    if let Err(error) = result {
        eprintln!("FAILED {name}: {error:#}");
        failed.push(name.into());
    }
}

fn conclude(failed: &[String], suites: usize, begun: Instant) -> Result<()> {
    let seconds = begun.elapsed().as_secs();
    let took = format!("{} min {} s", seconds / 60, seconds % 60);
    if !failed.is_empty() {
        bail!("failed after {took}: {}", failed.join(", "));
    }
    eprintln!("\nall {suites} suites passed in {took}");
    Ok(())
}
