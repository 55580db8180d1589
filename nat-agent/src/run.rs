//! The agent: sources in, maps and programs out, until it is told to stop. The
//! data plane stays when it goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nat_common::abi::{DEVICE_OUTSIDE, MAX_GENERATION};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tracing::{error, info, warn};

use crate::{
    announce, apply,
    bpf::{links, log, object::Object, pins::Pins},
    config,
    desired::{Desired, desired},
    diff::{State, diff},
    facts::{self, Facts},
    health,
    netlink::{Change, Netlink},
    nft,
    report::Report,
    reserve,
    snapshot::Snapshot,
    sweep::Sweep,
    tell::Teller,
};

/// A round is followed by a pause this many times as long: with a million sessions
/// a sweep takes most of a second, and must not take a processor.
const PAUSE: u32 = 20;
/// How long events are gathered before they are acted on.
const SETTLE: Duration = Duration::from_millis(50);

/// Runs the agent.
///
/// # Errors
/// What keeps it from starting, with what to do.
pub async fn run(file: &Path, pins: &Pins) -> Result<()> {
    crate::kernel::check()?;
    let snapshot = load(file)?;
    pins.prepare()?;
    let lock = pins.lock()?;
    // Watched before it is applied: a change in between is not missed.
    let (_watcher, changes) = watch(file)?;
    let mut agent = Agent::start(file, pins, lock, snapshot).await?;
    agent.reload();
    agent.serve(changes).await
}

/// How long the agent pauses after a round that took so long.
fn pause(interval: Duration, took: Duration) -> Duration {
    interval.max(took * PAUSE)
}

/// Reads the configuration file.
fn load(file: &Path) -> Result<Snapshot> {
    config::load(file).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", lines.join("\n"))
    })
}

struct Agent {
    file: PathBuf,
    pins: Pins,
    _lock: OwnedFd,
    object: Object,
    netlink: Netlink,
    teller: Teller,
    snapshot: Snapshot,
    facts: Facts,
    state: State,
    desired: Desired,
    sweep: Sweep,
    /// Egress addresses that are still in use.
    busy: BTreeSet<Ipv4Addr>,
    report: Report,
    /// The file as it was last read, to tell a change from a neighbour's.
    text: String,
    /// Why the file is refused, while it is.
    refused: Option<String>,
    /// What the last round could not do.
    waiting: Vec<String>,
    /// Addresses that neighbours have been told of.
    announced: BTreeSet<(u32, Ipv4Addr)>,
}

impl Agent {
    async fn start(file: &Path, pins: &Pins, lock: OwnedFd, snapshot: Snapshot) -> Result<Self> {
        let netlink = Netlink::connect()?;
        let facts = netlink.facts().await?;
        let mut object = Object::load(pins, &snapshot.limits, snapshot.mark_bit)?;
        let teller = Teller::new(&mut object.ebpf)?;
        log::follow(&mut object.ebpf)?;
        let state = apply::read(&object.tables).context("read what is pinned")?;
        let busy = state.slices.keys().copied().collect();
        let report = Report::new(file, pins.directory(), snapshot.sweep_interval);
        let mut agent = Self {
            file: file.to_owned(),
            pins: pins.clone(),
            _lock: lock,
            object,
            netlink,
            teller,
            snapshot,
            facts,
            state,
            desired: Desired::default(),
            sweep: Sweep::default(),
            busy,
            report,
            text: String::new(),
            refused: None,
            waiting: Vec::new(),
            announced: BTreeSet::new(),
        };
        nft::install(1 << agent.snapshot.mark_bit)?;
        agent.sweep()?;
        agent.reconcile()?;
        agent.next_generation()?;
        agent.write_report();
        let (clients, addresses) = (agent.state.clients.len(), agent.state.slices.len());
        info!("ready: {clients} clients, {addresses} egress addresses");
        Ok(agent)
    }

