//! Which pools can be used, and why the others cannot. Only what every agent sees decides, so that
//! all say the same in a pool's conditions.

use std::collections::BTreeMap;

use super::{
    ranges::{self, ClusterRange},
    spec::{self, Spec},
    world::World,
};

/// Why a pool is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In a word.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// What became of a pool.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Why it is refused as it stands.
    pub refusal: Option<Refusal>,
    /// What is used of it: as it stands, or as it last could be.
    pub spec: Option<Spec>,
}

/// What pools were when they last could be used, by name and uid.
pub type Accepted = BTreeMap<(String, String), Spec>;

/// Judges every pool. One that cannot be used as it stands goes on as it last could be.
pub fn judge(
    world: &World,
    learned: &[ClusterRange],
    accepted: &mut Accepted,
) -> BTreeMap<String, Judged> {
    let mut order: Vec<_> = world.pools.iter().collect();
    // Of two that overlap the older one stays.
    order.sort_by_key(|(name, pool)| (pool.created, name.as_str()));
    let mut used: Vec<(&str, Spec)> = Vec::new();
    let mut judged = BTreeMap::new();
    for (name, pool) in &order {
        match fits(name, &pool.spec, learned, &used) {
            Ok(spec) => {
                accepted.insert(((*name).clone(), pool.uid.clone()), spec.clone());
                used.push((name, spec.clone()));
                judged.insert((*name).clone(), (None, Some(spec)));
            }
            Err(refusal) => drop(judged.insert((*name).clone(), (Some(refusal), None))),
        }
    }
    accepted.retain(|(name, uid), _| world.pools.get(name).is_some_and(|pool| pool.uid == *uid));
    for (name, pool) in &order {
        let Some((Some(_), spec)) = judged.get_mut(*name) else {
            continue;
        };
        let last = accepted.get(&((*name).clone(), pool.uid.clone()));
        if let Some(last) = last.filter(|last| free(last, learned, &used).is_ok()) {
            used.push((name, last.clone()));
            *spec = Some(last.clone());
        }
    }
    let judged = judged.into_iter();
    judged
        .map(|(name, (refusal, spec))| (name, Judged { refusal, spec }))
        .collect()
}

fn fits(
    name: &str,
    spec: &serde_json::Value,
    learned: &[ClusterRange],
    used: &[(&str, Spec)],
) -> Result<Spec, Refusal> {
    let spec = spec::read(name, spec).map_err(|message| Refusal {
        reason: "Invalid",
        message,
    })?;
    free(&spec, learned, used)?;
    Ok(spec)
}

/// Whether its addresses are nobody else's.
fn free(spec: &Spec, learned: &[ClusterRange], used: &[(&str, Spec)]) -> Result<(), Refusal> {
    if let Some(range) = ranges::meeting(learned, &spec.ranges) {
        return Err(Refusal {
            reason: "InsideCluster",
            message: format!(
                "addresses: {} are the cluster's own ({}); an egress address must be another",
                range.net, range.whose
            ),
        });
    }
    for (other, theirs) in used {
        let met = spec.ranges.iter().find_map(|range| {
            let theirs = theirs.ranges.iter().find(|theirs| theirs.meets(range));
            theirs.map(|theirs| (range, theirs))
        });
        if let Some((range, theirs)) = met {
            return Err(Refusal {
                reason: "Overlaps",
                message: format!(
                    "addresses: {range} overlaps {theirs} of the older pool {other}; an egress \
                     address belongs to one pool, remove it from one of them"
                ),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::kubernetes::object::{Node, Pool};

    fn pool(created: i64, addresses: &[&str]) -> Pool {
        Pool {
            created,
            uid: created.to_string(),
            spec: json!({"addresses": addresses}),
            ..Pool::default()
        }
    }

    fn judged(world: &World, accepted: &mut Accepted) -> BTreeMap<String, Judged> {
        judge(world, &ranges::learned(world), accepted)
    }

    fn reason(judged: &BTreeMap<String, Judged>, name: &str) -> Option<&'static str> {
        judged[name].refusal.as_ref().map(|refusal| refusal.reason)
    }

    #[test]
    fn the_older_of_two_stays_whatever_their_names() {
        let mut world = World::default();
        world.pools.insert("a".into(), pool(2, &["203.0.113.0/28"]));
        world.pools.insert("b".into(), pool(1, &["203.0.113.10"]));
        let judged = judged(&world, &mut Accepted::default());
        assert_eq!(reason(&judged, "b"), None);
        assert_eq!(reason(&judged, "a"), Some("Overlaps"));
        let message = &judged["a"].refusal.as_ref().unwrap().message;
        assert!(message.contains("203.0.113.0/28 overlaps 203.0.113.10 of the older pool b"));
        assert!(judged["a"].spec.is_none());
    }

    #[test]
    fn the_clusters_own_addresses_are_nobodys() {
        let mut world = World::default();
        let node = Node {
            addresses: vec!["192.0.2.11".parse().unwrap()],
            ..Node::default()
        };
        world.nodes.insert("n1".into(), node);
        world.pools.insert("a".into(), pool(1, &["192.0.2.0/28"]));
        let judged = judged(&world, &mut Accepted::default());
        assert_eq!(reason(&judged, "a"), Some("InsideCluster"));
        assert!(
            judged["a"]
                .refusal
                .as_ref()
                .unwrap()
                .message
                .contains("node n1")
        );
    }

    #[test]
    fn a_refused_change_leaves_the_pool_as_it_was() {
        let (mut world, mut accepted) = (World::default(), Accepted::default());
        world.pools.insert("a".into(), pool(1, &["203.0.113.10"]));
        judged(&world, &mut accepted);
        world.pools.get_mut("a").unwrap().spec = json!({"addresses": ["x"]});
        let after = judged(&world, &mut accepted);
        assert_eq!(reason(&after, "a"), Some("Invalid"));
        assert!(
            after["a"]
                .spec
                .as_ref()
                .unwrap()
                .contains([203, 0, 113, 10].into())
        );
        // Its address is given to another pool meanwhile: that one is right as it stands.
        world.pools.insert("b".into(), pool(2, &["203.0.113.10"]));
        let after = judged(&world, &mut accepted);
        assert_eq!(reason(&after, "b"), None);
        assert!(after["a"].spec.is_none());
    }

    #[test]
    fn a_new_pool_of_the_same_name_inherits_nothing() {
        let (mut world, mut accepted) = (World::default(), Accepted::default());
        world.pools.insert("a".into(), pool(1, &["203.0.113.10"]));
        judged(&world, &mut accepted);
        world.pools.insert("a".into(), pool(2, &["x"]));
        assert!(judged(&world, &mut accepted)["a"].spec.is_none());
        assert!(accepted.is_empty());
    }
}
