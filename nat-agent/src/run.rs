//! The agent: sources in, maps and programs out, until it is told to stop. The
//! data plane stays when it goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::{Context, Result};
use ipnet::IpNet;
use nat_common::abi::{DEVICE_OUTSIDE, MAX_GENERATION};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

use crate::{
    announce, apply,
    bpf::{
        links::Links,
        log,
        object::{Bits, Object},
        pins::Pins,
    },
    clock,
    desired::{Desired, desired},
    diff::{Operation, State, diff},
    facts::{self, Facts},
    health, kernel,
    netlink::{Change, Netlink},
    nft::{self, Table},
    probe::Health,
    report::Report,
    reserve,
    snapshot::Snapshot,
    source::{Answer, Fixed, Source, View},
    sweep::Sweep,
    tell::Teller,
};

/// A round is followed by a pause this many times as long: with a million sessions
/// a sweep takes most of a second, and must not take a processor.
const PAUSE: u32 = 20;
/// How long events are gathered before they are acted on.
const SETTLE: Duration = Duration::from_millis(50);

/// What is to become of what the agent made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It stays, for the next agent.
    Stays,
    /// It is to be removed.
    Uninstalled,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// What keeps it from starting, with what to do.
pub async fn run(source: Source, pins: &Pins, health: Health) -> Result<End> {
    kernel::check()?;
    let agent = start(source, pins, health).await;
    let mut agent = agent.map_err(kernel::explain)?;
    agent.serve().await?;
    if agent.source.is_uninstalled().await {
        return Ok(End::Uninstalled);
    }
    info!("stopping; the data plane stays (`nat-agent detach` removes it)");
    Ok(End::Stays)
}

async fn start(source: Source, pins: &Pins, health: Health) -> Result<Agent> {
    pins.prepare()?;
    let lock = pins.lock()?;
    Agent::start(source, pins, lock, health).await
}

/// How long the agent pauses after a round that took so much of a processor.
fn pause(interval: Duration, took: Duration) -> Duration {
    interval.max(took * PAUSE)
}

/// Events of the kernel that are acted on together. Meanwhile the agent does other things.
#[derive(Default)]
struct Gathered {
    change: Change,
    until: Option<Instant>,
}

impl Gathered {
    fn add(&mut self, change: Change) {
        // Most events change nothing, and some neighbour has one at any time.
        if change > Change::None {
            self.change = self.change.max(change);
            self.until.get_or_insert(Instant::now() + SETTLE);
        }
    }

    /// Waits until it is time to act on them. Safe to cancel.
    async fn due(&self) {
        match self.until {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    fn take(&mut self) -> Change {
        std::mem::take(self).change
    }
}

struct Agent {
    source: Source,
    pins: Pins,
    _lock: OwnedFd,
    object: Object,
    links: Links,
    netlink: Netlink,
    gathered: Gathered,
    teller: Teller,
    fixed: Fixed,
    table: Table,
    sweep_interval: Duration,
    /// `None` until the source has said everything: what is pinned stays as it is.
    snapshot: Option<Snapshot>,
    facts: Facts,
    state: State,
    desired: Desired,
    sweep: Sweep,
    /// Egress addresses that are still in use.
    busy: BTreeSet<Ipv4Addr>,
    /// Numbers of the clients that may have sessions.
    talking: BTreeSet<u16>,
    report: Report,
    /// Why the source has not said everything yet, while it has not.
    not_yet: Option<String>,
    /// Why the last attempt to apply what is wanted broke off.
    failed: Option<String>,
    /// What the last round could not do.
    waiting: Vec<String>,
    /// Addresses that neighbours have been told of.
    announced: BTreeSet<(u32, Ipv4Addr)>,
    /// How long it is until the next round.
    pause: Duration,
    health: Health,
}

impl Agent {
    async fn start(source: Source, pins: &Pins, lock: OwnedFd, health: Health) -> Result<Self> {
        let settings = source.settings().clone();
        let netlink = Netlink::connect(source.follows_node())?;
        let facts = netlink.facts().await?;
        let bits = Bits::from(&settings);
        let mut object = Object::load(pins, &settings.limits, bits)?;
        let teller = Teller::new(&mut object.ebpf)?;
        log::follow(&mut object.ebpf)?;
        let state = apply::read(&object.tables).context("read what is pinned")?;
        let busy = state.slices.keys().copied().collect();
        let talking = state.clients.values().map(|client| client.index).collect();
        let report = Report::new(source.path(), pins.directory(), settings.sweep_interval);
        let mut agent = Self {
            source,
            pins: pins.clone(),
            _lock: lock,
            object,
            links: Links::default(),
            netlink,
            gathered: Gathered::default(),
            teller,
            fixed: Fixed::new(&settings, pins.way_out()),
            table: Table::install(bits.mark, bits.decided)?,
            sweep_interval: settings.sweep_interval,
            snapshot: None,
            facts,
            state,
            desired: Desired::default(),
            sweep: Sweep::default(),
            busy,
            talking,
            report,
            not_yet: None,
            failed: None,
            waiting: Vec::new(),
            announced: BTreeSet::new(),
            pause: settings.sweep_interval,
            health,
        };
        agent.ask();
        agent.sweep()?;
        agent.reconcile()?;
        agent.next_generation()?;
        agent.write_report();
        let (clients, addresses) = (agent.state.clients.len(), agent.state.slices.len());
        info!("ready: {clients} clients, {addresses} egress addresses");
        Ok(agent)
    }

    async fn serve(&mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut next = Instant::now() + self.sweep_interval;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => self.renew().await,
                () = self.source.changed() => {
                    self.renew().await;
                    next = next.min(Instant::now() + self.sweep_interval);
                }
                change = self.netlink.next() => self.gathered.add(change),
                () = self.gathered.due() => self.follow().await,
                told = self.teller.next() => told?,
                () = sleep_until(next) => {
                    let before = clock::spent();
                    self.round().await;
                    let took = clock::spent().saturating_sub(before);
                    self.pause = pause(self.sweep_interval, took);
                    self.tell_probes();
                    next = Instant::now() + self.pause;
                }
            }
        }
        self.health.turn(self.pause, Some("stopping".to_owned()));
        Ok(())
    }