    async fn serve(&mut self, mut changes: mpsc::Receiver<()>) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut next = Instant::now() + self.snapshot.sweep_interval;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => self.reload(),
                _ = changes.recv() => {
                    sleep(SETTLE).await;
                    while changes.try_recv().is_ok() {}
                    self.look_again();
                    next = next.min(Instant::now() + self.snapshot.sweep_interval);
                }
                change = self.netlink.next() => self.follow(change).await,
                told = self.teller.next() => told?,
                () = sleep_until(next) => {
                    let began = Instant::now();
                    self.round();
                    next = Instant::now() + pause(self.snapshot.sweep_interval, began.elapsed());
                }
            }
        }
        info!("stopping; the data plane stays (`nat-agent detach` removes it)");
        Ok(())
    }

    /// Something in the file's directory has changed. The agent's own log may lie there.
    fn look_again(&mut self) {
        if fs::read_to_string(&self.file).unwrap_or_default() != self.text {
            self.reload();
        }
    }

    /// The file has changed: the new state, or the last good one.
    fn reload(&mut self) {
        self.text = fs::read_to_string(&self.file).unwrap_or_default();
        match load(&self.file).and_then(|snapshot| self.accept(&snapshot).map(|()| snapshot)) {
            Ok(snapshot) => {
                self.refused = None;
                if snapshot != self.snapshot {
                    self.report.set_sweep_interval(snapshot.sweep_interval);
                    self.snapshot = snapshot;
                    self.round();
                    info!(
                        "configuration applied: {} clients",
                        self.state.clients.len()
                    );
                }
            }
            Err(problem) => {
                error!("the configuration is refused, the last good one stays:\n{problem:#}");
                self.refused = Some(format!("the configuration file is refused: {problem:#}"));
            }
        }
        self.write_report();
    }

    /// What cannot change while the maps are pinned and the programs loaded.
    fn accept(&self, snapshot: &Snapshot) -> Result<()> {
        if snapshot.limits != self.snapshot.limits {
            bail!(
                "limits cannot change while the tables are pinned; {}",
                self.pins.way_out()
            );
        }
        if snapshot.mark_bit != self.snapshot.mark_bit {
            bail!("markBit is a constant of the programs: restart nat-agent to change it");
        }
        Ok(())
    }

    /// One round: what has ended is removed, what is wanted is applied. Errors
    /// are health, not the end: the next round tries again.
    fn round(&mut self) {
        self.waiting.clear();
        if let Err(problem) = self.sweep() {
            warn!("sweep: {problem:#}");
            self.waiting.push(format!("the sweep failed: {problem:#}"));
        }
        if let Err(problem) = self.keep_rule() {
            warn!("nft: {problem:#}");
            self.waiting.push(format!("{problem:#}"));
        }
        if let Err(problem) = self.reconcile() {
            warn!("apply: {problem:#}");
            self.waiting.push(format!("{problem:#}"));
        }
        self.write_report();
    }

    /// Puts the netfilter rule back if somebody has taken it away.
    fn keep_rule(&self) -> Result<()> {
        if nft::present()? {
            return Ok(());
        }
        warn!("the table ip {} was gone; it is put back", nft::TABLE);
        nft::install(1 << self.snapshot.mark_bit)
    }

    fn sweep(&mut self) -> Result<()> {
        let swept = self
            .sweep
            .run(&self.object.tables, &self.pins, &self.object.clock)?;
        self.busy = swept.busy;
        Ok(())
    }

    /// From the snapshot to maps and programs.
    fn reconcile(&mut self) -> Result<()> {
        self.facts.forwarding = facts::forwarding();
        self.desired = desired(&self.snapshot, &self.facts, &self.state.egress());
        let plan = diff(
            &self.state,
            &self.desired,
            &self.busy,
            &self.snapshot.limits,
        );
        for operation in &plan.operations {
            apply::apply(&self.object.tables, &self.pins, &self.state, operation)
                .with_context(|| format!("apply {operation:?}"))?;
            self.state.apply(operation);
        }
        self.waiting.extend(plan.problems);
        if self.state.slices.values().any(|slice| slice.entry.own) || !plan.operations.is_empty() {
            let ports = facts::own_ports();
            reserve::reserve(&self.object.tables, &self.state, &ports)?;
        }
        links::reconcile(&mut self.object.ebpf, &self.pins, &self.desired.attachments)?;
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
    async fn follow(&mut self, first: Change) {
        let mut change = first;
        let deadline = Instant::now() + SETTLE;
        while let Ok(next) = timeout_at(deadline, self.netlink.next()).await {
            change = change.max(next);
        }
        if change == Change::None {
            return;
        }
        if change == Change::Links {
            match self.netlink.facts().await {
                Ok(facts)
                    if facts.links != self.facts.links
                        || facts.addresses != self.facts.addresses =>
                {
                    self.facts = facts;
                    self.round();
                }
                Ok(_) => {}
                Err(problem) => warn!("read links: {problem:#}"),
            }
        }
        if let Err(problem) = self.next_generation() {
            warn!("{problem:#}");
        }
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
        let mut problems: Vec<String> = self.refused.iter().cloned().collect();
        problems.extend(self.desired.problems.iter().cloned());
        problems.extend(self.waiting.iter().cloned());
        health::update(&mut self.report, problems);
        self.report.devices = health::devices(&self.desired, &self.facts, &self.snapshot);
        if let Err(problem) = self.report.write(&self.object.tables.report) {
            warn!("write the report: {problem}");
        }
    }
}

/// Watches the file's directory: editors and Kubernetes replace files by renaming.
fn watch(file: &Path) -> Result<(RecommendedWatcher, mpsc::Receiver<()>)> {
    let (sender, receiver) = mpsc::channel(16);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading the file is an event too; only what changes it counts.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = sender.try_send(());
        }
    })?;
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    watcher
        .watch(directory, RecursiveMode::NonRecursive)
        .with_context(|| format!("watch {}", directory.display()))?;
    Ok((watcher, receiver))
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
