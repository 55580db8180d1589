//! From pods and their annotations to clients: pure.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::{IpNet, Ipv4Net};
use kube::core::SelectorExt;

use super::{
    annotation::{self, Cutover, Wish},
    arrivals::Arrivals,
    claims::{Claims, Standing},
    ended,
    judge::Judged,
    link,
    object::{Labels, Pod},
    pool::Refused,
    spec::Spec,
    trouble::Trouble,
    world::World,
};
use crate::{
    desired::draw,
    diff::{ClientState, State},
    facts::Facts,
    snapshot::{Client, Path, Pool, Timers, defaults},
};

/// The pool of clients that have none: it has no address, so that they are blocked. No EgressPool
/// can have this name.
pub const NO_POOL: &str = "(none)";

/// What pods were last served with, by `namespace/name`.
pub type Memory = BTreeMap<String, Served>;

/// What a pod was served with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The pod's own address: a pod that has another is another pod.
    pub source: Ipv4Addr,
    /// The pool.
    pub pool: String,
    /// The egress address.
    pub egress: Ipv4Addr,
}

/// What the tables say that pods are served with: all that is known after a restart.
pub fn remembered(state: &State) -> Memory {
    let clients = state.clients.iter().filter_map(|(name, client)| {
        let sources: Vec<&Ipv4Net> = client.entry.addresses.iter().collect();
        let [source] = sources[..] else { return None };
        client.slice?;
        let served = Served {
            source: source.addr(),
            pool: client.entry.pool.clone(),
            egress: client.entry.egress,
        };
        Some((name.clone(), served))
    });
    clients.collect()
}

/// The links of pods that ask for nothing, by the pods' uids.
pub type LeftAlone = BTreeMap<String, PodLink>;

/// A pod's link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// The pod's address, by which it was found.
    pub source: Ipv4Addr,
    /// Its name.
    pub device: String,
    /// Its number: a link that has another is another pod's, or made anew.
    pub ifindex: u32,
}

/// What clients are worked out from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// This node's name.
    pub node: &'a str,
    /// The cluster.
    pub world: &'a World,
    /// What the CNI plugin has said of pods.
    pub arrivals: &'a Arrivals,
    /// Its pools, judged.
    pub pools: &'a BTreeMap<String, Judged>,
    /// Who holds which address.
    pub claims: &'a Claims<'a>,
    /// What pods were served with.
    pub memory: &'a Memory,
    /// The links of pods that ask for nothing, as far as they were known; `None`: nobody asks.
    pub left_alone: Option<&'a LeftAlone>,
    /// What this node is like.
    pub facts: &'a Facts,
    /// Its tables: clients keep the links they have while nothing better is known.
    pub state: &'a State,
    /// Numbers of the clients that may have sessions.
    pub talking: &'a BTreeSet<u16>,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// The clients.
    pub clients: Vec<Client>,
    /// The pools, each with the addresses that this node may use.
    pub pools: Vec<Pool>,
    /// The addresses that this node should hold, by pool.
    pub wanted: BTreeSet<(String, Ipv4Addr)>,
    /// What stands in pods' way, by `namespace/name`.
    pub troubles: BTreeMap<String, Trouble>,
    /// Neighbours that the kernel has to look for.
    pub sought: Vec<(u32, Ipv4Addr)>,
    /// What pods are served with now.
    pub memory: Memory,
    /// The links of pods that ask for nothing.
    pub left_alone: LeftAlone,
    /// The links of clients that have ended.
    pub ended: BTreeSet<String>,
}

/// What is to happen with a pod that asks for something.
struct Fate {
    pool: String,
    /// `None`: blocked.
    egress: Option<Ipv4Addr>,
    /// What this node has to claim, for the pod to be served later.
    claim: Option<Ipv4Addr>,
    trouble: Option<Trouble>,
    /// It asks for nothing any more, and has flows.
    draining: bool,
    /// It is no client, by the choice of the pool that refuses it.
    passes: bool,
}

