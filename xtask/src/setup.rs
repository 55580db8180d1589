//! `cargo xtask setup`: finds what building and testing take, and installs what is missing.

mod apt;
mod compiler;
mod programs;

use std::fmt;

use anyhow::Result;

use crate::{run, toolchain::Missing};
use apt::Apt;
use programs::Need;

/// Find or install what building and testing take: compiler, linker, test programs
///
/// Says what is missing and why it is needed, one line each, and installs it with
/// apt-get and cargo. Does nothing when everything is there. No service is started.
/// Exit code 2: something is missing that cannot be had.
#[derive(clap::Args)]
pub struct Args {
    /// Only report what is there and what is missing
    #[arg(long)]
    check: bool,
}

/// The machine lacks something that xtask cannot give it: exit code 2.
#[derive(Debug)]
pub struct Lacking(String);

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lacking {}

impl From<Missing> for Lacking {
    fn from(missing: Missing) -> Self {
        Self(missing.to_string())
    }
}

pub fn main(args: &Args) -> Result<()> {
    let (present, lacks) = look();
    for line in present {
        eprintln!("ok       {line}");
    }
    if lacks.is_empty() {
        eprintln!("setup: everything is there");
        return Ok(());
    }
    if args.check {
        announce(&lacks);
        return Err(Lacking("`cargo xtask setup` installs what is missing".into()).into());
    }
    install(&lacks)
}

/// Installs what is missing and says nothing if that is nothing.
pub fn ensure() -> Result<()> {
    let (_, lacks) = look();
    if lacks.is_empty() {
        return Ok(());
    }
    run::section("setup");
    install(&lacks)
}

/// Says plainly that the kernel wants root for what comes next.
pub fn ensure_root() -> Result<()> {
    if run::is_root() {
        return Ok(());
    }
    let words = "BPF programs and network namespaces need root: run this as root";
    Err(Lacking(words.into()).into())
}

/// One thing that is missing.
struct Lack {
    name: String,
    why: &'static str,
    /// The Debian packages that bring it; none where another way is needed.
    packages: Vec<&'static str>,
}

impl Lack {
    fn of(need: &Need) -> Self {
        Self {
            name: need.name.into(),
            why: need.why,
            packages: vec![need.package],
        }
    }
}

/// What is there, in words, and what is not.
fn look() -> (Vec<String>, Vec<Lack>) {
    let (mut present, mut lacks) = compiler::look();
    for need in programs::NEEDS {
        if need.is_met() {
            present.push(format!("{}: {}", need.name, need.why));
        } else {
            lacks.push(Lack::of(need));
        }
    }
    (present, lacks)
}

fn announce(lacks: &[Lack]) {
    for Lack {
        name,
        why,
        packages,
    } in lacks
    {
        let source = match packages.as_slice() {
            [] => String::new(),
            packages => format!(" [{}]", packages.join(" ")),
        };
        eprintln!("missing  {name}: {why}{source}");
    }
}

fn install(lacks: &[Lack]) -> Result<()> {
    announce(lacks);
    if !run::is_root() {
        return Err(
            Lacking("installing needs root: run `cargo xtask setup` as root".into()).into(),
        );
    }
    let mut apt = Apt::find().ok_or_else(|| {
        Lacking("this system has no apt-get: install what is listed above by its own means".into())
    })?;
    compiler::can_be_had(&mut apt)?;
    let packages: Vec<_> = lacks
        .iter()
        .flat_map(|lack| &lack.packages)
        .copied()
        .collect();
    apt.install(&packages)?;
    programs::keep_daemons_off(lacks.iter().map(|lack| lack.name.as_str()))?;
    compiler::complete(&mut apt)?;
    let (_, still) = look();
    if still.is_empty() {
        eprintln!("setup: everything is there");
        return Ok(());
    }
    announce(&still);
    Err(Lacking("the packages were installed, and still something is missing".into()).into())
}
