//! Builds the eBPF object that nat-agent carries inside itself, and tells the
//! compiler where it is: `env!("NAT_EBPF_OBJECT")`.

use std::{env, path::Path, process::ExitCode};

// The build script uses only a part of what xtask needs.
#[allow(dead_code)]
#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

/// What the object is made of.
const SOURCES: [&str; 6] = [
    "nat-ebpf",
    "nat-common/src",
    "nat-common/Cargo.toml",
    "xtask/src/toolchain.rs",
    "Cargo.toml",
    "Cargo.lock",
];

fn main() -> ExitCode {
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let workspace = Path::new(&manifest_dir)
        .parent()
        .expect("nat-agent lies in the workspace");
    for source in SOURCES {
        println!(
            "cargo:rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    println!("cargo:rerun-if-env-changed={}", toolchain::LOG);
    match build(workspace) {
        Ok(()) => {
            let object = toolchain::object(workspace, "nat");
            println!("cargo:rustc-env=NAT_EBPF_OBJECT={}", object.display());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("nat-agent carries an eBPF object, which could not be built: {why}");
            ExitCode::FAILURE
        }
    }
}

fn build(workspace: &Path) -> Result<(), String> {
    let builder = toolchain::Builder::find()
        .map_err(|missing| format!("{missing}; `cargo xtask setup` installs what is missing"))?;
    let mut command = builder.command("cargo", "build", workspace);
    let status = command
        .args(["--bin", "nat"])
        .status()
        .map_err(|error| format!("cannot run {:?}: {error}", command.get_program()))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("cargo build of nat-ebpf ended with {status}"))
    }
}