impl Fate {
    fn served(pool: &str, egress: Ipv4Addr) -> Self {
        Self {
            pool: pool.to_owned(),
            egress: Some(egress),
            claim: None,
            trouble: None,
            draining: false,
            passes: false,
        }
    }

    fn blocked(pool: &str, trouble: Trouble) -> Self {
        Self {
            pool: pool.to_owned(),
            egress: None,
            claim: None,
            trouble: Some(trouble),
            draining: false,
            passes: false,
        }
    }

    fn claiming(pool: &str, address: Ipv4Addr) -> Self {
        Self {
            claim: Some(address),
            ..Self::blocked(pool, Trouble::Claiming(address.to_string()))
        }
    }
}

/// Works out this node's clients.
pub fn resolve(input: &Input<'_>) -> Resolved {
    let resolver = Resolver {
        input,
        choices: RefCell::default(),
    };
    let mut resolved = Resolved::default();
    let pods = input.arrivals.over(&input.world.pods);
    let owners = owners(&pods);
    for pod in &pods {
        resolver.pod(pod, &owners, &mut resolved);
    }
    resolved.pools = pools(input, &resolved);
    resolved.ended = ended(input, &owners, &resolved);
    resolved
}

/// Where the guard is off, pods that ask for nothing have no link that is kept.
fn ended(
    input: &Input<'_>,
    owners: &BTreeMap<Ipv4Addr, &Pod>,
    resolved: &Resolved,
) -> BTreeSet<String> {
    let clients = resolved.clients.iter();
    let served: BTreeSet<&str> = clients.clone().map(|client| &*client.name).collect();
    let left_alone = resolved.left_alone.values().map(|link| &*link.device);
    let devices = clients.filter_map(|client| client.device.as_deref());
    let others: Vec<(Ipv4Addr, String)> = owners
        .iter()
        .map(|(address, pod)| (*address, pod.path()))
        .filter(|(_, path)| !served.contains(path.as_str()))
        .collect();
    let others = others.iter().map(|(address, path)| (*address, &**path));
    let taken = devices.chain(left_alone).collect();
    ended::ended(input.facts, input.state, &taken, others)
}

