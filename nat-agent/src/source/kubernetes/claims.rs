//! Which node uses an egress address: the claims in the pools' status.
//!
//! The first node that needs an address claims it, and renews its claim. Another takes it over when
//! the holder's Node is gone, or when it has not seen the claim renewed for [`LEASE`] by its own
//! monotonic clock: wall clocks of two nodes are never compared. A claim is for a slice of an
//! address's ports; for now a slice is the whole address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use super::{object::Pool, pool::SliceClaim, world::World};
use crate::bpf::layout::FIRST_PORT;

/// How long a claim stands without being renewed.
pub const LEASE: Duration = Duration::from_secs(60);
/// How old a claim gets before its holder renews it: two renewals may fail.
pub const RENEW: Duration = Duration::from_secs(20);

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This node.
    Ours,
    /// Nobody, or somebody who is gone: it can be claimed.
    Free,
    /// Another node.
    Theirs(String),
}

/// When claims were last seen to change, by this node's monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Observer {
    seen: BTreeMap<(String, String), (SliceClaim, Duration)>,
}

impl Observer {
    /// Takes note of the claims as they are now.
    pub fn observe(&mut self, pools: &BTreeMap<String, Pool>, now: Duration) {
        let mut seen = BTreeMap::new();
        for (name, pool) in pools {
            for claim in &pool.status.slices {
                let key = (name.clone(), claim.address.clone());
                let since = match self.seen.get(&key) {
                    Some((known, since)) if known == claim => *since,
                    _ => now,
                };
                seen.insert(key, (claim.clone(), since));
            }
        }
        self.seen = seen;
    }

    /// Nothing could be seen until now: what was not renewed meanwhile is nobody's fault.
    pub fn blinded(&mut self, now: Duration) {
        self.seen.values_mut().for_each(|(_, since)| *since = now);
    }

    /// How long a claim has not changed.
    fn age(&self, pool: &str, claim: &SliceClaim, now: Duration) -> Duration {
        let key = (pool.to_owned(), claim.address.clone());
        let seen = self.seen.get(&key);
        seen.map_or(Duration::ZERO, |(_, since)| now.saturating_sub(*since))
    }
}

/// The claims as they are now, judged by one node.
#[derive(Clone, Copy, Debug)]
pub struct Claims<'a> {
    /// The node.
    pub node: &'a str,
    /// Pools and nodes.
    pub world: &'a World,
    /// What it has seen of the claims.
    pub observer: &'a Observer,
    /// Its monotonic clock.
    pub now: Duration,
}

/// A pool's claims, to be written if the pool has not changed since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The pool.
    pub pool: String,
    /// The version that it is based on.
    pub version: String,
    /// All its claims.
    pub slices: Vec<SliceClaim>,
}

