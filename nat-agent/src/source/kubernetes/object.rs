//! What is kept of the API's objects: the little that is used. Nodes and pods are large, and most of
//! their changes are of no interest here.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use k8s_openapi::api::{core::v1 as core, networking::v1::ServiceCIDR};
use kube::{
    ResourceExt,
    core::{DynamicObject, ObjectMeta},
};

use super::{annotation, pool::EgressPoolStatus};

/// The kubelet's annotation of the object that shows a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Tells it from another of its name.
    pub uid: String,
    /// When it was made, Unix seconds.
    pub created: i64,
    /// It is being deleted: its address may be another's already.
    pub leaving: bool,
    /// It has the node's network namespace, and so the node's addresses.
    pub host_network: bool,
    /// All its containers have ended: its address may be another's already.
    pub finished: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its annotation.
    pub wish: Option<String>,
    /// The uid by which the node knows a static pod, of which this object is a picture.
    pub static_uid: Option<String>,
    /// What it says should become of its flows.
    pub cutover: Option<String>,
    /// What the CNI plugin has said of it that the API does not show yet.
    pub arrival: Option<Arrival>,
}

/// What the CNI plugin says of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// Of two pods with one address it is the later one's.
    pub order: u64,
    /// Numbers of the node's links that were made or used for it.
    pub links: Vec<u32>,
}

impl Pod {
    /// `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its IPv4 address.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        })
    }

    /// Whether the node means this pod by its name and this uid. Some runtimes do not tell it.
    pub fn is_known_as(&self, uid: Option<&str>) -> bool {
        let own = [Some(self.uid.as_str()), self.static_uid.as_deref()];
        match uid {
            Some(uid) => own.contains(&Some(uid)),
            None => !self.leaving,
        }
    }
}

impl From<&core::Pod> for Pod {
    fn from(pod: &core::Pod) -> Self {
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let phase = status.and_then(|status| status.phase.as_deref());
        let several = status.and_then(|status| status.pod_ips.as_ref());
        let mut addresses: Vec<IpAddr> = several
            .into_iter()
            .flatten()
            .filter_map(|address| address.ip.parse().ok())
            .collect();
        if addresses.is_empty() {
            let one = status.and_then(|status| status.pod_ip.as_ref());
            addresses.extend(one.and_then(|address| address.parse::<IpAddr>().ok()));
        }
        Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            created: created(&pod.metadata),
            leaving: pod.metadata.deletion_timestamp.is_some(),
            host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            addresses,
            wish: pod.annotations().get(annotation::KEY).cloned(),
            static_uid: pod.annotations().get(MIRROR).cloned(),
            arrival: None,
            cutover: pod.annotations().get(annotation::CUTOVER).cloned(),
        }
    }
}

/// A namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels, which pools select it by.
    pub labels: Labels,
    /// Its annotation: the default of its pods.
    pub wish: Option<String>,
    /// What should become of its pods' flows, likewise.
    pub cutover: Option<String>,
}

impl From<&core::Namespace> for Namespace {
    fn from(namespace: &core::Namespace) -> Self {
        Self {
            labels: namespace.labels().clone(),
            wish: namespace.annotations().get(annotation::KEY).cloned(),
            cutover: namespace.annotations().get(annotation::CUTOVER).cloned(),
        }
    }
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its labels, which pools select it by.
    pub labels: Labels,
    /// Its pods' ranges.
    pub pods: Vec<IpNet>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
}

impl From<&core::Node> for Node {
    fn from(node: &core::Node) -> Self {
        let spec = node.spec.as_ref();
        let one = spec.and_then(|spec| spec.pod_cidr.as_ref());
        let several = spec.and_then(|spec| spec.pod_cidrs.as_ref());
        let mut pods: Vec<IpNet> = several
            .into_iter()
            .flatten()
            .chain(one)
            .filter_map(|text| text.parse().ok())
            .collect();
        pods.sort();
        pods.dedup();
        let status = node.status.as_ref();
        let addresses = status.and_then(|status| status.addresses.as_ref());
        Self {
            labels: node.labels().clone(),
            pods,
            addresses: addresses
                .into_iter()
                .flatten()
                .filter_map(|address| address.address.parse().ok())
                .collect(),
        }
    }
}

