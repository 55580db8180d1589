//! The cluster's objects: nodes, namespaces, an EgressPool for each node, and its pods.
//!
//! Node 0 is this one. Each node has an egress address of its own, as one node uses an address at a
//! time; the other nodes' are claimed.

use std::net::Ipv4Addr;

use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, from_value, json};

use super::scale::Scale;
use crate::api_server::{manifests, patch_status};

/// Requests under way at once.
const PARALLEL: usize = 32;
const NAMESPACES: usize = 20;

/// Makes all of them.
pub async fn create(client: &Client, scale: &Scale) -> Result<()> {
    manifests(client).await?;
    for number in 0..NAMESPACES {
        let metadata = json!({"name": namespace(number), "labels": {"egress": "office"}});
        let namespaces = Api::<Namespace>::all(client.clone());
        let object = from_value(json!({"metadata": metadata}))?;
        namespaces.create(&PostParams::default(), &object).await?;
    }
    let all = stream::iter((0..scale.nodes).map(Ok));
    all.try_for_each_concurrent(PARALLEL, |node| create_node(client, node))
        .await?;
    let pods = others(scale).chain((0..scale.own).map(|pod| (0, pod)));
    stream::iter(pods)
        .map(|(node, pod)| create_pod(client, node, pod))
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await
}

/// The other nodes' pods, evenly spread: node and number.
fn others(scale: &Scale) -> impl Iterator<Item = (usize, usize)> {
    let nodes = scale.nodes - 1;
    (0..scale.pods - scale.own).map(move |number| (1 + number % nodes, number / nodes))
}

async fn create_node(client: &Client, number: usize) -> Result<()> {
    let range = format!("10.244.{number}.0/24");
    let labels = json!({"kubernetes.io/hostname": node(number), "kubernetes.io/os": "linux"});
    let object = json!({
        "metadata": {"name": node(number), "labels": labels},
        "spec": {"podCIDRs": [range], "podCIDR": range},
    });
    let nodes = Api::<Node>::all(client.clone());
    let object = from_value(object)?;
    nodes.create(&PostParams::default(), &object).await?;
    let address = format!("192.0.2.{}", number + 1);
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
    patch_status(&nodes, &node(number), status).await?;
    create_pool(client, number).await
}

async fn create_pool(client: &Client, number: usize) -> Result<()> {
    let object = json!({
        "apiVersion": "natctl.io/v1alpha1", "kind": "EgressPool",
        "metadata": {"name": pool(number)},
        "spec": {
            "addresses": [egress(number)],
            "allowedNamespaces": {"matchLabels": {"egress": "office"}},
        },
    });
    let api = Api::all_with(client.clone(), &pools());
    let object = from_value::<DynamicObject>(object)?;
    api.create(&PostParams::default(), &object).await?;
    if number > 0 {
        let claim = json!({"status": claim(number, "")});
        patch_status(&api, &pool(number), claim).await?;
    }
    Ok(())
}

/// A running pod, with about as much in it as a small real one has.
async fn create_pod(client: &Client, on: usize, number: usize) -> Result<()> {
    let name = format!("{}-pod-{number}", node(on));
    let namespace = namespace(number);
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
    let object = from_value(json!({
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/name": "web", "app.kubernetes.io/part-of": "shop",
                "pod-template-hash": "6d5f7c9b8"},
            // Measured again and again: what a pod sent before must not go on by its old address.
            "annotations": {"natctl.io/egress-ip": pool(on), "natctl.io/cutover": "immediate"},
        },
        "spec": {
            "nodeName": node(on), "containers": [container("web"), container("sidecar")],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        },
    }))?;
    pods.create(&PostParams::default(), &object).await?;
    let address = pod_address(on, number).to_string();
    let status = status(&address);
    patch_status(&pods, &name, json!({"status": status})).await
}

fn container(name: &str) -> Value {
    let variable = |number: usize| json!({"name": format!("SETTING_{number}"), "value": "value"});
    let probe = json!({"httpGet": {"path": "/healthy", "port": 8080}, "periodSeconds": 10});
    json!({
        "name": name, "image": format!("registry.example/shop/{name}:1.2.3"),
        "args": ["--listen", ":8080", "--log", "json"],
        "env": (0..10).map(variable).collect::<Vec<_>>(),
        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
        "readinessProbe": probe, "livenessProbe": probe,
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    })
}

fn status(address: &str) -> Value {
    let time = "2025-11-21T02:00:00Z";
    let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let condition = |kind| json!({"type": kind, "status": "True", "lastTransitionTime": time});
    let container = |name| {
        json!({
            "name": name, "ready": true, "restartCount": 0, "image": name, "imageID": "sha256:0",
            "started": true, "state": {"running": {"startedAt": time}},
        })
    };
    json!({
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "startTime": time,
        "conditions": (conditions.map(condition)),
        "containerStatuses": (["web", "sidecar"].map(container)),
    })
}

/// What a node's agent writes of its claim.
pub fn claim(number: usize, renewed: &str) -> Value {
    json!({"slices": [{
        "address": egress(number), "first": 1024, "size": 64_512, "node": node(number),
        "renewed": renewed,
    }]})
}

/// A node's name.
pub fn node(number: usize) -> String {
    format!("node-{number}")
}

/// The name of a node's pool.
pub fn pool(number: usize) -> String {
    format!("pool-{number}")
}

/// The resource.
pub fn pools() -> ApiResource {
    let kind = GroupVersionKind::gvk("natctl.io", "v1alpha1", "EgressPool");
    ApiResource::from_gvk(&kind)
}

/// A pod of this node.
pub fn own_pod(pod: usize) -> String {
    format!("{}-pod-{pod}", node(0))
}

/// The namespace of the pod with this number.
pub fn namespace(pod: usize) -> String {
    format!("team-{}", pod % NAMESPACES)
}

/// A pod's address.
pub fn pod_address(node: usize, pod: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node as u8, 1 + pod as u8)
}

/// This node's egress address is on its link, the others' are elsewhere.
fn egress(node: usize) -> Ipv4Addr {
    match node {
        0 => crate::lab::EGRESS[0],
        number => Ipv4Addr::new(198, 18, 0, number as u8),
    }
}
