//! From API objects to operations, without an API server or a kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use nat_cni::protocol::{self, Attachment};
use nat_common::abi::DEVICE_EXCLUSIVE;
use proptest::prelude::*;
use serde_json::json;

use super::{
    arrivals::Arrivals,
    claims::{Claims, Observer},
    judge::{Accepted, judge},
    link,
    object::{Namespace, Node, Pod, Pool},
    pool::SliceClaim,
    ranges,
    readiness::{Scene, readiness},
    resolve::{self, Input, LeftAlone, Memory, NO_POOL, Resolved, resolve},
    trouble::Trouble,
    world::World,
};
use crate::{
    desired::desired,
    diff::{Operation, State, diff},
    facts::{Facts, Kind, Link},
    snapshot::{Client, Guard, Settings, Snapshot},
    source::{Fixed, View},
};

const ME: &str = "n1";

/// One node's agent with its tables, and an API server that takes its claims.
struct Lab {
    world: World,
    facts: Facts,
    state: State,
    memory: Memory,
    arrivals: Arrivals,
    left_alone: LeftAlone,
    /// Numbers of the clients that have sessions.
    talking: BTreeSet<u16>,
    /// Egress addresses that sessions use.
    busy: BTreeSet<Ipv4Addr>,
    accepted: Accepted,
    observer: Observer,
    /// Whether claims are written, and come back.
    writes: bool,
    guarded: bool,
}

impl Lab {
    /// A pool for namespaces labelled `egress: office`, one of which is `shop`, and two nodes.
    fn new() -> Self {
        let mut lab = Self {
            world: World::default(),
            facts: Facts {
                forwarding: true,
                ..Facts::default()
            },
            state: State::default(),
            memory: Memory::default(),
            arrivals: Arrivals::default(),
            left_alone: LeftAlone::default(),
            talking: BTreeSet::new(),
            busy: BTreeSet::new(),
            accepted: Accepted::default(),
            observer: Observer::default(),
            writes: true,
            guarded: true,
        };
        lab.link("eth0", 2, Kind::Nic);
        for (number, name) in [(1_u8, ME), (2, "n2")] {
            let node = Node {
                pods: vec![format!("10.244.{number}.0/24").parse().unwrap()],
                addresses: vec![IpAddr::from([192, 0, 2, number])],
                ..Node::default()
            };
            lab.world.nodes.insert(name.to_owned(), node);
        }
        let labels = [("egress".to_owned(), "office".to_owned())].into();
        let shop = Namespace {
            labels,
            ..Namespace::default()
        };
        lab.world.namespaces.insert("shop".to_owned(), shop);
        lab.world
            .namespaces
            .insert("evil".to_owned(), Namespace::default());
        lab.pool("office", &["203.0.113.10", "203.0.113.11"]);
        lab
    }

    fn pool(&mut self, name: &str, addresses: &[&str]) {
        let spec = json!({
            "addresses": addresses,
            "portsPerClient": 128,
            "allowedNamespaces": {"matchLabels": {"egress": "office"}},
        });
        let created = self.world.pools.len() as i64;
        let uid = format!("{name}-{created}");
        let pool = Pool {
            created,
            uid,
            spec,
            ..Pool::default()
        };
        self.world.pools.insert(name.to_owned(), pool);
    }

    fn link(&mut self, name: &str, ifindex: u32, kind: Kind) {
        let mac = [2, 0, 0, 0, 0, ifindex as u8];
        self.facts
            .links
            .insert(name.to_owned(), Link { ifindex, mac, kind });
    }

    /// A running pod behind a veth of its own.
    fn pod(&mut self, path: &str, number: u8, wish: &str) -> &mut Pod {
        let address = Ipv4Addr::new(10, 244, 1, number);
        let ifindex = 100 + u32::from(number);
        self.link(&format!("veth{number}"), ifindex, Kind::Veth);
        self.facts.ways.routes.insert(address.into(), ifindex);
        let (namespace, name) = path.split_once('/').unwrap();
        let pod = Pod {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("{path}-{number}"),
            created: i64::from(number),
            addresses: vec![address.into()],
            wish: (!wish.is_empty()).then(|| wish.to_owned()),
            ..Pod::default()
        };
        self.world.pods.insert(path.to_owned(), pod);
        self.known_pod(path)
    }

    fn known_pod(&mut self, path: &str) -> &mut Pod {
        self.world.pods.get_mut(path).unwrap()
    }

    /// The CNI plugin's question about a pod that the API shows without an address.
    fn arrive(&mut self, path: &str, number: u8, address: u8) -> Attachment {
        let pod = self.known_pod(path);
        pod.addresses.clear();
        let ifindex = 100 + u32::from(number);
        let attachment = Attachment {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: Some(pod.uid.clone()),
            container: format!("c{number}"),
            addresses: vec![IpAddr::from([10, 244, 1, address])],
            links: vec![protocol::Link {
                name: format!("veth{number}"),
                ifindex,
            }],
        };
        self.arrivals.add(attachment.clone(), Duration::ZERO);
        attachment
    }

    /// What the plugin is answered.
    fn readiness(
        &self,
        attachment: &Attachment,
        resolved: &Resolved,
        problem: Option<&str>,
    ) -> Result<Option<String>, String> {
        let view = View {
            facts: &self.facts,
            state: &self.state,
            talking: &self.talking,
            fixed: &Fixed::new(&Settings::default(), String::new()),
        };
        let scene = Scene {
            world: &self.world,
            resolved,
            view,
            problem,
            silence: Some("the API server is silent"),
        };
        readiness(attachment, &scene)
    }

