//! The agent's Kubernetes source against a real API server: etcd and kube-apiserver, no kubelet. Pods
//! are objects that a test writes; the node's tables are played by the pure part of the agent.
//!
//! The programs are a cluster's: named by `KUBE_BIN_DIR` or `KUBEBUILDER_ASSETS`, or built.

#[path = "kubernetes_api/guard.rs"]
mod guard;
#[path = "kubernetes_api/node_file.rs"]
mod node_file;
#[path = "kubernetes_api/rendered.rs"]
mod rendered;
#[path = "kubernetes_api/unreliable.rs"]
mod unreliable;

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod},
    events::v1::Event,
    rbac::v1::ClusterRole,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::ApiResource,
};
use nat_agent::{
    desired::desired,
    diff::{State, diff},
    facts::{Facts, Kind, Link},
    snapshot::{Settings, Snapshot},
    source::{
        Answer, Fixed, View,
        kubernetes::{Kubernetes, pool::EgressPool},
    },
};
use nat_tests::{
    agent,
    api_server::{self, ADMIN, AGENT, Request, Server, eventually, manifests, patch_status},
    cluster, deploy, lab,
};
use serde_json::{Value, json};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test where the API server listens, and is asked from there: on a lab's node.
fn on_node(lab: &lab::Lab, test: impl AsyncFnOnce(&lab::Lab) -> Result<()> + Send) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    lab.node.enter(|| runtime.block_on(test(lab)))?
}

/// An API server with the manifests of deploy/, two nodes and two namespaces.
struct Lab {
    server: Server,
    client: Client,
}

impl Lab {
    async fn start() -> Result<Self> {
        let mut server = Server::start(cluster::programs()?)?;
        server.ready().await?;
        let client = server.client(ADMIN)?;
        let lab = Self { server, client };
        manifests(&lab.client).await?;
        lab.cluster().await?;
        Ok(lab)
    }

    async fn cluster(&self) -> Result<()> {
        for number in [1, 2] {
            let node = json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{number}")},
                "spec": {"podCIDRs": [format!("10.244.{number}.0/24")], "podCIDR": format!("10.244.{number}.0/24")},
            });
            self.apply(node).await?;
            let status = json!({"status": {"addresses":
                [{"type": "InternalIP", "address": format!("192.0.2.{number}")}]}});
            let nodes = Api::<Node>::all(self.client.clone());
            patch_status(&nodes, &format!("n{number}"), status).await?;
        }
        for (name, labels) in [("shop", json!({"egress": "office"})), ("evil", json!({}))] {
            let metadata = json!({"name": name, "labels": labels});
            self.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
                .await?;
        }
        Ok(())
    }

    async fn apply(&self, object: Value) -> Result<()> {
        api_server::apply(&self.client, object).await
    }

    async fn pool(&self, name: &str, spec: Value) -> Result<()> {
        self.apply(json!({
            "apiVersion": "natctl.io/v1alpha1", "kind": "EgressPool", "metadata": {"name": name}, "spec": spec,
        }))
        .await
    }

    /// A running pod.
    async fn pod(&self, path: &str, node: u8, number: u8, wish: &str) -> Result<()> {
        let (namespace, name) = path.split_once('/').context("namespace/name")?;
        self.apply(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "annotations": {"natctl.io/egress-ip": wish}},
            "spec": {"nodeName": format!("n{node}"), "containers": [{"name": "c", "image": "i"}]},
        }))
        .await?;
        let address = pod_address(node, number).to_string();
        let status =
            json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
        patch_status(&self.pods(namespace), name, status).await
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn delete(&self, path: &str) -> Result<()> {
        let (namespace, name) = path.split_once('/').context("namespace/name")?;
        let at_once = DeleteParams::default().grace_period(0);
        self.pods(namespace).delete(name, &at_once).await?;
        Ok(())
    }

    /// The whole agent of the first node, which is the lab's.
    fn agent_on(&self, lab: &lab::Lab, node_file: &str) -> Result<agent::Agent> {
        let kubeconfig = fs::read_to_string(self.server.kubeconfig(AGENT)?)?;
        agent::Agent::start_on(lab, node_file, "n1", &kubeconfig)
    }

    fn agent(&self, node: u8) -> Result<Agent> {
        let name = format!("n{node}");
        let client = self.server.client(AGENT)?;
        Ok(Agent {
            source: Kubernetes::with(&name, None, client),
            facts: facts(node),
            state: State::default(),
            talking: BTreeSet::new(),
            busy: BTreeSet::new(),
        })
    }

    /// The Events' reasons at a pod.
    async fn events(&self, path: &str) -> Result<BTreeSet<String>> {
        let (namespace, name) = path.split_once('/').context("namespace/name")?;
        let events = Api::<Event>::namespaced(self.client.clone(), namespace);
        let events = events.list(&ListParams::default()).await?;
        let of_pod = events.items.into_iter().filter(|event| {
            let regarding = event.regarding.as_ref();
            regarding.and_then(|pod| pod.name.as_deref()) == Some(name)
        });
        Ok(of_pod.filter_map(|event| event.reason).collect())
    }
}

