//! Objects, and the manifests of deploy/, on an API server.

use std::{fmt::Debug, fs, time::Duration};

use anyhow::{Context, Result, bail};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, ListParams, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
    discovery,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use crate::deploy;

const PATIENCE: Duration = Duration::from_secs(30);

/// Tries until it succeeds; in the end fails with the last error.
pub async fn eventually(what: &str, mut attempt: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    let mut last = None;
    let all = async {
        while let Err(error) = attempt().await {
            last = Some(error);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    match timeout(PATIENCE, all).await {
        Ok(()) => Ok(()),
        Err(_) => bail!("{what}: {:#}", last.context("no attempt ended")?),
    }
}

/// Applies an object, whoever owns its fields.
pub async fn apply(client: &Client, object: Value) -> Result<()> {
    let object: DynamicObject = serde_json::from_value(object)?;
    let types = object.types.clone().context("an object without a kind")?;
    let kind = GroupVersionKind::try_from(&types)?;
    let (resource, capabilities) = discovery::pinned_kind(client, &kind).await?;
    let api: Api<DynamicObject> = match capabilities.scope {
        discovery::Scope::Namespaced => {
            // As the kustomization of deploy/ has it.
            let namespace = object.namespace();
            let namespace = namespace.unwrap_or_else(|| deploy::NAMESPACE.to_owned());
            Api::namespaced_with(client.clone(), &namespace, &resource)
        }
        discovery::Scope::Cluster => Api::all_with(client.clone(), &resource),
    };
    let parameters = PatchParams::apply("test").force();
    let name = object.name_any();
    api.patch(&name, &parameters, &Patch::Apply(&object))
        .await?;
    Ok(())
}

/// Merges into an object's status.
pub async fn patch_status<K>(api: &Api<K>, name: &str, status: Value) -> Result<()>
where
    K: Clone + Debug + DeserializeOwned,
{
    let patch = Patch::Merge(status);
    api.patch_status(name, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

/// Applies deploy's custom resources and role, and waits until they are served.
pub async fn manifests(client: &Client) -> Result<()> {
    for file in ["namespace.yaml", "crds.yaml", "rbac.yaml", "account.yaml"] {
        let text = fs::read_to_string(deploy::manifests("base").join(file))?;
        for object in serde_saphyr::from_multiple::<Value>(&text)? {
            apply(client, object).await?;
        }
    }
    let kind = GroupVersionKind::gvk("natctl.io", "v1alpha1", "EgressPool");
    let resource = ApiResource::from_gvk(&kind);
    let pools = Api::<DynamicObject>::all_with(client.clone(), &resource);
    eventually("the definition is served", async || {
        Ok(pools.list(&ListParams::default()).await.map(drop)?)
    })
    .await
}
