//! Frames from the generator through a gateway into the sink, and what one took.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, PerCpuArray};
use aya::programs::xdp::XdpMode;
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, Pod};

use super::abi::{self, Expected, FRAME_LEN, Macs, Redirect};
use super::cpu;
use super::mix::{FIRST_CLIENT, FIRST_EGRESS, Mix, Order};
use super::topology::{Topology, device_index};
use crate::netns::Netns;
use crate::process::check_interrupt;

/// Frames of one run. In a longer one the veth's NAPI may settle on another CPU, or its ring of
/// 256 overflow.
const RUN: u32 = 16 * 1024;
/// Frames that the kernel sends before it lets the gateway work.
const BATCH: u32 = 64;

/// What one frame takes, from the generator to the sink.
pub type Nanoseconds = f64;

// SAFETY: `repr(C)` and nothing but u32 and u16, without padding: any bytes are a valid value.
unsafe impl Pod for abi::Generator {}
// SAFETY: as above.
unsafe impl Pod for abi::Redirect {}
// SAFETY: as above.
unsafe impl Pod for abi::Expected {}

/// The benchmark's programs, loaded: each value has maps of its own.
pub fn load() -> Result<Ebpf> {
    let file = object();
    Ebpf::load_file(&file).with_context(|| format!("cannot load {}", file.display()))
}

fn object() -> PathBuf {
    let built = "../target/bpf/bpfel-unknown-none/release/bench";
    std::env::var_os("NAT_BENCH_OBJECT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(built),
        PathBuf::from,
    )
}

/// Attaches the plain redirect to the gateway's receiving device; it stays while the value lives.
pub fn attach_redirect(topology: &Topology) -> Result<Ebpf> {
    let mut object = load()?;
    let redirect = Redirect {
        ifindex: device_index(&topology.gateway, "g1")?,
        macs: topology.gateway_to_server(),
    };
    set(&mut object, abi::REDIRECT_MAP, redirect)?;
    topology
        .gateway
        .enter(|| attach(&mut object, "redirect", "g0"))??;
    Ok(object)
}

fn attach(object: &mut Ebpf, name: &str, device: &str) -> Result<()> {
    let program = program(object, name)?;
    program.load()?;
    program
        .attach(device, XdpMode::Driver)
        .with_context(|| format!("{name} to {device}"))?;
    Ok(())
}

fn program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(object
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?
        .try_into()?)
}

fn set<T: Pod>(object: &mut Ebpf, map: &str, value: T) -> Result<()> {
    let map = object
        .map_mut(map)
        .with_context(|| format!("no map {map}"))?;
    Ok(Array::try_from(map)?.set(0, value, 0)?)
}

/// The generator's next `count` frames of a mix, without sending them: for a look at them.
pub fn frames(mix: Mix, order: Order, count: usize) -> Result<Vec<[u8; FRAME_LEN]>> {
    let mut object = load()?;
    set(
        &mut object,
        abi::GENERATOR_MAP,
        mix.generator(order, [0; 6], 0),
    )?;
    let generate = program(&mut object, "generate")?;
    generate.load()?;
    let one = |_| {
        let mut frame = [0; FRAME_LEN];
        generate.test_run(TestRunOptions {
            data_in: Some(&[0; FRAME_LEN]),
            data_out: Some(&mut frame),
            ..TestRunOptions::new()
        })?;
        Ok(frame)
    };
    (0..count).map(one).collect()
}

/// A generator at `c0` and a sink at `s0`.
pub struct Traffic {
    client: Netns,
    mix: Mix,
    macs: Macs,
    ifindex: u32,
    cpu: usize,
    object: Ebpf,
}

impl Traffic {
    /// Sets both up. The sink expects the clients' own addresses, or the egress addresses where
    /// the gateway translates.
    pub fn set_up(topology: &Topology, mix: Mix, translated: bool) -> Result<Self> {
        let mut object = load()?;
        let (first, count) = if translated {
            (FIRST_EGRESS, mix.addresses())
        } else {
            (FIRST_CLIENT, mix.clients)
        };
        let first = first.to_bits();
        set(&mut object, abi::EXPECTED_MAP, Expected { first, count })?;
        topology
            .server
            .enter(|| attach(&mut object, "sink", "s0"))??;
        program(&mut object, "generate")?.load()?;
        let mut this = Self {
            client: topology.client.clone(),
            mix,
            macs: topology.client_to_gateway(),
            ifindex: device_index(&topology.client, "c0")?,
            cpu: cpu::measuring()?,
            object,
        };
        this.order(Order::Fill)?;
        Ok(this)
    }

    /// Starts over with the flows in this order.
    pub fn order(&mut self, order: Order) -> Result<()> {
        let generator = self.mix.generator(order, self.macs, self.ifindex);
        set(&mut self.object, abi::GENERATOR_MAP, generator)
    }

    /// Sends one frame of every flow, so that the gateway's tables hold them all, and goes on in
    /// another order.
    pub fn fill(&mut self) -> Result<()> {
        self.order(Order::Fill)?;
        self.send(self.mix.flows())?;
        self.order(Order::Visit)
    }

    /// Sends `frames` and sees that they all arrive: the time that one takes from end to end.
    pub fn send(&mut self, frames: u32) -> Result<Nanoseconds> {
        let client = self.client.clone();
        let (mut left, mut sum) = (frames, 0);
        client.enter(|| -> Result<()> {
            cpu::pin(self.cpu)?;
            while left > 0 {
                check_interrupt()?;
                let count = left.min(RUN);
                let before = self.arrived()?;
                let each = self.run(count)?;
                self.wait_for(before + u64::from(count))?;
                sum += each.as_nanos() as u64 * u64::from(count);
                left -= count;
            }
            Ok(())
        })??;
        Ok(sum as f64 / f64::from(frames))
    }

    /// The generator alone: the part of every figure that is not the gateway's.
    pub fn own_cost(&mut self) -> Result<Nanoseconds> {
        let generator = self.mix.generator(Order::Visit, self.macs, 0);
        set(&mut self.object, abi::GENERATOR_MAP, generator)?;
        let client = self.client.clone();
        let each = client.enter(|| {
            cpu::pin(self.cpu)?;
            self.run(16 * RUN)
        })??;
        self.order(Order::Visit)?;
        Ok(each.as_nanos() as f64)
    }

    /// What one of `count` frames takes: the kernel's own measure.
    fn run(&mut self, count: u32) -> Result<Duration> {
        let frame = [0; FRAME_LEN];
        let result = program(&mut self.object, "generate")?.test_run(TestRunOptions {
            data_in: Some(&frame),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        })?;
        Ok(result.duration)
    }

    /// Waits until the sink has counted up to `wanted`.
    fn wait_for(&self, wanted: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            let arrived = self.arrived()?;
            if arrived == wanted {
                return Ok(());
            }
            ensure!(
                arrived < wanted && Instant::now() < deadline,
                "{} of {RUN} frames lost, and {} arrived that should not have",
                wanted as i64 - arrived as i64,
                self.count(abi::OTHER)?
            );
            thread::sleep(Duration::from_micros(100));
        }
    }

    fn arrived(&self) -> Result<u64> {
        self.count(abi::ARRIVED)
    }

    fn count(&self, index: u32) -> Result<u64> {
        let map = self.object.map(abi::ARRIVED_MAP).context("no counters")?;
        let counters = PerCpuArray::<_, u64>::try_from(map)?;
        Ok(counters.get(&index, 0)?.iter().sum())
    }
}