    /// Another node's claim.
    fn held(&mut self, pool: &str, address: &str, node: &str) {
        let claim = SliceClaim {
            address: address.to_owned(),
            first: 1024,
            size: 64_512,
            node: node.to_owned(),
            renewed: "then".to_owned(),
        };
        let pool = self.world.pools.get_mut(pool).unwrap();
        pool.status.slices.push(claim);
    }

    /// Works out what is wanted, until no claim is left to be written, and carries it out.
    fn run(&mut self) -> (Resolved, Vec<Operation>) {
        for _ in 0..10 {
            let (resolved, changes) = self.resolve();
            self.memory = resolved.memory.clone();
            self.left_alone = resolved.left_alone.clone();
            if !self.writes || changes.is_empty() {
                let operations = self.carry_out(&resolved);
                return (resolved, operations);
            }
            for change in changes {
                let pool = self.world.pools.get_mut(&change.pool).unwrap();
                pool.status.slices = change.slices;
            }
        }
        panic!("claims never settle");
    }

    fn resolve(&mut self) -> (Resolved, Vec<super::claims::Change>) {
        let now = Duration::ZERO;
        self.observer.observe(&self.world.pools, now);
        let learned = ranges::learned(&self.world);
        let judged = judge(&self.world, &learned, &mut self.accepted);
        let claims = Claims {
            node: ME,
            world: &self.world,
            observer: &self.observer,
            now,
        };
        let resolved = resolve(&Input {
            node: ME,
            world: &self.world,
            arrivals: &self.arrivals,
            pools: &judged,
            claims: &claims,
            memory: &self.memory,
            left_alone: self.guarded.then_some(&self.left_alone),
            facts: &self.facts,
            state: &self.state,
            talking: &self.talking,
        });
        let in_use = self.state.slices.keys().copied().collect();
        let changes = claims.changes(&resolved.wanted, &in_use, "now");
        (resolved, changes)
    }

    fn lost(&self) -> Vec<Ipv4Addr> {
        let claims = Claims {
            node: ME,
            world: &self.world,
            observer: &self.observer,
            now: Duration::ZERO,
        };
        claims.lost(self.state.slices.keys())
    }

    fn snapshot(&self, resolved: &Resolved) -> Snapshot {
        let settings = Settings {
            cluster_ranges: ranges::all(&ranges::learned(&self.world), &[]),
            ..Settings::default()
        };
        let links = resolved.left_alone.values();
        let guard = Guard {
            left_alone: links.map(|link| link.device.clone()).collect(),
            ..Guard::default()
        };
        let (pools, clients) = (&resolved.pools, &resolved.clients);
        Snapshot {
            lost: self.lost(),
            ended: resolved.ended.iter().cloned().collect(),
            ..settings.with(pools.clone(), clients.clone(), Some(guard))
        }
    }

    fn carry_out(&mut self, resolved: &Resolved) -> Vec<Operation> {
        let snapshot = self.snapshot(resolved);
        let wanted = desired(&snapshot, &self.facts, &self.state.egress());
        let plan = diff(&self.state, &wanted, &self.busy, &snapshot.limits);
        assert_eq!(plan.problems, Vec::<String>::new());
        for operation in &plan.operations {
            self.state.apply(operation);
        }
        plan.operations
    }

    /// The egress address that a pod's packets get; `None` if it is blocked, or no client.
    fn egress(&self, path: &str) -> Option<Ipv4Addr> {
        let client = self.state.clients.get(path)?;
        client.slice.map(|_| client.entry.egress)
    }

    fn blocked(&self, path: &str) -> bool {
        let client = self.state.clients.get(path);
        client.is_some_and(|client| client.slice.is_none())
    }
}

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, 113, last)
}

fn client<'r>(resolved: &'r Resolved, path: &str) -> Option<&'r Client> {
    resolved.clients.iter().find(|client| client.name == path)
}

fn reason(resolved: &Resolved, path: &str) -> Option<&'static str> {
    resolved.troubles.get(path).map(Trouble::reason)
}

#[test]
fn an_annotated_pod_gets_its_address_on_its_link() {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "203.0.113.11");
    let (resolved, _) = lab.run();
    assert_eq!(resolved.troubles, BTreeMap::new());
    assert_eq!(lab.egress("shop/web-0"), Some(ip(11)));
    assert_eq!(lab.state.clients["shop/web-0"].entry.ifindex, 107);
    assert_eq!(resolved.pools[0].addresses, [IpAddr::V4(ip(11))]);
    let claim = &lab.world.pools["office"].status.slices[0];
    assert_eq!(
        (claim.node.as_str(), claim.first, claim.size),
        (ME, 1024, 64_512)
    );
}

#[test]
fn the_clusters_ranges_are_left_alone_by_every_pool() {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "office");
    lab.pod("evil/web-0", 8, "office");
    lab.run();
    for (name, (_, pool)) in &lab.state.pools {
        for net in ["10.244.2.0/24", "192.0.2.2/32", "169.254.0.0/16"] {
            let net: ipnet::Ipv4Net = net.parse().unwrap();
            let left_alone = pool.excludes.iter().any(|excluded| excluded.contains(&net));
            assert!(left_alone, "{name} translates {net}");
        }
    }
    assert!(lab.state.pools.contains_key(NO_POOL) && lab.state.pools.contains_key("office"));
}

