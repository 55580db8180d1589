//! `cargo xtask setup`: finds what building and testing take, and installs what is missing.

mod apt;
mod compiler;
#[path = "../../tests/src/cluster/go.rs"]
mod go;
mod programs;

use std::fmt;

use anyhow::Result;

use crate::{run, toolchain::Missing};
use apt::Apt;
use programs::Need;

/// Find or install what building and testing take: compiler, linker, test programs,
/// a container runtime
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

const GO: &str = "Go";
const GO_WHY: &str = "builds Kubernetes, once";

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

/// What something is needed for. A container runtime and Go are much to ask of
/// somebody who only wants to see the demo, so they wait until a cluster is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Building, demo, benchmarks, and tests without a cluster.
    Basics,
    /// All of that, and clusters.
    Cluster,
}

pub fn main(args: &Args) -> Result<()> {
    let (present, lacks) = look(Purpose::Cluster);
    for line in present {
        eprintln!("ok       {line}");
    }
    if lacks.is_empty() {
        eprintln!("setup: everything is there");
        return Ok(());
    }
    if args.check {
        announce(&lacks);
        if is_go_alone(&lacks) {
            return ask_for_go();
        }
        return Err(Lacking("`cargo xtask setup` installs what is missing".into()).into());
    }
    install(&lacks, Purpose::Cluster)
}

/// Installs what is missing and says nothing if that is nothing.
pub fn ensure(purpose: Purpose) -> Result<()> {
    let (_, lacks) = look(purpose);
    if lacks.is_empty() {
        return Ok(());
    }
    run::section("setup");
    install(&lacks, purpose)
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
fn look(purpose: Purpose) -> (Vec<String>, Vec<Lack>) {
    let (mut present, mut lacks) = compiler::look();
    let of_clusters = match purpose {
        Purpose::Basics => &[],
        Purpose::Cluster => programs::CLUSTER_NEEDS,
    };
    for need in programs::NEEDS.iter().chain(of_clusters) {
        if need.is_met() {
            present.push(format!("{}: {}", need.name, need.why));
        } else {
            lacks.push(Lack::of(need));
        }
    }
    if purpose == Purpose::Cluster {
        match look_for_go() {
            Ok(found) => present.push(found),
            Err(_) => lacks.push(lack_of_go()),
        }
    }
    (present, lacks)
}

/// Go, or what makes it needless, in words.
fn look_for_go() -> Result<String, go::Missing> {
    if let Some((variable, _)) = go::ready() {
        return Ok(format!("${variable}: Kubernetes, already built"));
    }
    Ok(format!("{}: {GO_WHY}", go::find()?.display()))
}

fn lack_of_go() -> Lack {
    Lack {
        name: GO.into(),
        why: GO_WHY,
        packages: Vec::new(),
    }
}

fn is_go_alone(lacks: &[Lack]) -> bool {
    lacks.iter().all(|lack| lack.name == GO)
}

/// Go is not installed from here: distributions carry releases that are too old, and
/// where another may come from is for a person to say.
fn ask_for_go() -> Result<()> {
    let asked = go::find().err().map(|missing| Lacking(missing.to_string()));
    asked.map_or(Ok(()), |lacking| Err(lacking.into()))
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

fn install(lacks: &[Lack], purpose: Purpose) -> Result<()> {
    announce(lacks);
    if is_go_alone(lacks) {
        return ask_for_go();
    }
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
    let (_, still) = look(purpose);
    if still.is_empty() {
        eprintln!("setup: everything is there");
        return Ok(());
    }
    announce(&still);
    if is_go_alone(&still) {
        return ask_for_go();
    }
    Err(Lacking("the packages were installed, and still something is missing".into()).into())
}
