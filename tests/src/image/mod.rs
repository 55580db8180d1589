//! Container images, made by hand: a root of a few programs and their libraries, in an archive that containerd takes.

mod archive;
mod root;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::agent;
pub use archive::Image;
pub use root::Root;

/// The image of test pods: a shell, and programs that talk over the network.
pub const TOOLS: &str = "localhost/tools:1";
/// What keeps a pod's namespaces, as containerd.toml names it.
const PAUSE: &str = "localhost/pause:1";
/// The programs of [`TOOLS`] besides busybox.
const TOOL_PROGRAMS: [&str; 6] = ["curl", "ip", "iperf3", "nc.openbsd", "ping", "socat"];
/// What the agent calls.
const AGENT_PROGRAMS: [&str; 1] = ["nft"];

/// The agent's image: agent, natctl and the CNI plugin, which are linked statically, and nft with the libraries that it
/// is linked with.
pub fn agent() -> Result<Image> {
    let mut root = Root::default();
    for binary in [agent::binary(), agent::natctl(), agent::plugin()] {
        root.add_program_at(&binary)?;
    }
    for program in AGENT_PROGRAMS {
        root.add_program(program)?;
    }
    Ok(Image {
        reference: format!("localhost/nat-agent:{}", env!("CARGO_PKG_VERSION")),
        entrypoint: vec!["/usr/bin/nat-agent".into()],
        root,
    })
}

/// What `cargo xtask image` leaves.
pub struct LaidOut {
    /// The image's full name.
    pub reference: String,
    /// It as an OCI archive.
    pub archive: PathBuf,
    /// The same files for a Dockerfile to copy.
    pub root: PathBuf,
}

/// Lays the agent's image out in a directory.
pub fn lay_out(directory: &Path) -> Result<LaidOut> {
    let image = agent()?;
    let (archive, root) = (directory.join("nat-agent.tar"), directory.join("root"));
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| root.display().to_string())?;
    }
    image.root.unpack(&root)?;
    image.write(&archive)?;
    Ok(LaidOut {
        reference: image.reference,
        archive,
        root,
    })
}

/// Writes the images that every cluster needs into a directory.
pub fn write_test_images(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    pause()?.write(&directory.join("pause.tar"))?;
    tools()?.write(&directory.join("tools.tar"))
}

fn pause() -> Result<Image> {
    let mut root = Root::default();
    root.add_program("busybox")
        .context("busybox is for test pods (Debian: busybox)")?;
    Ok(Image {
        reference: PAUSE.into(),
        // containerd ends it by SIGKILL, and it has no children to bury: sleeping is all it has to do.
        entrypoint: ["/usr/bin/busybox", "sleep", "2147483647"]
            .map(String::from)
            .into(),
        root,
    })
}

fn tools() -> Result<Image> {
    let mut root = Root::default();
    for program in TOOL_PROGRAMS {
        root.add_program(program)?;
    }
    root.add_busybox()?;
    root.add_file("etc/passwd", "root:x:0:0:root:/:/bin/sh\n");
    root.add_file("etc/group", "root:x:0:\n");
    for directory in ["dev", "proc", "run", "sys", "tmp", "var"] {
        root.add_directory(directory);
    }
    Ok(Image {
        reference: TOOLS.into(),
        entrypoint: Vec::new(),
        root,
    })
}
