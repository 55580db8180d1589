//! Kubernetes as a source: pods' annotations in, snapshots out.
//!
//! ```text
//! watch       follows pods, namespaces, nodes, EgressPools, ServiceCIDRs
//! object      what is kept of each                                        } pure from
//! world       the cluster as it is known; lists and their changes         } here on
//! ranges      the cluster's own ranges
//! pool, spec  the custom resource; its specification read
//! judge       which pools can be used
//! guard       what is held back before its sender is known
//! claims      which node uses which address
//! annotation  what a pod asks for
//! arrivals    what the CNI plugin has said of pods
//! resolve     who gets what: clients, and what stands in the way
//! ended       links of clients that have ended
//! readiness   whether a pod may start
//! link        the host's side of a pod's veth
//! trouble     the words for people
//! condition   the pools' conditions
//! writer      writes claims, conditions and Events
//! home        the agent's own DaemonSet: whether it is being uninstalled
//! desk        where the CNI plugin asks
//! record      what it has said, for the next agent
//! keeper      keeps the plugin in the node's network configuration
//! ```

pub mod annotation;
pub mod arrivals;
pub mod claims;
pub mod condition;
pub mod desk;
pub mod ended;
pub mod guard;
pub mod home;
pub mod judge;
pub mod keeper;
pub mod link;
pub mod object;
pub mod pool;
pub mod ranges;
pub mod readiness;
pub mod record;
pub mod resolve;
pub mod spec;
pub mod trouble;
pub mod watch;
pub mod world;
pub mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, Config};

use super::{Answer, Fixed, Settle, View, watched::Watched};
use crate::{
    config,
    facts::Facts,
    report,
    snapshot::{Device, Guard, Role, Settings, Snapshot},
};
use arrivals::Arrivals;
use claims::{Claims, Observer};
use condition::Written;
use desk::Desk;
use home::Home;
use judge::{Accepted, Judged};
use keeper::Keeper;
use readiness::{Scene, readiness};
use resolve::{Input, Memory, Resolved};
use trouble::{Trouble, Weight};
use watch::{Kind, Known, Shared, Watches};
use world::World;
use writer::{Batch, Told, Writer};

/// How long changes are gathered: a deployment makes several at once.
const SETTLE: Duration = Duration::from_millis(10);
/// How often claims are looked at though nothing has changed.
const TICK: Duration = Duration::from_secs(5);
/// How long a connection may be silent: a watch gets a bookmark about every minute.
const SILENCE: Duration = Duration::from_secs(90);

/// Kubernetes.
pub struct Kubernetes {
    node: String,
    file: Option<Watched<Settings>>,
    /// What the file said when it was last good.
    settings: Settings,
    shared: Shared,
    settle: Settle,
    started: Instant,
    /// `None` until the tables were looked at.
    memory: Option<Memory>,
    accepted: Accepted,
    observer: Observer,
    written: Written,
    /// What pods were told last, by uid.
    told: BTreeMap<String, Trouble>,
    resolved: Resolved,
    arrivals: Arrivals,
    desk: Option<Desk>,
    keeper: Option<Keeper>,
    guard: Option<Guard>,
    writer: Writer,
    home: Option<Home>,
    _watches: Watches,
}

impl Kubernetes {
    /// Reads the node's file, if there is one, and begins to follow it, the API server, and `home`,
    /// the agent's own DaemonSet. Call within a tokio runtime.
    ///
    /// # Errors
    /// The file is refused or cannot be watched, or nothing says where the API server is.
    pub async fn connect(
        node: &str,
        file: Option<&Path>,
        home: Option<&home::Name>,
    ) -> Result<Self> {
        let file = file
            .map(|file| Watched::open(file, config::load_node))
            .transpose()?;
        let mut config = Config::infer().await.context(
            "find the API server: run in a pod with a ServiceAccount, or set KUBECONFIG",
        )?;
        config.read_timeout = Some(SILENCE);
        let client = Client::try_from(config).context("connect to the API server")?;
        let home = home.map(|home| Home::follow(&client, home));
        Ok(Self {
            home,
            ..Self::with(node, file, client)
        })
    }

