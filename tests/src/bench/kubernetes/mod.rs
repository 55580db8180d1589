//! The agent in a large cluster: a real API server with the objects of many nodes and pods, and the
//! real agent of one of them, whose pods have veths, programs and packets.
//!
//! ```text
//! scale      how large
//! objects    the cluster's objects
//! node       this node: namespaces, a veth for each pod
//! pods       sockets that send as pods
//! outside    who sent what arrives outside, and when
//! delivery   when the API server says what it was told
//! renewals   what the other nodes' agents write
//! agent      the agent: its start, its end
//! usage      what it takes of memory and processor
//! figures    what came out
//! ```

mod agent;
mod delivery;
mod figures;
mod node;
mod objects;
mod outside;
mod pods;
mod renewals;
mod scale;
mod usage;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::runtime::Runtime;

use super::cpu;
use super::rounds::progress;
use crate::api_server::{ADMIN, AGENT, Request, Server};
use crate::lab::SERVER;
use crate::process::{check_interrupt, eventually};
use crate::{cluster, sys};
use agent::Agent;
use delivery::Delivery;
use figures::Measured;
use node::Node;
use outside::Outside;
use pods::Sockets;
use renewals::Renewals;
use usage::Usage;

pub use figures::{Figure, Report};
pub use scale::Scale;

const PATIENCE: Duration = Duration::from_secs(60);
/// The wish that takes a pod's egress address away.
const NONE: &str = "none";

/// Makes the cluster, measures, and removes everything.
pub fn run(scale: &Scale) -> Result<Report> {
    progress("making the node's pods");
    let node = Node::create(scale)?;
    // Everything that speaks to the API server does so from where it is.
    node.outside
        .enter(|| Bench::start(scale, &node)?.measure())?
}

/// Everything that is up. Dropped in this order.
struct Bench<'a> {
    scale: &'a Scale,
    agent: Agent,
    outside: Outside,
    sockets: Sockets,
    delivery: Delivery,
    client: Client,
    server: Server,
    runtime: Runtime,
}

impl<'a> Bench<'a> {
    fn start(scale: &'a Scale, node: &Node) -> Result<Self> {
        let runtime = runtime(node)?;
        let inside = runtime.enter();
        progress("starting the API server");
        let mut server = Server::start_in(cluster::programs()?, &node.outside, SERVER)?;
        runtime.block_on(server.ready())?;
        let client = server.client(ADMIN)?;
        progress("making the cluster's objects");
        runtime.block_on(objects::create(&client, scale))?;
        drop(inside);
        Ok(Self {
            scale,
            agent: Agent::new(&node.node, &server.kubeconfig(AGENT)?)?,
            outside: Outside::listen(&node.outside, scale.own)?,
            sockets: Sockets::open(node, scale.own)?,
            delivery: Delivery::follow(&node.node, &server)?,
            client,
            server,
            runtime,
        })
    }

    fn measure(mut self) -> Result<Report> {
        let mut measured = Measured::default();
        cpu::settle()?;
        progress("starting the agent for the first time");
        measured.cold = self.cold_start()?;
        measured.started = self.requests()?;
        let renewals = Renewals::start(&self.runtime, &self.client, self.scale);
        progress("waiting until it is steady");
        pause(self.scale.steady)?;
        measured.memory = self.agent.memory()?;
        progress("leaving it alone");
        let before = self.server.requests()?.len();
        measured.idle = Some(self.idle()?);
        measured.idle_requests = self.requests_since(before)?;
        self.patches(&mut measured)?;
        measured.memory_after = self.agent.memory()?;
        drop(renewals);
        for number in 0..self.scale.restarts {
            progress("restarting it");
            measured.relists.push(self.restart(number)?);
        }
        progress("");
        Ok(measured.report(self.scale))
    }

    /// From the agent's start with nothing pinned until every pod's packets are translated.
    fn cold_start(&mut self) -> Result<Duration> {
        self.outside.forget();
        let all = self.sockets.all()?;
        let began = Instant::now();
        self.agent.start()?;
        eventually(PATIENCE, "all pods are served", || {
            self.outside.all_translated()
        })
        .with_context(|| self.agent.log())?;
        drop(all);
        Ok(self.outside.last_translated()?.duration_since(began))
    }

