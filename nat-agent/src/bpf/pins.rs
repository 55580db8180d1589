//! Where maps and links are pinned.
//!
//! `DIR/v2/maps/NAME`, `DIR/v2/queues/SLICE-PROTOCOL`, `DIR/v2/links/DEVICE::JOB`,
//! where 2 is the layout's version.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nat_common::abi::LAYOUT_VERSION;
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, open, statfs},
    mount::{MountFlags, mount},
};

/// Where pins are unless `--bpffs` says otherwise.
pub const DEFAULT: &str = "/sys/fs/bpf/natctl";
/// How long the lock is waited for: commands hold it for a moment to see whether
/// an agent runs, and an agent that was killed may still be dying.
const PATIENCE: Duration = Duration::from_millis(500);
/// Where a BPF file system belongs.
const BPFFS: &str = "/sys/fs/bpf";
/// `BPF_FS_MAGIC`.
const MAGIC: u64 = 0xcafe_4a11;

/// The pins of one agent.
#[derive(Clone, Debug)]
pub struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Pins under this directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The directory that `--bpffs` names.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn version(&self) -> PathBuf {
        self.directory.join(format!("v{LAYOUT_VERSION}"))
    }

    /// A map's pin.
    pub fn map(&self, name: &str) -> PathBuf {
        self.version().join("maps").join(name)
    }

    /// A queue's pin.
    pub fn queue(&self, number: u32) -> PathBuf {
        self.version().join("queues").join(number.to_string())
    }

    /// The links' directory.
    pub fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// Whether an agent has pinned its maps here.
    pub fn exist(&self) -> bool {
        self.map("REPORT").exists()
    }

    /// Makes the directories, on a BPF file system that is mounted if need be.
    ///
    /// # Errors
    /// No BPF file system can be had there, or another version's pins are in the way.
    pub fn prepare(&self) -> Result<()> {
        mount_if_missing(&self.directory)?;
        self.refuse_other_versions()?;
        for directory in ["maps", "queues", "links"] {
            let path = self.version().join(directory);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .with_context(|| format!("make {}", path.display()))?;
        }
        ensure!(
            on_bpffs(&self.directory)?,
            "{} is not on a BPF file system; mount one with `mount -t bpf bpf {BPFFS}`, or choose a \
             directory on one with --bpffs",
            self.directory.display()
        );
        Ok(())
    }

    fn refuse_other_versions(&self) -> Result<()> {
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return Ok(());
        };
        let ours = format!("v{LAYOUT_VERSION}");
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name != *ours {
                bail!(
                    "{} holds pins of layout {}, this version needs {ours}: {}",
                    self.directory.display(),
                    name.to_string_lossy(),
                    self.way_out()
                );
            }
        }
        Ok(())
    }

    /// What a person can do about pins that do not fit.
    pub fn way_out(&self) -> String {
        format!(
            "run `nat-agent detach --bpffs {}` to remove what is pinned (this ends all sessions), \
             set the limits back, or start the version that made it",
            self.directory.display()
        )
    }

    /// Takes the agent's lock on these pins; held until the descriptor is dropped.
    ///
    /// # Errors
    /// Another agent holds it.
    pub fn lock(&self) -> Result<OwnedFd> {
        let fd = self.open_directory()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(fd),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                    thread::sleep(PATIENCE / 20);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => bail!(
                    "another nat-agent runs on {}; stop it, or give this one its own --bpffs",
                    self.directory.display()
                ),
                Err(error) => return Err(error).context("lock the pins"),
            }
        }
    }

    /// Whether an agent is running on these pins.
    pub fn agent_runs(&self) -> bool {
        let Ok(fd) = self.open_directory() else {
            return false;
        };
        flock(&fd, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    }

    fn open_directory(&self) -> Result<OwnedFd> {
        open(
            &self.directory,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .with_context(|| format!("open {}", self.directory.display()))
    }

    /// Removes all pins, of every version: maps and links end with them.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self) -> Result<bool> {
        match fs::remove_dir_all(&self.directory) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => {
                Err(error).with_context(|| format!("remove {}", self.directory.display()))
            }
        }
    }
}

/// Mounts a BPF file system where it belongs if the pins are to be there and it
/// is missing, as systemd and iproute2 do.
fn mount_if_missing(directory: &Path) -> Result<()> {
    let root = Path::new(BPFFS);
    if !directory.starts_with(root) || on_bpffs(root)? {
        return Ok(());
    }
    mount("bpf", root, "bpf", MountFlags::empty(), None).with_context(|| {
        format!("mount a BPF file system at {BPFFS}; run `mount -t bpf bpf {BPFFS}`")
    })
}

fn on_bpffs(path: &Path) -> Result<bool> {
    let stat = statfs(path).with_context(|| format!("look at {}", path.display()))?;
    Ok(stat.f_type as u64 == MAGIC)
}
