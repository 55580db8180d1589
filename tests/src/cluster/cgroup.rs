//! A machine's control groups: they hold all its processes, so they find and end them whatever else went wrong.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::MsFlags;

use crate::sys;

/// Where processes go in v2: a group that hands controllers on cannot hold any itself.
const LEAF: &str = "system";
const END: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    /// v1: the options that name its controllers.
    controllers: Option<String>,
}

/// A machine's group in every hierarchy.
pub struct Group {
    name: String,
    hierarchies: Vec<Hierarchy>,
}

impl Group {
    /// The group called `name`, whether it exists or not.
    pub fn new(name: &str) -> Result<Self> {
        Ok(Self {
            name: name.to_string(),
            hierarchies: mounted()?,
        })
    }

    /// Makes the group and moves the calling process into it.
    pub fn enter(&self) -> Result<()> {
        for hierarchy in &self.hierarchies {
            let group = hierarchy.mount.join(&self.name);
            hierarchy
                .prepare(&group)
                .with_context(|| format!("cannot make the control group {}", group.display()))?;
            join(&group)?;
        }
        Ok(())
    }

    /// Moves the calling process out of the way of the groups that the kubelet will make. To be called once the group
    /// is the root of a namespace.
    pub fn settle(&self) -> Result<()> {
        for hierarchy in self.hierarchies.iter().filter(|one| one.is_v2()) {
            let group = hierarchy.mount.join(&self.name);
            fs::create_dir_all(group.join(LEAF))?;
            join(&group.join(LEAF))?;
            delegate(&group)?;
        }
        Ok(())
    }

    /// Mounts this process's own view of the hierarchies below `root`, where the machine has its own.
    pub fn mount(&self, root: &Path) -> Result<()> {
        const TOP: &str = "/sys/fs/cgroup";
        if !self
            .hierarchies
            .iter()
            .any(|one| one.mount == Path::new(TOP))
        {
            super::root::mount(
                Some("tmpfs"),
                &below(root, Path::new(TOP)),
                "tmpfs",
                MsFlags::empty(),
                "mode=755",
            )?;
        }
        for Hierarchy { mount, controllers } in &self.hierarchies {
            let target = below(root, mount);
            fs::create_dir_all(&target)?;
            let (kind, options) = match controllers {
                Some(controllers) => ("cgroup", controllers.as_str()),
                None => ("cgroup2", ""),
            };
            super::root::mount(Some("cgroup"), &target, kind, MsFlags::empty(), options)?;
        }
        Ok(())
    }

