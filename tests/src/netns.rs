//! Named network namespaces that go away with the value that made them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{self, Finished};
use crate::sys;

const DIRECTORY: &str = "/run/netns";
const QUICK: Duration = Duration::from_secs(10);

/// A network namespace under `/run/netns`. Clones mean the same one; the last one dropped deletes it.
#[derive(Clone)]
pub struct Netns(Arc<Inner>);

struct Inner {
    name: String,
    kept: std::sync::atomic::AtomicBool,
}

impl Netns {
    /// Makes the namespace `name`, with its loopback up and IPv6 off (nothing then speaks unasked).
    pub fn create(name: &str) -> Result<Self> {
        ensure!(
            sys::is_root(),
            "network namespaces need root: run this as root"
        );
        process::run(Command::new("ip").args(["netns", "add", name]), QUICK)?.success()?;
        let this = Self(Arc::new(Inner {
            name: name.to_string(),
            kept: false.into(),
        }));
        if Path::new("/proc/sys/net/ipv6").exists() {
            this.sysctl("net.ipv6.conf.all.disable_ipv6", "1")?;
            this.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        }
        this.ip("link set lo up")?;
        Ok(this)
    }

    /// The namespace `name` that somebody else made and will delete.
    pub fn existing(name: &str) -> Self {
        Self(Arc::new(Inner {
            name: name.to_string(),
            kept: true.into(),
        }))
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(self.name())
    }

    /// Leaves it in place when this value and its clones are dropped.
    pub fn keep(&self) {
        self.0
            .kept
            .store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// A command that will run inside. Not by `ip netns exec`, which hides the machine's bpffs.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs a command line inside, split at spaces, and returns what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        self.try_run(line)?
            .success()
            .with_context(|| format!("{}: {line}", self.name()))
    }

    /// Like [`Netns::run`], also when the program fails.
    pub fn try_run(&self, line: &str) -> Result<Finished> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        process::run(self.command(program).args(words), Duration::from_secs(60))
    }

    /// Runs `ip` commands inside, one a line.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", self.name(), "-batch", "-"]);
        let finished = process::run_with_input(&mut command, lines, QUICK)?;
        finished
            .success()
            .with_context(|| format!("{}: ip {lines}", self.name()))
            .map(drop)
    }

    /// Loads an nftables script inside.
    pub fn nft(&self, script: &str) -> Result<()> {
        let mut command = self.command("nft");
        let finished = process::run_with_input(command.args(["-f", "-"]), script, QUICK)?;
        finished
            .success()
            .with_context(|| format!("{}: nft {script}", self.name()))
            .map(drop)
    }

    /// Sets a kernel parameter inside, by its dotted name.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        self.enter(|| fs::write(&file, value))?
            .with_context(|| format!("{}: {name}", self.name()))
    }

    /// Runs `work` on a thread inside. Sockets it makes stay in this namespace, wherever they are used.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("{}: gone", self.name()))?;
        let inside = thread::scope(|scope| {
            let thread = scope.spawn(|| sys::enter_netns(&file).map(|()| work()));
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        inside.with_context(|| format!("cannot enter {}", self.name()))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !*self.kept.get_mut() {
            delete(&self.name);
        }
    }
}

/// Deletes the namespace `name`, if it is there. Not through [`process::run`], which an interrupt would stop.
pub fn delete(name: &str) {
    // Failing means that it is gone, or that there is nothing to be done about it here.
    let _ = Command::new("ip")
        .args(["netns", "del", name])
        .stderr(Stdio::null())
        .status();
}

/// Removes the namespaces whose names start with `prefix`, and the processes left in them.
pub fn remove(prefix: &str) {
    for name in names().filter(|name| name.starts_with(prefix)) {
        for pid in processes(&name) {
            // A lab's namespace holds only what the lab started; it may end before we reach it.
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        delete(&name);
    }
}

/// The names of all namespaces there are.
pub fn names() -> impl Iterator<Item = String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten();
    entries.filter_map(|entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok())
}

fn processes(name: &str) -> Vec<u32> {
    let output = Command::new("ip").args(["netns", "pids", name]).output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}