#[test]
fn nobody_gets_an_address_by_an_annotation_alone() {
    let mut lab = Lab::new();
    lab.pod("evil/web-0", 7, "203.0.113.10");
    lab.pod("evil/web-1", 8, "office");
    let spec = &mut lab.world.pools.get_mut("office").unwrap().spec;
    spec.as_object_mut().unwrap().remove("allowedNamespaces");
    lab.pod("shop/web-0", 9, "office");
    let (resolved, _) = lab.run();
    for path in ["evil/web-0", "evil/web-1", "shop/web-0"] {
        assert_eq!(
            reason(&resolved, path),
            Some("NamespaceNotAllowed"),
            "{path}"
        );
        assert!(lab.blocked(path), "{path}");
    }
    assert!(resolved.wanted.is_empty(), "claimed for nobody");
    // The empty selector is every namespace.
    lab.world.pools.get_mut("office").unwrap().spec["allowedNamespaces"] = json!({});
    lab.run();
    assert_eq!(lab.egress("evil/web-0"), Some(ip(10)));
}

#[test]
fn a_refused_pod_is_left_alone_where_the_pool_says_so() {
    let mut lab = Lab::new();
    lab.world.pools.get_mut("office").unwrap().spec["refused"] = json!("pass");
    for (number, (path, asks)) in [
        ("evil/a", "office"),
        ("evil/b", "203.0.113.10"),
        ("evil/c", "nowhere"),
    ]
    .iter()
    .enumerate()
    {
        lab.pod(path, 7 + number as u8, asks);
    }
    let (resolved, _) = lab.run();
    for path in ["evil/a", "evil/b"] {
        assert_eq!(reason(&resolved, path), Some("NamespaceNotAllowed"));
        assert!(!lab.state.clients.contains_key(path), "{path}");
    }
    assert!(lab.blocked("evil/c"), "no pool has said so");
    // What has a valid address keeps it, and what has lost it is let go with its flows.
    lab.pod("shop/web-0", 20, "203.0.113.10");
    lab.run();
    lab.talking.insert(lab.state.clients["shop/web-0"].index);
    lab.world.namespaces.get_mut("shop").unwrap().labels.clear();
    let (resolved, _) = lab.run();
    assert!(lab.state.clients["shop/web-0"].entry.draining);
    assert_eq!(reason(&resolved, "shop/web-0"), Some("NamespaceNotAllowed"));
    // The choice is the pool's at any time.
    lab.world.pools.get_mut("office").unwrap().spec["refused"] = json!("block");
    lab.run();
    assert!(lab.blocked("evil/a") && lab.blocked("shop/web-0"));
}

#[test]
fn a_namespaces_annotation_is_its_pods_default() {
    let mut lab = Lab::new();
    lab.world.namespaces.get_mut("shop").unwrap().wish = Some("203.0.113.10".into());
    lab.pod("shop/a", 7, "");
    lab.pod("shop/b", 8, "none");
    lab.pod("shop/c", 9, "203.0.113.11");
    lab.run();
    assert_eq!(lab.egress("shop/a"), Some(ip(10)));
    assert!(!lab.state.clients.contains_key("shop/b"));
    assert_eq!(lab.egress("shop/c"), Some(ip(11)));
}

#[test]
fn an_invalid_annotation_leaves_what_was_or_blocks() {
    let mut lab = Lab::new();
    lab.pod("shop/old", 7, "203.0.113.11");
    lab.run();
    for wrong in ["203.0.113.300", "nowhere", "198.51.100.1", ""] {
        let wish = (!wrong.is_empty()).then(|| wrong.to_owned());
        lab.world.namespaces.get_mut("shop").unwrap().wish = Some("?".to_owned());
        lab.known_pod("shop/old").wish = wish;
        lab.pod("shop/new", 8, wrong);
        let (resolved, _) = lab.run();
        assert_eq!(lab.egress("shop/old"), Some(ip(11)), "{wrong}");
        assert!(lab.blocked("shop/new"), "{wrong}");
        assert_eq!(reason(&resolved, "shop/old"), reason(&resolved, "shop/new"));
        assert!(reason(&resolved, "shop/old").is_some());
    }
}

#[test]
fn what_was_is_known_after_a_restart() {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "office");
    lab.run();
    let before = lab.egress("shop/web-0");
    lab.known_pod("shop/web-0").wish = Some("?".to_owned());
    lab.memory = resolve::remembered(&lab.state);
    lab.accepted = Accepted::default();
    let (_, operations) = lab.run();
    assert_eq!(lab.egress("shop/web-0"), before);
    assert_eq!(operations, [], "nothing changes for it");
    // A pod of the same name with another address is another pod.
    lab.pod("shop/web-0", 8, "?");
    lab.run();
    assert!(lab.blocked("shop/web-0"));
}

/// A pod with an address and flows, that asks for nothing any more.
fn removed() -> (Lab, Resolved, Vec<Operation>) {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "203.0.113.11");
    lab.run();
    lab.talking.insert(lab.state.clients["shop/web-0"].index);
    lab.known_pod("shop/web-0").wish = None;
    let (resolved, operations) = lab.run();
    (lab, resolved, operations)
}

#[test]
fn an_annotation_that_is_removed_lets_flows_end() {
    let (mut lab, resolved, operations) = removed();
    let client = &lab.state.clients["shop/web-0"];
    assert!(client.entry.draining && client.entry.ifindex == 107);
    assert_eq!(lab.egress("shop/web-0"), Some(ip(11)));
    assert!(
        matches!(operations[..], [Operation::SetClient(..)]),
        "{operations:?}"
    );
    assert_eq!(resolved.troubles, BTreeMap::new());
    // All that is known of it is in the tables.
    lab.memory = resolve::remembered(&lab.state);
    lab.accepted = Accepted::default();
    let (_, operations) = lab.run();
    assert_eq!(operations, []);
    assert_eq!(lab.world.pools["office"].status.slices.len(), 1);
    lab.talking.clear();
    lab.run();
    assert!(lab.state.clients.is_empty());
    lab.run();
    assert!(lab.world.pools["office"].status.slices.is_empty());
}