    /// Follows this API server, and the node's file. Call within a tokio runtime.
    pub fn with(node: &str, file: Option<Watched<Settings>>, client: Client) -> Self {
        let settings = file.as_ref().map(|file| file.good().clone());
        let shared = Shared::default();
        Self {
            node: node.to_owned(),
            file,
            settings: settings.unwrap_or_default(),
            settle: Settle::new(SETTLE),
            started: Instant::now(),
            memory: None,
            accepted: Accepted::default(),
            observer: Observer::default(),
            written: Written::default(),
            told: BTreeMap::new(),
            resolved: Resolved::default(),
            arrivals: Arrivals::default(),
            desk: None,
            keeper: None,
            guard: None,
            _watches: watch::start(&client, node, &shared),
            writer: Writer::start(client, node, shared.clone()),
            shared,
            home: None,
        }
    }

    /// Lets the CNI plugin ask at this socket. It is opened when the agent runs.
    pub fn listen(&mut self, socket: &Path) {
        self.desk = Some(Desk::new(socket, &self.shared));
    }

    /// Keeps the CNI plugin in the network configuration of this directory.
    pub fn keep_chained(&mut self, directory: &Path) {
        self.keeper = Some(Keeper::new(directory, &self.shared));
    }

    pub(super) fn path(&self) -> &Path {
        self.file.as_ref().map_or(Path::new(""), Watched::path)
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn sought(&self) -> &[(u32, Ipv4Addr)] {
        &self.resolved.sought
    }

    /// Whether natctl is being uninstalled.
    pub async fn is_uninstalled(&self) -> bool {
        match &self.home {
            Some(home) => home.is_deleted().await,
            None => false,
        }
    }

    /// Waits until something may be another. Safe to cancel.
    pub async fn changed(&mut self) {
        let (shared, file) = (&self.shared, &mut self.file);
        let file = async {
            match file {
                Some(file) => file.changed().await,
                None => std::future::pending().await,
            }
        };
        let news = async {
            tokio::select! {
                () = shared.changed() => {}
                () = file => {}
                // Claims grow old though nothing happens.
                () = tokio::time::sleep(TICK) => {}
            }
        };
        self.settle.after(news).await;
    }

    /// What is wanted now. What has to be written for it is handed to the writer.
    pub fn ask(&mut self, view: View<'_>) -> Answer {
        let now = self.started.elapsed();
        let shared = self.shared.clone();
        self.attend(now);
        self.look(view.fixed);
        let mut known = shared.known();
        let lacking = known.lacking();
        if !lacking.is_empty() {
            return Answer::NotYet(not_yet(&lacking, &known));
        }
        let waiting = self.desk.as_ref().map(Desk::pods).unwrap_or_default();
        self.arrivals.forget(&known.world.pods, &waiting, now);
        if let Some(desk) = &mut self.desk {
            desk.write(&self.arrivals);
        }
        self.observer.observe(&known.world.pools, now);
        if std::mem::take(&mut known.pools_again) {
            self.observer.blinded(now);
        }
        let learned = ranges::learned(&known.world);
        let judged = judge::judge(&known.world, &learned, &mut self.accepted);
        let claims = Claims {
            node: &self.node,
            world: &known.world,
            observer: &self.observer,
            now,
        };
        let memory = self
            .memory
            .get_or_insert_with(|| resolve::remembered(view.state));
        self.resolved = resolve::resolve(&Input {
            node: &self.node,
            world: &known.world,
            arrivals: &self.arrivals,
            pools: &judged,
            claims: &claims,
            memory,
            left_alone: self.settings.guard.then_some(&self.resolved.left_alone),
            facts: view.facts,
            state: view.state,
            talking: view.talking,
        });
        memory.clone_from(&self.resolved.memory);
        let cluster = ranges::all(&learned, &self.settings.cluster_ranges);
        self.guard = self.guard(&known.world, &cluster, &judged);
        let lost = claims.lost(view.state.slices.keys());
        if known.silent.is_empty() {
            let in_use: BTreeSet<Ipv4Addr> = view.state.slices.keys().copied().collect();
            let time = Timestamp::now();
            let claims = claims.changes(&self.resolved.wanted, &in_use, &time.to_string());
            let conditions = self.written.changes(&known.world.pools, &judged, now, time);
            let told = self.news(&known);
            self.write(claims, conditions, told);
        }
        Answer::Snapshot(Box::new(Snapshot {
            lost,
            ended: self.resolved.ended.iter().cloned().collect(),
            ..self.snapshot(cluster, view.facts)
        }))
    }

    /// Looks after what the CNI plugin needs.
    fn attend(&mut self, now: Duration) {
        if let Some(desk) = &mut self.desk {
            desk.open();
            desk.take(&mut self.arrivals, now);
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.keep();
        }
    }

    /// Takes up what the node's file says now.
    fn look(&mut self, fixed: &Fixed) {
        let Some(file) = &mut self.file else { return };
        file.look(|settings| {
            fixed.allows(settings.limits, settings.mark_bit, settings.decided_bit)
        });
        self.settings.clone_from(file.good());
    }

    /// What was asked for last is in force, but for `problem`: pods that wait for it may start.
    pub fn applied(&mut self, view: View<'_>, problem: Option<&str>) {
        let Some(desk) = &mut self.desk else { return };
        let known = self.shared.known();
        let silence = silence(&known);
        let scene = Scene {
            world: &known.world,
            resolved: &self.resolved,
            view,
            problem,
            silence: silence.as_deref(),
        };
        desk.answer(|attachment| readiness(attachment, &scene));
    }

    fn write(
        &mut self,
        claims: Vec<claims::Change>,
        conditions: Vec<condition::Change>,
        told: Vec<(Told, Option<Trouble>)>,
    ) {
        let batch = Batch {
            claims,
            conditions,
            told: told.iter().map(|(told, _)| told.clone()).collect(),
        };
        if batch.is_empty() || !self.writer.offer(batch) {
            return;
        }
        for (told, trouble) in told {
            match trouble {
                Some(trouble) => drop(self.told.insert(told.uid, trouble)),
                None => drop(self.told.remove(&told.uid)),
            }
        }
    }

    /// What is held back, if anything is to be.
    fn guard(
        &self,
        world: &World,
        cluster: &[IpNet],
        judged: &BTreeMap<String, Judged>,
    ) -> Option<Guard> {
        if !self.settings.guard {
            return None;
        }
        let pods = guard::pod_ranges(&self.node, world, &self.settings.pod_ranges);
        let links = self.resolved.left_alone.values();
        let links = links.map(|link| link.device.clone()).collect();
        Some(guard::guard(&pods, cluster, judged, links))
    }

    /// A pod that the guard would not hold back.
    fn uncovered(&self, world: &World) -> Option<String> {
        let pods = guard::pod_ranges(&self.node, world, &self.settings.pod_ranges);
        let alone = self.resolved.left_alone.values().map(|link| link.source);
        let served = self.resolved.memory.values().map(|served| served.source);
        let address = guard::uncovered(&pods, alone.chain(served))?;
        self.settings.guard.then(|| {
            format!(
                "the guard takes {address} for no pod's address, so that pods like it may send \
                 before they are known: list the addresses of this node's pods under podRanges in \
                 the node's file, or turn the guard off there"
            )
        })
    }

    /// What pods have to be told that they were not told before.
    fn news(&mut self, known: &Known) -> Vec<(Told, Option<Trouble>)> {
        let uids: BTreeSet<&str> = known
            .world
            .pods
            .values()
            .map(|pod| pod.uid.as_str())
            .collect();
        self.told.retain(|uid, _| uids.contains(uid.as_str()));
        news(&known.world.pods, &self.resolved, &self.told)
    }

    fn snapshot(&self, cluster_ranges: Vec<IpNet>, facts: &Facts) -> Snapshot {
        let mut settings = Settings {
            cluster_ranges,
            ..self.settings.clone()
        };
        if settings.devices.is_empty() {
            settings.devices = default_devices(facts);
        }
        let (pools, clients) = (&self.resolved.pools, &self.resolved.clients);
        settings.with(pools.clone(), clients.clone(), self.guard.clone())
    }

    /// What stands in the way, in plain words.
    pub fn problems(&self) -> Vec<String> {
        let known = self.shared.known();
        let file = self.file.as_ref().and_then(Watched::problem);
        let mut problems: Vec<String> = file.into_iter().chain(silence(&known)).collect();
        problems.extend(self.desk.as_ref().and_then(Desk::problem).cloned());
        problems.extend(self.keeper.as_ref().and_then(Keeper::problem).cloned());
        if known.world.services_unknown && self.settings.cluster_ranges.is_empty() {
            problems.push(
                "this API server has no ServiceCIDR objects, so the Services' range is not known: \
                 list it under clusterRanges in the node's file"
                    .to_owned(),
            );
        }
        problems.extend(self.uncovered(&known.world));
        problems
    }

    /// What the agent reports of Kubernetes.
    pub fn report(&self) -> report::Kubernetes {
        let known = self.shared.known();
        let pods = self.resolved.troubles.iter();
        let left_alone = self.resolved.left_alone.len() as u64;
        report::Kubernetes {
            node: self.node.clone(),
            left_alone: self.settings.guard.then_some(left_alone),
            silent_since: known.silent.values().map(|silence| silence.since).min(),
            stale: known
                .silent
                .keys()
                .map(|kind| kind.name().to_owned())
                .collect(),
            pods: pods
                .map(|(pod, trouble)| report::PodReport {
                    pod: pod.clone(),
                    reason: trouble.reason().to_owned(),
                    message: trouble.words(),
                })
                .collect(),
        }
    }
}

/// The links of the default routes are outside, where the file names none.
fn default_devices(facts: &Facts) -> Vec<Device> {
    let outside = |(name, link): (&String, &crate::facts::Link)| {
        facts.ways.defaults.contains(&link.ifindex).then(|| Device {
            name: name.clone(),
            role: Role::Outside,
            xdp: None,
        })
    };
    facts.links.iter().filter_map(outside).collect()
}

fn names(kinds: &[Kind]) -> String {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    names.join(", ")
}

fn not_yet(lacking: &[Kind], known: &Known) -> String {
    let errors = lacking.iter().filter_map(|kind| known.silent.get(kind));
    let error = errors
        .map(|silence| format!(": {}", silence.error))
        .next()
        .unwrap_or_default();
    format!(
        "what was pinned is served as it was: {} were not listed yet{error}",
        names(lacking)
    )
}

fn silence(known: &Known) -> Option<String> {
    let since = known.silent.values().map(|silence| silence.since).min()?;
    let kinds: Vec<Kind> = known.silent.keys().copied().collect();
    let error = known
        .silent
        .values()
        .next()
        .map(|silence| silence.error.as_str());
    let since = std::time::UNIX_EPOCH + Duration::from_secs(since);
    Some(format!(
        "the API server has not answered since {}, and what it may have changed is not known here \
         ({}): {}",
        humantime::format_rfc3339_seconds(since),
        names(&kinds),
        error.unwrap_or_default()
    ))
}

/// What differs from what the pods were told last; with what to remember when it was said.
fn news(
    pods: &BTreeMap<String, object::Pod>,
    resolved: &Resolved,
    told: &BTreeMap<String, Trouble>,
) -> Vec<(Told, Option<Trouble>)> {
    let mut news = Vec::new();
    for (path, pod) in pods {
        let trouble = resolved.troubles.get(path);
        let trouble = trouble.filter(|trouble| trouble.weight() > Weight::Passing);
        let say = |reason, note, warning| Told {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            reason,
            note,
            warning,
        };
        match (trouble, told.get(&pod.uid)) {
            (Some(trouble), before) if before != Some(trouble) => {
                let warning = trouble.weight() == Weight::Warning;
                let said = say(trouble.reason(), trouble.words(), warning);
                news.push((said, Some(trouble.clone())));
            }
            (None, Some(_)) => {
                let mut clients = resolved.clients.iter();
                let client = clients.find(|client| client.name == *path && !client.draining);
                let Some(client) = client else { continue };
                let served = client.address.filter(|address| !address.is_unspecified());
                let Some(address) = served else { continue };
                let note = format!("its packets leave as {address} now");
                news.push((say("EgressReady", note, false), None));
            }
            _ => {}
        }
    }
    news
}
