//! Programs that a lab starts: run to their end with a time limit, or kept in the background and killed on drop.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::netns::Netns;
use crate::sys;

const POLL: Duration = Duration::from_millis(10);
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Ctrl-C makes every wait of this process fail soon; the values on the way out then remove what they made. Programs
/// that it starts get their signals as always.
pub fn heed_interrupts() -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        signal_hook::flag::register(signal, INTERRUPTED.clone())?;
    }
    Ok(())
}

/// An error after Ctrl-C, if it is heeded.
pub fn check_interrupt() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// Locks a record that a panic leaves as good as it was: every change of it is whole.
pub fn lock<T>(record: &Mutex<T>) -> MutexGuard<'_, T> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Polls `attempt` until it succeeds; after `timeout` fails with its last error.
pub fn eventually<T>(
    timeout: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        check_interrupt()?;
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("{what}: not within {timeout:?}")));
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// What a program left behind that ran to its end.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// The standard output, or an error with everything it said when it failed.
    pub fn success(self) -> Result<String> {
        ensure!(self.status.success(), "{self}");
        Ok(self.stdout)
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}\n{}{}", self.status, self.stdout, self.stderr)
    }
}

/// Runs `command` to its end, without input; kills it and fails when it takes longer than `timeout`.
pub fn run(command: &mut Command, timeout: Duration) -> Result<Finished> {
    run_with_input(command, "", timeout)
}

/// Like [`run`], with something to read.
pub fn run_with_input(command: &mut Command, input: &str, timeout: Duration) -> Result<Finished> {
    let (what, path) = (describe(command), path_of(command));
    let mut child = command
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C is for us alone: we end our children ourselves, in order.
        .process_group(0)
        .spawn()
        .with_context(|| format!("{what}: cannot start"))?;
    let (stdout, stderr) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
    match child
        .stdin
        .take()
        .map(|mut pipe| pipe.write_all(input.as_bytes()))
    {
        // A program that does not want its input may close it.
        Some(Err(error)) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    let ended = wait(&mut child, timeout);
    if ended.is_err() {
        end_group(&mut child);
    }
    let output = |reader: JoinHandle<String>| reader.join().unwrap_or_default();
    let (stdout, stderr) = (output(stdout), output(stderr));
    let status = ended.with_context(|| format!("{what}\n{stdout}{stderr}"))?;
    Ok(Finished {
        status,
        stdout,
        stderr,
    })
}

/// The search path, with the places where Debian has root's programs: `su` keeps a user's path.
fn path() -> String {
    let inherited = std::env::var("PATH").unwrap_or_default();
    format!("{inherited}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// The search path that a command was given, or else ours.
fn path_of(command: &Command) -> OsString {
    let mut variables = command.get_envs();
    let own = variables.find(|(name, _)| *name == "PATH");
    let own = own.and_then(|(_, value)| value).map(OsString::from);
    own.unwrap_or_else(|| path().into())
}

/// Where a program is on the search path.
pub fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&path())
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

fn read_all(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is still worth showing.
        let _ = pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, timeout: Duration) -> Result<ExitStatus> {
    // Most commands are `ip` and end within a few milliseconds; waiting longer each time would add up.
    let (deadline, mut pause) = (Instant::now() + timeout, Duration::from_micros(200));
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        check_interrupt()?;
        ensure!(Instant::now() < deadline, "still running after {timeout:?}");
        thread::sleep(pause);
        pause = (pause * 2).min(POLL);
    }
}

/// Kills a child and what it started in turn (each child leads a group of its own).
fn end_group(child: &mut Child) {
    // Once it is waited for, its id may be another's; until then the group cannot be anybody else's.
    if matches!(child.try_wait(), Ok(None)) {
        // It may end at this moment; there is nobody to tell.
        let _ = sys::kill_group(child.id()).and_then(|()| child.wait());
    }
}

/// Output for an error: its beginning and end, if it is long (the verifier's log may have thousands of lines).
pub fn shortened(output: &str) -> String {
    const ENDS: usize = 25;
    let lines: Vec<_> = output.lines().collect();
    if lines.len() <= 3 * ENDS {
        return output.to_string();
    }
    let (first, last) = (&lines[..ENDS], &lines[lines.len() - ENDS..]);
    format!(
        "{}\n... {} lines left out\n{}",
        first.join("\n"),
        lines.len() - 2 * ENDS,
        last.join("\n")
    )
}

fn describe(command: &Command) -> String {
    let arguments = command.get_args().map(|a| a.to_string_lossy());
    std::iter::once(command.get_program().to_string_lossy())
        .chain(arguments)
        .collect::<Vec<_>>()
        .join(" ")
}

/// A program in the background. Its output goes to a file; it is killed on drop.
pub struct Process {
    child: Child,
    what: String,
    log: PathBuf,
    kept: bool,
}

impl Process {
    /// Starts `command` with both outputs appended to the file `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        check_interrupt()?;
        let (what, path) = (describe(command), path_of(command));
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{what}: cannot start"))?;
        Ok(Self {
            child,
            what,
            log: log.to_path_buf(),
            kept: false,
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn output(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until `done` finds what it looks for in the output from byte `from` on.
    pub fn wait_for_output<T>(
        &mut self,
        from: usize,
        timeout: Duration,
        mut done: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            check_interrupt()?;
            // Asked before the output is read: what it said last is then not missed.
            let ended = self.child.try_wait()?;
            let output = self.output();
            if let Some(value) = done(output.get(from..).unwrap_or_default()) {
                return Ok(value);
            }
            if let Some(status) = ended {
                bail!(
                    "{} ended early ({status}):\n{}",
                    self.what,
                    shortened(&output)
                );
            }
            ensure!(
                Instant::now() < deadline,
                "{} did not say so within {timeout:?}:\n{}",
                self.what,
                shortened(&output)
            );
            thread::sleep(POLL);
        }
    }

    /// Waits until it listens on `port` in `namespace`.
    pub fn wait_listening(
        &mut self,
        namespace: &Netns,
        port: Port,
        timeout: Duration,
    ) -> Result<()> {
        self.wait_for_output(0, timeout, |_| is_open(namespace, port).ok()?.then_some(()))
            .with_context(|| format!("waiting for {port:?} to open"))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        sys::kill(self.id(), signal).with_context(|| format!("signal {signal} to {}", self.what))
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        wait(&mut self.child, timeout).with_context(|| self.what.clone())
    }

    /// SIGKILL: no chance to tidy up.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        let status = self.child.wait()?;
        ensure!(
            status.signal() == Some(libc::SIGKILL),
            "{} had ended before it was killed: {status}",
            self.what
        );
        Ok(())
    }

    /// SIGTERM, and a wait for the orderly end.
    pub fn terminate(mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        self.wait(timeout)
    }

    /// Leaves it running when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept {
            end_group(&mut self.child);
        }
    }
}