    /// All processes in it and in the groups below.
    pub fn processes(&self) -> Vec<u32> {
        let mut found: Vec<u32> = self
            .groups()
            .filter_map(|group| fs::read_to_string(group.join("cgroup.procs")).ok())
            .flat_map(|text| {
                text.lines()
                    .filter_map(|pid| pid.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Ends all processes and removes the group.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + END;
        loop {
            let processes = self.processes();
            for &pid in &processes {
                // It may have ended by itself by now, which is what is wanted.
                let _ = sys::kill(pid, libc::SIGKILL);
            }
            // Groups come in an order in which those below are first. A process that is on its way out still counts.
            let busy = self
                .groups()
                .filter(|group| fs::remove_dir(group).is_err())
                .last();
            let Some(busy) = busy.filter(|group| group.exists()) else {
                return Ok(());
            };
            ensure!(
                Instant::now() < deadline,
                "the control group {} cannot be removed; processes in it: {processes:?}",
                busy.display()
            );
            thread::sleep(POLL);
        }
    }

    /// Its directories, what is below first.
    fn groups(&self) -> impl Iterator<Item = PathBuf> {
        let tops = self
            .hierarchies
            .iter()
            .map(|one| one.mount.join(&self.name));
        tops.filter(|top| top.is_dir()).flat_map(|top| tree(&top))
    }
}

/// The names of all groups that begin with `prefix`.
pub fn names(prefix: &str) -> Result<Vec<String>> {
    let all = mounted()?;
    let entries = all
        .iter()
        .filter_map(|one| fs::read_dir(&one.mount).ok())
        .flatten();
    let mut names: Vec<_> = entries
        .filter_map(|entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names.dedup();
    Ok(names)
}

impl Hierarchy {
    fn is_v2(&self) -> bool {
        self.controllers.is_none()
    }

    fn prepare(&self, group: &Path) -> Result<()> {
        if self.is_v2() {
            delegate(&self.mount)?;
        }
        fs::create_dir_all(group)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            // v1 gives a new group none, and then it takes no process.
            if !self.is_v2() && group.join(file).exists() {
                fs::write(group.join(file), fs::read(self.mount.join(file))?)?;
            }
        }
        Ok(())
    }
}

fn join(group: &Path) -> Result<()> {
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("cannot join the control group {}", group.display()))
}

/// Hands all controllers of a v2 group on to the groups below it.
fn delegate(group: &Path) -> Result<()> {
    let controllers = fs::read_to_string(group.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        fs::write(
            group.join("cgroup.subtree_control"),
            format!("+{controller}"),
        )
        .with_context(|| {
            format!(
                "cannot hand the controller {controller} on from {}",
                group.display()
            )
        })?;
    }
    Ok(())
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn tree(top: &Path) -> Vec<PathBuf> {
    let children = fs::read_dir(top).into_iter().flatten().flatten();
    let mut all: Vec<_> = children
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .flat_map(|entry| tree(&entry.path()))
        .collect();
    all.push(top.to_path_buf());
    all
}

fn mounted() -> Result<Vec<Hierarchy>> {
    let found = hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
    ensure!(
        !found.is_empty(),
        "no control groups are mounted: nodes cannot do without (`mount -t cgroup2 none /sys/fs/cgroup`)"
    );
    Ok(found)
}

/// The hierarchies in /proc/self/mountinfo.
fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for hierarchy in mounts.lines().filter_map(hierarchy) {
        // One may be mounted in two places.
        if !found
            .iter()
            .any(|other| other.controllers == hierarchy.controllers)
        {
            found.push(hierarchy);
        }
    }
    found
}

fn hierarchy(line: &str) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mount = mount.split(' ').nth(4)?.into();
    let mut fields = file_system.split(' ');
    let kind = fields.next()?;
    let options = fields.nth(1).unwrap_or_default();
    let controllers = match kind {
        "cgroup" => Some(named(options)),
        "cgroup2" => None,
        _ => return None,
    };
    Some(Hierarchy { mount, controllers })
}

/// The options that name controllers, among those of the file system. A named hierarchy has none.
fn named(options: &str) -> String {
    const OTHERS: [&str; 5] = ["rw", "ro", "xattr", "clone_children", "noprefix"];
    let controllers = options
        .split(',')
        .filter(|option| !OTHERS.contains(option) && !option.starts_with("release_agent="));
    let mut words: Vec<_> = controllers.collect();
    if words.iter().any(|word| word.starts_with("name=")) {
        words.insert(0, "none");
    }
    words.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_read() {
        let mounts = "24 1 0:21 / /proc rw - proc proc rw\n\
            36 30 0:31 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            37 30 0:31 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n\
            38 30 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
            39 30 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found: Vec<_> = hierarchies(mounts)
            .into_iter()
            .map(|one| (one.mount.display().to_string(), one.controllers))
            .collect();
        let expected = [
            ("/sys/fs/cgroup/cpu", Some("cpu,cpuacct")),
            ("/sys/fs/cgroup/systemd", Some("none,name=systemd")),
            ("/sys/fs/cgroup/unified", None),
        ];
        assert_eq!(
            found,
            expected.map(|(mount, controllers)| (mount.to_string(), controllers.map(String::from)))
        );
    }
}
