//! What the other nodes' agents write all the time: each renews the claim to its egress address.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval_at};

use super::objects;
use super::scale::Scale;

/// As the agents do it.
const EVERY: Duration = Duration::from_secs(20);

/// Renews while the value lives.
pub struct Renewals(Vec<JoinHandle<()>>);

impl Renewals {
    /// One after another, evenly spread.
    pub fn start(runtime: &Runtime, client: &Client, scale: &Scale) -> Self {
        let others = 1..scale.nodes;
        let begin = |node| {
            let first = Instant::now() + EVERY * node as u32 / scale.nodes as u32;
            runtime.spawn(renew(client.clone(), node, first))
        };
        Self(others.map(begin).collect())
    }
}

impl Drop for Renewals {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn renew(client: Client, node: usize, first: Instant) {
    let pools = Api::all_with(client, &objects::pools());
    let mut ticks = interval_at(first, EVERY);
    loop {
        ticks.tick().await;
        let status = objects::claim(node, &Timestamp::now().to_string());
        // One that fails is made up for by the next.
        let _: Result<kube::core::DynamicObject, _> = pools
            .patch_status(
                &objects::pool(node),
                &PatchParams::default(),
                &Patch::Merge(json!({"status": status})),
            )
            .await;
    }
}
