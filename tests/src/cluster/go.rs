//! Finds a Go that is new enough, for `cargo xtask setup` and for the build.
//!
//! Only the standard library is used here, because xtask includes this file.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What go.mod asks for.
const MINIMUM: (u32, u32) = (1, 25);
/// Where Go's own archive is unpacked to, which sudo's PATH does not hold.
const OWN_PLACE: &str = "/usr/local/go/bin";
/// Each names a directory with programs of Kubernetes, which are used instead of building any.
const READY_VARIABLES: [&str; 2] = ["KUBE_BIN_DIR", "KUBEBUILDER_ASSETS"];

/// There is none. Its words ask a person for one.
#[derive(Debug)]
pub struct Missing {
    older: Vec<String>,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = MINIMUM;
        let older = match self.older.as_slice() {
            [] => String::new(),
            older => format!(" (there is {})", older.join(", ")),
        };
        write!(
            f,
            "Kubernetes is built with Go {major}.{minor} or newer, which is not installed{older}: \
             install it as https://go.dev/doc/install says; or set {} to a directory with \
             Kubernetes' programs, etcd and helm; or do without clusters (`cargo xtask test --skip cluster`)",
            READY_VARIABLES[0]
        )
    }
}

impl std::error::Error for Missing {}

/// The directory of ready programs that somebody names, and the variable by which.
pub fn ready() -> Option<(&'static str, PathBuf)> {
    let named = |name: &'static str| Some((name, PathBuf::from(env::var_os(name)?)));
    READY_VARIABLES.into_iter().find_map(named)
}

/// Looks for Go on PATH, then where its own archive puts it.
pub fn find() -> Result<PathBuf, Missing> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain([OWN_PLACE.into()]);
    let mut older = Vec::new();
    for path in places.map(|directory| directory.join("go")) {
        let Some(version) = version(&path) else {
            continue;
        };
        if release(&version).is_some_and(|release| release >= MINIMUM) {
            return Ok(path);
        }
        older.push(format!("{}: {version}", path.display()));
    }
    older.dedup();
    Err(Missing { older })
}

fn version(go: &Path) -> Option<String> {
    let mut command = Command::new(go);
    // Asking for the version must not download one.
    command
        .args(["env", "GOVERSION"])
        .env("GOTOOLCHAIN", "local");
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    let version = String::from_utf8(output.stdout).ok()?;
    Some(version.trim().to_string())
}

/// The release in `go1.26.8`, or in `go1.26rc1`.
fn release(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix("go")?.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor: String = parts
        .next()?
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    Some((major, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(release("go1.26.8"), Some((1, 26)));
        assert_eq!(release("go1.27rc1"), Some((1, 27)));
        assert_eq!(release("devel +abc"), None);
    }

    #[test]
    fn what_is_missing_is_asked_for_in_words() {
        let older = vec!["/usr/bin/go: go1.19.8".to_string()];
        let words = Missing { older }.to_string();
        assert!(words.contains("Go 1.25") && words.contains("go1.19.8"));
        assert!(words.contains("KUBE_BIN_DIR") && words.contains("--skip cluster"));
    }
}
