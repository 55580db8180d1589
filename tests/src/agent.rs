//! nat-agent in a lab: its start, its changes of configuration, every kind of end, and `natctl` beside it.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use nat_common::abi::LAYOUT_VERSION;

use crate::config::Config;
use crate::lab::{self, Builder, Lab};
use crate::netns::Netns;
use crate::process::{self, Finished, Process};
use crate::status::Status;

/// Loading the programs takes the verifier a while on a busy machine.
const START: Duration = Duration::from_secs(30);
const COMMAND: Duration = Duration::from_secs(20);

/// An agent on a lab's node, with a bpffs directory of its own. Dropped, it is killed and its pins are removed.
pub struct Agent {
    node: Netns,
    binary: PathBuf,
    config: PathBuf,
    log: PathBuf,
    bpffs: PathBuf,
    /// Of a node of Kubernetes: its name, and the file that says where the API server is.
    kubernetes: Option<(String, PathBuf)>,
    process: Option<Process>,
    kept: bool,
}

impl Agent {
    /// Starts it on the lab's node and waits until everything is applied.
    pub fn start(lab: &Lab, config: &Config) -> Result<Self> {
        Self::new(lab).started(config)
    }

    /// Starts it on the lab's node, which is `name` in Kubernetes, with the node's file and a kubeconfig.
    pub fn start_on(lab: &Lab, file: &str, name: &str, kubeconfig: &str) -> Result<Self> {
        let path = lab.directory().join("kubeconfig");
        fs::write(&path, kubeconfig)?;
        let mut agent = Self::new(lab);
        agent.kubernetes = Some((name.to_string(), path));
        agent.started(file)
    }

    fn new(lab: &Lab) -> Self {
        Self {
            node: lab.node.clone(),
            binary: binary(),
            config: lab.directory().join("config.yaml"),
            log: lab.directory().join("nat-agent.log"),
            bpffs: lab.bpffs(),
            kubernetes: None,
            process: None,
            kept: false,
        }
    }

    fn started(mut self, config: impl Display) -> Result<Self> {
        self.write_config(config)?;
        self.restart()?;
        Ok(self)
    }

    /// The file it watches.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Where its maps and links are pinned.
    pub fn pins(&self) -> PathBuf {
        self.bpffs().join(format!("v{LAYOUT_VERSION}"))
    }

    /// Its directory on the BPF file system.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Everything it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Starts it (again) and waits until everything is applied.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "the agent runs already");
        let from = self.log().len();
        let mut command = self.node.command(&self.binary);
        command
            .arg("--config")
            .arg(&self.config)
            .arg("--bpffs")
            .arg(&self.bpffs);
        if let Some((node, kubeconfig)) = &self.kubernetes {
            command.args(["--kubernetes", "--node", node]);
            command.env("KUBECONFIG", kubeconfig);
        }
        let process = self
            .process
            .insert(Process::spawn(&mut command, &self.log)?);
        process
            .wait_for_output(from, START, is_ready)
            .context("nat-agent (NAT_AGENT names another one)")
    }

    /// Replaces the file it watches, by a rename as editors and Kubernetes do it.
    pub fn write_config(&self, config: impl Display) -> Result<()> {
        let new = self.config.with_extension("new");
        fs::write(&new, config.to_string())?;
        Ok(fs::rename(new, &self.config)?)
    }

    /// Replaces the file and waits until the agent has applied it.
    pub fn reload(&mut self, config: impl Display) -> Result<()> {
        let from = self.log().len();
        self.write_config(config)?;
        self.wait_for_log(from, is_applied)
    }

    /// Waits until `found` finds what it looks for in the log from byte `from` on.
    pub fn wait_for_log<T>(
        &mut self,
        from: usize,
        found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        self.running()?.wait_for_output(from, COMMAND, found)
    }

    fn running(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("the agent does not run")
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        self.process
            .take()
            .context("the agent does not run")?
            .kill()
    }

    /// SIGTERM, and its orderly end.
    pub fn terminate(&mut self) -> Result<()> {
        let process = self.process.take().context("the agent does not run")?;
        let status = process.terminate(COMMAND)?;
        ensure!(
            status.success(),
            "the agent ended with {status}:\n{}",
            self.log()
        );
        Ok(())
    }

    /// Goes on with another build: a copy of the binary, under its own name.
    pub fn use_copy_of_binary(&mut self) -> Result<()> {
        let copy = self.config.with_file_name("nat-agent-second-build");
        fs::copy(&self.binary, &copy)?;
        self.binary = copy;
        Ok(())
    }

    /// Goes on with its file in a directory of its own, where not even the log disturbs it.
    pub fn use_config_apart(&mut self) -> Result<()> {
        let directory = self.config.with_file_name("apart");
        fs::create_dir_all(&directory)?;
        let file = directory.join("config.yaml");
        fs::rename(&self.config, &file)?;
        self.config = file;
        Ok(())
    }

    /// `nat-agent detach`.
    pub fn detach(&self) -> Result<String> {
        let mut command = self.node.command(&self.binary);
        self.finish(command.arg("detach"))?.success()
    }

    /// `nat-agent check` of a file with this content: its exit and output.
    pub fn check(&self, content: &str) -> Result<Finished> {
        let file = self.config.with_file_name("checked.yaml");
        fs::write(&file, content)?;
        process::run(
            self.node
                .command(&self.binary)
                .arg("check")
                .arg("--config")
                .arg(file),
            COMMAND,
        )
    }

    /// Runs `natctl` with `arguments`, split at spaces.
    pub fn natctl(&self, arguments: &str) -> Result<String> {
        let mut command = self.node.command(natctl());
        self.finish(command.args(arguments.split_whitespace()))?
            .success()
    }

    /// `natctl status -o json`.
    pub fn status(&self) -> Result<Status> {
        let text = self.natctl("status -o json")?;
        Ok(Status(
            serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?,
        ))
    }

    /// The flows that `natctl flows` lists with `filter` on its command line.
    pub fn flows(&self, filter: &str) -> Result<Vec<Value>> {
        let text = self.natctl(&format!("flows -o json {filter}"))?;
        let answer: Value = serde_json::from_str(&text)?;
        Ok(answer["flows"].as_array().context("no flows")?.clone())
    }

    fn finish(&self, command: &mut Command) -> Result<Finished> {
        process::run(command.arg("--bpffs").arg(&self.bpffs), COMMAND)
    }

    /// Leaves it running.
    pub fn keep(&mut self) {
        self.kept = true;
        self.process.iter_mut().for_each(Process::keep);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if std::thread::panicking() {
            eprintln!("nat-agent said:\n{}", process::shortened(&self.log()));
        }
        drop(self.process.take());
        // Without their pins, links and maps go. After `detach` there is nothing left to remove.
        let _ = fs::remove_dir_all(&self.bpffs);
    }
}