/// A port that a program listens on.
#[derive(Clone, Copy, Debug)]
pub enum Port {
    /// TCP, in state LISTEN.
    Tcp(u16),
    /// A bound UDP socket.
    Udp(u16),
}

/// Whether somebody listens on `port` in `namespace`.
pub fn is_open(namespace: &Netns, port: Port) -> Result<bool> {
    let (protocol, number, listening) = match port {
        Port::Tcp(number) => ("tcp", number, "0A"),
        Port::Udp(number) => ("udp", number, "07"),
    };
    // A socket of IPv6 takes IPv4, too, unless it is told not to.
    let tables = namespace.enter(|| {
        ["", "6"].map(|family| {
            fs::read_to_string(format!("/proc/thread-self/net/{protocol}{family}"))
                .unwrap_or_default()
        })
    })?;
    let wanted = format!(":{number:04X}");
    Ok(tables.iter().flat_map(|table| table.lines()).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields
            .next()
            .is_some_and(|address| address.ends_with(&wanted));
        local && fields.nth(1) == Some(listening)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_can_be_terminated_though_interrupts_are_heeded() -> Result<()> {
        heed_interrupts()?;
        let mut command = Command::new("grep");
        let status = run(command.args(["^Sig[BI]", "/proc/self/status"]), POLL * 100)?.success()?;
        let termination = 1_u64 << (libc::SIGTERM - 1) | 1 << (libc::SIGINT - 1);
        for set in status
            .lines()
            .filter_map(|line| line.split_whitespace().last())
        {
            ensure!(u64::from_str_radix(set, 16)? & termination == 0, "{status}");
        }
        ensure!(status.lines().count() == 2, "{status}");
        Ok(())
    }
}
