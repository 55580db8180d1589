//! Installs Debian packages, without starting the services in them.

use std::process::{Command, Stdio};

use anyhow::Result;

use super::Lacking;
use crate::run;

/// Where Debian looks for leave to start a service.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Runs a command while the policy denies that leave.
const WITH_POLICY: &str = include_str!("apt.sh");

/// apt-get on this machine.
pub struct Apt {
    updated: bool,
}

impl Apt {
    pub fn find() -> Option<Self> {
        run::find_program("apt-get").map(|_| Self { updated: false })
    }

    /// Installs packages. apt-get's lists are brought up to date before the first.
    pub fn install(&mut self, packages: &[&str]) -> Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        self.update()?;
        let unknown: Vec<_> = packages.iter().copied().filter(|p| !is_known(p)).collect();
        if !unknown.is_empty() {
            let words = format!("apt-get knows no such packages: {}", unknown.join(" "));
            return Err(Lacking(words).into());
        }
        eprintln!("apt-get install {}", packages.join(" "));
        run::visibly(&mut guarded(POLICY, install_command(packages))).map_err(|_| {
            let words = "apt-get could not install the packages; why is what it printed last";
            Lacking(words.into()).into()
        })
    }

    /// Whether a package can be installed.
    pub fn offers(&mut self, package: &str) -> Result<bool> {
        self.update()?;
        Ok(is_known(package))
    }

    fn update(&mut self) -> Result<()> {
        if !self.updated {
            eprintln!("apt-get update");
            run::visibly(Command::new("apt-get").args(["update", "-q"]))?;
            self.updated = true;
        }
        Ok(())
    }
}

fn is_known(package: &str) -> bool {
    Command::new("apt-cache")
        .args(["--no-all-versions", "show", package])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn install_command(packages: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["install", "-y", "-q", "--no-install-recommends"])
        // Nothing that somebody installed may go to make room for a test program.
        .arg("--no-remove")
        .args(["-o", "DPkg::Lock::Timeout=120"])
        .args(["-o", "Dpkg::Options::=--force-confold"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // needrestart would restart services that use an upgraded library.
        .env("NEEDRESTART_SUSPEND", "1");
    command
}

/// The command under the policy at this path.
fn guarded(policy: &str, command: Command) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", WITH_POLICY, "apt.sh", policy])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    shell
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    /// A directory of its own for a test's policy.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let name = format!("natctl-policy-{}-{name}", std::process::id());
            let place = std::env::temp_dir().join(name);
            fs::create_dir_all(&place).unwrap();
            Self(place)
        }

        fn policy(&self) -> PathBuf {
            self.0.join("policy-rc.d")
        }

        /// Runs a shell command under the policy, which it finds in $POLICY.
        fn run(&self, script: &str) -> Option<i32> {
            let policy = self.policy();
            let mut command = Command::new("sh");
            command.args(["-c", script]).env("POLICY", &policy);
            let guarded = guarded(policy.to_str().unwrap(), command);
            // Who runs the tests in the background has them ignore Ctrl-C, and a shell cannot undo that.
            let mut heard = Command::new("env");
            heard
                .arg("--default-signal=INT")
                .arg(guarded.get_program())
                .args(guarded.get_args())
                .env("POLICY", &policy);
            heard.status().unwrap().code()
        }

        fn files(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn services_are_forbidden_while_the_command_runs_and_not_after() {
        let place = Place::new("fresh");
        assert_eq!(place.run("sh $POLICY"), Some(101));
        assert_eq!(place.files(), 0);
    }

    #[test]
    fn an_existing_policy_is_put_back_even_on_failure() {
        let place = Place::new("existing");
        fs::write(place.policy(), "theirs").unwrap();
        assert_eq!(place.run("exit 7"), Some(7));
        assert_eq!(fs::read_to_string(place.policy()).unwrap(), "theirs");
        assert_eq!(place.files(), 1);
    }

    #[test]
    fn an_existing_policy_is_put_back_on_ctrl_c() {
        let place = Place::new("interrupted");
        fs::write(place.policy(), "theirs").unwrap();
        assert_eq!(place.run("kill -INT $PPID"), Some(130));
        assert_eq!(fs::read_to_string(place.policy()).unwrap(), "theirs");
        assert_eq!(place.files(), 1);
    }

    #[test]
    fn what_a_killed_run_left_is_put_right_by_the_next() {
        let place = Place::new("killed");
        fs::write(place.policy(), "theirs").unwrap();
        assert_eq!(place.run("kill -KILL $PPID"), None);
        assert_eq!(place.files(), 2);
        assert_eq!(place.run("true"), Some(0));
        assert_eq!(fs::read_to_string(place.policy()).unwrap(), "theirs");
        assert_eq!(place.files(), 1);
    }
}