#[test]
fn none_and_a_namespaces_default_that_is_removed_drain_as_well() {
    let mut lab = Lab::new();
    lab.world.namespaces.get_mut("shop").unwrap().wish = Some("office".into());
    lab.pod("shop/a", 7, "");
    lab.pod("shop/b", 8, "");
    lab.run();
    lab.talking = [0, 1].into();
    lab.known_pod("shop/a").wish = Some("none".into());
    lab.run();
    assert!(lab.state.clients["shop/a"].entry.draining);
    assert!(!lab.state.clients["shop/b"].entry.draining);
    lab.world.namespaces.get_mut("shop").unwrap().wish = None;
    lab.run();
    assert!(lab.state.clients["shop/b"].entry.draining);
}

#[test]
fn a_draining_pod_that_asks_again_is_served_as_before() {
    let (mut lab, ..) = removed();
    lab.known_pod("shop/web-0").wish = Some("office".into());
    let (_, operations) = lab.run();
    assert!(!lab.state.clients["shop/web-0"].entry.draining);
    assert_eq!(lab.egress("shop/web-0"), Some(ip(11)));
    assert_eq!(operations.len(), 1, "{operations:?}");
}

#[test]
fn a_pod_that_is_gone_does_not_drain() {
    let gone: [fn(&mut Lab); 3] = [
        |lab| drop(lab.world.pods.remove("shop/web-0")),
        |lab| lab.known_pod("shop/web-0").finished = true,
        |lab| {
            lab.pod("shop/web-0", 8, "");
        },
    ];
    for gone in gone {
        let (mut lab, ..) = removed();
        gone(&mut lab);
        lab.run();
        assert!(lab.state.clients.is_empty());
    }
}

#[test]
fn flows_drain_without_their_pool() {
    let (mut lab, ..) = removed();
    lab.world.pools.remove("office");
    let (resolved, _) = lab.run();
    let client = client(&resolved, "shop/web-0").unwrap();
    assert!(client.draining);
    assert_eq!(client.pool, NO_POOL);
    assert!(resolved.wanted.is_empty(), "{:?}", resolved.wanted);
}

#[test]
fn a_cutover_ends_flows_at_once() {
    let on_the_pod: fn(&mut Lab) = |lab| {
        lab.known_pod("shop/web-0").cutover = Some("immediate".into());
    };
    let on_the_namespace: fn(&mut Lab) = |lab| {
        lab.world.namespaces.get_mut("shop").unwrap().cutover = Some("immediate".into());
    };
    for immediate in [on_the_pod, on_the_namespace] {
        let (mut lab, ..) = removed();
        immediate(&mut lab);
        lab.run();
        assert!(lab.state.clients.is_empty());
        lab.known_pod("shop/web-0").wish = Some("203.0.113.10".into());
        lab.run();
        assert!(lab.state.clients["shop/web-0"].entry.cut_over);
    }
}

#[test]
fn a_cutover_that_cannot_be_meant_drains_and_is_told() {
    let (mut lab, ..) = removed();
    lab.known_pod("shop/web-0").cutover = Some("now".into());
    let (resolved, _) = lab.run();
    assert!(lab.state.clients["shop/web-0"].entry.draining);
    assert_eq!(reason(&resolved, "shop/web-0"), Some("InvalidAnnotation"));
    let words = resolved.troubles["shop/web-0"].words();
    assert!(words.starts_with("natctl.io/cutover: `now`"), "{words}");
}

#[test]
fn a_permission_that_is_taken_away_is_gone() {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "203.0.113.10");
    lab.run();
    lab.world.namespaces.get_mut("shop").unwrap().labels.clear();
    let (resolved, _) = lab.run();
    assert_eq!(reason(&resolved, "shop/web-0"), Some("NamespaceNotAllowed"));
    assert!(lab.blocked("shop/web-0"));
}

#[test]
fn a_refused_change_of_a_pool_moves_nobody() {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "office");
    lab.run();
    let before = lab.egress("shop/web-0");
    lab.world.pools.get_mut("office").unwrap().spec["portsPerClient"] = json!(100);
    let (_, operations) = lab.run();
    assert_eq!((lab.egress("shop/web-0"), operations), (before, vec![]));
}

#[test]
fn pods_that_are_no_clients() {
    let mut lab = Lab::new();
    lab.pod("shop/host", 7, "office").host_network = true;
    lab.pod("shop/done", 8, "office").finished = true;
    lab.pod("shop/young", 9, "office").addresses.clear();
    lab.pod("shop/plain", 10, "");
    let (resolved, operations) = lab.run();
    assert_eq!((resolved.clients, operations), (vec![], vec![]));
    assert_eq!(resolved.troubles, BTreeMap::new());
}

#[test]
fn of_two_families_ipv4_is_served() {
    let mut lab = Lab::new();
    let v6: IpAddr = "fd00::7".parse().unwrap();
    lab.pod("shop/both", 7, "office").addresses.insert(0, v6);
    lab.pod("shop/six", 8, "office").addresses = vec![v6];
    lab.pod("shop/six-plain", 9, "").addresses = vec![v6];
    let (resolved, _) = lab.run();
    assert!(lab.egress("shop/both").is_some());
    assert_eq!(reason(&resolved, "shop/both"), Some("IPv6NotTranslated"));
    assert!(client(&resolved, "shop/six").is_none());
    assert_eq!(reason(&resolved, "shop/six"), Some("IPv6Only"));
    assert_eq!(reason(&resolved, "shop/six-plain"), None);
}