/// Whether the pod's own packets come through a veth of its own, from an address that is still its.
const fn takes_part(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

/// The pod that each address belongs to: the runtime may give a leaving pod's address to a new one
/// before the old one's object is gone. What was announced last is newer than any object.
fn owners<'a>(pods: &'a [Cow<'_, Pod>]) -> BTreeMap<Ipv4Addr, &'a Pod> {
    let mut owners: BTreeMap<Ipv4Addr, &Pod> = BTreeMap::new();
    for pod in pods.iter().map(AsRef::as_ref).filter(|pod| takes_part(pod)) {
        let Some(address) = pod.address() else {
            continue;
        };
        let rank = |pod: &Pod| {
            let announced = pod.arrival.as_ref().map(|arrival| arrival.order);
            (announced, !pod.leaving, pod.created, pod.uid.clone())
        };
        let owner = owners.entry(address).or_insert(pod);
        if rank(pod) > rank(owner) {
            *owner = pod;
        }
    }
    owners
}

/// What a pool's name gets a pod: the same for all pods of the node.
#[derive(Clone, Debug)]
struct Choice {
    ours: Vec<Ipv4Addr>,
    free: Option<Ipv4Addr>,
    holder: String,
}

struct Resolver<'a> {
    input: &'a Input<'a>,
    choices: RefCell<BTreeMap<String, Choice>>,
}

impl Resolver<'_> {
    fn pod(&self, pod: &Pod, owners: &BTreeMap<Ipv4Addr, &Pod>, resolved: &mut Resolved) {
        let path = pod.path();
        if !takes_part(pod) || pod.addresses.is_empty() {
            return;
        }
        let Some(fate) = self.fate(pod) else {
            return self.leave_alone(pod, owners, resolved);
        };
        let Some(source) = pod.address() else {
            resolved.troubles.insert(path, Trouble::Ipv6Only);
            return;
        };
        if let Some(owner) = owners.get(&source)
            && owner.uid != pod.uid
        {
            let other = Trouble::AddressReused(owner.path());
            resolved.troubles.insert(path, other);
            return;
        }
        let Some(fate) = self.let_pass(pod, fate, resolved) else {
            return self.leave_alone(pod, owners, resolved);
        };
        let claim = fate.claim.or(fate.egress);
        let claim = claim.filter(|address| self.has(&fate.pool, *address));
        resolved
            .wanted
            .extend(claim.map(|address| (fate.pool.clone(), address)));
        self.remember(&path, source, &fate, resolved);
        let device = self.device(pod, source, resolved);
        let trouble = self.trouble(pod, &fate, device.as_ref().err());
        resolved
            .troubles
            .extend(trouble.map(|trouble| (path.clone(), trouble)));
        resolved.clients.push(Client {
            name: path,
            addresses: vec![IpNet::from(std::net::IpAddr::V4(source))],
            device: device.ok(),
            pool: fate.pool,
            // Blocked: an address that no pool has.
            address: Some(fate.egress.unwrap_or(Ipv4Addr::UNSPECIFIED).into()),
            draining: fate.draining,
            cut_over: self.cutover(pod) == Ok(Cutover::Immediate),
        });
    }

    /// A pod that asks for nothing: what it sends is decided as soon as its link is known. The link
    /// is the pod's for good. One that is leaving gets no other: its address may be another's already.
    fn leave_alone(&self, pod: &Pod, owners: &BTreeMap<Ipv4Addr, &Pod>, resolved: &mut Resolved) {
        let (Some(known), Some(source)) = (self.input.left_alone, pod.address()) else {
            return;
        };
        let links = &self.input.facts.links;
        let there = |link: &&PodLink| {
            let found = links.get(&link.device);
            found.is_some_and(|found| found.ifindex == link.ifindex)
        };
        let before = known.get(&pod.uid).filter(there);
        if let Some(before) = before.filter(|before| before.source == source) {
            resolved.left_alone.insert(pod.uid.clone(), before.clone());
            return;
        }
        let owner = owners.get(&source).map(|owner| &owner.uid);
        if pod.leaving || owner != Some(&pod.uid) {
            return;
        }
        let path = pod.path();
        match self.device(pod, source, resolved) {
            Ok(device) => {
                let ifindex = links.get(&device).map_or(0, |link| link.ifindex);
                let link = PodLink {
                    source,
                    device,
                    ifindex,
                };
                resolved.left_alone.insert(pod.uid.clone(), link);
            }
            Err(missing) => drop(resolved.troubles.insert(path, Trouble::Link(missing))),
        }
    }

    /// A pod that is let pass is as one that asks for nothing, but that it is told why.
    fn let_pass(&self, pod: &Pod, fate: Fate, resolved: &mut Resolved) -> Option<Fate> {
        if !fate.passes {
            return Some(fate);
        }
        let trouble = fate.trouble;
        let Some(drained) = self.drained(pod) else {
            let told = trouble.map(|trouble| (pod.path(), trouble));
            resolved.troubles.extend(told);
            return None;
        };
        Some(Fate { trouble, ..drained })
    }

    /// What there is to say of the pod: the worst of it.
    fn trouble(&self, pod: &Pod, fate: &Fate, missing: Option<&link::Missing>) -> Option<Trouble> {
        let trouble = fate.trouble.clone();
        let trouble = trouble.or_else(|| missing.cloned().map(Trouble::Link));
        let trouble = trouble.or_else(|| self.cutover(pod).err().map(Trouble::Cutover));
        let both = pod.addresses.len() > 1 && two_families(pod) && !fate.draining;
        trouble.or_else(|| both.then_some(Trouble::Ipv6Too))
    }

    fn remember(&self, path: &str, source: Ipv4Addr, fate: &Fate, resolved: &mut Resolved) {
        let served = fate.egress.map(|egress| Served {
            source,
            pool: fate.pool.clone(),
            egress,
        });
        // Blocked for a while: it had an address, and may get it again.
        let served = served.or_else(|| self.before(path, source).cloned());
        let served = served.map(|served| (path.to_owned(), served));
        resolved.memory.extend(served);
    }

    fn before(&self, path: &str, source: Ipv4Addr) -> Option<&Served> {
        let before = self.input.memory.get(path);
        before.filter(|before| before.source == source)
    }

    fn device(
        &self,
        pod: &Pod,
        source: Ipv4Addr,
        resolved: &mut Resolved,
    ) -> Result<String, link::Missing> {
        if let Some(arrival) = &pod.arrival
            && let Some(name) = link::announced(&arrival.links, self.input.facts)?
        {
            return Ok(name);
        }
        let known = self.known(&pod.path(), source);
        let known = known.map(|client| client.entry.ifindex);
        if pod.leaving {
            return link::kept(known, self.input.facts);
        }
        let found = link::host_side(source, self.input.facts, known);
        if let Err(missing) = &found {
            let sought = missing.sought().map(|ifindex| (ifindex, source));
            resolved.sought.extend(sought);
        }
        found
    }

    /// The pod as the tables know it: one that has another address is another pod.
    fn known(&self, path: &str, source: Ipv4Addr) -> Option<&ClientState> {
        let client = self.input.state.clients.get(path)?;
        let same = client.entry.addresses.contains(&Ipv4Net::from(source));
        same.then_some(client)
    }

    fn cutover(&self, pod: &Pod) -> Result<Cutover, String> {
        let namespace = self.input.world.namespaces.get(&pod.namespace);
        let default = namespace.and_then(|namespace| namespace.cutover.as_deref());
        annotation::cutover(pod.cutover.as_deref(), default)
    }

    /// What is to happen with the pod; `None` if it is no client.
    fn fate(&self, pod: &Pod) -> Option<Fate> {
        let namespace = self.input.world.namespaces.get(&pod.namespace);
        let default = namespace.and_then(|namespace| namespace.wish.as_deref());
        match annotation::wish(pod.wish.as_deref(), default) {
            Ok(Wish::Nothing) => self.drained(pod),
            Ok(Wish::Addresses(addresses)) => Some(self.listed(pod, &addresses)),
            Ok(Wish::Pool(name)) => Some(self.pooled(pod, &name)),
            Err(problem) => Some(self.fall_back(pod, Trouble::Annotation(problem))),
        }
    }

    /// A client that asks for nothing any more: its flows go on until they end, by the address that
    /// they have. Told by the tables alone, so that a restart changes nothing.
    fn drained(&self, pod: &Pod) -> Option<Fate> {
        let client = self.known(&pod.path(), pod.address()?)?;
        let ended = client.entry.draining && !self.input.talking.contains(&client.index);
        if ended || self.cutover(pod) == Ok(Cutover::Immediate) {
            return None;
        }
        let (name, egress) = (&client.entry.pool, client.entry.egress);
        let judged = self.input.pools.get(name);
        let spec = judged.and_then(|judged| judged.spec.as_ref());
        let theirs = matches!(
            self.input.claims.standing(name, egress),
            Standing::Theirs(_)
        );
        Some(Fate {
            pool: spec.map_or(NO_POOL, |_| name).to_owned(),
            egress: (!theirs && !egress.is_unspecified()).then_some(egress),
            claim: None,
            trouble: None,
            draining: true,
            passes: false,
        })
    }

    /// The first address that can be used. One that the pod has is kept while it is on the list.
    fn listed(&self, pod: &Pod, addresses: &[Ipv4Addr]) -> Fate {
        let (mut usable, mut troubles) = (Vec::new(), Vec::new());
        for address in addresses {
            match self.allowed(pod, *address) {
                Ok(pool) => usable.push((pool, *address)),
                Err(trouble) => troubles.push(trouble),
            }
        }
        if usable.is_empty() {
            let first = troubles.into_iter().next();
            let none = || Trouble::Annotation("holds no address".to_owned());
            return self.fall_back(pod, first.unwrap_or_else(none));
        }
        let claims = self.input.claims;
        if let Some(before) = self.kept(pod)
            && usable.contains(&(before.pool.as_str(), before.egress))
        {
            return Fate::served(&before.pool, before.egress);
        }
        let mut held = None;
        for (pool, address) in usable {
            match claims.standing(pool, address) {
                Standing::Ours => return Fate::served(pool, address),
                Standing::Free => return Fate::claiming(pool, address),
                Standing::Theirs(node) => {
                    held.get_or_insert_with(|| {
                        let what = address.to_string();
                        Fate::blocked(pool, Trouble::Held { what, node })
                    });
                }
            }
        }
        held.unwrap_or_else(|| Fate::blocked(NO_POOL, Trouble::NoSuchPool(String::new())))
    }

    /// An address of the pool: the one that the pod has, one that this node holds, a free one.
    fn pooled(&self, pod: &Pod, name: &str) -> Fate {
        let spec = match self.usable(pod, name) {
            Ok(spec) => spec,
            Err(trouble) => return self.fall_back(pod, trouble),
        };
        if let Some(before) = self.kept(pod)
            && before.pool == name
        {
            return Fate::served(name, before.egress);
        }
        let choice = self.choice(name, spec);
        let path = pod.path();
        let ours = choice.ours.iter().copied();
        match (
            ours.max_by_key(|address| draw(&path, *address)),
            choice.free,
        ) {
            (Some(address), _) => Fate::served(name, address),
            (None, Some(address)) => Fate::claiming(name, address),
            (None, None) => {
                let what = format!("every address of EgressPool {name}");
                let node = choice.holder;
                Fate::blocked(name, Trouble::Held { what, node })
            }
        }
    }

    /// Looked up once for all pods: a pool may have thousands of addresses.
    fn choice(&self, name: &str, spec: &Spec) -> Choice {
        if let Some(choice) = self.choices.borrow().get(name) {
            return choice.clone();
        }
        let claims = self.input.claims;
        let mut ours = claims.ours(name);
        ours.retain(|address| spec.contains(*address));
        let (mut free, mut holder) = (None, String::new());
        if ours.is_empty() {
            let mut addresses: Vec<Ipv4Addr> = spec.addresses().collect();
            addresses.sort_by_key(|address| std::cmp::Reverse(draw(self.input.node, *address)));
            free =
                addresses
                    .iter()
                    .copied()
                    .find(|address| match claims.standing(name, *address) {
                        Standing::Theirs(node) => {
                            holder = node;
                            false
                        }
                        Standing::Ours | Standing::Free => true,
                    });
        }
        let choice = Choice { ours, free, holder };
        let mut choices = self.choices.borrow_mut();
        choices.insert(name.to_owned(), choice.clone());
        choice
    }

    /// What the pod had goes on, if it still may; else it is blocked, or let pass if the pool that
    /// refuses it says so.
    fn fall_back(&self, pod: &Pod, trouble: Trouble) -> Fate {
        match self.kept(pod) {
            Some(before) => Fate {
                trouble: Some(trouble),
                ..Fate::served(&before.pool, before.egress)
            },
            None => Fate {
                passes: self.lets_pass(&trouble),
                ..Fate::blocked(NO_POOL, trouble)
            },
        }
    }

    fn lets_pass(&self, trouble: &Trouble) -> bool {
        let (Trouble::NotAllowed { pool, .. } | Trouble::NotOnThisNode { pool, .. }) = trouble
        else {
            return false;
        };
        let judged = self.input.pools.get(pool);
        let spec = judged.and_then(|judged| judged.spec.as_ref());
        spec.is_some_and(|spec| spec.refused == Refused::Pass)
    }

    /// What the pod had, if it still may have it.
    fn kept(&self, pod: &Pod) -> Option<&Served> {
        let before = self.before(&pod.path(), pod.address()?)?;
        let spec = self.usable(pod, &before.pool).ok()?;
        let ours = self.input.claims.standing(&before.pool, before.egress) == Standing::Ours;
        (ours && spec.contains(before.egress)).then_some(before)
    }

    /// Whether the pool has this address: a draining client's may have been taken from it.
    fn has(&self, pool: &str, address: Ipv4Addr) -> bool {
        let judged = self.input.pools.get(pool);
        let spec = judged.and_then(|judged| judged.spec.as_ref());
        spec.is_some_and(|spec| spec.contains(address))
    }

    /// The pool of an address, if the pod may use it.
    fn allowed(&self, pod: &Pod, address: Ipv4Addr) -> Result<&str, Trouble> {
        let mut pools = self.input.pools.iter();
        let pool = pools.find(|(_, judged)| {
            let spec = judged.spec.as_ref();
            spec.is_some_and(|spec| spec.contains(address))
        });
        let (name, _) = pool.ok_or(Trouble::NoPoolHasAddress(address))?;
        self.usable(pod, name).map(|_| name.as_str())
    }

    /// The pool, if the pod may use it.
    fn usable(&self, pod: &Pod, name: &str) -> Result<&Spec, Trouble> {
        let pool = self.input.pools.get(name);
        let judged = pool.ok_or_else(|| Trouble::NoSuchPool(name.to_owned()))?;
        let Some(spec) = &judged.spec else {
            let why = judged.refusal.as_ref().map(|refusal| &refusal.message);
            let why = why.cloned().unwrap_or_default();
            return Err(Trouble::PoolRefused(name.to_owned(), why));
        };
        let world = self.input.world;
        let none = Labels::new();
        let labels = world.namespaces.get(&pod.namespace);
        let labels = labels.map_or(&none, |namespace| &namespace.labels);
        let allowed = spec.namespaces.as_ref();
        if !allowed.is_some_and(|selector| selector.matches(labels)) {
            return Err(Trouble::NotAllowed {
                pool: name.to_owned(),
                namespace: pod.namespace.clone(),
            });
        }
        let labels = world.nodes.get(self.input.node);
        let labels = labels.map_or(&none, |node| &node.labels);
        if spec
            .nodes
            .as_ref()
            .is_some_and(|nodes| !nodes.matches(labels))
        {
            return Err(Trouble::NotOnThisNode {
                pool: name.to_owned(),
                node: self.input.node.to_owned(),
            });
        }
        Ok(spec)
    }
}

