//! The witness on the outside link: no frame may leave the node with a source address it is not allowed to use.
//!
//! It reads every frame that arrives at a device, keeps counts by flow, and fails the test when it saw a foreign
//! source, a wrong checksum, or lost a frame itself (then it could not vouch for the rest).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::netns::Netns;
use crate::process::lock;
use crate::sys::{Frame, PacketRing};
use crate::wire::{self, Flow, Kind};

const PAUSE: Duration = Duration::from_millis(20);
/// Violations shown in full; the rest is only counted.
const SHOWN: usize = 10;

/// Frames of one flow.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// How many there were.
    pub frames: u64,
    /// Their bytes, with Ethernet headers.
    pub bytes: u64,
    /// The longest: more than the MTU where GSO packets arrive whole.
    pub largest: usize,
}

#[derive(Default)]
struct Record {
    /// None: any source may be seen.
    allowed: Option<HashSet<Ipv4Addr>>,
    /// Destinations to which any source may be used, for pools' excluded ranges.
    open_destinations: HashSet<Ipv4Addr>,
    frames: u64,
    flows: HashMap<Flow, Tally>,
    arp: BTreeMap<Ipv4Addr, u64>,
    violations: Vec<String>,
    violation_count: u64,
    lost: u64,
}

/// A capture on one device that lasts as long as this value.
pub struct Sniffer {
    record: Arc<Mutex<Record>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sniffer {
    /// Watches `device` of `namespace` and allows the sources in `allowed` alone.
    pub fn guard(namespace: &Netns, device: &str, allowed: &[Ipv4Addr]) -> Result<Self> {
        Self::start(namespace, device, Some(allowed.iter().copied().collect()))
    }

    /// Watches `device` of `namespace` and only counts.
    pub fn count(namespace: &Netns, device: &str) -> Result<Self> {
        Self::start(namespace, device, None)
    }

