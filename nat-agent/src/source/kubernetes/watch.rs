//! Follows the API's objects. Everything that is understood of them is elsewhere, and pure.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client, CustomResourceExt, Resource, ResourceExt,
    core::DynamicObject,
    runtime::watcher::{self, Config, Error, watcher},
};
use serde::de::DeserializeOwned;
use tokio::{sync::Notify, task::JoinHandle, time::sleep};
use tracing::{debug, warn};

use super::{
    object,
    pool::EgressPool,
    world::{Followed, Mirror, World},
};
use crate::report::unix_now;

/// Pauses between attempts while the API server does not answer.
const LEAST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The kinds of objects that are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// This node's pods.
    Pods,
    /// Namespaces.
    Namespaces,
    /// Nodes.
    Nodes,
    /// EgressPools.
    Pools,
    /// ServiceCIDRs.
    Services,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Pods,
        Self::Namespaces,
        Self::Nodes,
        Self::Pools,
        Self::Services,
    ];

    /// What people call them.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pods => "Pods",
            Self::Namespaces => "Namespaces",
            Self::Nodes => "Nodes",
            Self::Pools => "EgressPools",
            Self::Services => "ServiceCIDRs",
        }
    }
}

/// What is wrong with following a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Since when, Unix seconds.
    pub since: u64,
    /// The last error.
    pub error: String,
}

/// What is known, and how well.
#[derive(Debug, Default)]
pub struct Known {
    /// The cluster.
    pub world: World,
    /// Kinds that are not heard of now.
    pub silent: BTreeMap<Kind, Silence>,
    /// Pools were not heard of for a while until just now.
    pub pools_again: bool,
    pods: Mirror<object::Pod>,
    namespaces: Mirror<object::Namespace>,
    nodes: Mirror<object::Node>,
    pools: Mirror<object::Pool>,
    services: Mirror<Vec<ipnet::IpNet>>,
}

impl Known {
    /// The kinds whose first list is not complete yet.
    pub fn lacking(&self) -> Vec<Kind> {
        let complete = |kind: &Kind| match kind {
            Kind::Pods => self.pods.complete,
            Kind::Namespaces => self.namespaces.complete,
            Kind::Nodes => self.nodes.complete,
            Kind::Pools => self.pools.complete,
            Kind::Services => self.services.complete,
        };
        Kind::ALL
            .into_iter()
            .filter(|kind| !complete(kind))
            .collect()
    }

    /// The kind was heard of; whether it was silent before.
    fn heard(&mut self, kind: Kind) -> bool {
        let was_silent = self.silent.remove(&kind).is_some();
        self.pools_again |= was_silent && kind == Kind::Pools;
        was_silent
    }

    /// Takes an event up; whether anything of interest is another now.
    fn event<K, T: Followed>(
        &mut self,
        kind: Kind,
        event: &watcher::Event<K>,
        reduce: &impl Fn(&K) -> (String, T),
        place: &impl Fn(&mut Self) -> (&mut Mirror<T>, &mut BTreeMap<String, T>),
    ) -> bool {
        // The beginning of a list says nothing yet: the server may still refuse it.
        let heard = !matches!(event, watcher::Event::Init) && self.heard(kind);
        let (mirror, objects) = place(self);
        mirror.apply(reduced(event, reduce), objects) || heard
    }

    /// An error came instead of an event; whether that is news.
    fn error(&mut self, kind: Kind, error: &Error) -> bool {
        if kind == Kind::Services && absent(error) {
            return none_there(self);
        }
        let words = words(error);
        debug!("{}: {words}", kind.name());
        if expired(error) {
            return false;
        }
        let news = self.missed(kind, words.clone());
        if news {
            warn!("{} cannot be followed now: {words}", kind.name());
        }
        news
    }

    /// The kind cannot be followed now; whether that is news.
    fn missed(&mut self, kind: Kind, error: String) -> bool {
        let known = self.silent.get(&kind);
        let since = known.map_or_else(unix_now, |silence| silence.since);
        self.silent.insert(kind, Silence { since, error }).is_none()
    }
}

/// What the tasks that follow the API share with the agent.
#[derive(Clone, Default)]
pub struct Shared {
    known: Arc<Mutex<Known>>,
    changed: Arc<Notify>,
}

impl Shared {
    /// What is known.
    pub fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing is left half done by a panic: every change is one assignment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is another. Safe to cancel.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Has [`Self::changed`] return.
    pub fn wake(&self) {
        self.changed.notify_one();
    }
}

/// Tasks that end with this.
pub struct Watches(Vec<JoinHandle<()>>);

