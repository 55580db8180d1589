//! `cargo xtask build`: the eBPF objects, then everything for the host.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::{
    run,
    setup::{self, Lacking, Purpose},
    toolchain::{self, Builder},
};

/// Build the eBPF objects, nat-agent (with the object inside), natctl, nat-cni and the test programs
#[derive(clap::Args)]
pub struct Args {
    /// Build with optimizations, into target/release
    #[arg(long)]
    release: bool,
}

/// The CNI plugin.
const PLUGIN: &str = "nat-cni";
/// What is linked statically: packages and their programs.
const STATIC: [(&str, &str); 3] = [
    ("nat-agent", "nat-agent"),
    ("nat-agent", "natctl"),
    (PLUGIN, PLUGIN),
];
/// Where these are, below cargo's own directory: cargo links them dynamically whenever it runs tests.
const STATIC_DIRECTORY: &str = "static";

/// What a build leaves, for the programs that run it.
pub struct Built {
    directory: PathBuf,
}

impl Built {
    /// A program for the host.
    pub fn program(&self, name: &str) -> PathBuf {
        if STATIC.iter().any(|(_, program)| *program == name) {
            return self.directory.join(STATIC_DIRECTORY).join(name);
        }
        self.directory.join(name)
    }

    /// The variables by which tests, demo and benchmarks find what was built.
    pub fn environment(&self) -> [(&'static str, PathBuf); 6] {
        let workspace = run::workspace();
        [
            ("NAT_AGENT", self.program("nat-agent")),
            ("NATCTL", self.program("natctl")),
            ("NAT_CNI", self.program(PLUGIN)),
            ("NAT_CLUSTER", self.program("nat-cluster")),
            ("NAT_EBPF_OBJECT", toolchain::object(&workspace, "nat")),
            ("NAT_BENCH_OBJECT", toolchain::object(&workspace, "bench")),
        ]
    }
}

pub fn main(args: &Args) -> Result<()> {
    setup::ensure(Purpose::Basics)?;
    let built = everything(args.release)?;
    eprintln!();
    for name in ["nat-agent", "natctl", PLUGIN] {
        eprintln!("{name:10} {}", built.program(name).display());
    }
    Ok(())
}

/// Builds all there is to run.
pub fn everything(release: bool) -> Result<Built> {
    // nat-agent's build script would build its object too, but in silence.
    run::section("build: eBPF objects");
    ebpf()?;
    run::section("build: nat-agent, natctl and test programs");
    let mut command = run::cargo("build");
    if release {
        command.arg("--release");
    }
    run::visibly(&mut command)?;
    let profile = if release { "release" } else { "debug" };
    let directory = toolchain::host_target_dir(&run::workspace()).join(profile);
    let built = Built { directory };
    for (package, name) in STATIC {
        static_program(&built, package, name, release)?;
    }
    Ok(built)
}

/// Links one program statically: images have no C library, and the CNI plugin runs on nodes
/// whose own may be any. What it is made of is not compiled again for that.
fn static_program(built: &Built, package: &str, name: &str, release: bool) -> Result<()> {
    let mut command = run::cargo("rustc");
    command.args(["--package", package, "--bin", name]);
    if release {
        command.arg("--release");
    }
    command.args(["--", "-C", "target-feature=+crt-static"]);
    run::visibly(&mut command).context(
        "nat-agent, natctl and nat-cni are linked statically, which takes the C library as an \
         archive (Debian: libc6-dev, Fedora: glibc-static)",
    )?;
    let place = built.program(name);
    let made = built.directory.join(name);
    fs::create_dir_all(place.with_file_name(""))?;
    // In its place at once: an older one may be running.
    let new = place.with_extension("new");
    fs::copy(&made, &new).with_context(|| format!("copy {}", made.display()))?;
    fs::rename(&new, &place).with_context(|| format!("put {} in place", place.display()))
}

/// Builds one program of the tests crate, and says nothing unless that fails.
pub fn quietly(name: &str) -> Result<PathBuf> {
    let mut command = run::cargo("build");
    command.args(["--release", "--quiet", "--bin", name]);
    run::visibly(&mut command)?;
    Ok(toolchain::host_target_dir(&run::workspace())
        .join("release")
        .join(name))
}

fn ebpf() -> Result<()> {
    let builder = Builder::find().map_err(Lacking::from)?;
    run::visibly(
        builder
            .command("cargo", "build", &run::workspace())
            .arg("--bins"),
    )
}
