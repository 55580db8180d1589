//! Removes a cluster, whole or not: everything that bears its name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{self, MntFlags};

use super::cgroup::{self, Group};
use super::place::Place;
use crate::netns;

/// Whether there is anything of a cluster.
pub fn is_anything_left(place: &Place) -> Result<bool> {
    let prefix = place.prefix();
    Ok(place.directory().exists()
        || netns::names().any(|name| name.starts_with(&prefix))
        || !cgroup::names(&prefix)?.is_empty())
}

/// Removes a cluster's processes, control groups, namespaces with all their links, mounts and files, in this order:
/// each holds the next.
pub fn remove(place: &Place) -> Result<()> {
    for name in cgroup::names(&place.prefix())? {
        Group::new(&name)?.remove()?;
    }
    netns::remove(&place.prefix());
    unmount(&place.directory())?;
    match fs::remove_dir_all(place.directory()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", place.directory().display()))
        }
        _ => Ok(()),
    }
}

/// Nodes mount in a namespace of their own, which ends with them. Should a mount be left here all the same, removing
/// files would reach through it.
fn unmount(directory: &Path) -> Result<()> {
    for target in mounts(directory)?.iter().rev() {
        mount::umount2(target, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", target.display()))?;
    }
    let left = mounts(directory)?;
    ensure!(left.is_empty(), "still mounted: {left:?}");
    Ok(())
}

fn mounts(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let targets = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    Ok(targets
        .filter(|target| target.starts_with(directory))
        .collect())
}