impl Drop for Watches {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Follows everything that is of interest to the node. Call within a tokio runtime.
pub fn start(client: &Client, node: &str, shared: &Shared) -> Watches {
    let own = Config::default().fields(&format!("spec.nodeName={node}"));
    let all = Config::default;
    let pools = Api::all_with(client.clone(), &EgressPool::api_resource());
    Watches(vec![
        follow(
            Kind::Pods,
            Api::<Pod>::all(client.clone()),
            own,
            shared,
            |pod: &Pod| {
                let pod = object::Pod::from(pod);
                (pod.path(), pod)
            },
            |known| (&mut known.pods, &mut known.world.pods),
        ),
        follow(
            Kind::Namespaces,
            Api::<Namespace>::all(client.clone()),
            all(),
            shared,
            |namespace: &Namespace| (namespace.name_any(), namespace.into()),
            |known| (&mut known.namespaces, &mut known.world.namespaces),
        ),
        follow(
            Kind::Nodes,
            Api::<Node>::all(client.clone()),
            all(),
            shared,
            |node: &Node| (node.name_any(), node.into()),
            |known| (&mut known.nodes, &mut known.world.nodes),
        ),
        follow(
            Kind::Pools,
            pools,
            all(),
            shared,
            |pool: &DynamicObject| (pool.name_any(), pool.into()),
            |known| (&mut known.pools, &mut known.world.pools),
        ),
        follow(
            Kind::Services,
            Api::<ServiceCIDR>::all(client.clone()),
            all(),
            shared,
            |range: &ServiceCIDR| (range.name_any(), object::service_ranges(range)),
            |known| (&mut known.services, &mut known.world.services),
        ),
    ])
}

/// Follows one kind: lists, watches, and begins again where the server demands it.
fn follow<K, T>(
    kind: Kind,
    api: Api<K>,
    config: Config,
    shared: &Shared,
    reduce: impl Fn(&K) -> (String, T) + Send + 'static,
    place: impl Fn(&mut Known) -> (&mut Mirror<T>, &mut BTreeMap<String, T>) + Send + 'static,
) -> JoinHandle<()>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Followed + Send + 'static,
{
    let shared = shared.clone();
    tokio::spawn(async move {
        let mut pause = LEAST_PAUSE;
        loop {
            // After an error everything is listed anew: a watch that is taken up again says nothing
            // until an object changes, and whether the server is back would not be known.
            let begun = Instant::now();
            let events = watcher(api.clone(), config.clone());
            pin_mut!(events);
            while let Some(event) = events.next().await {
                let failed = event.is_err();
                let news = match event {
                    Ok(event) => shared.known().event(kind, &event, &reduce, &place),
                    Err(error) => shared.known().error(kind, &error),
                };
                if news {
                    shared.wake();
                }
                if failed {
                    break;
                }
            }
            // Lists that work do not make the pauses short again: where watches do not, each of them
            // would be followed by another list at once.
            if begun.elapsed() > LONGEST_PAUSE {
                pause = LEAST_PAUSE;
            }
            // Not all agents at the same moment, when the server comes back.
            sleep(pause.mul_f32(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    })
}

fn reduced<K, T>(
    event: &watcher::Event<K>,
    reduce: &impl Fn(&K) -> (String, T),
) -> watcher::Event<(String, T)> {
    use watcher::Event;
    match event {
        Event::Init => Event::Init,
        Event::InitDone => Event::InitDone,
        Event::InitApply(object) => Event::InitApply(reduce(object)),
        Event::Apply(object) => Event::Apply(reduce(object)),
        Event::Delete(object) => Event::Delete(reduce(object)),
    }
}

/// The server has forgotten the version that a watch was to go on from. It does at times, and the list
/// that follows says what was missed.
fn expired(error: &Error) -> bool {
    match error {
        Error::WatchError(status) => status.code == 410,
        Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

/// Older servers have no such objects.
fn absent(error: &Error) -> bool {
    matches!(error, Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

fn none_there(known: &mut Known) -> bool {
    known.silent.remove(&Kind::Services);
    let first = !known.services.complete;
    known.services.complete = true;
    let news = !std::mem::replace(&mut known.world.services_unknown, true);
    first || news
}

/// The innermost error: what is around it only repeats which request it was.
fn words(error: &Error) -> String {
    let mut words = String::new();
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        words = error.to_string();
        next = error.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn silence_counts_from_its_first_error() {
        let mut known = Known::default();
        assert!(known.missed(Kind::Pools, "refused".to_owned()));
        let since = known.silent[&Kind::Pools].since;
        assert!(!known.missed(Kind::Pools, "timed out".to_owned()));
        assert_eq!(known.silent[&Kind::Pools].since, since);
        assert_eq!(known.silent[&Kind::Pools].error, "timed out");
        assert!(known.heard(Kind::Pools));
        assert!(known.pools_again && known.silent.is_empty());
        assert!(!known.heard(Kind::Pools));
    }

    #[test]
    fn a_watch_that_expired_is_no_silence() {
        let status = |code| {
            let status = Status::failure("too old resource version", "Expired");
            status.with_code(code).boxed()
        };
        let mut known = Known::default();
        for error in [
            Error::WatchError(status(410)),
            Error::WatchStartFailed(kube::Error::Api(status(410))),
        ] {
            assert!(!known.error(Kind::Pods, &error), "{error}");
            assert!(known.silent.is_empty(), "{error}");
        }
        for error in [
            Error::WatchError(status(500)),
            // A list that is broken off says nothing of what it has left out.
            Error::InitialListFailed(kube::Error::Api(status(410))),
        ] {
            known.silent.clear();
            assert!(known.error(Kind::Pods, &error), "{error}");
            assert!(known.silent.contains_key(&Kind::Pods), "{error}");
        }
    }

    #[test]
    fn everything_is_lacking_at_first() {
        let mut known = Known::default();
        assert_eq!(known.lacking(), Kind::ALL);
        assert!(none_there(&mut known));
        assert!(!none_there(&mut known));
        assert!(!known.lacking().contains(&Kind::Services));
        assert!(known.world.services_unknown);
    }
}
