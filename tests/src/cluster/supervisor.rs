//! What PID 1 of a machine does: it starts services, starts them again when they end, and buries orphans.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::wait::{self, WaitStatus};

use crate::sys;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A service that ends at once should not take the machine's whole time.
const PAUSE: Duration = Duration::from_secs(1);

/// A program that runs as long as the machine does.
pub struct Service {
    program: PathBuf,
    arguments: Vec<String>,
}

impl Service {
    /// A program, by its path or by its name on PATH, and what it is told, without spaces in any of it.
    pub fn new(program: PathBuf, arguments: &str) -> Self {
        Self {
            program,
            arguments: arguments.split_whitespace().map(String::from).collect(),
        }
    }

    fn name(&self) -> String {
        self.program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }
}

/// The services of this machine.
pub struct Supervisor {
    logs: PathBuf,
    running: Vec<(Service, Child)>,
}

impl Supervisor {
    /// Will have services write into the directory `logs`.
    pub fn new(logs: &Path) -> Result<Self> {
        sys::raise_file_limit()?;
        Ok(Self {
            logs: logs.to_path_buf(),
            running: Vec::new(),
        })
    }

    /// Starts a service.
    pub fn start(&mut self, service: Service) -> Result<()> {
        let child = self.spawn(&service)?;
        self.running.push((service, child));
        Ok(())
    }

    /// Runs a program to its end, with what it says in the file `log`.
    pub fn run(&self, command: &mut Command, log: &str) -> Result<()> {
        let status = self.prepare(command, log)?.status()?;
        anyhow::ensure!(
            status.success(),
            "{}: {status}",
            command.get_program().display()
        );
        Ok(())
    }

    /// Looks after the services for as long as the machine is on.
    pub fn supervise(mut self) -> Result<()> {
        loop {
            let ended = match wait::wait() {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => pid,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("nothing is left to look after"),
            };
            let of = |child: &Child| child.id() == ended.as_raw() as u32;
            if let Some(at) = self.running.iter().position(|(_, child)| of(child)) {
                let (service, _) = self.running.swap_remove(at);
                eprintln!("{} ended and is started again", service.name());
                thread::sleep(PAUSE);
                self.start(service)?;
            }
        }
    }

    fn spawn(&self, service: &Service) -> Result<Child> {
        let mut command = Command::new(&service.program);
        command.args(&service.arguments);
        self.prepare(&mut command, &format!("{}.log", service.name()))?
            .spawn()
            .with_context(|| format!("cannot start {}", service.program.display()))
    }

    fn prepare<'a>(&self, command: &'a mut Command, log: &str) -> Result<&'a mut Command> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.logs.join(log))?;
        Ok(command
            .env_clear()
            .env("HOME", "/root")
            .env("PATH", PATH)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log))
    }
}