#[test]
fn a_reused_address_is_taken_from_the_old_pod_before_the_new_one_gets_it() {
    let mut lab = Lab::new();
    lab.pod("shop/old", 7, "203.0.113.10");
    lab.run();
    lab.known_pod("shop/old").leaving = true;
    let old = lab.world.pods["shop/old"].clone();
    lab.pod("shop/new", 8, "203.0.113.11").addresses = old.addresses.clone();
    lab.facts
        .ways
        .routes
        .insert(Ipv4Addr::new(10, 244, 1, 7).into(), 108);
    let (resolved, operations) = lab.run();
    assert_eq!(reason(&resolved, "shop/old"), Some("AddressReused"));
    let place = |wanted: &dyn Fn(&Operation) -> bool| operations.iter().position(wanted).unwrap();
    let purged =
        place(&|step| matches!(step, Operation::RemoveSources(name, ..) if name == "shop/old"));
    let admitted =
        place(&|step| matches!(step, Operation::SetClient(name, _) if name == "shop/new"));
    assert!(purged < admitted, "{operations:?}");
    assert_eq!(lab.state.clients["shop/new"].entry.ifindex, 108);
}

/// Before the API shows the new pod's address, too: what it sends must not leave as the old one.
#[test]
fn a_leaving_client_does_not_lend_its_egress_address() {
    let mut lab = Lab::new();
    let address = lab.pod("shop/old", 7, "office").address().unwrap();
    lab.run();
    lab.known_pod("shop/old").leaving = true;
    lab.facts.ways.routes.clear();
    lab.run();
    assert_eq!(lab.state.clients["shop/old"].entry.ifindex, 107);
    lab.link("veth8", 108, Kind::Veth);
    lab.facts.ways.routes.insert(address.into(), 108);
    for links in [107, 0] {
        let (resolved, _) = lab.run();
        assert_eq!(lab.state.clients["shop/old"].entry.ifindex, links);
        let told = (links == 0).then_some("WaitingForLink");
        assert_eq!(reason(&resolved, "shop/old"), told);
        lab.facts.links.remove("veth7");
    }
}

#[test]
fn a_pod_of_the_same_name_and_another_address_is_purged_first() {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "office");
    lab.run();
    lab.pod("shop/web-0", 8, "office");
    let (_, operations) = lab.run();
    let kinds: Vec<bool> = operations
        .iter()
        .filter_map(|step| match step {
            Operation::RemoveSources(..) => Some(false),
            Operation::SetClient(..) => Some(true),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, [false, true]);
}

#[test]
fn an_address_of_another_node_blocks_until_it_is_free() {
    let mut lab = Lab::new();
    lab.held("office", "203.0.113.10", "n2");
    lab.pod("shop/web-0", 7, "203.0.113.10");
    let (resolved, _) = lab.run();
    assert!(lab.blocked("shop/web-0"));
    let words = resolved.troubles["shop/web-0"].words();
    assert!(
        words.contains("203.0.113.10 is in use on node n2"),
        "{words}"
    );
    lab.world
        .pools
        .get_mut("office")
        .unwrap()
        .status
        .slices
        .clear();
    let (resolved, _) = lab.run();
    assert_eq!(lab.egress("shop/web-0"), Some(ip(10)));
    assert_eq!(resolved.troubles, BTreeMap::new());
}

#[test]
fn an_address_is_not_used_before_the_claim_is_known_to_stand() {
    let mut lab = Lab::new();
    lab.writes = false;
    lab.pod("shop/web-0", 7, "203.0.113.10");
    let (resolved, _) = lab.run();
    assert_eq!(reason(&resolved, "shop/web-0"), Some("Claiming"));
    assert!(lab.blocked("shop/web-0") && lab.state.slices.is_empty());
}

/// Another node has claimed the address of a pod here, which has sessions.
fn robbed(asks: &str) -> (Lab, Vec<Operation>) {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "203.0.113.10");
    lab.run();
    lab.talking.insert(lab.state.clients["shop/web-0"].index);
    lab.busy.insert(ip(10));
    let wish = (!asks.is_empty()).then(|| asks.to_owned());
    lab.known_pod("shop/web-0").wish = wish;
    lab.world
        .pools
        .get_mut("office")
        .unwrap()
        .status
        .slices
        .clear();
    lab.held("office", "203.0.113.10", "n2");
    let (_, operations) = lab.run();
    (lab, operations)
}

#[test]
fn a_lost_claim_ends_what_uses_the_address() {
    let (mut lab, operations) = robbed("203.0.113.10");
    assert!(lab.blocked("shop/web-0"));
    assert!(!lab.state.slices.contains_key(&ip(10)));
    let blocked = operations
        .iter()
        .position(|step| matches!(step, Operation::SetClient(..)));
    let given_up = operations
        .iter()
        .position(|step| matches!(step, Operation::RemoveSlice(..)));
    assert!(blocked < given_up && blocked.is_some(), "{operations:?}");
    assert_eq!(lab.run().1, []);
    let (mut lab, _) = robbed("");
    let client = &lab.state.clients["shop/web-0"];
    assert!(client.entry.draining && client.slice.is_none());
    assert_eq!(lab.run().1, []);
}

#[test]
fn a_claim_of_a_node_that_is_gone_takes_nothing_away() {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "203.0.113.10");
    lab.run();
    lab.world
        .pools
        .get_mut("office")
        .unwrap()
        .status
        .slices
        .clear();
    lab.held("office", "203.0.113.10", "n9");
    assert_eq!(lab.run().1, []);
    assert_eq!(lab.egress("shop/web-0"), Some(ip(10)));
}

