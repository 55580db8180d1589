//! `EgressPool`: the custom resource, as the API server knows it.
//!
//! The specification's fields are those of an entry of `pools` in the configuration file, and are
//! read by the same rules ([`crate::config::pool`]). The schema refuses what it can where it is
//! written; what it cannot know, the agents refuse in the condition [`ACCEPTED`].

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector},
};
use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The condition that says whether a pool can be used.
pub const ACCEPTED: &str = "Accepted";

/// An address or a network, as the schema sees it: its digits are the agents' to check.
const NETWORK: &str = r"^[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{1,2})?$";
/// An address, a network, or a range.
const RANGE: &str = r"^[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]{1,2}| ?- ?[0-9]{1,3}(\.[0-9]{1,3}){3})?$";
/// A time with its unit.
const TIME: &str = r"^([0-9]+ ?(ms|s|m|h|d) ?)+$";

/// Egress addresses, who may use them, and how they are shared.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "natctl.io",
    version = "v1alpha1",
    kind = "EgressPool",
    status = "EgressPoolStatus",
    category = "natctl",
    doc = "Egress addresses, who may use them, and how they are shared.",
    derive = "PartialEq",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].reason"
    ),
    printcolumn(
        name = "Nodes",
        type_ = "string",
        json_path = ".status.nodes",
        description = "Nodes that use its addresses now"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 63").message(
        "a pool's name has at most 63 characters"
    ),
    validation = Rule::new("self.metadata.name != 'none' && !self.metadata.name.matches('^[0-9.]+$')").message(
        "a pool must not be called none, nor like an address: the annotation could not name it"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!has(self.mapping) || self.mapping == 'endpointIndependent'"
    ).message("only mapping: endpointIndependent is supported yet; leave the field out"),
    validation = Rule::new(
        "!has(self.filtering) || self.filtering == 'addressAndPortDependent'"
    ).message("only filtering: addressAndPortDependent is supported yet; leave the field out"),
    validation = Rule::new(
        "(has(self.portsPerClient) ? self.portsPerClient : 4096) <= (has(self.blockSize) ? self.blockSize : 64) || (has(self.portsPerClient) ? self.portsPerClient : 4096) % (has(self.blockSize) ? self.blockSize : 64) == 0"
    ).message("portsPerClient must be a multiple of blockSize (64 if it is left out), or less than it"),
    validation = Rule::new(
        "(has(self.portsPerClient) ? self.portsPerClient : 4096) <= 1024 * (has(self.blockSize) ? self.blockSize : 64)"
    ).message("a client has at most 1024 blocks: lower portsPerClient, or raise blockSize"),
    validation = Rule::new(
        "!has(self.exclude) || self.exclude.all(net, !net.endsWith('/0'))"
    ).message("exclude must not hold every destination: nothing would be translated")
)]
pub struct EgressPoolSpec {
    /// The egress addresses: single ones, networks (203.0.113.16/29) or ranges
    /// (203.0.113.32-203.0.113.40). No address may be in two pools, nor within the cluster.
    #[schemars(length(min = 1, max = 256), inner(length(max = 34), regex(pattern = RANGE)))]
    pub addresses: Vec<String>,
    /// The namespaces whose pods may use the addresses, by their labels. Left out: none. `{}`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_namespaces: Option<LabelSelector>,
    /// The nodes whose pods may use the addresses, by their labels. Left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// What becomes of a pod that asks for the pool or one of its addresses, may not use it, and has
    /// no other address to keep: block what it sends to destinations that are translated, or let it
    /// pass as if it did not ask (block).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// The only destinations that are translated; others are sent on with the pod's own address.
    /// Left out: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 18), regex(pattern = NETWORK)))]
    pub include: Vec<String>,
    /// Destinations that are sent on with the pod's own address. The cluster's own ranges always are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 18), regex(pattern = NETWORK)))]
    pub exclude: Vec<String>,
    /// The most external ports that a pod holds at a time, of each of TCP, UDP and ICMP echo (4096).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64512))]
    pub ports_per_client: Option<u32>,
    /// Ports are given to pods in blocks of this many (64).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub block_size: Option<u8>,
    /// The most mappings that a pod may make in a second, of all protocols together. Left out: any
    /// number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64512))]
    pub mappings_per_second: Option<u32>,
    /// How long a freed port is not used again (120s).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = TIME))]
    pub rest: Option<String>,
    /// The way of the pods' packets: stack, through netfilter, so that policies stay in force; or
    /// direct, past it, and faster (stack).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Path>,
    /// When an idle session ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timers: Option<Timers>,
    /// Which external port an internal one gets (RFC 4787 section 4.1). Only endpointIndependent is
    /// supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<Behaviour>,
    /// Whose packets are let in through a mapping (RFC 4787 section 5). Only
    /// addressAndPortDependent is supported yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filtering: Option<Behaviour>,
}

