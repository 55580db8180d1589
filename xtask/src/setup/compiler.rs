//! The compiler for BPF, its linker, and the lints.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use super::{Lack, Lacking, apt::Apt};
use crate::{
    run,
    toolchain::{self, Builder, Linker, Missing, Origin, Toolchain},
};

const COMPILER_WHY: &str = "compiles Rust for BPF";
const LINKER_WHY: &str = "links BPF objects";
const CLIPPY_WHY: &str = "lints the BPF code";
const HOST_LINT_WHY: &str = "lints the code for the host";

/// Debian's toolchain. Recommended packages are not installed, so all are named.
const DEBIAN_TOOLCHAIN: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", DEBIAN_CLIPPY];
const DEBIAN_CLIPPY: &str = "rust-web-clippy";

/// The bpf-linker that is known to work, and the LLVM releases that it can be built with.
const LINKER_VERSION: &str = "0.13.0";
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// What is there of it, in words, and what is not.
pub fn look() -> (Vec<String>, Vec<Lack>) {
    let (mut present, mut lacks) = match Builder::find() {
        Ok(builder) => look_at(&builder),
        Err(missing) => (Vec::new(), lacks_of(&missing)),
    };
    for tool in ["rustfmt", "cargo-clippy"] {
        if run::cargo_path().with_file_name(tool).is_file() {
            present.push(format!("{tool}: {HOST_LINT_WHY}"));
        } else {
            lacks.push(lack_of(tool, HOST_LINT_WHY, &[]));
        }
    }
    (present, lacks)
}

fn look_at(builder: &Builder) -> (Vec<String>, Vec<Lack>) {
    let Builder { toolchain, linker } = builder;
    let mut present = vec![
        format!("{}: {COMPILER_WHY}", toolchain.version),
        format!("{}: {LINKER_WHY}", linker.path.display()),
    ];
    let mut lacks = Vec::new();
    let name = "clippy for BPF";
    if toolchain.bin.join("cargo-clippy").is_file() {
        present.push(format!("{name}: {CLIPPY_WHY}"));
    } else {
        let packages: &[_] = match toolchain.origin {
            Origin::Debian => &[DEBIAN_CLIPPY],
            Origin::Nightly => &[],
        };
        lacks.push(lack_of(name, CLIPPY_WHY, packages));
    }
    (present, lacks)
}

fn lacks_of(missing: &Missing) -> Vec<Lack> {
    let linker = || lack_of("bpf-linker", LINKER_WHY, &[]);
    match missing {
        Missing::Toolchain => {
            let toolchain = lack_of("a BPF toolchain", COMPILER_WHY, &DEBIAN_TOOLCHAIN);
            let linker = Linker::find().is_none().then(linker);
            [toolchain].into_iter().chain(linker).collect()
        }
        Missing::Linker => vec![linker()],
        Missing::Match { compiler, .. } => {
            let name = format!("bpf-linker with LLVM {compiler}");
            vec![lack_of(&name, LINKER_WHY, &[])]
        }
    }
}

fn lack_of(name: &str, why: &'static str, packages: &[&'static str]) -> Lack {
    Lack {
        name: name.into(),
        why,
        packages: packages.to_vec(),
    }
}

/// Says early, before anything is installed, that there will be no compiler.
pub fn can_be_had(apt: &mut Apt) -> Result<()> {
    let none = Builder::find() == Err(Missing::Toolchain);
    if !none || apt.offers(DEBIAN_TOOLCHAIN[0])? {
        return Ok(());
    }
    let words = format!(
        "{}; and apt-get offers no {}",
        Missing::Toolchain,
        DEBIAN_TOOLCHAIN[0]
    );
    Err(Lacking(words).into())
}

/// Installs what apt-get alone could not: the linker that fits the compiler, and
/// rustup's components.
pub fn complete(apt: &mut Apt) -> Result<()> {
    match Builder::find() {
        Ok(_) => {}
        Err(missing @ Missing::Toolchain) => return Err(Lacking::from(missing).into()),
        Err(Missing::Linker | Missing::Match { .. }) => install_linker(apt)?,
    }
    let builder = Builder::find().map_err(Lacking::from)?;
    let Toolchain { origin, bin, .. } = &builder.toolchain;
    if !bin.join("cargo-clippy").is_file() {
        match origin {
            Origin::Debian => apt.install(&[DEBIAN_CLIPPY])?,
            Origin::Nightly => add_component(&["--toolchain", "nightly", "clippy"])?,
        }
    }
    let host = run::cargo_path();
    if !host.with_file_name("rustfmt").is_file() {
        add_component(&["rustfmt"])?;
    }
    if !host.with_file_name("cargo-clippy").is_file() {
        add_component(&["clippy"])?;
    }
    Ok(())
}

fn add_component(args: &[&str]) -> Result<()> {
    let words = format!("rustup component add {}", args.join(" "));
    eprintln!("{words}");
    run::visibly(Command::new("rustup").args(["component", "add"]).args(args))
        .map_err(|error| Lacking(format!("{error:#}")).into())
}

/// Builds bpf-linker with the LLVM of the first compiler that there is an LLVM for.
fn install_linker(apt: &mut Apt) -> Result<()> {
    let mut compilers = toolchain::toolchains();
    let llvm = match fitting_llvm(&compilers, apt)? {
        Some(llvm) => llvm,
        None => {
            // A nightly may be ahead of every packaged LLVM.
            apt.install(&DEBIAN_TOOLCHAIN)?;
            compilers = toolchain::toolchains();
            fitting_llvm(&compilers, apt)?.ok_or_else(|| no_llvm(&compilers))?
        }
    };
    let [dev, polly] = llvm_packages(llvm);
    apt.install(&[&dev, &polly, "zlib1g-dev", "libzstd-dev", "g++"])?;
    let feature = format!("llvm-{llvm}");
    let mut command = Command::new(run::cargo_path());
    toolchain::leave_outer_build(&mut command);
    command
        .args(["install", "bpf-linker", "--version", LINKER_VERSION])
        .args(["--locked", "--force", "--no-default-features"])
        .args(["--features", &feature])
        .env("LLVM_PREFIX", llvm_prefix(llvm))
        // Away from this workspace and its settings.
        .current_dir("/");
    eprintln!("{}", run::words(&command));
    run::visibly(&mut command).context("bpf-linker could not be built")
}

fn fitting_llvm(compilers: &[Toolchain], apt: &mut Apt) -> Result<Option<u32>> {
    for Toolchain { llvm, .. } in compilers {
        let [dev, _] = llvm_packages(*llvm);
        let installed = Path::new(&llvm_prefix(*llvm))
            .join("bin/llvm-config")
            .is_file();
        if LINKER_LLVM.contains(llvm) && (installed || apt.offers(&dev)?) {
            return Ok(Some(*llvm));
        }
    }
    Ok(None)
}

fn llvm_packages(llvm: u32) -> [String; 2] {
    [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")]
}

/// Where Debian's packages put an LLVM.
fn llvm_prefix(llvm: u32) -> String {
    format!("/usr/lib/llvm-{llvm}")
}

fn no_llvm(compilers: &[Toolchain]) -> Lacking {
    let versions: Vec<_> = compilers
        .iter()
        .map(|compiler| format!("{} (LLVM {})", compiler.version, compiler.llvm))
        .collect();
    Lacking(format!(
        "bpf-linker {LINKER_VERSION} cannot be built for {}: apt-get has no LLVM of that release",
        versions.join(" or ")
    ))
}
