//! A pool's specification, read by the rules of the configuration file.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use serde_json::{Map, Value};

use super::pool::Refused;
use crate::{
    config::{self, Range},
    snapshot::Pool,
};

/// Fields of the specification that an entry of `pools` in the configuration file lacks.
pub(super) const OWN: [&str; 6] = [
    "allowedNamespaces",
    "nodeSelector",
    "refused",
    "include",
    "mapping",
    "filtering",
];
/// The most addresses of one pool: a node that looks for a free one looks at each.
const ADDRESSES: u128 = 4096;

/// A pool that can be used.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its settings; the addresses are left out.
    pub pool: Pool,
    /// Its addresses.
    pub ranges: Vec<Range>,
    /// The namespaces that may use it; `None` for no namespace.
    pub namespaces: Option<Selector>,
    /// The nodes that may use it; `None` for every node.
    pub nodes: Option<Selector>,
    /// What becomes of pods that ask for it and may not use it.
    pub refused: Refused,
}

impl Spec {
    /// Whether the address is the pool's.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.ranges
            .iter()
            .any(|range| range.contains(address.into()))
    }

    /// Every address.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let all = self.ranges.iter().flat_map(|range| range.addresses());
        all.filter_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
    }
}

/// Reads the specification of the pool of this name.
///
/// # Errors
///
/// What is wrong with it and what to do, all of it.
pub fn read(name: &str, spec: &Value) -> Result<Spec, String> {
    let mut problems = Vec::new();
    let mut fields = spec.as_object().cloned().unwrap_or_default();
    let mut own: Map<String, Value> = Map::new();
    for name in OWN {
        own.extend(fields.remove(name).map(|value| (name.to_owned(), value)));
    }
    let namespaces = selector(&own, "allowedNamespaces", &mut problems);
    let nodes = selector(&own, "nodeSelector", &mut problems);
    let refused = refused(&own, &mut problems);
    only(&own, "mapping", "endpointIndependent", &mut problems);
    only(&own, "filtering", "addressAndPortDependent", &mut problems);
    let include = included(&own, &mut problems);
    let read = config::pool(name, &Value::Object(fields));
    let read = read.map_err(|mut found| problems.append(&mut found)).ok();
    if let Some((_, ranges)) = &read {
        let count: u128 = ranges.iter().map(Range::count).sum();
        if count > ADDRESSES {
            problems.push(format!(
                "addresses: {count} are more than {ADDRESSES}; list fewer, or make more pools"
            ));
        }
    }
    match read {
        Some((mut pool, ranges)) if problems.is_empty() => {
            pool.exclude.extend(others(&include).map(IpNet::V4));
            Ok(Spec {
                pool,
                ranges,
                namespaces,
                nodes,
                refused,
            })
        }
        _ => Err(problems.join(". ")),
    }
}

fn selector(own: &Map<String, Value>, name: &str, problems: &mut Vec<String>) -> Option<Selector> {
    let value = own.get(name).filter(|value| !value.is_null())?;
    let labels = serde_json::from_value::<LabelSelector>(value.clone());
    let selector = labels
        .map_err(|error| error.to_string())
        .and_then(|labels| Selector::try_from(labels).map_err(|error| error.to_string()));
    selector
        .map_err(|error| problems.push(format!("{name}: is no label selector: {error}")))
        .ok()
}

fn refused(own: &Map<String, Value>, problems: &mut Vec<String>) -> Refused {
    let value = own.get("refused").cloned().unwrap_or_default();
    let refused = serde_json::from_value::<Option<Refused>>(value);
    let refused = refused.unwrap_or_else(|_| {
        problems.push("refused: is neither block nor pass; write one".to_owned());
        None
    });
    refused.unwrap_or_default()
}

/// Refuses behaviour that the packet path does not have.
fn only(own: &Map<String, Value>, name: &str, supported: &str, problems: &mut Vec<String>) {
    if let Some(value) = own.get(name)
        && !value.is_null()
        && value != supported
    {
        problems.push(format!(
            "{name}: only {supported} is supported yet; leave the field out"
        ));
    }
}