    /// The part of a processor that the agent and what it runs take.
    fn idle(&self) -> Result<Usage> {
        let before = self.agent.usage()?;
        pause(self.scale.idle)?;
        Ok(self.agent.usage()?.since(&before))
    }

    fn requests(&self) -> Result<BTreeMap<Request, usize>> {
        let mut counts = BTreeMap::new();
        for request in self.server.requests()? {
            *counts.entry(request).or_default() += 1;
        }
        Ok(counts)
    }

    fn requests_since(&self, before: usize) -> Result<usize> {
        Ok(self.server.requests()?.len() - before)
    }

    /// Pods lose their egress address and get it again, one after another.
    fn patches(&self, measured: &mut Measured) -> Result<()> {
        for number in 0..self.scale.patches {
            check_interrupt()?;
            progress(&format!("patch {} of {}", number + 1, self.scale.patches));
            // All pods in an order that jumps about: 97 divides no number of pods that is used here.
            let pod = number * 97 % self.scale.own;
            let (delivered, served) = self.patch(pod, number)?;
            measured.delivered.push(delivered);
            measured.served.push(served);
        }
        Ok(())
    }

    /// How long it takes from the patch to the event, and to the first translated packet.
    fn patch(&self, pod: usize, number: usize) -> Result<(Duration, Duration)> {
        let sending = self.sockets.one(pod)?;
        self.outside.forget();
        self.annotate(pod, NONE)?;
        eventually(PATIENCE, "the pod's packets leave as they are", || {
            self.outside.untranslated(pod)
        })?;
        // Not always in the same phase of what the agent does by the clock.
        thread::sleep(Duration::from_millis(50 + number as u64 * 37 % 100));
        self.outside.forget();
        let began = Instant::now();
        self.annotate(pod, &objects::pool(0))?;
        let served = eventually(PATIENCE, "the pod is served", || {
            self.outside.translated(pod)
        })
        .with_context(|| self.agent.log())?;
        let delivered = eventually(PATIENCE, "the event came", || {
            self.delivery.since(pod, began)
        })?;
        drop(sending);
        Ok((
            delivered.duration_since(began),
            served.duration_since(began),
        ))
    }

    fn annotate(&self, pod: usize, wish: &str) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &objects::namespace(pod));
        let patch = json!({"metadata": {"annotations": {"natctl.io/egress-ip": wish}}});
        let name = objects::own_pod(pod);
        let patch = Patch::Merge(patch);
        let parameters = PatchParams::default();
        let patched = pods.patch(&name, &parameters, &patch);
        self.runtime.block_on(patched)?;
        Ok(())
    }

    /// From the agent's start with everything pinned until a change applies that it has missed: by
    /// then it has listed and compared everything.
    fn restart(&mut self, number: usize) -> Result<Duration> {
        let pod = number % self.scale.own;
        let sending = self.sockets.one(pod)?;
        self.agent.kill()?;
        self.annotate(pod, NONE)?;
        self.outside.forget();
        let began = Instant::now();
        self.agent.start()?;
        let applied = eventually(PATIENCE, "the change applies", || {
            self.outside.untranslated(pod)
        })
        .with_context(|| self.agent.log())?;
        self.annotate(pod, &objects::pool(0))?;
        eventually(PATIENCE, "the pod is served again", || {
            self.outside.translated(pod)
        })?;
        drop(sending);
        Ok(applied.duration_since(began))
    }
}

/// Its threads are outside, where the API server is.
fn runtime(node: &Node) -> Result<Runtime> {
    let path = node.outside.path();
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(move || {
            let entered = std::fs::File::open(&path).and_then(|file| sys::enter_netns(&file));
            // Requests of a thread that is elsewhere fail, and say so.
            let _ = entered;
        })
        .build()?)
}

fn pause(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        check_interrupt()?;
        thread::sleep(Duration::from_millis(100).min(time));
    }
    Ok(())
}