#[test]
fn of_a_list_the_first_that_can_be_used() {
    let mut lab = Lab::new();
    lab.held("office", "203.0.113.10", "n2");
    lab.pod("shop/web-0", 7, "198.51.100.1, 203.0.113.10, 203.0.113.11");
    lab.run();
    assert_eq!(lab.egress("shop/web-0"), Some(ip(11)));
    lab.world
        .pools
        .get_mut("office")
        .unwrap()
        .status
        .slices
        .retain(|claim| claim.node == ME);
    lab.run();
    assert_eq!(
        lab.egress("shop/web-0"),
        Some(ip(11)),
        "it stays where it is"
    );
}

#[test]
fn a_nodes_pods_share_an_address_of_a_pool() {
    let mut lab = Lab::new();
    lab.held("office", "203.0.113.10", "n2");
    for number in 7..20 {
        lab.pod(&format!("shop/web-{number}"), number, "office");
    }
    lab.run();
    assert!((7..20).all(|number| lab.egress(&format!("shop/web-{number}")) == Some(ip(11))));
    lab.world.pods.clear();
    lab.run();
    lab.run();
    let holders: Vec<&str> = lab.world.pools["office"]
        .status
        .slices
        .iter()
        .map(|claim| claim.node.as_str())
        .collect();
    assert_eq!(holders, ["n2"], "what nobody uses is given back");
    lab.held("office", "203.0.113.11", "n2");
    lab.pod("shop/late", 30, "office");
    let (resolved, _) = lab.run();
    let words = resolved.troubles["shop/late"].words();
    assert!(
        words.contains("every address of EgressPool office is in use"),
        "{words}"
    );
}

#[test]
fn a_pool_for_other_nodes() {
    let mut lab = Lab::new();
    lab.world.pools.get_mut("office").unwrap().spec["nodeSelector"] =
        json!({"matchLabels": {"gateway": "yes"}});
    lab.pod("shop/web-0", 7, "office");
    let (resolved, _) = lab.run();
    assert_eq!(reason(&resolved, "shop/web-0"), Some("NodeNotSelected"));
    let node = lab.world.nodes.get_mut(ME).unwrap();
    node.labels.insert("gateway".into(), "yes".into());
    lab.run();
    assert!(lab.egress("shop/web-0").is_some());
}

#[test]
fn a_pod_whose_link_is_not_known_waits_and_is_sought() {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "office");
    lab.link("cni0", 50, Kind::Virtual);
    lab.facts.ways.routes = [("10.244.1.0/24".parse().unwrap(), 50)].into();
    let (resolved, _) = lab.run();
    let pod = Ipv4Addr::new(10, 244, 1, 7);
    assert_eq!(reason(&resolved, "shop/web-0"), Some("WaitingForLink"));
    assert_eq!(resolved.sought, [(50, pod)]);
    assert_eq!(
        lab.state.clients["shop/web-0"].entry.ifindex, 0,
        "its packets are dropped"
    );
    lab.facts.ways.neighbours.insert((50, pod), [9; 6]);
    lab.facts.ways.ports.insert((50, [9; 6]), 107);
    let (resolved, _) = lab.run();
    assert_eq!(resolved.troubles, BTreeMap::new());
    assert_eq!(lab.state.clients["shop/web-0"].entry.ifindex, 107);
    // The kernel forgets neighbours that nobody talks to.
    lab.facts.ways.neighbours.clear();
    let (resolved, operations) = lab.run();
    assert_eq!((resolved.troubles, operations), (BTreeMap::new(), vec![]));
}

#[test]
fn a_pod_starts_when_its_packets_have_their_way() {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "203.0.113.11");
    // No route leads to it yet: the runtime says which link is its.
    lab.facts.ways.routes.clear();
    let veth = lab.facts.links.remove("veth7").unwrap();
    let attachment = lab.arrive("shop/web-0", 7, 7);
    let (resolved, _) = lab.run();
    let why = lab.readiness(&attachment, &resolved, None).unwrap_err();
    assert!(why.contains("link number 107"), "{why}");
    lab.facts.links.insert("veth7".to_owned(), veth);
    let (resolved, _) = lab.run();
    let why = lab.readiness(&attachment, &resolved, Some("no program"));
    assert_eq!(why, Err("no program".to_owned()));
    assert_eq!(lab.readiness(&attachment, &resolved, None), Ok(None));
    assert_eq!(lab.egress("shop/web-0"), Some(ip(11)));
    assert_eq!(lab.state.clients["shop/web-0"].entry.ifindex, 107);
    lab.state.clients.clear();
    let why = lab.readiness(&attachment, &resolved, None).unwrap_err();
    assert!(why.contains("tables"), "{why}");
}

#[test]
fn a_pod_does_not_start_before_its_claim_stands() {
    let mut lab = Lab::new();
    lab.writes = false;
    lab.pod("shop/web-0", 7, "203.0.113.10");
    let attachment = lab.arrive("shop/web-0", 7, 7);
    let (resolved, _) = lab.run();
    let why = lab.readiness(&attachment, &resolved, None).unwrap_err();
    assert!(why.contains("being claimed"), "{why}");
    lab.writes = true;
    let (resolved, _) = lab.run();
    assert_eq!(lab.readiness(&attachment, &resolved, None), Ok(None));
}

