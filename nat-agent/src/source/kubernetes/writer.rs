//! What the agent writes to the API: claims, conditions, Events. One batch at a time; what fails is
//! worked out anew from what is known then.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tracing::{debug, info, warn};

use super::{claims, condition, pool::EgressPool, watch::Shared};

/// Who writes, for the fields' owners and the Events.
const WRITER: &str = "natctl";
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is to be said of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// In a word.
    pub reason: &'static str,
    /// In a sentence.
    pub note: String,
    /// Somebody has to do something.
    pub warning: bool,
}

/// What is to be written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Claims, each only if its pool is as it was.
    pub claims: Vec<claims::Change>,
    /// Conditions.
    pub conditions: Vec<condition::Change>,
    /// Events.
    pub told: Vec<Told>,
}

impl Batch {
    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.conditions.is_empty() && self.told.is_empty()
    }
}

/// Takes batches.
pub struct Writer {
    batches: mpsc::Sender<Batch>,
    task: JoinHandle<()>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Writer {
    /// Starts. Call within a tokio runtime.
    pub fn start(client: Client, node: &str, shared: Shared) -> Self {
        let (batches, mut receiver) = mpsc::channel(1);
        let reporter = Reporter {
            controller: WRITER.to_owned(),
            instance: Some(node.to_owned()),
        };
        let task = tokio::spawn(async move {
            let pools = Api::all(client.clone());
            while let Some(batch) = receiver.recv().await {
                write(&client, &pools, &reporter, batch).await;
                // What was not taken meanwhile is offered again.
                shared.wake();
            }
        });
        Self { batches, task }
    }

    /// Hands a batch over; false while the one before is being written.
    pub fn offer(&self, batch: Batch) -> bool {
        self.batches.try_send(batch).is_ok()
    }
}

async fn write(client: &Client, pools: &Api<EgressPool>, reporter: &Reporter, batch: Batch) {
    for change in &batch.claims {
        report(
            "claim",
            &change.pool,
            timeout(PATIENCE, claim(pools, change)).await,
        );
    }
    for change in &batch.conditions {
        let written = timeout(PATIENCE, set_condition(pools, change)).await;
        report("condition", &change.pool, written);
    }
    for told in &batch.told {
        let written = timeout(PATIENCE, tell(client, reporter, told)).await;
        report("event", &told.name, written);
    }
}

type Written = Result<Result<(), kube::Error>, tokio::time::error::Elapsed>;

fn report(what: &str, whose: &str, written: Written) {
    match written {
        Ok(Ok(())) => {}
        // Somebody else was faster: what is to be done is worked out anew from what that was.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
            debug!("{what} of {whose}: {}", status.message);
        }
        Ok(Err(error)) => warn!("{what} of {whose}: {error}"),
        Err(_) => warn!("{what} of {whose}: no answer in {} s", PATIENCE.as_secs()),
    }
}

/// Writes all of a pool's claims, if the pool is as it was.
///
/// # Errors
///
/// The API server's; 409 if the pool has changed.
pub async fn claim(pools: &Api<EgressPool>, change: &claims::Change) -> Result<(), kube::Error> {
    let nodes: BTreeSet<&str> = change.slices.iter().map(|claim| &*claim.node).collect();
    let patch = json!({
        "metadata": {"resourceVersion": change.version},
        "status": {"slices": change.slices, "nodes": nodes},
    });
    let parameters = PatchParams {
        field_manager: Some(format!("{WRITER}-claims")),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(patch);
    pools
        .patch_status(&change.pool, &parameters, &patch)
        .await?;
    info!(pool = change.pool, "claims written");
    Ok(())
}

/// Writes a pool's condition, whoever wrote it before.
///
/// # Errors
///
/// The API server's.
pub async fn set_condition(
    pools: &Api<EgressPool>,
    change: &condition::Change,
) -> Result<(), kube::Error> {
    let patch = json!({
        "apiVersion": "natctl.io/v1alpha1",
        "kind": "EgressPool",
        "metadata": {"name": change.pool},
        "status": {"conditions": [change.condition]},
    });
    let parameters = PatchParams::apply(WRITER).force();
    let patch = Patch::Apply(patch);
    pools
        .patch_status(&change.pool, &parameters, &patch)
        .await?;
    Ok(())
}

async fn tell(client: &Client, reporter: &Reporter, told: &Told) -> Result<(), kube::Error> {
    // A recorder of its own: one that is kept takes a second note for the first one again.
    let recorder = Recorder::new(client.clone(), reporter.clone());
    let event = Event {
        type_: if told.warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: told.reason.to_owned(),
        note: Some(told.note.clone()),
        action: "Translate".to_owned(),
        secondary: None,
    };
    let pod = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(told.namespace.clone()),
        name: Some(told.name.clone()),
        uid: Some(told.uid.clone()),
        ..ObjectReference::default()
    };
    recorder.publish(&event, &pod).await
}
