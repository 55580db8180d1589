//! `cargo xtask lint`: formatting, and clippy for the host and for the BPF target.

use anyhow::{Context, Result, bail};

use crate::{
    run,
    setup::{self, Lacking, Purpose},
    toolchain::Builder,
};

/// Check formatting and lints, for the host and for the BPF target, warnings denied
#[derive(clap::Args)]
pub struct Args {}

pub fn main(_: &Args) -> Result<()> {
    setup::ensure(Purpose::Basics)?;
    everything()?;
    eprintln!("\nlint: nothing to complain about");
    Ok(())
}

type Lint = fn() -> Result<()>;

/// Every lint, setup done. All run, whichever fails.
pub fn everything() -> Result<()> {
    let lints: [(_, Lint); 3] = [
        ("rustfmt", format),
        ("clippy, host", host),
        ("clippy, BPF target", bpf),
    ];
    let mut failed = Vec::new();
    for (name, lint) in lints {
        run::section(format!("lint: {name}"));
        if let Err(error) = lint() {
            eprintln!("{error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lints failed: {}", failed.join("; "));
    }
    Ok(())
}

fn format() -> Result<()> {
    run::visibly(run::cargo("fmt").args(["--all", "--check"]))
        .context("`cargo fmt --all` puts it right")
}

fn host() -> Result<()> {
    let arguments = "--workspace --exclude nat-ebpf --all-targets -- -D warnings";
    run::visibly(run::cargo("clippy").args(arguments.split(' ')))
}

fn bpf() -> Result<()> {
    // clippy must be of the same version as the compiler of `core`, so it is the BPF
    // toolchain's own, not the host's.
    let builder = Builder::find().map_err(Lacking::from)?;
    run::visibly(
        builder
            .command("cargo-clippy", "clippy", &run::workspace())
            .args(["--bins", "--", "-D", "warnings"]),
    )
}