#[test]
fn a_blocked_pod_starts_and_so_does_one_that_asks_for_nothing() {
    let mut lab = Lab::new();
    lab.pod("evil/web-0", 7, "office");
    lab.pod("shop/plain", 8, "");
    let blocked = lab.arrive("evil/web-0", 7, 7);
    let plain = lab.arrive("shop/plain", 8, 8);
    let (resolved, _) = lab.run();
    assert!(lab.blocked("evil/web-0"));
    let note = lab.readiness(&blocked, &resolved, None).unwrap().unwrap();
    assert!(note.contains("does not allow namespace evil"), "{note}");
    assert_eq!(lab.readiness(&plain, &resolved, None), Ok(None));
}

#[test]
fn a_pod_that_the_api_does_not_show_yet_does_not_start() {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "office");
    let mut attachment = lab.arrive("shop/web-0", 7, 7);
    attachment.uid = Some("its successor".to_owned());
    let (resolved, _) = lab.run();
    let why = lab.readiness(&attachment, &resolved, None).unwrap_err();
    assert!(
        why.contains("pod shop/web-0 yet; the API server is silent"),
        "{why}"
    );
    attachment.uid = None;
    assert_eq!(lab.readiness(&attachment, &resolved, None), Ok(None));
    // Its annotation may stand there.
    lab.world.namespaces.clear();
    let why = lab.readiness(&attachment, &resolved, None).unwrap_err();
    assert!(why.contains("namespace shop"), "{why}");
}

#[test]
fn an_announced_address_is_no_older_pods_any_more() {
    let mut lab = Lab::new();
    lab.pod("shop/old", 9, "203.0.113.10");
    lab.run();
    // Made before the old one, which nobody has told the API is gone.
    lab.pod("shop/new", 8, "");
    let attachment = lab.arrive("shop/new", 8, 9);
    let (resolved, operations) = lab.run();
    assert_eq!(reason(&resolved, "shop/old"), Some("AddressReused"));
    let purged = |step: &Operation| matches!(step, Operation::RemoveSources(..));
    assert!(operations.iter().any(purged), "{operations:?}");
    assert_eq!(lab.readiness(&attachment, &resolved, None), Ok(None));
}

#[test]
fn pods_are_told_once_and_that_it_is_over() {
    let mut lab = Lab::new();
    lab.pod("shop/web-0", 7, "nowhere");
    let (resolved, _) = lab.run();
    let mut told = BTreeMap::new();
    let news = super::news(&lab.world.pods, &resolved, &told);
    assert_eq!((news[0].0.reason, news[0].0.warning), ("NoSuchPool", true));
    told.insert(news[0].0.uid.clone(), news[0].1.clone().unwrap());
    assert_eq!(super::news(&lab.world.pods, &resolved, &told), []);
    lab.known_pod("shop/web-0").wish = Some("203.0.113.10".into());
    lab.writes = false;
    let (resolved, _) = lab.run();
    assert_eq!(
        super::news(&lab.world.pods, &resolved, &told),
        [],
        "claiming is no end of it"
    );
    lab.writes = true;
    let (resolved, _) = lab.run();
    let news = super::news(&lab.world.pods, &resolved, &told);
    assert_eq!(
        (news[0].0.reason, news[0].0.warning),
        ("EgressReady", false)
    );
    assert!(news[0].0.note.contains("203.0.113.10"));
}

/// The devices on which what pods send is decided now.
fn decided(lab: &mut Lab) -> Vec<String> {
    let (resolved, _) = lab.run();
    let desired = desired(&lab.snapshot(&resolved), &lab.facts, &lab.state.egress());
    let clients = desired.attachments.into_iter();
    let clients = clients.filter(|attachment| attachment.program == "client_stack");
    clients.map(|attachment| attachment.device).collect()
}

#[test]
fn pods_that_ask_for_nothing_are_decided_and_are_no_clients() {
    let mut lab = Lab::new();
    lab.pod("shop/asks", 7, "office");
    lab.pod("shop/asks-not", 8, "");
    lab.pod("shop/host", 9, "").host_network = true;
    lab.pod("shop/ended", 10, "").finished = true;
    assert_eq!(decided(&mut lab), ["veth7", "veth8"]);
    assert_eq!(lab.state.clients.len(), 1);
    assert!(!lab.state.devices.contains_key(&108));
    assert_eq!(lab.run().0.troubles, BTreeMap::new());
    // It becomes a client, and none again.
    lab.known_pod("shop/asks-not").wish = Some("office".to_owned());
    assert_eq!(decided(&mut lab), ["veth7", "veth8"]);
    assert!(lab.left_alone.is_empty() && lab.state.devices.contains_key(&108));
    lab.known_pod("shop/asks-not").wish = None;
    assert_eq!(decided(&mut lab), ["veth7", "veth8"]);
    // It has been drained, and had no flows.
    assert_eq!(decided(&mut lab), ["veth7", "veth8"]);
    assert!(!lab.state.devices.contains_key(&108));
}

#[test]
fn a_link_that_is_not_known_is_not_decided() {
    let mut lab = Lab::new();
    lab.pod("shop/asks-not", 8, "");
    let routes = std::mem::take(&mut lab.facts.ways.routes);
    assert!(decided(&mut lab).is_empty());
    let trouble = lab.run().0.troubles.remove("shop/asks-not");
    assert_eq!(trouble, Some(Trouble::Link(link::Missing::Route)));
    lab.facts.ways.routes = routes;
    assert_eq!(decided(&mut lab), ["veth8"]);
    // Once known it stays: a silent neighbour is forgotten by the kernel.
    lab.facts.ways.routes.clear();
    assert_eq!(decided(&mut lab), ["veth8"]);
    lab.facts.links.remove("veth8");
    assert!(decided(&mut lab).is_empty());
}

