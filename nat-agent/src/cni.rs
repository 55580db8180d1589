//! The command line's part that is about the CNI plugin: what the agent does for it, and its files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use nat_cni::{
    NAME,
    install::{self, Chained},
};

use crate::source::kubernetes::Kubernetes;

/// What the agent does for the plugin.
#[derive(Args, Debug)]
pub struct Options {
    /// Answer the CNI plugin at this socket
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    cni_socket: Option<PathBuf>,
    /// Keep the CNI plugin in the network configuration of this directory
    #[arg(long, value_name = "DIR", requires = "kubernetes")]
    cni_conf_dir: Option<PathBuf>,
    /// Where the CNI plugin's program is, to be removed with everything else
    #[arg(long, value_name = "DIR", requires = "daemon_set")]
    cni_bin_dir: Option<PathBuf>,
}

impl Options {
    /// Tells the source.
    pub fn apply(&self, kubernetes: &mut Kubernetes) {
        if let Some(socket) = &self.cni_socket {
            kubernetes.listen(socket);
        }
        if let Some(directory) = &self.cni_conf_dir {
            kubernetes.keep_chained(directory);
        }
    }

    /// Takes the plugin off the node, with all its files.
    ///
    /// # Errors
    /// A file cannot be written or removed.
    pub fn uninstall(&self) -> Result<()> {
        if let Some(conf_dir) = &self.cni_conf_dir {
            remove(conf_dir, self.cni_bin_dir.as_deref())?;
        }
        if let Some(socket) = &self.cni_socket {
            fs::remove_file(socket).with_context(|| format!("remove {}", socket.display()))?;
        }
        Ok(())
    }
}

/// The plugin's files on a node.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Puts the CNI plugin's program in place and into the network configuration. Twice is once.
    Install {
        /// The runtime's network configurations
        #[arg(long, value_name = "DIR")]
        conf_dir: PathBuf,
        /// The runtime's CNI plugins
        #[arg(long, value_name = "DIR")]
        bin_dir: PathBuf,
    },
    /// Takes the CNI plugin out of every network configuration. Twice is once.
    Remove {
        /// The runtime's network configurations
        #[arg(long, value_name = "DIR")]
        conf_dir: PathBuf,
        /// The runtime's CNI plugins: the program is removed, too
        #[arg(long, value_name = "DIR")]
        bin_dir: Option<PathBuf>,
    },
}

impl Command {
    /// Does it, and prints what was done.
    ///
    /// # Errors
    /// A file cannot be read or written, or has no place for the plugin.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Install { conf_dir, bin_dir } => install(conf_dir, bin_dir),
            Self::Remove { conf_dir, bin_dir } => remove(conf_dir, bin_dir.as_deref()),
        }
    }
}

/// The program first: the runtime may use the configuration at once.
fn install(conf_dir: &Path, bin_dir: &Path) -> Result<()> {
    let own = std::env::current_exe().context("find this program's own file")?;
    let there = match install::place(&own.with_file_name(NAME), bin_dir)? {
        true => "is",
        false => "was",
    };
    println!("{} {there} in place", bin_dir.join(NAME).display());
    match install::chain(conf_dir)? {
        Chained::NoneThere => println!(
            "{}: no network configuration yet; nat-agent adds the plugin when there is one",
            conf_dir.display()
        ),
        Chained::Already(path) => println!("{} had the plugin", path.display()),
        Chained::Now(path) => println!("{} has the plugin now", path.display()),
    }
    Ok(())
}

/// The program last: a configuration must not name what is gone.
fn remove(conf_dir: &Path, bin_dir: Option<&Path>) -> Result<()> {
    let changed = install::unchain(conf_dir)?;
    for path in &changed {
        println!("{} is without the plugin now", path.display());
    }
    if changed.is_empty() {
        println!(
            "{}: no network configuration had the plugin",
            conf_dir.display()
        );
    }
    if let Some(bin_dir) = bin_dir
        && install::displace(bin_dir)?
    {
        println!("{} is removed", bin_dir.join(NAME).display());
    }
    Ok(())
}