    /// The source may want something else.
    async fn renew(&mut self) {
        if self.ask() {
            self.adapt().await;
            info!(
                "configuration applied: {} clients",
                self.state.clients.len()
            );
        } else {
            self.write_report();
        }
        self.conclude().await;
    }

    /// Asks the source; whether it wants something else than before.
    fn ask(&mut self) -> bool {
        let view = View {
            facts: &self.facts,
            state: &self.state,
            talking: &self.talking,
            fixed: &self.fixed,
        };
        match self.source.ask(view) {
            Answer::Snapshot(snapshot) => {
                self.not_yet = None;
                let other = self.snapshot.as_ref() != Some(&*snapshot);
                self.sweep_interval = snapshot.sweep_interval;
                self.report.set_sweep_interval(snapshot.sweep_interval);
                self.snapshot = Some(*snapshot);
                other
            }
            Answer::NotYet(problem) => {
                self.not_yet = Some(problem);
                false
            }
        }
    }

    /// Applies what is wanted now. Pods come and go often: a sweep for each would take a processor.
    async fn adapt(&mut self) {
        if self.source.follows_node() {
            self.waiting.clear();
            self.try_reconcile();
            self.write_report();
        } else {
            self.round().await;
        }
    }

    /// Tells the source how far things are, and has the kernel look for the neighbours that it misses.
    async fn conclude(&mut self) {
        let view = View {
            facts: &self.facts,
            state: &self.state,
            talking: &self.talking,
            fixed: &self.fixed,
        };
        let problem = self.not_yet.as_deref().or(self.failed.as_deref());
        self.source.applied(view, problem);
        for (ifindex, address) in self.source.sought() {
            if let Err(problem) = self.netlink.seek(*ifindex, *address).await {
                debug!("{problem:#}");
            }
        }
    }

    /// One round: what has ended is removed, what is wanted is applied. Errors
    /// are health, not the end: the next round tries again.
    async fn round(&mut self) {
        self.waiting.clear();
        if self.source.follows_node() {
            self.ask();
        }
        if let Err(problem) = self.sweep() {
            warn!("sweep: {problem:#}");
            self.waiting.push(format!("the sweep failed: {problem:#}"));
        }
        if let Err(problem) = self.keep_table() {
            warn!("nft: {problem:#}");
            self.waiting.push(format!("{problem:#}"));
        }
        // Somebody may have detached what this process attached.
        self.links.forget();
        self.try_reconcile();
        self.write_report();
        self.conclude().await;
    }

    fn try_reconcile(&mut self) {
        self.failed = self.reconcile().err().map(|problem| format!("{problem:#}"));
        if let Some(problem) = &self.failed {
            warn!("apply: {problem}");
            self.waiting.push(problem.clone());
        }
    }

    /// Puts the netfilter table back if somebody has changed it.
    fn keep_table(&self) -> Result<()> {
        if self.table.keep()? {
            warn!("the table ip {} was changed; it is put back", nft::TABLE);
        }
        Ok(())
    }

    fn sweep(&mut self) -> Result<()> {
        let swept = self
            .sweep
            .run(&self.object.tables, &self.pins, &self.object.clock)?;
        self.busy = swept.busy;
        self.talking = swept.talking;
        Ok(())
    }

