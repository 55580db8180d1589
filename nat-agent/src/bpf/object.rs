//! Loading the programs over pinned maps, and the clock that they tell.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp},
};
use nat_common::abi;
use rand::Rng;

use super::{
    layout::{self, shapes},
    map::Map,
    pins::Pins,
    tables::Tables,
};
use crate::{
    clock::{Clock, monotonic, nearest_hz},
    snapshot::{Limits, Settings},
};

/// The object that the build script made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("NAT_EBPF_OBJECT"));

/// Program that tells the kernel's jiffies.
const CLOCK: &str = "clock";
/// Programs at XDP.
const XDP: [&str; 2] = ["xdp_outside", "xdp_inside"];
/// Programs at tcx.
const TCX: [&str; 4] = [
    "client_stack",
    "client_direct",
    "outside_egress",
    "outside_ingress",
];
/// How long the clock is watched to tell the kernel's HZ: 12 jiffies at 100 a second.
const WATCH: Duration = Duration::from_millis(120);
/// The shortest packet that the kernel runs a program on.
const PACKET: [u8; 64] = [0; 64];

/// Our bits of `skb->mark`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits {
    /// Checked, to be translated.
    pub mark: u32,
    /// Looked at where it came in.
    pub decided: u32,
}

impl From<&Settings> for Bits {
    fn from(settings: &Settings) -> Self {
        Self {
            mark: 1 << settings.mark_bit,
            decided: 1 << settings.decided_bit,
        }
    }
}

/// The programs, loaded, over the maps, pinned.
#[derive(Debug)]
pub struct Object {
    /// Programs and maps.
    pub ebpf: Ebpf,
    /// The maps.
    pub tables: Tables,
    /// What time it is in them.
    pub clock: Clock,
}

impl Object {
    /// Makes or adopts the maps and loads the programs.
    ///
    /// # Errors
    /// Pins of another shape, a kernel that cannot, a program that the verifier refuses.
    pub fn load(pins: &Pins, limits: &Limits, bits: Bits) -> Result<Self> {
        layout::check(pins, limits)?;
        // The shift of the clock is a constant of the programs, and only a program
        // can read the clock: a first load finds it out, and makes the maps.
        let mut first = create(pins, limits, None)?;
        let settings = settings(pins, &mut first)?;
        drop(first);
        let tables = Tables::open(pins)?;
        let clock = Clock::new(settings);
        let constants = Constants {
            tick_shift: clock.shift(),
            bits,
            bucket_mask: layout::buckets(limits) - 1,
            seed: settings.seed,
        };
        let mut ebpf = create(pins, limits, Some(&constants))?;
        for name in XDP {
            xdp(&mut ebpf, name)?
                .load()
                .with_context(|| verifier(name))?;
        }
        for name in TCX {
            tcx(&mut ebpf, name)?
                .load()
                .with_context(|| verifier(name))?;
        }
        Ok(Self {
            ebpf,
            tables,
            clock,
        })
    }
}

fn verifier(name: &str) -> String {
    format!("the kernel refuses the program {name}; please report this with the text below")
}

/// What the programs take for constant, by the names in `nat-ebpf`'s `settings`.
struct Constants {
    tick_shift: u32,
    bits: Bits,
    bucket_mask: u32,
    seed: u64,
}

fn create(pins: &Pins, limits: &Limits, constants: Option<&Constants>) -> Result<Ebpf> {
    let shapes = shapes(limits);
    let mut loader = EbpfLoader::new();
    for shape in &shapes {
        loader.map_max_entries(shape.name, shape.entries);
        loader.map_pin_path(shape.name, pins.map(shape.name));
    }
    if let Some(constants) = constants {
        loader.override_global("TICK_SHIFT", &constants.tick_shift, true);
        loader.override_global("MARK", &constants.bits.mark, true);
        loader.override_global("DECIDED", &constants.bits.decided, true);
        loader.override_global("BUCKET_MASK", &constants.bucket_mask, true);
        loader.override_global("SEED", &constants.seed, true);
    }
    loader
        .load(OBJECT)
        .context("load the eBPF object and create its maps")
}

/// A program at XDP, by name.
///
/// # Errors
/// The object has no such program.
pub fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

/// A program at tcx, by name.
///
/// # Errors
/// The object has no such program.
pub fn tcx<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

/// The pinned settings, or new ones: HZ and seed do not change while the maps live.
fn settings(pins: &Pins, ebpf: &mut Ebpf) -> Result<abi::Settings> {
    let map: Map<u32, abi::Settings> = Map::open(&pins.map("SETTINGS"))?;
    let pinned = map.get(&0)?.unwrap_or_default();
    let program = xdp(ebpf, CLOCK)?;
    program.load().with_context(|| verifier(CLOCK))?;
    let jiffies = read(program)?;
    let mut settings = abi::Settings {
        jiffies,
        monotonic: monotonic(),
        ..pinned
    };
    if settings.hz == 0 {
        thread::sleep(WATCH);
        let later = (read(program)?, monotonic());
        settings.hz = nearest_hz(later.0 - settings.jiffies, later.1 - settings.monotonic);
        settings.generation = 1;
        settings.seed = rand::rng().next_u64();
    }
    map.set(&0, &settings)?;
    Ok(settings)
}

fn read(program: &Xdp) -> Result<u64> {
    let mut out = [0; PACKET.len()];
    let options = TestRunOptions {
        data_in: Some(&PACKET),
        data_out: Some(&mut out),
        repeat: 1,
        ..TestRunOptions::new()
    };
    let result = program.test_run(options);
    result
        .map_err(|error: ProgramError| error)
        .context("read the kernel's clock by a program")?;
    let (jiffies, _) = out.split_first_chunk().context("no clock in the packet")?;
    Ok(u64::from_ne_bytes(*jiffies))
}