    fn start(namespace: &Netns, device: &str, allowed: Option<HashSet<Ipv4Addr>>) -> Result<Self> {
        let ring = namespace.enter(|| PacketRing::open(device))??;
        let record = Arc::new(Mutex::new(Record {
            allowed,
            ..Record::default()
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (record, stop) = (record.clone(), stop.clone());
            thread::spawn(move || capture(ring, &record, &stop))
        };
        Ok(Self {
            record,
            stop,
            thread: Some(thread),
        })
    }

    /// Allows one more source address from now on.
    pub fn allow(&self, source: Ipv4Addr) {
        lock(&self.record)
            .allowed
            .get_or_insert_default()
            .insert(source);
    }

    /// Allows any source toward `destination`: one that a pool leaves alone.
    pub fn allow_toward(&self, destination: Ipv4Addr) {
        lock(&self.record).open_destinations.insert(destination);
    }

    /// The flows seen so far that `wanted` picks, in order.
    pub fn flows(&self, wanted: impl Fn(&Flow) -> bool) -> Vec<(Flow, Tally)> {
        self.settle();
        let mut flows: Vec<_> = lock(&self.record)
            .flows
            .iter()
            .filter(|(f, _)| wanted(f))
            .map(|(f, t)| (*f, *t))
            .collect();
        flows.sort_unstable_by_key(|(flow, _)| *flow);
        flows
    }

    /// The counts of all flows that `wanted` picks, added up.
    pub fn total(&self, wanted: impl Fn(&Flow) -> bool) -> Tally {
        self.flows(wanted)
            .iter()
            .fold(Tally::default(), |sum, (_, tally)| Tally {
                frames: sum.frames + tally.frames,
                bytes: sum.bytes + tally.bytes,
                largest: sum.largest.max(tally.largest),
            })
    }

    /// ARP packets seen with `sender` as their sender's address.
    pub fn arp_from(&self, sender: Ipv4Addr) -> u64 {
        self.settle();
        lock(&self.record).arp.get(&sender).copied().unwrap_or(0)
    }

    /// Forgets the flows counted so far; violations stay.
    pub fn clear(&self) {
        self.settle();
        let mut record = lock(&self.record);
        record.flows.clear();
        record.arp.clear();
    }

    /// Gives frames that have arrived the time to be read: the ring hands over what it has every 10 ms.
    fn settle(&self) {
        thread::sleep(PAUSE * 2);
    }

    /// Ends the capture: an error if anything seen was not allowed, if frames were lost, or if none came at all.
    pub fn finish(mut self) -> Result<()> {
        self.stop();
        ensure!(
            lock(&self.record).frames > 0,
            "the sniffer saw no frame at all: the test proves nothing"
        );
        self.verdict()
    }

    fn verdict(&self) -> Result<()> {
        let record = lock(&self.record);
        let (count, shown) = (record.violation_count, record.violations.join("\n  "));
        ensure!(
            count == 0,
            "the sniffer saw {count} frames that must not be:\n  {shown}"
        );
        ensure!(
            record.lost == 0,
            "the sniffer lost {} frames and cannot vouch for them",
            record.lost
        );
        Ok(())
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        if self.thread.is_none() {
            return;
        }
        self.stop();
        match self.verdict() {
            Err(error) if thread::panicking() => eprintln!("{error}"),
            Err(error) => panic!("{error}"),
            Ok(()) => {}
        }
    }
}

/// Reads blocks until told to stop and nothing is left.
fn capture(mut ring: PacketRing, record: &Mutex<Record>, stop: &AtomicBool) {
    loop {
        let stopping = stop.load(Ordering::Relaxed);
        let mut frames = Vec::new();
        let more = ring
            .next_block(PAUSE, |frame| frames.push(understand(frame)))
            .expect("the sniffer's ring");
        let mut record = lock(record);
        frames
            .into_iter()
            .for_each(|(kind, length)| record.note(kind, length));
        record.lost += u64::from(ring.lost().expect("the sniffer's statistics"));
        if stopping && !more {
            return;
        }
    }
}

fn understand(frame: Frame) -> (Kind, usize) {
    (
        wire::read(frame.bytes, frame.checksum_partial),
        frame.length,
    )
}

impl Record {
    fn note(&mut self, kind: Kind, length: usize) {
        self.frames += 1;
        match kind {
            Kind::Ipv4(flow, bad) => {
                let tally = self.flows.entry(flow).or_default();
                tally.frames += 1;
                tally.bytes += length as u64;
                tally.largest = tally.largest.max(length);
                if !self.allows(flow.source) && !self.open_destinations.contains(&flow.destination)
                {
                    self.violation(format!("foreign source: {flow}"));
                }
                if let Some(which) = bad.filter(|_| self.allowed.is_some()) {
                    self.violation(format!("wrong checksum ({which:?}): {flow}"));
                }
            }
            Kind::Arp(sender) => {
                *self.arp.entry(sender).or_default() += 1;
                // 0.0.0.0 is a probe's sender: it claims nothing.
                if !sender.is_unspecified() && !self.allows(sender) {
                    self.violation(format!("foreign sender in ARP: {sender}"));
                }
            }
            // IPv6 is off in the labs, so it could only come from the node's translation going wrong.
            Kind::Other(kind) if self.allowed.is_some() => {
                self.violation(format!("frame of type {kind:#06x}"))
            }
            Kind::Truncated if self.allowed.is_some() => {
                self.violation("a frame cut short".to_string())
            }
            Kind::Other(_) | Kind::Truncated => {}
        }
    }

    fn allows(&self, source: Ipv4Addr) -> bool {
        self.allowed
            .as_ref()
            .is_none_or(|allowed| allowed.contains(&source))
    }

    fn violation(&mut self, what: String) {
        self.violation_count += 1;
        if self.violations.len() < SHOWN {
            self.violations.push(what);
        }
    }
}
