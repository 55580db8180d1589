//! `cargo xtask image`: the agent's image, without a container engine.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use nat_tests::image;

/// Makes the agent's image: an OCI archive, and the same files for a Dockerfile to copy.
#[derive(Parser)]
struct Arguments {
    /// The directory for nat-agent.tar and root/.
    directory: PathBuf,
}

fn main() -> Result<()> {
    let Arguments { directory } = Arguments::parse();
    let (archive, root) = (directory.join("nat-agent.tar"), directory.join("root"));
    let image = image::agent()?;
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| root.display().to_string())?;
    }
    image.root.unpack(&root)?;
    image.write(&archive)?;
    println!("{}", image.reference);
    println!("  archive  {}", archive.display());
    println!("  files    {}", root.display());
    Ok(())
}