fn two_families(pod: &Pod) -> bool {
    pod.addresses.iter().any(std::net::IpAddr::is_ipv6)
}

/// Every pool that a client has, with the addresses that clients here are served with.
fn pools(input: &Input<'_>, resolved: &Resolved) -> Vec<Pool> {
    let used: BTreeSet<&str> = resolved
        .clients
        .iter()
        .map(|client| client.pool.as_str())
        .collect();
    let pools = used.iter().map(|name| {
        let spec = input
            .pools
            .get(*name)
            .and_then(|judged| judged.spec.as_ref());
        let mut pool = spec.map_or_else(no_pool, |spec| spec.pool.clone());
        let wanted = resolved.wanted.iter();
        let ours = wanted.filter(|(pool, address)| {
            pool == name && input.claims.standing(pool, *address) == Standing::Ours
        });
        pool.addresses = ours.map(|(_, address)| (*address).into()).collect();
        pool
    });
    pools.collect()
}

fn no_pool() -> Pool {
    Pool {
        name: NO_POOL.to_owned(),
        addresses: Vec::new(),
        exclude: Vec::new(),
        ports_per_client: defaults::PORTS_PER_CLIENT,
        block_size: defaults::BLOCK_SIZE,
        mappings_per_second: None,
        rest: defaults::REST,
        path: Path::default(),
        timers: Timers::default(),
    }
}