fn pod_address(node: u8, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, number)
}

/// A node with ten pods' veths.
fn facts(node: u8) -> Facts {
    let mut facts = Facts {
        forwarding: true,
        ..Facts::default()
    };
    let link = |ifindex, kind| Link {
        ifindex,
        mac: [0; 6],
        kind,
    };
    facts.links.insert("eth0".to_owned(), link(2, Kind::Nic));
    facts.ways.defaults.insert(2);
    for number in 1..=10 {
        let ifindex = 100 + u32::from(number);
        let name = format!("veth{number}");
        facts.links.insert(name, link(ifindex, Kind::Veth));
        let route = pod_address(node, number).into();
        facts.ways.routes.insert(route, ifindex);
    }
    facts
}

/// The agent without a kernel: its source, and its tables as the pure part works them out.
struct Agent {
    source: Kubernetes,
    facts: Facts,
    state: State,
    /// Numbers of the clients that have sessions.
    talking: BTreeSet<u16>,
    /// Egress addresses that sessions use.
    busy: BTreeSet<Ipv4Addr>,
}

impl Agent {
    fn ask(&mut self) -> Answer {
        let view = View {
            facts: &self.facts,
            state: &self.state,
            talking: &self.talking,
            fixed: &Fixed::new(&Settings::default(), String::new()),
        };
        let answer = self.source.ask(view);
        if let Answer::Snapshot(snapshot) = &answer {
            self.carry_out(snapshot);
        }
        answer
    }

    fn carry_out(&mut self, snapshot: &Snapshot) {
        let wanted = desired(snapshot, &self.facts, &self.state.egress());
        let plan = diff(&self.state, &wanted, &self.busy, &snapshot.limits);
        plan.operations
            .iter()
            .for_each(|operation| self.state.apply(operation));
    }

    fn egress(&self, path: &str) -> Option<Ipv4Addr> {
        let client = self.state.clients.get(path)?;
        client.slice.map(|_| client.entry.egress)
    }

    /// Goes on until this holds.
    async fn until(
        &mut self,
        what: &str,
        holds: impl Fn(&Self, &Answer) -> bool,
    ) -> Result<Answer> {
        let mut last = Answer::NotYet("never asked".to_owned());
        let all = async {
            loop {
                last = self.ask();
                if holds(self, &last) {
                    return;
                }
                self.source.changed().await;
            }
        };
        match timeout(PATIENCE, all).await {
            Ok(()) => Ok(last),
            Err(_) => bail!("{what}: {last:?}\n{:?}", self.state.clients),
        }
    }
}

fn office() -> Value {
    json!({
        "addresses": ["203.0.113.10"],
        "allowedNamespaces": {"matchLabels": {"egress": "office"}},
    })
}

