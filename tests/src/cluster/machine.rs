//! A machine of the cluster: a process that is PID 1 of its own namespaces, and all that it starts.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{self, CloneFlags};

use super::cgroup::Group;
use super::place::{Machine, Place};
use super::{control_plane, inside, logs};
use crate::process;

/// The program that holds this code, for tests that are another one.
const PROGRAM_VARIABLE: &str = "NAT_CLUSTER";
const PROGRAM: &str = "nat-cluster";
const QUICK: Duration = Duration::from_secs(20);

/// Starts a machine whose network is there, and does not wait for it to be of use.
pub fn start(place: &Place, machine: Machine) -> Result<()> {
    let mut command = Command::new(program());
    command.args(["boot", place.name(), &machine.to_string()]);
    process::run(&mut command, QUICK)?
        .success()
        .with_context(|| format!("{machine} does not boot"))
        .map(drop)
}

/// Ends all processes of a machine at once, as if its plug were pulled.
pub fn kill(place: &Place, machine: Machine) -> Result<()> {
    group(place, machine)?.remove()
}

/// The machine's PID 1, as this process sees it.
pub fn init(place: &Place, machine: Machine) -> Result<Option<u32>> {
    let processes = group(place, machine)?.processes();
    Ok(processes.into_iter().find(|&pid| is_init(pid)))
}

/// Polls `attempt` until it succeeds, for as long as the machine is on. When it does not, prints what the
/// machine's programs said last.
pub fn eventually<T>(
    place: &Place,
    machine: Machine,
    timeout: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let done = process::eventually(timeout, &format!("{machine}: {what}"), || {
        Ok(match init(place, machine)? {
            Some(_) => Ok(attempt()?),
            // Trying again would not help.
            None => Err(anyhow!("{machine} has ended")),
        })
    });
    // Before the error, which should be what a person sees last.
    done.flatten()
        .inspect_err(|_| eprintln!("{}", logs::ends(place, machine)))
}

/// In `nat-cluster boot`: puts the new machine's PID 1 into namespaces of its own.
pub fn boot(place: &Place, machine: Machine) -> Result<()> {
    let group = group(place, machine)?;
    group.enter()?;
    let network = Path::new("/run/netns").join(place.own(machine));
    let network = File::open(&network).with_context(|| network.display().to_string())?;
    sched::setns(network, CloneFlags::CLONE_NEWNET)?;
    sched::unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWCGROUP,
    )?;
    group.settle()?;
    let log = File::options()
        .create(true)
        .append(true)
        .open(place.boot_log(machine))?;
    Command::new(std::env::current_exe()?)
        .args(["init", place.name(), &machine.to_string()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C in the terminal is not for it.
        .process_group(0)
        .spawn()?;
    Ok(())
}

/// In `nat-cluster init`: what PID 1 of the machine does. Returns only when that fails.
pub fn run(place: &Place, machine: Machine) -> Result<()> {
    match machine {
        Machine::Control => control_plane::run(place),
        Machine::Node(number) => inside::run(place, number),
    }
}

/// The machine's control group.
pub fn group(place: &Place, machine: Machine) -> Result<Group> {
    Group::new(&place.own(machine))
}

/// Whether a process is the first one in a namespace that this process's own is the parent of. A pod's first process
/// has a third id, in the pod.
fn is_init(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.is_some_and(|ids| ids.split_whitespace().skip(1).eq(["1"]))
}

fn program() -> PathBuf {
    if let Some(path) = std::env::var_os(PROGRAM_VARIABLE) {
        return path.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    // A test's own binary is in target/PROFILE/deps.
    let mut beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(PROGRAM));
    beside
        .find(|path| path.exists())
        .unwrap_or_else(|| PROGRAM.into())
}
