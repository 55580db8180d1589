//! The agent on a cluster, as a person gets it there: its image loaded, and the manifests of deploy/ applied as they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Node};
use crate::image::{self, Image};
use crate::process::eventually;

/// How long a node's agent may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the agent lives in a cluster.
pub const NAMESPACE: &str = "natctl-system";
/// The namespace of deploy/example.
pub const EXAMPLE: &str = "egress-example";
/// The image of deploy/example, which no cluster without a registry has.
const EXAMPLE_IMAGE: &str = "image: busybox:1";

/// Something in deploy/.
pub fn manifests(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name)
}

/// Installs the agent on every node and waits until it is ready there.
pub fn install(cluster: &Cluster) -> Result<()> {
    load(cluster, &image::agent()?)?;
    cluster.kubectl(&format!("apply -k {}", manifests("base").display()))?;
    wait(cluster)
}

/// Waits until every node's agent is ready, and of the newest kind.
pub fn wait(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&format!(
        "-n {NAMESPACE} rollout status daemonset/nat-agent --timeout=180s"
    ))?;
    // It may be taken for complete before every node has its pod.
    eventually(PATIENCE, "every node's agent", || {
        let line = "get daemonset nat-agent -o jsonpath={.status.numberReady}";
        let ready = cluster.kubectl(&format!("-n {NAMESPACE} {line}"))?;
        let nodes = cluster.nodes().count().to_string();
        ensure!(ready == nodes, "{ready} of {nodes} are ready");
        Ok(())
    })
}

/// Applies deploy/example and waits until its pods run.
pub fn apply_example(cluster: &Cluster) -> Result<()> {
    let built = cluster.kubectl(&format!("kustomize {}", manifests("example").display()))?;
    cluster.apply(&built.replace(EXAMPLE_IMAGE, &format!("image: {}", image::TOOLS)))?;
    cluster.kubectl(&format!(
        "-n {EXAMPLE} rollout status deployment/client --timeout=180s"
    ))?;
    Ok(())
}

/// The name of a node's agent pod.
pub fn agent_on(cluster: &Cluster, node: &Node<'_>) -> Result<String> {
    cluster
        .kubectl(&format!(
            "-n {NAMESPACE} get pods -l app.kubernetes.io/name=nat-agent \
             --field-selector spec.nodeName={},status.phase=Running \
             -o jsonpath={{.items[0].metadata.name}}",
            node.name()
        ))
        .with_context(|| format!("the agent of {}", node.name()))
}

/// Has every node's agent replaced by another image's, one after the other, as an upgrade does.
pub fn upgrade(cluster: &Cluster) -> Result<()> {
    let mut image = image::agent()?;
    image.reference.push_str("-next");
    load(cluster, &image)?;
    let reference = &image.reference;
    cluster.kubectl(&format!(
        "-n {NAMESPACE} set image daemonset/nat-agent *={reference}"
    ))?;
    wait(cluster)
}

/// Removes what [`install`] applied, and waits until it is gone.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    let base = manifests("base");
    cluster.kubectl(&format!("delete -k {} --timeout=180s", base.display()))?;
    Ok(())
}

fn load(cluster: &Cluster, image: &Image) -> Result<()> {
    let archive = std::env::temp_dir().join(format!("nat-agent-{}.tar", std::process::id()));
    image.write(&archive)?;
    let loaded = cluster.load_image(&archive);
    fs::remove_file(&archive)?;
    loaded
}