fn included(own: &Map<String, Value>, problems: &mut Vec<String>) -> Vec<Ipv4Net> {
    let items = own.get("include").and_then(Value::as_array);
    let mut networks = Vec::new();
    for (index, item) in items.into_iter().flatten().enumerate() {
        match config::network(item.as_str().unwrap_or_default()) {
            Ok(IpNet::V4(net)) => networks.push(net),
            Ok(IpNet::V6(_)) => {}
            Err(problem) => problems.push(format!("include[{index}]: {problem}")),
        }
    }
    networks
}

/// Every destination that is not included: as the tables only know which ones to leave alone. None
/// where nothing is listed: all are included then.
fn others(include: &[Ipv4Net]) -> impl Iterator<Item = Ipv4Net> + use<> {
    let mut others = Vec::new();
    if !include.is_empty() {
        split(Ipv4Net::default(), include, &mut others);
    }
    others.into_iter()
}

/// Halves the network until each part is included or has nothing included in it.
fn split(network: Ipv4Net, include: &[Ipv4Net], others: &mut Vec<Ipv4Net>) {
    if include.iter().any(|included| included.contains(&network)) {
        return;
    }
    if !include.iter().any(|included| network.contains(included)) {
        return others.push(network);
    }
    if let Ok(halves) = network.subnets(network.prefix_len() + 1) {
        halves.for_each(|half| split(half, include, others));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_files_rules_hold() {
        let spec = json!({
            "addresses": ["203.0.113.10", "203.0.113.16/29"],
            "portsPerClient": 128,
            "timers": {"udp": "30s"},
            "path": "direct",
        });
        let read = read("office", &spec).unwrap();
        assert_eq!(read.pool.name, "office");
        assert_eq!(read.pool.ports_per_client, 128);
        assert_eq!(read.pool.timers.udp.as_secs(), 30);
        assert_eq!(read.addresses().count(), 9);
        assert!(read.namespaces.is_none() && read.nodes.is_none());
        for (field, value, words) in [
            ("addresses", json!([]), "addresses: is an empty list"),
            ("addresses", json!(["203.0.113.300"]), "is not an address"),
            ("addresses", json!(["127.0.0.1"]), "loopback"),
            (
                "addresses",
                json!(["203.0.113.1", "203.0.113.0/24"]),
                "overlaps",
            ),
            ("addresses", json!(["10.0.0.0/8"]), "are more than 4096"),
            ("portsPerClient", json!(100), "whole blocks"),
            ("blokSize", json!(32), "did you mean `blockSize`?"),
            (
                "mapping",
                json!("addressDependent"),
                "mapping: only endpointIndependent",
            ),
            ("filtering", json!("endpointIndependent"), "filtering: only"),
            (
                "refused",
                json!("drop"),
                "refused: is neither block nor pass",
            ),
            (
                "allowedNamespaces",
                json!({"matchLabels": 3}),
                "is no label selector",
            ),
            (
                "include",
                json!(["10.0.0.1/8"]),
                "include[0]: `10.0.0.1/8` is an address",
            ),
        ] {
            let mut spec = spec.clone();
            spec[field] = value;
            let problem = super::read("office", &spec).unwrap_err();
            assert!(problem.contains(words), "{field}: {problem}");
        }
    }

    #[test]
    fn everything_is_told_at_once() {
        let spec = json!({"addresses": ["x"], "mapping": "no", "include": ["y"]});
        let problem = read("office", &spec).unwrap_err();
        for word in ["addresses[0]", "mapping", "include[0]"] {
            assert!(problem.contains(word), "{problem}");
        }
    }

    fn network() -> impl Strategy<Value = Ipv4Net> {
        (any::<u32>(), 1_u8..=32)
            .prop_map(|(bits, length)| Ipv4Net::new_assert(Ipv4Addr::from(bits), length).trunc())
    }

    proptest! {
        #[test]
        fn a_destination_is_included_or_left_alone(
            include in prop::collection::vec(network(), 1..6),
            address in any::<u32>(),
            near in 0_usize..6,
        ) {
            let others: Vec<Ipv4Net> = others(&include).collect();
            let near = include[near % include.len()];
            for address in [Ipv4Addr::from(address), near.network(), near.broadcast()] {
                let included = include.iter().any(|net| net.contains(&address));
                prop_assert_eq!(included, !others.iter().any(|net| net.contains(&address)));
            }
            prop_assert!(others.len() <= 32 * include.len());
        }
    }

    #[test]
    fn nothing_listed_includes_all() {
        assert_eq!(others(&[]).count(), 0);
    }
}
