//! The programs of Kubernetes, etcd and Helm: those that somebody names, or built once from the Go modules pinned in
//! go.mod.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::{go, place};
use crate::process::{self, Process};

const GO_MOD: &str = include_str!("../../cluster/kubernetes/go.mod");
const GO_SUM: &str = include_str!("../../cluster/kubernetes/go.sum");
const KUBERNETES: &str = "k8s.io/kubernetes";
const ETCD: &str = "go.etcd.io/etcd/server/v3";
const HELM: &str = "helm.sh/helm/v3";
/// What is built, in this order: the first is soon done, and each shares packages with those before it.
const ALL: [&str; 8] = [
    "kubectl",
    "helm",
    "kube-proxy",
    "kube-scheduler",
    "kubelet",
    "kube-apiserver",
    "kube-controller-manager",
    "etcd",
];
/// Packages that programs read their own version from.
const VERSION_PACKAGES: [&str; 2] = [
    "k8s.io/component-base/version",
    "k8s.io/client-go/pkg/version",
];
const TELL: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(100);
const QUICK: Duration = Duration::from_secs(60);

/// The directory with all programs, after building what is missing.
pub fn programs() -> Result<PathBuf> {
    if let Some((variable, directory)) = go::ready() {
        return check_ready(variable, directory);
    }
    let directory = place::cache()?.join(directory_name()?);
    if missing(&directory).next().is_none() {
        return Ok(directory);
    }
    fs::create_dir_all(&directory)?;
    // A second one that starts now waits, and finds everything done.
    let lock = File::create(directory.join("lock"))?;
    lock.lock()?;
    Builder::new(&directory)?.build()?;
    Ok(directory)
}

fn check_ready(variable: &str, directory: PathBuf) -> Result<PathBuf> {
    let missing: Vec<_> = missing(&directory).collect();
    ensure!(
        missing.is_empty(),
        "{variable} names {}, where these are missing: {}; add them, or unset {variable} to have everything built",
        directory.display(),
        missing.join(" ")
    );
    // It will be used from other directories.
    Ok(directory.canonicalize()?)
}

fn missing(directory: &Path) -> impl Iterator<Item = &'static str> {
    let is_missing = |name: &&str| !directory.join(name).is_file();
    ALL.into_iter().filter(is_missing)
}

/// Other modules get another directory.
fn directory_name() -> Result<String> {
    let digest = Sha256::new()
        .chain_update(GO_MOD)
        .chain_update(GO_SUM)
        .finalize();
    let short: String = digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let (kubernetes, etcd) = (version(KUBERNETES)?, version(ETCD)?);
    Ok(format!("kubernetes-{kubernetes}-etcd-{etcd}-{short}"))
}

/// The version of a module in go.mod.
fn version(module: &str) -> Result<&'static str> {
    let version = GO_MOD.lines().find_map(|line| {
        let rest = line.trim().strip_prefix(module)?.strip_prefix(" v")?;
        rest.split_whitespace().next()
    });
    version.with_context(|| format!("go.mod does not name {module}"))
}

/// Builds into a directory, from a copy of go.mod that lies there.
struct Builder<'a> {
    go: PathBuf,
    directory: &'a Path,
}

impl<'a> Builder<'a> {
    fn new(directory: &'a Path) -> Result<Self> {
        fs::write(directory.join("go.mod"), GO_MOD)?;
        fs::write(directory.join("go.sum"), GO_SUM)?;
        let go = go::find()?;
        Ok(Self { go, directory })
    }

    fn build(&self) -> Result<()> {
        let begun = Instant::now();
        let missing: Vec<_> = missing(self.directory).collect();
        if missing.is_empty() {
            return Ok(());
        }
        eprintln!(
            "building Kubernetes {}, etcd {} and Helm {} into {}",
            version(KUBERNETES)?,
            version(ETCD)?,
            version(HELM)?,
            self.directory.display()
        );
        eprintln!(
            "  once; it takes about ten minutes on two cores when nothing of it was built before"
        );
        // -x prints what is fetched.
        let mut download = self.go();
        download.args(["mod", "download", "-x"]);
        self.run("modules", "files fetched", &mut download, |line| {
            line.starts_with("# get")
        })?;
        for name in missing {
            self.compile(name)?;
        }
        eprintln!("  all built in {}", minutes(begun));
        Ok(())
    }

