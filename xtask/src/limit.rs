//! Runs a command for a limited time.

use std::{
    fs,
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::run;

/// How long a test may take to clean up after it is told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Runs a command visibly; past the limit it is ended, with all that it started.
pub fn visibly(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child = run::prepare(command)
        .spawn()
        .with_context(|| format!("cannot run {}", run::words(command)))?;
    match wait(&mut child, limit)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => bail!("`{}` ended with {status}", run::words(command)),
        None => {
            end(&mut child)?;
            bail!("stopped after {} s", limit.as_secs())
        }
    }
}

fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Ends a child and its descendants. They are looked up in /proc: in a process group
/// of its own the child would not hear Ctrl-C.
fn end(child: &mut Child) -> Result<()> {
    let family = descendants(child.id(), &processes());
    signal("TERM", &family);
    if wait(child, GRACE)?.is_none() {
        signal("KILL", &[child.id()]);
    }
    signal("KILL", &family);
    child.wait()?;
    Ok(())
}

fn signal(name: &str, processes: &[u32]) {
    let processes = processes.iter().map(u32::to_string);
    // Some may be gone by now, which is what is wanted.
    let _ = Command::new("kill")
        .arg(format!("-{name}"))
        .args(processes)
        .stderr(std::process::Stdio::null())
        .status();
}

/// Every process with its parent.
fn processes() -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .filter_map(|stat| parse_stat(&stat))
        .collect()
}

/// Process and parent in /proc/PID/stat; the name in parentheses may hold anything.
fn parse_stat(stat: &str) -> Option<(u32, u32)> {
    let pid = stat.split(' ').next()?.parse().ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let parent = rest.split(' ').nth(1)?.parse().ok()?;
    Some((pid, parent))
}

/// A process and everything below it.
fn descendants(root: u32, processes: &[(u32, u32)]) -> Vec<u32> {
    let mut family = vec![root];
    let mut next = 0;
    while let Some(&parent) = family.get(next) {
        let children = processes.iter().filter(|(_, of)| *of == parent);
        family.extend(children.map(|(pid, _)| *pid));
        next += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_family_is_found() {
        let processes = [(1, 0), (10, 1), (11, 10), (12, 11), (13, 10), (20, 1)];
        assert_eq!(descendants(10, &processes), [10, 11, 13, 12]);
    }

    #[test]
    fn a_name_may_hold_spaces_and_parentheses() {
        assert_eq!(parse_stat("42 (a) b (c)) S 7 42 42"), Some((42, 7)));
        assert_eq!(parse_stat("nonsense"), None);
    }

    #[test]
    fn what_takes_too_long_is_ended_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 100 & wait"]);
        let begun = Instant::now();
        let error = visibly(&mut command, Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("stopped"));
        assert!(begun.elapsed() < GRACE);
    }

    #[test]
    fn the_end_of_a_command_is_seen() {
        let limit = Duration::from_secs(10);
        assert!(visibly(&mut Command::new("true"), limit).is_ok());
        assert!(visibly(&mut Command::new("false"), limit).is_err());
    }
}
