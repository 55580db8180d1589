//! Runs other programs where a person can see it, and knows where things lie.

use std::{
    env,
    fmt::Display,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The repository. cargo says where it is now, which may not be where it was compiled.
pub fn workspace() -> PathBuf {
    let manifest_dir = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest_dir
        .parent()
        .map(Path::to_owned)
        .unwrap_or_default()
}

/// The host's cargo: the one that runs this.
///
/// It does not see what cargo told xtask of itself: build scripts that read such
/// variables (ring's does) would run anew whenever a person's own cargo comes between,
/// and with them all that depends on them.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(cargo_path());
    command.arg(subcommand).current_dir(workspace());
    for (name, _) in env::vars_os() {
        if is_xtasks_own(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether cargo sets the variable for the package that it runs.
fn is_xtasks_own(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"]
        .iter()
        .any(|prefix| variable.starts_with(prefix))
}

/// Where the host's cargo is. It says so itself, unless xtask was started without it.
pub fn cargo_path() -> PathBuf {
    let own = env::var_os("CARGO").map(PathBuf::from);
    own.or_else(|| find_program("cargo"))
        .unwrap_or_else(|| "cargo".into())
}

/// Says what happens next, apart from what other programs print. All that xtask says
/// goes to stderr: stdout belongs to the results of `bench -o json`.
pub fn section(title: impl Display) {
    eprintln!("\n== {title}");
}

/// Lets a command print to stderr and fails if it fails. Nobody may be there to
/// answer questions, so it gets no stdin.
pub fn visibly(command: &mut Command) -> Result<()> {
    prepare(command);
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", words(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", words(command));
    }
    Ok(())
}

/// Connects a command to stderr and to no stdin.
pub fn prepare(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(io::stderr())
}

/// The command as a person would type it.
pub fn words(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Where a program is: on PATH, or where only root's PATH looks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Whether this runs as root, without asking libc: /proc/self belongs to who runs it.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|proc| proc.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_not_told_of_xtask() {
        let command = cargo("build");
        let removed = |name: &str| {
            command
                .get_envs()
                .any(|(env, value)| env == name && value.is_none())
        };
        assert!(removed("CARGO_PKG_NAME") && removed("CARGO_MANIFEST_DIR"));
        assert!(!removed("PATH") && !removed("CARGO"));
    }
}