/// The runtime gives a leaving pod's address to another pod, whose link must not be taken for the old one's.
#[test]
fn a_leaving_pod_does_not_decide_for_its_successor() {
    let mut lab = Lab::new();
    lab.pod("shop/old", 8, "").leaving = true;
    assert!(decided(&mut lab).is_empty());
    lab.known_pod("shop/old").leaving = false;
    assert_eq!(decided(&mut lab), ["veth8"]);
    lab.known_pod("shop/old").leaving = true;
    assert_eq!(decided(&mut lab), ["veth8"]);
    lab.link("veth8", 208, Kind::Veth);
    let address = Ipv4Addr::new(10, 244, 1, 8);
    lab.facts.ways.routes.insert(address.into(), 208);
    assert!(decided(&mut lab).is_empty());
    // As soon as the new pod is known it has the address, whatever the old one's object says.
    let pod = lab.pod("shop/new", 8, "");
    pod.created = 9;
    pod.uid = "new".to_owned();
    assert_eq!(decided(&mut lab), ["veth8"]);
    let uids: Vec<&String> = lab.left_alone.keys().collect();
    assert_eq!(uids, ["new"]);
}

/// Whether the link is a client's own in the tables, and what is left of its client.
fn sealed(lab: &Lab, path: &str, ifindex: u32) -> bool {
    let device = lab.state.devices.get(&ifindex);
    let exclusive = device.is_some_and(|device| device.flags & DEVICE_EXCLUSIVE != 0);
    exclusive && !lab.state.clients.contains_key(path)
}

#[test]
fn what_a_client_sends_after_its_end_does_not_pass() {
    type End = fn(&mut Lab);
    let ends: [End; 3] = [
        |lab| lab.known_pod("shop/web").finished = true,
        // By force: its processes may live on for a while.
        |lab| drop(lab.world.pods.remove("shop/web")),
        // Made again under its name, before the old link is gone.
        |lab| lab.pod("shop/web", 9, "").wish = None,
    ];
    for end in ends {
        let mut lab = Lab::new();
        lab.pod("shop/web", 8, "office");
        assert_eq!(decided(&mut lab), ["veth8"]);
        end(&mut lab);
        for _ in 0..2 {
            assert!(decided(&mut lab).contains(&"veth8".to_owned()));
            assert!(sealed(&lab, "shop/web", 108));
        }
        lab.facts.links.remove("veth8");
        assert!(!decided(&mut lab).contains(&"veth8".to_owned()));
        assert!(!lab.state.devices.contains_key(&108));
    }
}

#[test]
fn the_address_of_a_client_that_has_ended_is_its_successors() {
    let mut lab = Lab::new();
    lab.pod("shop/old", 8, "office");
    lab.run();
    lab.known_pod("shop/old").finished = true;
    lab.link("veth9", 109, Kind::Veth);
    let pod = lab.pod("shop/new", 8, "office");
    pod.uid = "new".to_owned();
    lab.facts
        .ways
        .routes
        .insert(Ipv4Addr::new(10, 244, 1, 8).into(), 109);
    lab.run();
    assert_eq!(lab.state.clients["shop/new"].entry.ifindex, 109);
    assert!(sealed(&lab, "shop/old", 108));
}

#[test]
fn without_the_guard_a_pod_that_asks_for_nothing_any_more_passes() {
    let mut lab = Lab::new();
    lab.guarded = false;
    lab.pod("shop/web", 8, "office");
    lab.run();
    lab.known_pod("shop/web").wish = None;
    for _ in 0..3 {
        lab.run();
    }
    assert!(!lab.state.devices.contains_key(&108));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever pods ask for: applied twice is applied once, and nobody gets what it may not have.
    #[test]
    fn any_wishes(
        rounds in prop::collection::vec(
            prop::collection::btree_map(
                1_u8..12,
                (prop::sample::select(vec!["", "none", "office", "lab", "203.0.113.10", "203.0.113.11",
                    "198.51.100.7", "203.0.113.11,198.51.100.7", "?", "nowhere"]), any::<bool>()),
                0..8,
            ),
            1..5,
        ),
        others in prop::collection::vec(any::<bool>(), 2),
    ) {
        let mut lab = Lab::new();
        lab.pool("lab", &["198.51.100.7"]);
        for (held, (pool, address)) in
            others.iter().zip([("office", "203.0.113.10"), ("lab", "198.51.100.7")])
        {
            if *held {
                lab.held(pool, address, "n2");
            }
        }
        for pods in rounds {
            lab.world.pods.clear();
            for (number, (wish, shop)) in pods {
                let namespace = if shop { "shop" } else { "evil" };
                lab.pod(&format!("{namespace}/p{number}"), number, wish);
            }
            lab.run();
            for (path, client) in &lab.state.clients {
                if client.slice.is_none() {
                    continue;
                }
                prop_assert!(path.starts_with("shop/"), "{path} is served");
                let address = client.entry.egress.to_string();
                let claims = lab.world.pools.values().flat_map(|pool| &pool.status.slices);
                let holders: Vec<&str> = claims
                    .filter(|claim| claim.address == address)
                    .map(|claim| claim.node.as_str())
                    .collect();
                prop_assert_eq!(holders, vec![ME], "{} is used by two", address);
            }
            lab.run();
            let (resolved, again) = lab.run();
            prop_assert_eq!(again, vec![]);
            for (path, pod) in &lab.world.pods {
                let wishes = pod.wish.as_deref().is_some_and(|wish| wish != "none");
                prop_assert_eq!(wishes, client(&resolved, path).is_some());
            }
        }
    }
}