/// What becomes of a pod that may not use the pool: it is blocked toward destinations that are
/// translated (the default), or its packets pass as the node sends them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Refused {
    /// Blocked.
    #[default]
    Block,
    /// Left alone.
    Pass,
}

/// The way of the pods' packets: stack, through netfilter, so that policies stay in force (the
/// default); or direct, past it, and faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Path {
    /// Forwarded by the kernel.
    Stack,
    /// Sent on from the pod's veth.
    Direct,
}

/// What it depends on, as RFC 4787 has it. Supported yet are endpointIndependent for mapping, and
/// addressAndPortDependent for filtering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Behaviour {
    /// Not on the other side.
    EndpointIndependent,
    /// On the other side's address.
    AddressDependent,
    /// On the other side's address and port.
    AddressAndPortDependent,
}

/// When an idle session ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timers {
    /// An open TCP connection (7440s).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = TIME))]
    pub tcp_established: Option<String>,
    /// A TCP connection that is half open, closing or reset (240s).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = TIME))]
    pub tcp_transitory: Option<String>,
    /// A UDP mapping (300s).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = TIME))]
    pub udp: Option<String>,
    /// A ping (60s).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = TIME))]
    pub icmp: Option<String>,
}

/// What the agents say of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressPoolStatus {
    /// Whether the pool can be used, and why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map"))]
    #[schemars(extend("x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Which node uses which ports of which address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map"))]
    #[schemars(extend("x-kubernetes-list-map-keys" = ["address", "first"]))]
    pub slices: Vec<SliceClaim>,
    /// The nodes that hold any of them: a column of kubectl's shows no more than one value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub nodes: Vec<String>,
}

/// A node's claim to a slice: it alone opens sessions from these ports, until it gives the slice up,
/// or does not renew the claim and another node takes it over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SliceClaim {
    /// The egress address.
    pub address: String,
    /// The slice's first port.
    pub first: u32,
    /// How many ports it has.
    pub size: u32,
    /// The node that holds it.
    pub node: String,
    /// When the node last renewed the claim, by its own clock. Others watch it change, and never
    /// compare it with theirs.
    pub renewed: String,
}

/// The custom resources' definitions as YAML: what deploy/ holds, and `nat-agent crds` prints.
///
/// # Panics
/// Never: the definition is plain values.
pub fn crds() -> String {
    let definition: CustomResourceDefinition = EgressPool::crd();
    let mut value = serde_json::to_value(definition).unwrap_or_default();
    prune(&mut value);
    serde_saphyr::to_string(&value).unwrap_or_default()
}

/// Number formats that the API server does not know make it warn at every apply.
fn prune(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            let unknown = |format: &serde_json::Value| {
                format
                    .as_str()
                    .is_some_and(|format| format.starts_with("uint"))
            };
            if fields.get("format").is_some_and(unknown) {
                fields.remove("format");
            }
            fields.values_mut().for_each(prune);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deploy_has_this_definition() {
        let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy");
        for name in ["base/crds.yaml", "helm/crds.yaml"] {
            let path = format!("{deploy}/{name}");
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, crds()).unwrap();
            }
            let committed = std::fs::read_to_string(&path).unwrap();
            assert_eq!(
                committed,
                crds(),
                "deploy/{name} differs (UPDATE_GOLDEN=1 writes it anew, as `nat-agent crds` does)"
            );
        }
    }

    /// Every object of the schema says its type, and nothing in it is of a kind that CRDs lack.
    #[test]
    fn the_schema_is_structural() {
        let value = serde_json::to_value(EgressPool::crd()).unwrap();
        let version = &value["spec"]["versions"][0];
        let schema = &version["schema"]["openAPIV3Schema"];
        assert_eq!(schema["type"], "object");
        assert!(version["subresources"]["status"].is_object());
        let text = schema.to_string();
        for word in ["$ref", "definitions", "\"additionalProperties\":false"] {
            assert!(!text.contains(word), "{word} in {text}");
        }
    }

    /// The schema's fields are the file's, but for those that only Kubernetes has.
    #[test]
    fn fields_have_the_files_names() {
        let value = serde_json::to_value(EgressPool::crd()).unwrap();
        let spec = &value["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let names: Vec<&str> = spec["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let own = super::super::spec::OWN;
        let known: Vec<&str> = crate::config::pool_fields()
            .filter(|name| *name != "name")
            .collect();
        for name in &names {
            assert!(
                own.contains(name) || known.contains(name),
                "{name} is neither"
            );
        }
        assert_eq!(names.len(), own.len() + known.len());
    }
}