#[tokio::test]
async fn the_schema_refuses_what_it_can() -> Result<()> {
    let lab = Lab::start().await?;
    lab.pool(
        "good",
        json!({
            "addresses": ["203.0.113.10", "203.0.113.16/29", "203.0.113.32-203.0.113.40"],
            "allowedNamespaces": {}, "refused": "pass",
            "nodeSelector": {"matchLabels": {"gateway": "yes"}},
            "include": ["198.51.100.0/24"], "exclude": ["198.51.100.7"],
            "portsPerClient": 128, "blockSize": 32, "rest": "2m", "path": "direct",
            "timers": {"udp": "1m 30s"},
            "mapping": "endpointIndependent", "filtering": "addressAndPortDependent",
        }),
    )
    .await?;
    for (field, value, words) in [
        ("addresses", json!([]), "spec.addresses"),
        ("addresses", json!(["2001:db8::1"]), "should match"),
        (
            "exclude",
            json!(["0.0.0.0/0"]),
            "nothing would be translated",
        ),
        ("exclude", json!(["somewhere"]), "should match"),
        ("portsPerClient", json!(100), "multiple of blockSize"),
        ("portsPerClient", json!(0), "greater than or equal to 1"),
        ("portsPerClient", json!(3.5), "integer"),
        ("blockSize", json!(65), "less than or equal to 64"),
        ("rest", json!("soon"), "should match"),
        ("path", json!("fast"), "Unsupported value"),
        (
            "mapping",
            json!("addressDependent"),
            "only mapping: endpointIndependent",
        ),
        (
            "filtering",
            json!("addressDependent"),
            "only filtering: addressAndPortDependent",
        ),
        ("timers", json!({"udp": 3}), "string"),
        ("refused", json!("drop"), "Unsupported value"),
        ("blokSize", json!(32), "field not declared"),
    ] {
        let mut spec = office();
        spec[field] = value.clone();
        let pools = Api::<DynamicObject>::all_with(lab.client.clone(), &pool_resource());
        let object = json!({
            "apiVersion": "natctl.io/v1alpha1", "kind": "EgressPool", "metadata": {"name": "bad"}, "spec": spec,
        });
        let mut parameters = PatchParams::apply("test").force();
        parameters.field_validation = Some(kube::api::ValidationDirective::Strict);
        let refused = pools.patch("bad", &parameters, &Patch::Apply(object)).await;
        let Err(error) = refused else {
            bail!("{field}: {value} was accepted")
        };
        ensure!(
            error.to_string().contains(words),
            "{field}: {value}: {error}"
        );
    }
    for name in ["none", "203.0.113.10"] {
        let refused = lab.pool(name, office()).await;
        ensure!(refused.is_err(), "a pool may be called {name}");
    }
    Ok(())
}

fn pool_resource() -> ApiResource {
    use kube::CustomResourceExt;
    EgressPool::api_resource()
}

