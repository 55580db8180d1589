//! A node's private root: this machine's programs to read, and its own /etc, /var, /run and /sys/fs/bpf.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{self, MntFlags, MsFlags};

use super::cgroup::Group;

/// Where the programs of Kubernetes are in a node.
pub const PROGRAMS: &str = "/opt/kubernetes";
/// Where a node finds the images that it imports when it boots.
pub const IMAGES: &str = "/opt/images";

const DIRECTORIES: &[&str] = &[
    "dev",
    "etc",
    "old",
    "opt/cni/bin",
    "opt/images",
    "opt/kubernetes",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "usr",
    "var/lib/containerd",
    "var/lib/kubelet",
    "var/log",
    "var/tmp",
];
/// Files and directories of this machine's /etc without which its programs do not find their libraries and names.
const SHARED_ETC: &[&str] = &["alternatives", "ld.so.cache", "protocols", "services"];

/// Settings of the whole machine that the kubelet insists on writing: it gets files to write to instead.
const SYSCTLS: &[(&str, &str)] = &[
    ("/proc/sys/vm/overcommit_memory", "1"),
    ("/proc/sys/vm/panic_on_oom", "0"),
    ("/proc/sys/kernel/panic", "10"),
    ("/proc/sys/kernel/panic_on_oops", "1"),
    ("/proc/sys/kernel/keys/root_maxkeys", "1000000"),
    ("/proc/sys/kernel/keys/root_maxbytes", "25000000"),
];
/// By a new id the API server sees that a node was booted again.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// The kernel makes a new id each time it is read.
const RANDOM_ID: &str = "/proc/sys/kernel/random/uuid";

/// What a node's root is made of, besides its disk.
pub struct Root<'a> {
    /// The node's disk.
    pub disk: &'a Path,
    /// Kubernetes' programs.
    pub programs: &'a Path,
    /// Images to import.
    pub images: &'a Path,
}

impl Root<'_> {
    /// Builds the root in the calling process's mount namespace, which must be its own, and makes it `/`.
    pub fn enter(&self, group: &Group) -> Result<()> {
        // First of all: nothing that follows may reach this machine's own mounts.
        mount(
            None,
            Path::new("/"),
            "",
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            "",
        )?;
        bind(self.disk, self.disk, MsFlags::empty())?;
        for directory in DIRECTORIES {
            fs::create_dir_all(self.disk.join(directory))?;
        }
        self.bring_programs()?;
        self.mount_kernel(group)?;
        self.cover_sysctls()?;
        self.pivot()
    }

    fn bring_programs(&self) -> Result<()> {
        for name in ["bin", "sbin", "lib", "lib64"] {
            let link = self.disk.join(name);
            if !link.is_symlink() {
                symlink(format!("usr/{name}"), link)?;
            }
        }
        read_only(Path::new("/usr"), &self.disk.join("usr"))?;
        read_only(self.programs, &self.disk.join(&PROGRAMS[1..]))?;
        read_only(self.images, &self.disk.join(&IMAGES[1..]))?;
        for name in SHARED_ETC {
            let (theirs, ours) = (
                Path::new("/etc").join(name),
                self.disk.join("etc").join(name),
            );
            if theirs.is_dir() {
                fs::create_dir_all(&ours)?;
            } else if theirs.exists() {
                touch(&ours)?;
            } else {
                continue;
            }
            read_only(&theirs, &ours)?;
        }
        Ok(())
    }

    fn mount_kernel(&self, group: &Group) -> Result<()> {
        let at = |path: &str| self.disk.join(path);
        let none = MsFlags::empty();
        bind(Path::new("/dev"), &at("dev"), MsFlags::MS_REC)?;
        mount(Some("proc"), &at("proc"), "proc", none, "")?;
        mount(Some("sysfs"), &at("sys"), "sysfs", none, "")?;
        mount(Some("tmpfs"), &at("run"), "tmpfs", none, "mode=755")?;
        fs::create_dir_all(at("run/netns"))?;
        group.mount(self.disk)?;
        mount(Some("bpf"), &at("sys/fs/bpf"), "bpf", none, "")
    }

    fn cover_sysctls(&self) -> Result<()> {
        let id = fs::read_to_string(RANDOM_ID)?;
        for (name, value) in SYSCTLS.iter().chain(&[(BOOT_ID, id.trim())]) {
            let theirs = self.disk.join(&name[1..]);
            if !theirs.exists() {
                continue;
            }
            let ours = self.disk.join("run/covers").join(&name[1..]);
            fs::create_dir_all(ours.parent().unwrap_or(&ours))?;
            fs::write(&ours, format!("{value}\n"))?;
            bind(&ours, &theirs, MsFlags::empty())?;
        }
        Ok(())
    }

    fn pivot(&self) -> Result<()> {
        nix::unistd::pivot_root(self.disk, &self.disk.join("old"))
            .with_context(|| format!("cannot make {} the root", self.disk.display()))?;
        std::env::set_current_dir("/")?;
        mount::umount2("/old", MntFlags::MNT_DETACH)?;
        // As systemd does it: pods ask for mounts to be handed on in one direction or both.
        mount(
            None,
            Path::new("/"),
            "",
            MsFlags::MS_REC | MsFlags::MS_SHARED,
            "",
        )
    }
}

/// mount(2), with an error that says what and where.
pub fn mount(
    source: Option<&str>,
    target: &Path,
    kind: &str,
    flags: MsFlags,
    options: &str,
) -> Result<()> {
    mount::mount(source, target, Some(kind), flags, Some(options)).with_context(|| {
        format!(
            "cannot mount {} {kind} {options} at {}",
            source.unwrap_or_default(),
            target.display()
        )
    })
}

/// Shows a directory or file in a second place.
pub fn bind(source: &Path, target: &Path, more: MsFlags) -> Result<()> {
    mount::mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | more,
        None::<&str>,
    )
    .with_context(|| format!("cannot bind {} to {}", source.display(), target.display()))
}

fn read_only(source: &Path, target: &Path) -> Result<()> {
    bind(source, target, MsFlags::empty())?;
    // The kernel takes this flag of a bind mount in a second step only.
    bind(source, target, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)
}

fn touch(path: &Path) -> Result<()> {
    fs::File::options().create(true).append(true).open(path)?;
    Ok(())
}
