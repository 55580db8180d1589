//! The agent under test, in its node's namespace.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::objects;
use super::usage::{Memory, Usage, memory, usage};
use crate::agent::binary;
use crate::bench::topology::PREFIX;
use crate::netns::Netns;
use crate::process::{Process, shortened};

/// The agent. Dropped, it is ended, and what it has pinned is removed.
pub struct Agent {
    namespace: Netns,
    kubeconfig: PathBuf,
    directory: PathBuf,
    bpffs: PathBuf,
    process: Option<Process>,
}

impl Agent {
    /// Prepares it.
    pub fn new(namespace: &Netns, kubeconfig: &Path) -> Result<Self> {
        let name = format!("{PREFIX}{}-k", std::process::id());
        let directory = std::env::temp_dir().join(&name);
        fs::create_dir_all(&directory)?;
        Ok(Self {
            namespace: namespace.clone(),
            kubeconfig: kubeconfig.to_owned(),
            directory,
            bpffs: Path::new("/sys/fs/bpf").join(name),
            process: None,
        })
    }

    /// Starts it, and does not wait.
    pub fn start(&mut self) -> Result<()> {
        let mut command = self.namespace.command(binary());
        command
            .args(["--kubernetes", "--node", &objects::node(0), "--bpffs"])
            .arg(&self.bpffs)
            .env("KUBECONFIG", &self.kubeconfig);
        let log = self.log_file();
        self.process = Some(Process::spawn(&mut command, &log)?);
        Ok(())
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("it does not run")?.kill()
    }

    /// What it holds of memory.
    pub fn memory(&self) -> Result<Memory> {
        memory(self.id()?)
    }

    /// What it has taken of the processors so far.
    pub fn usage(&self) -> Result<Usage> {
        usage(self.id()?)
    }

    fn id(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("it does not run")?.id())
    }

    /// What it has said, shortened.
    pub fn log(&self) -> String {
        shortened(&fs::read_to_string(self.log_file()).unwrap_or_default())
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.take());
        for left in [&self.directory, &self.bpffs] {
            // What is not there need not be removed.
            let _ = fs::remove_dir_all(left);
        }
    }
}
