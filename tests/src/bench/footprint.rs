//! What loading the data plane takes: memory charged for its maps, instructions of its programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use aya::maps::loaded_maps;
use aya::programs::loaded_programs;

use super::agent::{Agent, Path, Setup};
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
    /// Starts the agent as a router and for a local pod, and looks at what each start has added:
    /// the larger of the two where they differ.
    pub fn measure() -> Result<Self> {
        let mut both = Self::default();
        for router in [true, false] {
            let one = Self::of(&Setup {
                mix: Mix::ONE,
                path: Path::Direct,
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
        let (maps, programs) = (map_ids()?, program_ids()?);
        let _agent = Agent::start(&topology.gateway, setup)?;
        Ok(Self {
            maps: new_maps(&maps)?,
            programs: new_programs(&programs)?,
        })
    }

    /// Bytes charged for all maps.
    pub fn bytes(&self) -> u64 {
        self.maps.values().sum()
    }
}

fn map_ids() -> Result<BTreeSet<u32>> {
    loaded_maps().map(|info| Ok(info?.id())).collect()
}

fn program_ids() -> Result<BTreeSet<u32>> {
    loaded_programs().map(|info| Ok(info?.id())).collect()
}

/// The maps that are not among `before`, with the bytes charged for them.
fn new_maps(before: &BTreeSet<u32>) -> Result<BTreeMap<String, u64>> {
    let mut bytes = BTreeMap::new();
    for info in loaded_maps() {
        let info = info?;
        if !before.contains(&info.id()) {
            let map = info.fd()?;
            let file = format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd());
            let text = fs::read_to_string(&file)?;
            let charged = text.lines().find_map(|line| line.strip_prefix("memlock:"));
            let charged: u64 = charged.context("no memlock")?.trim().parse()?;
            *bytes.entry(name(info.name())).or_default() += charged;
        }
    }
    Ok(bytes)
}

/// The programs that are not among `before`. The kernel cuts their names at 15 characters.
fn new_programs(before: &BTreeSet<u32>) -> Result<BTreeMap<String, Size>> {
    let mut sizes = BTreeMap::new();
    for info in loaded_programs() {
        let info = info?;
        if !before.contains(&info.id()) {
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
