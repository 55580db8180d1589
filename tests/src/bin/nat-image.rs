//! `cargo xtask image`: the agent's image, without a container engine.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use nat_tests::image;

/// Makes the agent's image: an OCI archive, and the same files for a Dockerfile to copy.
#[derive(Parser)]
struct Arguments {
    /// The directory for nat-agent.tar and root/.
    directory: PathBuf,
}

fn main() -> Result<()> {
    let made = image::lay_out(&Arguments::parse().directory)?;
    println!("{}", made.reference);
    println!("  archive  {}", made.archive.display());
    println!("  files    {}", made.root.display());
    Ok(())
}
