//! The DaemonSet that the agent's own pod belongs to. When that is deleted, natctl is being uninstalled, and the agent
//! takes everything off its node before it goes; when only the pod is, everything stays for the next one.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result};
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Namespace};
use kube::{
    Api, Client, Resource,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

/// How long the news of the end may take when the pod was told to end before: namespace and DaemonSet are deleted at
/// about the same time as the pods.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

/// A DaemonSet by its namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The namespace.
    pub namespace: String,
    /// The name in it.
    pub name: String,
}

impl std::str::FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (namespace, name) = text
            .split_once('/')
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty())
            .context("write it as NAMESPACE/NAME")?;
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

#[derive(Debug, Default)]
struct End {
    deleted: AtomicBool,
    told: Notify,
}

/// Follows the DaemonSet and its namespace, until dropped.
#[derive(Debug)]
pub struct Home {
    end: Arc<End>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Home {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Home {
    /// Begins to follow. Call within a tokio runtime.
    pub fn follow(client: &Client, name: &Name) -> Self {
        let end = Arc::new(End::default());
        let daemon_sets = Api::<DaemonSet>::namespaced(client.clone(), &name.namespace);
        let namespaces = Api::<Namespace>::all(client.clone());
        Self {
            tasks: [
                tokio::spawn(watch(daemon_sets, name.name.clone(), end.clone())),
                tokio::spawn(watch(namespaces, name.namespace.clone(), end.clone())),
            ],
            end,
        }
    }

    /// Whether natctl is being uninstalled.
    pub async fn is_deleted(&self) -> bool {
        let deleted = || self.end.deleted.load(Ordering::Relaxed);
        deleted() || timeout(PATIENCE, self.end.told.notified()).await.is_ok() || deleted()
    }
}

/// Notes when the object is deleted. One that was never seen is not taken for deleted: the name may be wrong.
async fn watch<K>(api: Api<K>, name: String, end: Arc<End>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let states = watcher::watch_object(api, &name).default_backoff();
    pin_mut!(states);
    let mut seen = false;
    while let Some(state) = states.next().await {
        let Ok(object) = state else { continue };
        seen |= object.is_some();
        let leaving = object.is_none_or(|object| object.meta().deletion_timestamp.is_some());
        if seen && leaving {
            end.deleted.store(true, Ordering::Relaxed);
            end.told.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_two_parts() {
        let name: Name = "natctl-system/nat-agent".parse().unwrap();
        assert_eq!(name.namespace, "natctl-system");
        assert_eq!(name.name, "nat-agent");
        for text in ["", "nat-agent", "/nat-agent", "natctl-system/"] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }
}