    fn compile(&self, name: &str) -> Result<()> {
        let (package, flags) = match name {
            "etcd" => (ETCD.to_string(), "-s -w".to_string()),
            "helm" => (format!("{HELM}/cmd/helm"), helm_flags()?),
            _ => (format!("{KUBERNETES}/cmd/{name}"), link_flags()?),
        };
        let partial = self.directory.join(format!("{name}.partial"));
        let mut command = self.go();
        command
            .args(["build", "-v", "-trimpath", "-ldflags", &flags, "-o"])
            .arg(&partial)
            .arg(package);
        // -v prints the packages that are compiled, one a line.
        self.run(name, "packages compiled", &mut command, |line| {
            !line.is_empty()
        })?;
        Ok(fs::rename(partial, self.directory.join(name))?)
    }

    fn go(&self) -> Command {
        let mut command = Command::new(&self.go);
        command
            .current_dir(self.directory)
            // Programs that run on every node as they are.
            .env("CGO_ENABLED", "0")
            // Somebody else's settings must not change what is built, nor fetch another Go.
            .env("GOFLAGS", "-mod=readonly")
            .env("GOWORK", "off")
            .env("GOTOOLCHAIN", "local");
        command
    }

    /// Runs a command and tells from time to time how many `things` it is through with: lines of its output that
    /// `counts` picks.
    fn run(
        &self,
        what: &str,
        things: &str,
        command: &mut Command,
        counts: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let begun = Instant::now();
        let log = self.directory.join("build.log");
        fs::write(&log, "")?;
        let mut running = Process::spawn(command, &log)?;
        let mut told = begun;
        while running.is_running() {
            process::check_interrupt()?;
            thread::sleep(POLL);
            if told.elapsed() >= TELL {
                told = Instant::now();
                let done = running.output().lines().filter(|line| counts(line)).count();
                eprintln!("  {what}: {done} {things}, {}", minutes(begun));
            }
        }
        let status = running.wait(QUICK)?;
        ensure!(
            status.success(),
            "{what}: {status}\n{}",
            process::shortened(&running.output())
        );
        eprintln!("  {what} took {}", minutes(begun));
        Ok(())
    }
}

fn link_flags() -> Result<String> {
    let version = version(KUBERNETES)?;
    let mut parts = version.split('.');
    let (major, minor) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let of = |package: &str| {
        format!(
            " -X {package}.gitVersion=v{version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
        )
    };
    Ok(format!("-s -w{}", VERSION_PACKAGES.map(of).concat()))
}

fn helm_flags() -> Result<String> {
    let version = version(HELM)?;
    Ok(format!(
        "-s -w -X {HELM}/internal/version.version=v{version}"
    ))
}

fn minutes(begun: Instant) -> String {
    let seconds = begun.elapsed().as_secs();
    format!("{} min {:02} s", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_go_mod() {
        assert!(version(KUBERNETES).unwrap().split('.').count() == 3);
        assert!(version(ETCD).unwrap().starts_with("3."));
        assert!(version(HELM).unwrap().starts_with("3."));
        assert!(version("k8s.io/none").is_err());
    }

    #[test]
    fn all_staging_modules_have_the_version_of_kubernetes() {
        let wanted = format!(
            "v0.{}",
            version(KUBERNETES).unwrap().split_once('.').unwrap().1
        );
        let replaced = GO_MOD.lines().filter(|line| line.contains("=>"));
        assert!(replaced.clone().count() > 20);
        replaced.for_each(|line| assert!(line.ends_with(&wanted), "{line}"));
    }
}
