//! What loading the data plane takes: memory charged for its maps, instructions of its programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::MapInfo;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::loaded_programs;

use super::agent::{self, Agent, Setup};
use super::mix::Mix;
use super::topology::Topology;

/// What the agent loaded at default settings.
#[derive(Clone, Debug, Default)]
pub struct Footprint {
    /// Bytes charged for each map, by name; several of one name are added up.
    pub maps: BTreeMap<String, u64>,
    /// Each program's size, by name.
    pub programs: BTreeMap<String, Size>,
}

/// A program's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// BPF instructions after the verifier.
    pub instructions: u32,
    /// Bytes of machine code.
    pub machine_code: u32,
    /// Instructions that the verifier had to look at.
    pub verified: u32,
}

impl Footprint {
    /// Starts the agent as a router and for a local pod and looks at what it has pinned: the
    /// larger of the two where they differ. (Other agents may come and go on this machine.)
    pub fn measure() -> Result<Self> {
        let mut both = Self::default();
        for router in [true, false] {
            let one = Self::of(&Setup {
                mix: Mix::ONE,
                path: agent::Path::Direct,
                router,
            })?;
            if one.bytes() > both.bytes() {
                both.maps = one.maps;
            }
            both.programs.extend(one.programs);
        }
        Ok(both)
    }

    fn of(setup: &Setup) -> Result<Self> {
        let topology = Topology::create()?;
        let agent = Agent::start(&topology.gateway, setup)?;
        let (mut maps, mut links) = (BTreeMap::new(), BTreeSet::new());
        for file in files(agent.bpffs())? {
            if file.components().any(|part| part.as_os_str() == "links") {
                links.insert(
                    FdLink::from(PinnedLink::from_pin(&file)?)
                        .info()?
                        .program_id(),
                );
            } else {
                let info = MapInfo::from_pin(&file)?;
                maps.insert(info.id(), info);
            }
        }
        Ok(Self {
            maps: charged(maps.into_values())?,
            programs: sizes(&links)?,
        })
    }

    /// Bytes charged for all maps.
    pub fn bytes(&self) -> u64 {
        self.maps.values().sum()
    }
}

/// All files below `directory`.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The bytes that the kernel charges for these maps, by name.
fn charged(maps: impl Iterator<Item = MapInfo>) -> Result<BTreeMap<String, u64>> {
    let mut bytes = BTreeMap::new();
    for info in maps {
        let map = info.fd()?;
        let file = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
        let text = fs::read_to_string(&file)?;
        let charged = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        let charged: u64 = charged.context("no memlock")?.trim().parse()?;
        *bytes.entry(name(info.name())).or_default() += charged;
    }
    Ok(bytes)
}

/// The sizes of the programs with these numbers. The kernel cuts names at 15 characters.
fn sizes(ids: &BTreeSet<u32>) -> Result<BTreeMap<String, Size>> {
    let mut sizes = BTreeMap::new();
    for info in loaded_programs() {
        let info = info?;
        if ids.contains(&info.id()) {
            let size = Size {
                // An instruction is eight bytes.
                instructions: info.size_translated().context("not for our eyes")? / 8,
                machine_code: info.size_jitted(),
                verified: info.verified_instruction_count().unwrap_or_default(),
            };
            sizes.insert(name(info.name()), size);
        }
    }
    Ok(sizes)
}

fn name(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