impl Claims<'_> {
    /// Who holds an address of a pool.
    pub fn standing(&self, pool: &str, address: Ipv4Addr) -> Standing {
        let mut standing = Standing::Free;
        for (name, claim) in self.of(address) {
            if claim.node != self.node {
                if !self.lapsed(name, claim) {
                    return Standing::Theirs(claim.node.clone());
                }
            } else if name == pool {
                standing = Standing::Ours;
            }
        }
        standing
    }

    /// Those of the addresses that another node holds, in whichever pool.
    pub fn lost<'b>(&self, used: impl Iterator<Item = &'b Ipv4Addr>) -> Vec<Ipv4Addr> {
        let others = |address: &&Ipv4Addr| {
            let mut claims = self.of(**address);
            claims.any(|(pool, claim)| claim.node != self.node && !self.lapsed(pool, claim))
        };
        used.filter(others).copied().collect()
    }

    /// The addresses of a pool that this node holds, in order.
    pub fn ours(&self, pool: &str) -> Vec<Ipv4Addr> {
        let claims = self.world.pools.get(pool).into_iter();
        let claims = claims.flat_map(|pool| &pool.status.slices);
        let mut ours: Vec<Ipv4Addr> = claims
            .filter_map(|claim| claim.address.parse().ok())
            .filter(|address| self.standing(pool, *address) == Standing::Ours)
            .collect();
        ours.sort_unstable();
        ours
    }

    /// The claims to an address in any pool: it may just have moved from one to another.
    fn of(&self, address: Ipv4Addr) -> impl Iterator<Item = (&str, &SliceClaim)> {
        let text = address.to_string();
        let all = self.world.pools.iter().flat_map(|(name, pool)| {
            let claims = pool.status.slices.iter();
            claims.map(move |claim| (name.as_str(), claim))
        });
        all.filter(move |(_, claim)| claim.address == text)
    }

    fn lapsed(&self, pool: &str, claim: &SliceClaim) -> bool {
        self.gone(&claim.node) || self.observer.age(pool, claim, self.now) > LEASE
    }

    fn gone(&self, node: &str) -> bool {
        !self.world.nodes.contains_key(node)
    }

    /// What this node has to write: claims to the addresses that it wants and can have, renewals,
    /// and the end of claims to what it neither wants nor still uses. `time` is the wall clock's,
    /// for people to read.
    pub fn changes(
        &self,
        wanted: &BTreeSet<(String, Ipv4Addr)>,
        in_use: &BTreeSet<Ipv4Addr>,
        time: &str,
    ) -> Vec<Change> {
        let pools = self.world.pools.iter();
        let changes = pools.filter_map(|(name, pool)| {
            let wanted = wanted.iter().filter(|(pool, _)| pool == name);
            let wanted: BTreeSet<Ipv4Addr> = wanted.map(|(_, address)| *address).collect();
            let slices = self.slices(name, pool, &wanted, in_use, time);
            (slices != pool.status.slices).then(|| Change {
                pool: name.clone(),
                version: pool.version.clone(),
                slices,
            })
        });
        changes.collect()
    }

    fn slices(
        &self,
        name: &str,
        pool: &Pool,
        wanted: &BTreeSet<Ipv4Addr>,
        in_use: &BTreeSet<Ipv4Addr>,
        time: &str,
    ) -> Vec<SliceClaim> {
        let old = pool.status.slices.iter();
        let mut slices: Vec<SliceClaim> = old
            .filter(|claim| self.stays(name, claim, wanted, in_use))
            .cloned()
            .collect();
        for address in wanted {
            if self.standing(name, *address) == Standing::Free {
                slices.retain(|claim| claim.address != address.to_string());
                slices.push(self.claim(*address, time));
            }
        }
        let ours = |claim: &&SliceClaim| claim.node == self.node;
        let due = |claim: &SliceClaim| self.observer.age(name, claim, self.now) >= RENEW;
        if slices.iter().filter(ours).any(due) {
            // All at once: it is one write.
            let ours = slices.iter_mut().filter(|claim| claim.node == self.node);
            ours.for_each(|claim| time.clone_into(&mut claim.renewed));
        }
        slices
    }

    fn stays(
        &self,
        pool: &str,
        claim: &SliceClaim,
        wanted: &BTreeSet<Ipv4Addr>,
        in_use: &BTreeSet<Ipv4Addr>,
    ) -> bool {
        if claim.node != self.node {
            return !self.gone(&claim.node);
        }
        let Ok(address) = claim.address.parse::<Ipv4Addr>() else {
            return false;
        };
        let moved = || {
            let mut others = self.of(address).filter(|(name, _)| *name != pool);
            others.any(|(_, claim)| claim.node == self.node)
        };
        wanted.contains(&address) || (in_use.contains(&address) && !moved())
    }

    fn claim(&self, address: Ipv4Addr, time: &str) -> SliceClaim {
        SliceClaim {
            address: address.to_string(),
            first: FIRST_PORT,
            size: 65_536 - FIRST_PORT,
            node: self.node.to_owned(),
            renewed: time.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::kubernetes::object::Node;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);

    fn world(nodes: &[&str]) -> World {
        let mut world = World::default();
        for node in nodes {
            world.nodes.insert((*node).to_owned(), Node::default());
        }
        world.pools.insert("office".to_owned(), Pool::default());
        world
    }

    /// An API server that takes a write only if it is based on the newest version.
    fn write(world: &mut World, changes: &[Change]) -> bool {
        let mut taken = !changes.is_empty();
        for change in changes {
            let pool = world.pools.get_mut(&change.pool).unwrap();
            if pool.version != change.version {
                taken = false;
                continue;
            }
            pool.version = format!("{}+", pool.version);
            pool.status.slices.clone_from(&change.slices);
        }
        taken
    }

    struct Agent {
        node: &'static str,
        observer: Observer,
        wants: bool,
        uses: bool,
    }

    impl Agent {
        fn new(node: &'static str) -> Self {
            Self {
                node,
                observer: Observer::default(),
                wants: true,
                uses: false,
            }
        }

        fn changes(&mut self, world: &World, seconds: u64) -> Vec<Change> {
            let now = Duration::from_secs(seconds);
            self.observer.observe(&world.pools, now);
            let wanted = self.wants.then(|| ("office".to_owned(), ADDRESS));
            let in_use = self.uses.then_some(ADDRESS);
            let time = format!("{} at {seconds}", self.node);
            self.claims(world, seconds).changes(
                &wanted.into_iter().collect(),
                &in_use.into_iter().collect(),
                &time,
            )
        }

        fn claims<'a>(&'a self, world: &'a World, seconds: u64) -> Claims<'a> {
            Claims {
                node: self.node,
                world,
                observer: &self.observer,
                now: Duration::from_secs(seconds),
            }
        }

        fn standing(&self, world: &World, seconds: u64) -> Standing {
            self.claims(world, seconds).standing("office", ADDRESS)
        }
    }

    #[test]
    fn of_two_that_claim_at_once_one_wins() {
        let mut world = world(&["a", "b"]);
        let (mut a, mut b) = (Agent::new("a"), Agent::new("b"));
        let (first, second) = (a.changes(&world, 0), b.changes(&world, 0));
        assert!(write(&mut world, &first));
        assert!(!write(&mut world, &second), "both were let in");
        assert_eq!(a.standing(&world, 0), Standing::Ours);
        assert_eq!(b.standing(&world, 0), Standing::Theirs("a".to_owned()));
        assert_eq!(b.changes(&world, 0), []);
        assert_eq!(a.claims(&world, 0).ours("office"), [ADDRESS]);
        assert!(b.claims(&world, 0).ours("office").is_empty());
    }

    #[test]
    fn a_claim_is_renewed_and_stays() {
        let mut world = world(&["a", "b"]);
        let (mut a, mut b) = (Agent::new("a"), Agent::new("b"));
        let mut writes = Vec::new();
        for seconds in 0..300 {
            let changes = a.changes(&world, seconds);
            if write(&mut world, &changes) {
                writes.push(seconds);
            }
            assert_eq!(b.changes(&world, seconds), [], "at {seconds} s");
        }
        // Its own write is seen a second later.
        let pauses: Vec<u64> = writes.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses, vec![RENEW.as_secs() + 1; 14]);
    }

    #[test]
    fn a_holder_that_does_not_renew_loses_it_after_the_lease() {
        let mut world = world(&["a", "b"]);
        let (mut a, mut b) = (Agent::new("a"), Agent::new("b"));
        let changes = a.changes(&world, 0);
        write(&mut world, &changes);
        let lease = LEASE.as_secs();
        assert_eq!(b.changes(&world, 100), [], "seen for the first time");
        assert_eq!(b.changes(&world, 100 + lease), []);
        let changes = b.changes(&world, 101 + lease);
        assert!(write(&mut world, &changes));
        assert_eq!(a.standing(&world, 1), Standing::Theirs("b".to_owned()));
        assert_eq!(world.pools["office"].status.slices.len(), 1);
    }

    #[test]
    fn who_could_not_look_judges_nobody() {
        let mut world = world(&["a", "b"]);
        let (mut a, mut b) = (Agent::new("a"), Agent::new("b"));
        let changes = a.changes(&world, 0);
        write(&mut world, &changes);
        b.changes(&world, 0);
        b.observer.blinded(Duration::from_secs(1000));
        assert_eq!(b.changes(&world, 1000), []);
        assert_eq!(b.changes(&world, 1000 + LEASE.as_secs()), []);
    }

    #[test]
    fn a_node_that_is_gone_loses_it_at_once() {
        let mut world = world(&["a", "b"]);
        let (mut a, mut b) = (Agent::new("a"), Agent::new("b"));
        let changes = a.changes(&world, 0);
        write(&mut world, &changes);
        b.wants = false;
        assert_eq!(b.changes(&world, 0), []);
        world.nodes.remove("a");
        let changes = b.changes(&world, 0);
        assert!(write(&mut world, &changes), "what is left of it is removed");
        assert!(world.pools["office"].status.slices.is_empty());
        b.wants = true;
        let changes = b.changes(&world, 0);
        assert!(write(&mut world, &changes));
        assert_eq!(b.standing(&world, 0), Standing::Ours);
    }

    #[test]
    fn a_claim_ends_when_the_address_is_no_longer_used() {
        let mut world = world(&["a", "b"]);
        let mut a = Agent::new("a");
        let changes = a.changes(&world, 0);
        write(&mut world, &changes);
        (a.wants, a.uses) = (false, true);
        assert_eq!(a.changes(&world, 1), [], "its sessions have not ended");
        a.uses = false;
        let changes = a.changes(&world, 2);
        assert!(write(&mut world, &changes));
        assert!(world.pools["office"].status.slices.is_empty());
    }

    #[test]
    fn an_address_that_moves_to_another_pool_stays_its_holders() {
        let mut world = world(&["a", "b"]);
        let (mut a, b) = (Agent::new("a"), Agent::new("b"));
        let changes = a.changes(&world, 0);
        write(&mut world, &changes);
        let office = world.pools.remove("office").unwrap();
        world.pools.insert("old".to_owned(), office);
        world.pools.insert("office".to_owned(), Pool::default());
        assert_eq!(b.standing(&world, 0), Standing::Theirs("a".to_owned()));
        a.uses = true;
        let changes = a.changes(&world, 1);
        write(&mut world, &changes);
        assert_eq!(a.standing(&world, 1), Standing::Ours);
        let changes = a.changes(&world, 2);
        assert!(write(&mut world, &changes));
        assert!(world.pools["old"].status.slices.is_empty());
    }

    proptest! {
        /// Whatever happens in which order: never do two nodes hold the address at once, as long as
        /// each looks at the newest state before it believes so.
        #[test]
        fn never_two_at_once(
            steps in prop::collection::vec((0_usize..3, 0_u64..90, any::<bool>()), 1..60)
        ) {
            let mut world = world(&["a", "b", "c"]);
            let mut agents = ["a", "b", "c"].map(Agent::new);
            let mut seconds = 0;
            for (index, pause, wants) in steps {
                seconds += pause;
                agents[index].wants = wants;
                let changes = agents[index].changes(&world, seconds);
                write(&mut world, &changes);
                let held = agents.iter().map(|agent| agent.claims(&world, seconds));
                let holders = held.filter(|claims| !claims.ours("office").is_empty()).count();
                prop_assert!(holders <= 1);
                prop_assert!(world.pools["office"].status.slices.len() <= 1);
                // Every change is made once: what was written asks for nothing more.
                prop_assert_eq!(agents[index].changes(&world, seconds), vec![]);
            }
        }
    }
}