    /// From the snapshot to maps and programs.
    fn reconcile(&mut self) -> Result<()> {
        let Some(snapshot) = &self.snapshot else {
            return Ok(());
        };
        // First: until all below is done, what has not been looked at is held back.
        if let Err(problem) = self.table.guard(snapshot.guard.as_ref()) {
            self.waiting.push(format!("{problem:#}"));
        }
        self.facts.forwarding = facts::forwarding();
        self.desired = desired(snapshot, &self.facts, &self.state.egress());
        // Clients may have opened sessions there since the last sweep.
        self.busy.extend(self.state.egress().into_values());
        let plan = diff(&self.state, &self.desired, &self.busy, &self.fixed.limits);
        for operation in &plan.operations {
            apply::apply(&self.object.tables, &self.pins, &self.state, operation)
                .with_context(|| format!("apply {operation:?}"))?;
            self.state.apply(operation);
            if let Operation::SetClient(_, client) = operation {
                // It may have opened sessions since the last sweep.
                self.talking.insert(client.index);
            }
        }
        self.waiting.extend(plan.problems);
        if self.state.slices.values().any(|slice| slice.entry.own) || !plan.operations.is_empty() {
            reserve::reserve(&self.object.tables, &self.state)?;
        }
        let stay = snapshot.guard.is_some();
        let wanted = &self.desired.attachments;
        self.links
            .reconcile(&mut self.object.ebpf, &self.pins, wanted, stay)?;
        if !plan.operations.is_empty() {
            self.next_generation()?;
        }
        self.announce();
        Ok(())
    }

    /// Tells neighbours of addresses that they have not been told of.
    fn announce(&mut self) {
        let outside: BTreeMap<u32, _> = self
            .state
            .devices
            .iter()
            .filter(|(_, device)| device.flags & DEVICE_OUTSIDE != 0)
            .map(|(ifindex, device)| (*ifindex, device.mac))
            .collect();
        let answered: BTreeSet<Ipv4Addr> = self
            .state
            .slices
            .iter()
            .filter(|(_, slice)| !slice.entry.own)
            .map(|(address, _)| *address)
            .collect();
        self.announced.retain(|(ifindex, address)| {
            outside.contains_key(ifindex) && answered.contains(address)
        });
        for (ifindex, mac) in outside {
            let new: Vec<Ipv4Addr> = answered
                .iter()
                .copied()
                .filter(|address| !self.announced.contains(&(ifindex, *address)))
                .collect();
            match announce::announce(ifindex, mac, &new) {
                Ok(()) => self
                    .announced
                    .extend(new.into_iter().map(|address| (ifindex, address))),
                Err(problem) if announce::nobody_there(&problem) => {}
                Err(problem) => self.waiting.push(format!("{problem:#}")),
            }
        }
    }

    /// Something has changed in the kernel: cached next hops end, and if links
    /// or addresses are others, the desired state is worked out again.
    async fn follow(&mut self) {
        if self.gathered.take() >= Change::Ways {
            match self.netlink.facts().await {
                Ok(facts) if facts.differ(&self.facts) => {
                    self.facts = facts;
                    self.node_changed().await;
                }
                Ok(_) => {}
                Err(problem) => warn!("read links: {problem:#}"),
            }
        }
        if let Err(problem) = self.next_generation() {
            warn!("{problem:#}");
        }
    }

    /// Links, addresses or ways are others.
    async fn node_changed(&mut self) {
        if self.source.follows_node() {
            self.ask();
        }
        self.adapt().await;
        self.conclude().await;
    }

    fn next_generation(&mut self) -> Result<()> {
        let settings = &self.object.tables.settings;
        let mut current = settings.get(&0)?.unwrap_or_default();
        current.generation = current.generation % MAX_GENERATION + 1;
        settings
            .set(&0, &current)
            .context("bump the generation of next hops")
    }

    fn write_report(&mut self) {
        let mut problems: Vec<String> = self.not_yet.iter().cloned().collect();
        problems.extend(self.source.problems());
        problems.extend(self.desired.problems.iter().cloned());
        problems.extend(self.waiting.iter().cloned());
        health::update(&mut self.report, problems);
        if let Some(snapshot) = &self.snapshot {
            self.report.devices = health::devices(&self.desired, &self.facts, snapshot);
            self.report.cluster_ranges = aggregated(&snapshot.cluster_ranges);
        }
        self.report.kubernetes = self.source.report();
        if let Err(problem) = self.report.write(&self.object.tables.report) {
            warn!("write the report: {problem}");
        }
        self.tell_probes();
    }

    /// Ready is who serves its node as the source wants it. A tenant's mistake is no reason not to be.
    fn tell_probes(&self) {
        let unready = match &self.snapshot {
            Some(_) => self.failed.clone(),
            None => Some(self.not_yet.clone().unwrap_or_default()),
        };
        self.health.turn(self.pause, unready);
    }
}

/// Ranges as few networks as they are, in order.
fn aggregated(ranges: &[IpNet]) -> Vec<String> {
    let mut networks = IpNet::aggregate(&ranges.to_vec());
    networks.sort();
    networks.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_round_takes_a_twentieth_of_the_time() {
        let interval = Duration::from_secs(10);
        let after = |milliseconds| pause(interval, Duration::from_millis(milliseconds));
        assert_eq!(after(0), interval);
        assert_eq!(after(500), interval);
        assert_eq!(after(501), Duration::from_millis(10_020));
        assert_eq!(after(3_000), Duration::from_secs(60));
    }
}