/// The ranges of a ServiceCIDR.
pub fn service_ranges(range: &ServiceCIDR) -> Vec<IpNet> {
    let texts = range.spec.as_ref().and_then(|spec| spec.cidrs.as_ref());
    let texts = texts.into_iter().flatten();
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// An EgressPool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pool {
    /// When it was made, Unix seconds: of two that overlap the older one stays.
    pub created: i64,
    /// Tells it from another of its name.
    pub uid: String,
    /// Counts changes of the specification.
    pub generation: i64,
    /// Of the object; what is written must be based on the newest.
    pub version: String,
    /// As it stands there: what cannot be read is refused, not overlooked.
    pub spec: serde_json::Value,
    /// What the agents have said so far; what cannot be read of it counts as nothing.
    pub status: EgressPoolStatus,
}

impl From<&DynamicObject> for Pool {
    fn from(pool: &DynamicObject) -> Self {
        let field = |name: &str| pool.data.get(name).cloned().unwrap_or_default();
        Self {
            created: created(&pool.metadata),
            uid: pool.uid().unwrap_or_default(),
            generation: pool.metadata.generation.unwrap_or_default(),
            version: pool.resource_version().unwrap_or_default(),
            spec: field("spec"),
            status: serde_json::from_value(field("status")).unwrap_or_default(),
        }
    }
}

fn created(metadata: &ObjectMeta) -> i64 {
    let time = metadata.creation_timestamp.as_ref();
    time.map_or(0, |time| time.0.as_second())
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn a_pod() {
        let pod: core::Pod = from_value(json!({
            "metadata": {"namespace": "shop", "name": "web-0", "uid": "u", "creationTimestamp":
                "2025-11-21T02:00:00Z", "annotations": {"natctl.io/egress-ip": "office"}},
            "spec": {"containers": [], "hostNetwork": false},
            "status": {"phase": "Running", "podIP": "fd00::7",
                "podIPs": [{"ip": "fd00::7"}, {"ip": "10.244.1.7"}]}
        }))
        .unwrap();
        let pod = Pod::from(&pod);
        assert_eq!(pod.path(), "shop/web-0");
        assert_eq!(pod.address(), Some(Ipv4Addr::new(10, 244, 1, 7)));
        assert_eq!(pod.addresses.len(), 2);
        assert_eq!(pod.wish.as_deref(), Some("office"));
        assert!(!pod.finished && !pod.leaving && !pod.host_network);
        assert_eq!(pod.created, 1_763_690_400);
    }

    #[test]
    fn an_older_servers_pod_has_one_address() {
        let pod: core::Pod = from_value(json!({
            "metadata": {"deletionTimestamp": "2025-11-21T02:00:00Z"},
            "spec": {"containers": [], "hostNetwork": true},
            "status": {"phase": "Failed", "podIP": "10.244.1.7"}
        }))
        .unwrap();
        let pod = Pod::from(&pod);
        assert_eq!(pod.address(), Some(Ipv4Addr::new(10, 244, 1, 7)));
        assert!(pod.finished && pod.leaving && pod.host_network);
    }

    #[test]
    fn a_static_pod_has_another_uid_on_its_node() {
        let pod: core::Pod = from_value(json!({
            "metadata": {"name": "web-n1", "uid": "u",
                "annotations": {"kubernetes.io/config.mirror": "hash"}},
        }))
        .unwrap();
        let mut pod = Pod::from(&pod);
        assert!(pod.is_known_as(Some("hash")) && pod.is_known_as(Some("u")));
        assert!(!pod.is_known_as(Some("other")) && pod.is_known_as(None));
        pod.leaving = true;
        assert!(!pod.is_known_as(None), "its successor is meant");
    }

    #[test]
    fn a_nodes_ranges_and_addresses() {
        let node: core::Node = from_value(json!({
            "metadata": {"name": "n1"},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.0.2.11"}, {"type": "Hostname", "address": "n1"}
            ]}
        }))
        .unwrap();
        let node = Node::from(&node);
        assert_eq!(node.pods.len(), 2);
        assert_eq!(node.addresses, [IpAddr::from([192, 0, 2, 11])]);
    }

    #[test]
    fn a_pool_of_another_version_is_still_a_pool() {
        let pool: DynamicObject = from_value(json!({
            "apiVersion": "natctl.io/v1alpha1", "kind": "EgressPool",
            "metadata": {"name": "office", "generation": 3, "resourceVersion": "7"},
            "spec": {"addresses": 5}, "status": {"slices": "none"}
        }))
        .unwrap();
        let pool = Pool::from(&pool);
        assert_eq!((pool.generation, pool.version.as_str()), (3, "7"));
        assert_eq!(pool.spec, json!({"addresses": 5}));
        assert_eq!(pool.status, EgressPoolStatus::default());
    }
}