#[tokio::test]
async fn pods_are_followed_and_told() -> Result<()> {
    let lab = Lab::start().await?;
    lab.pool("office", office()).await?;
    lab.pool("taken", json!({"addresses": ["203.0.113.0/28"]}))
        .await?;
    lab.pod("shop/web-0", 1, 7, "office").await?;
    lab.pod("evil/web-0", 1, 8, "203.0.113.10").await?;
    lab.pod("shop/elsewhere", 2, 7, "office").await?;
    let mut agent = lab.agent(1)?;
    let first = agent.ask();
    ensure!(
        matches!(first, Answer::NotYet(_)),
        "before the lists: {first:?}"
    );
    let answer = agent
        .until("the pod is served", |agent, _| {
            agent.egress("shop/web-0").is_some()
        })
        .await?;
    let Answer::Snapshot(snapshot) = answer else {
        bail!("no snapshot: {answer:?}")
    };
    let names: Vec<&str> = snapshot
        .clients
        .iter()
        .map(|client| client.name.as_str())
        .collect();
    ensure!(names == ["evil/web-0", "shop/web-0"], "{names:?}");
    ensure!(
        agent.egress("evil/web-0").is_none(),
        "a tenant took another's address"
    );
    ensure!(snapshot.devices[0].name == "eth0");
    let left_alone = |address: IpAddr| {
        snapshot
            .cluster_ranges
            .iter()
            .any(|net| net.contains(&address))
    };
    for address in ["10.244.2.9", "192.0.2.2", "10.96.0.1", "169.254.20.10"] {
        ensure!(
            left_alone(address.parse()?),
            "{address}: {:?}",
            snapshot.cluster_ranges
        );
    }
    let pools = Api::<EgressPool>::all(lab.client.clone());
    eventually("conditions and Events are written", async || {
        agent.ask();
        for (pool, status, reason) in [
            ("office", "True", "Accepted"),
            ("taken", "False", "Overlaps"),
        ] {
            let pool = pools.get(pool).await?;
            let condition = pool
                .status
                .and_then(|status| status.conditions.into_iter().next());
            let condition = condition.context("no condition yet")?;
            ensure!(
                condition.status == status && condition.reason == reason,
                "{condition:?}"
            );
        }
        let events = lab.events("evil/web-0").await?;
        ensure!(events.contains("NamespaceNotAllowed"), "{events:?}");
        Ok(())
    })
    .await?;
    // Repaired while it runs: the namespace is labelled, the pod is served and told.
    let namespaces = Api::<Namespace>::all(lab.client.clone());
    let label = json!({"metadata": {"labels": {"egress": "office"}}});
    namespaces
        .patch("evil", &PatchParams::default(), &Patch::Merge(label))
        .await?;
    agent
        .until("the other pod is served", |agent, _| {
            agent.egress("evil/web-0").is_some()
        })
        .await?;
    eventually("the pod is told", async || {
        agent.ask();
        let events = lab.events("evil/web-0").await?;
        ensure!(events.contains("EgressReady"), "{events:?}");
        Ok(())
    })
    .await?;
    // Nothing flaps: with nothing to be done, nothing is written.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = pools.get("office").await?.resource_version();
    let mut second = lab.agent(2)?;
    second
        .until("the other node has listed", |_, answer| {
            matches!(answer, Answer::Snapshot(_))
        })
        .await?;
    for _ in 0..20 {
        agent.ask();
        second.ask();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(
        pools.get("office").await?.resource_version() == before,
        "the pool was written again"
    );
    lab.delete("shop/web-0").await?;
    agent
        .until("it is gone", |agent, _| {
            !agent.state.clients.contains_key("shop/web-0")
        })
        .await?;
    has_the_rights_that_it_uses(&lab.server)
}

/// deploy/ gives the agent no right that it does not use, and it asks for nothing else.
fn has_the_rights_that_it_uses(server: &Server) -> Result<()> {
    let text = fs::read_to_string(deploy::manifests("base/rbac.yaml"))?;
    let role: ClusterRole = serde_saphyr::from_str(&text)?;
    let mut granted = BTreeSet::new();
    for rule in role.rules.into_iter().flatten() {
        for resource in rule.resources.into_iter().flatten() {
            let verbs = rule.verbs.iter().cloned();
            granted.extend(verbs.map(|verb| Request {
                verb,
                resource: resource.clone(),
            }));
        }
    }
    let used: BTreeSet<Request> = server.requests()?.into_iter().collect();
    ensure!(used == granted, "used {used:?}, granted {granted:?}");
    Ok(())
}

#[tokio::test]
async fn of_two_nodes_that_want_an_address_one_gets_it() -> Result<()> {
    let lab = Lab::start().await?;
    lab.pool("office", office()).await?;
    let mut agents = [lab.agent(1)?, lab.agent(2)?];
    for agent in &mut agents {
        agent
            .until("it has listed", |_, answer| {
                matches!(answer, Answer::Snapshot(_))
            })
            .await?;
    }
    lab.pod("shop/a", 1, 1, "203.0.113.10").await?;
    lab.pod("shop/b", 2, 1, "203.0.113.10").await?;
    let served = |agents: &[Agent; 2]| {
        [
            agents[0].egress("shop/a").is_some(),
            agents[1].egress("shop/b").is_some(),
        ]
    };
    eventually("one is served", async || {
        agents.iter_mut().for_each(|agent| drop(agent.ask()));
        let served = served(&agents);
        ensure!(served != [true, true], "both nodes use the address");
        ensure!(served != [false, false], "nobody is served");
        Ok(())
    })
    .await?;
    let winner = usize::from(served(&agents)[1]);
    let (theirs, blocked) = [("shop/a", "shop/b"), ("shop/b", "shop/a")][winner];
    eventually("the other is told", async || {
        agents.iter_mut().for_each(|agent| drop(agent.ask()));
        let events = lab.events(blocked).await?;
        ensure!(events.contains("AddressInUse"), "{events:?}");
        Ok(())
    })
    .await?;
    for _ in 0..20 {
        agents.iter_mut().for_each(|agent| drop(agent.ask()));
        ensure!(!served(&agents)[1 - winner], "both nodes use the address");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lab.delete(theirs).await?;
    eventually("the claim passes", async || {
        for agent in &mut agents {
            agent.ask();
        }
        ensure!(
            agents[1 - winner].egress(blocked).is_some(),
            "{blocked} is still blocked"
        );
        Ok(())
    })
    .await
}

/// A claim that another node has now ends what uses the address here, sessions or not.
#[tokio::test]
async fn a_lost_claim_ends_what_uses_the_address() -> Result<()> {
    let lab = Lab::start().await?;
    lab.pool("office", office()).await?;
    lab.pod("shop/web-0", 1, 7, "203.0.113.10").await?;
    let address = Ipv4Addr::new(203, 0, 113, 10);
    let mut agent = lab.agent(1)?;
    agent
        .until("the pod is served", |agent, _| {
            agent.egress("shop/web-0").is_some()
        })
        .await?;
    agent.busy.insert(address);
    let index = agent.state.clients["shop/web-0"].index;
    agent.talking.insert(index);
    claim(&lab, "n2").await?;
    let answer = agent
        .until("the address is given up", |agent, _| {
            agent.state.slices.is_empty()
        })
        .await?;
    let Answer::Snapshot(snapshot) = answer else {
        bail!("no snapshot: {answer:?}")
    };
    ensure!(snapshot.lost == [address], "{:?}", snapshot.lost);
    ensure!(agent.egress("shop/web-0").is_none());
    eventually("the pod is told", async || {
        agent.ask();
        let events = lab.events("shop/web-0").await?;
        ensure!(events.contains("AddressInUse"), "{events:?}");
        Ok(())
    })
    .await?;
    // It is not fought over: the claim stays the other's until it is given up.
    let pools = Api::<EgressPool>::all(lab.client.clone());
    let holder = async || {
        let status = pools.get("office").await?.status.unwrap_or_default();
        let slices = status.slices.into_iter();
        Ok::<_, anyhow::Error>(slices.map(|claim| claim.node).collect::<Vec<_>>())
    };
    ensure!(holder().await? == ["n2"]);
    let none = json!({"status": {"slices": []}});
    patch_status(&pools, "office", none).await?;
    agent
        .until("the pod is served again", |agent, _| {
            agent.egress("shop/web-0").is_some()
        })
        .await?;
    ensure!(holder().await? == ["n1"]);
    Ok(())
}

/// A node claims the pool's only address, as its agent would.
async fn claim(lab: &Lab, node: &str) -> Result<()> {
    let pools = Api::<EgressPool>::all(lab.client.clone());
    let claim = json!({"address": "203.0.113.10", "first": 1024, "size": 64512, "node": node,
        "renewed": "now"});
    patch_status(&pools, "office", json!({"status": {"slices": [claim]}})).await
}

/// The annotation is removed while the pod has sessions, and the agent starts anew meanwhile.
#[tokio::test]
async fn a_removed_annotation_drains() -> Result<()> {
    let lab = Lab::start().await?;
    lab.pool("office", office()).await?;
    lab.pod("shop/web-0", 1, 7, "office").await?;
    let mut agent = lab.agent(1)?;
    agent
        .until("the pod is served", |agent, _| {
            agent.egress("shop/web-0").is_some()
        })
        .await?;
    let index = agent.state.clients["shop/web-0"].index;
    agent.talking.insert(index);
    let annotate = async |annotations: Value| {
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        let pods = lab.pods("shop");
        pods.patch("web-0", &PatchParams::default(), &patch).await?;
        Ok::<_, anyhow::Error>(())
    };
    annotate(json!({"natctl.io/egress-ip": null})).await?;
    let draining = |agent: &Agent| {
        let client = agent.state.clients.get("shop/web-0");
        client.is_some_and(|client| client.entry.draining)
    };
    agent
        .until("the pod drains", |agent, _| draining(agent))
        .await?;
    let mut next = lab.agent(1)?;
    (next.state, next.talking) = (agent.state.clone(), agent.talking.clone());
    drop(agent);
    let listed = |answer: &Answer| matches!(answer, Answer::Snapshot(_));
    next.until("it has listed", |_, answer| listed(answer))
        .await?;
    ensure!(draining(&next), "a restart ended the flows");
    annotate(json!({"natctl.io/cutover": "immediate"})).await?;
    next.until("its flows end", |next, _| next.state.clients.is_empty())
        .await?;
    Ok(())
}

#[tokio::test]
async fn without_an_api_server_everything_stays() -> Result<()> {
    let mut lab = Lab::start().await?;
    lab.pool("office", office()).await?;
    lab.pod("shop/web-0", 1, 7, "office").await?;
    let mut agent = lab.agent(1)?;
    let before = agent
        .until("the pod is served", |agent, _| {
            agent.egress("shop/web-0").is_some()
        })
        .await?;
    lab.server.stop_api()?;
    let after = agent
        .until("it notices", |agent, _| !agent.source.problems().is_empty())
        .await?;
    ensure!(after == before, "something changed: {after:?}");
    let words = agent.source.problems().join(" ");
    ensure!(words.contains("has not answered since"), "{words}");
    eventually("all kinds are known to be stale", async || {
        let report = agent.source.report();
        ensure!(
            report.silent_since.is_some() && report.stale.len() == 5,
            "{report:?}"
        );
        Ok(())
    })
    .await?;
    // One that starts meanwhile says so, and asks for nothing.
    let mut late = lab.agent(1)?;
    late.source.changed().await;
    let answer = late.ask();
    ensure!(matches!(answer, Answer::NotYet(_)), "{answer:?}");
    lab.server.start_api()?;
    lab.server.ready().await?;
    lab.pod("shop/web-1", 1, 8, "office").await?;
    for agent in [&mut agent, &mut late] {
        agent
            .until("the new pod is served", |agent, _| {
                agent.egress("shop/web-1").is_some()
            })
            .await?;
        ensure!(agent.egress("shop/web-0").is_some());
    }
    agent
        .until("all is well", |agent, _| agent.source.problems().is_empty())
        .await?;
    Ok(())
}