fn is_ready(log: &str) -> Option<()> {
    log.contains("ready: ").then_some(())
}

fn is_applied(log: &str) -> Option<()> {
    log.contains("configuration applied: ").then_some(())
}

/// An agent and its lab, in the order in which they must end.
pub struct Bed {
    /// The agent.
    pub agent: Agent,
    /// The lab.
    pub lab: Lab,
}

impl Bed {
    /// Builds a lab and starts the agent in it, with [`Config::new`] as `change` makes it.
    pub fn start(lab: Builder, change: impl FnOnce(Config) -> Config) -> Result<Self> {
        let lab = lab.build()?;
        let config = change(Config::new(&lab));
        Ok(Self {
            agent: Agent::start(&lab, &config)?,
            lab,
        })
    }

    /// Ends both, with the sniffer's verdict.
    pub fn finish(mut self) -> Result<()> {
        // Before the agent: what its clients still send afterwards is not translated any more.
        self.lab.verdict()
    }
}

/// How a client's packets get through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A pod's, by the kernel's stack.
    Stack,
    /// A pod's, past it.
    Direct,
    /// A routed client's, by XDP in the driver.
    Xdp,
}

/// Runs `test` with `hosts` clients in a lab of its own for each way.
pub fn every_way(
    hosts: u8,
    change: impl Fn(Config) -> Config,
    test: impl Fn(Way, &mut Bed) -> Result<()>,
) -> Result<()> {
    for way in [Way::Stack, Way::Direct, Way::Xdp] {
        let (lab, path) = match way {
            Way::Stack => (lab::pods(hosts), "path: stack"),
            Way::Direct => (lab::pods(hosts), "path: direct"),
            Way::Xdp => (lab::routed(hosts), "path: stack"),
        };
        let mut bed = Bed::start(lab, |config| change(config.pool(path)))?;
        let run = test(way, &mut bed).and_then(|()| bed.finish());
        run.with_context(|| format!("{way:?}"))?;
    }
    Ok(())
}

/// The binary under test: `$NAT_AGENT`, or the one built beside this program, or the workspace's.
pub fn binary() -> PathBuf {
    find("NAT_AGENT", "nat-agent")
}

/// natctl, found like [`binary`].
pub fn natctl() -> PathBuf {
    find("NATCTL", "natctl")
}

/// The CNI plugin, found like [`binary`].
pub fn plugin() -> PathBuf {
    find("NAT_CNI", "nat-cni")
}

fn find(variable: &str, name: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    // A test's own binary is in target/PROFILE/deps.
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(name));
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let built = ["release", "debug"].map(|profile| target.join(profile).join(name));
    beside
        .chain(built)
        .find(|path| path.exists())
        .unwrap_or_else(|| name.into())
}
