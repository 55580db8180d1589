//! When the API server says what it was told: a second client on the node that follows its pods.

use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Context, Result};
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::oneshot;

use super::NONE;
use super::objects;
use crate::api_server::{ADMIN, Server};
use crate::netns::Netns;
use crate::process::lock;
use crate::sys;

/// Events of pods that get their address again, in their order.
type Events = Arc<Mutex<Vec<(String, Instant)>>>;

/// A client that follows the same pods as the agent, on a thread of its own.
pub struct Delivery {
    events: Events,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Delivery {
    /// Starts in this namespace.
    pub fn follow(namespace: &Netns, server: &Server) -> Result<Self> {
        let events = Events::default();
        let (stop, stopped) = oneshot::channel();
        let file = std::fs::File::open(namespace.path())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = runtime.block_on(async { server.client(ADMIN) })?;
        let notes = events.clone();
        let thread = thread::spawn(move || {
            if sys::enter_netns(&file).is_err() {
                return;
            }
            runtime.block_on(async {
                tokio::select! {
                    () = follow(Api::all(client), &notes) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            events,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// When a pod's event came, of those after this moment.
    pub fn since(&self, pod: usize, began: Instant) -> Result<Instant> {
        let name = objects::own_pod(pod);
        let events = lock(&self.events);
        let mut after = events
            .iter()
            .filter(|(pod, time)| *pod == name && *time > began);
        after.next().map(|(_, time)| *time).context("none came")
    }
}

async fn follow(pods: Api<Pod>, events: &Events) {
    let own = Config::default().fields(&format!("spec.nodeName={}", objects::node(0)));
    let following = watcher(pods, own);
    pin_mut!(following);
    while let Some(event) = following.next().await {
        let Ok(Event::Apply(pod)) = event else {
            continue;
        };
        let wish = pod.annotations().get("natctl.io/egress-ip");
        if wish.is_some_and(|wish| wish != NONE) {
            lock(events).push((pod.name_any(), Instant::now()));
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        drop(self.stop.take());
        // It does not panic.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
