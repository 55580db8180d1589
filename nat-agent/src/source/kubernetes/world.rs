//! The cluster as this agent knows it, and how lists and their changes become that.

use std::collections::BTreeMap;

use ipnet::IpNet;
use kube::runtime::watcher::Event;

use super::object::{Namespace, Node, Pod, Pool};

/// The cluster, as far as it is of interest here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct World {
    /// This node's pods, by `namespace/name`.
    pub pods: BTreeMap<String, Pod>,
    /// Namespaces by name.
    pub namespaces: BTreeMap<String, Namespace>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// EgressPools by name.
    pub pools: BTreeMap<String, Pool>,
    /// The ranges of each ServiceCIDR, by name.
    pub services: BTreeMap<String, Vec<IpNet>>,
    /// The API server has no ServiceCIDR objects: the Services' ranges are not known.
    pub services_unknown: bool,
}

/// What is kept of an object.
pub trait Followed: PartialEq {
    /// Whether something is to be done at once, now that it is this and no longer `before`.
    fn is_news(&self, before: &Self) -> bool {
        self != before
    }
}

impl Followed for Pod {}
impl Followed for Namespace {}
impl Followed for Node {}
impl Followed for Vec<IpNet> {}

impl Followed for Pool {
    /// Renewed claims are noticed when the agent looks at claims anyway: every node renews its own
    /// all the time, and every agent hears of it.
    fn is_news(&self, before: &Self) -> bool {
        let slices = |pool: &Self| {
            let mut slices = pool.status.slices.clone();
            slices.iter_mut().for_each(|claim| claim.renewed.clear());
            slices
        };
        let rest = |pool: &Self| (pool.created, pool.uid.clone(), pool.generation);
        rest(self) != rest(before)
            || self.spec != before.spec
            || self.status.conditions != before.status.conditions
            || slices(self) != slices(before)
    }
}

/// A list that is followed: it replaces what was known at once when it is complete, so that nothing
/// seems to be gone while it comes in, and what was deleted unseen is noticed.
#[derive(Clone, Debug)]
pub struct Mirror<T> {
    coming: BTreeMap<String, T>,
    /// It was complete at least once.
    pub complete: bool,
}

impl<T> Default for Mirror<T> {
    fn default() -> Self {
        Self {
            coming: BTreeMap::new(),
            complete: false,
        }
    }
}

impl<T: Followed> Mirror<T> {
    /// Takes an event up; whether anything of interest is another now.
    pub fn apply(&mut self, event: Event<(String, T)>, known: &mut BTreeMap<String, T>) -> bool {
        match event {
            Event::Init => self.coming.clear(),
            Event::InitApply((name, object)) => drop(self.coming.insert(name, object)),
            Event::InitDone => {
                let new = std::mem::take(&mut self.coming);
                let first = !std::mem::replace(&mut self.complete, true);
                let other = new != *known;
                *known = new;
                return first || other;
            }
            Event::Apply((name, object)) => {
                let before = known.get(&name);
                let news = before.is_none_or(|before| object.is_news(before));
                known.insert(name, object);
                return news;
            }
            Event::Delete((name, _)) => return known.remove(&name).is_some(),
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::SliceClaim;
    use super::*;

    impl super::Followed for u8 {}

    struct Followed {
        mirror: Mirror<u8>,
        known: BTreeMap<String, u8>,
    }

    impl Followed {
        fn list(items: &[(&str, u8)]) -> Self {
            let mut followed = Self {
                mirror: Mirror::default(),
                known: BTreeMap::new(),
            };
            followed.relist(items);
            followed
        }

        fn event(&mut self, event: Event<(String, u8)>) -> bool {
            self.mirror.apply(event, &mut self.known)
        }

        fn relist(&mut self, items: &[(&str, u8)]) -> bool {
            assert!(!self.event(Event::Init));
            for (name, value) in items {
                let before = self.known.clone();
                assert!(!self.event(Event::InitApply(((*name).to_owned(), *value))));
                assert_eq!(self.known, before, "half a list is not taken for the whole");
            }
            self.event(Event::InitDone)
        }

        fn names(&self) -> Vec<&str> {
            self.known.keys().map(String::as_str).collect()
        }
    }

    #[test]
    fn a_list_counts_when_it_is_complete() {
        let mut followed = Followed {
            mirror: Mirror::default(),
            known: BTreeMap::new(),
        };
        assert!(!followed.mirror.complete);
        assert!(followed.relist(&[]), "an empty list is news the first time");
        assert!(followed.mirror.complete);
        assert!(!followed.relist(&[]));
    }

    #[test]
    fn missed_deletions_are_noticed_and_nothing_flaps() {
        let mut followed = Followed::list(&[("a", 1), ("b", 2)]);
        assert!(followed.relist(&[("b", 2), ("c", 3)]));
        assert_eq!(followed.names(), ["b", "c"]);
        assert!(
            !followed.relist(&[("b", 2), ("c", 3)]),
            "the same again is no news"
        );
    }

    #[test]
    fn a_list_that_breaks_off_is_forgotten() {
        let mut followed = Followed::list(&[("a", 1)]);
        followed.event(Event::Init);
        followed.event(Event::InitApply(("gone".to_owned(), 9)));
        followed.relist(&[("a", 1)]);
        assert_eq!(followed.names(), ["a"]);
    }

    #[test]
    fn renewals_are_kept_and_no_news() {
        let mut mirror = Mirror::default();
        let mut known = BTreeMap::new();
        let mut apply = |version: &str, node: &str, renewed: &str| {
            let mut pool = Pool {
                version: version.to_owned(),
                ..Pool::default()
            };
            pool.status.slices.push(SliceClaim {
                address: "203.0.113.10".to_owned(),
                node: node.to_owned(),
                renewed: renewed.to_owned(),
                ..SliceClaim::default()
            });
            let news = mirror.apply(Event::Apply(("office".to_owned(), pool)), &mut known);
            (news, known["office"].version.clone())
        };
        assert_eq!(apply("1", "a", "02:00"), (true, "1".to_owned()));
        assert_eq!(apply("2", "a", "02:20"), (false, "2".to_owned()));
        assert_eq!(apply("3", "b", "02:40"), (true, "3".to_owned()));
    }

    #[test]
    fn changes_and_duplicates() {
        let mut followed = Followed::list(&[("a", 1)]);
        let apply = |value| Event::Apply(("a".to_owned(), value));
        assert!(!followed.event(apply(1)));
        assert!(followed.event(apply(2)));
        assert!(followed.event(Event::Delete(("a".to_owned(), 2))));
        assert!(!followed.event(Event::Delete(("a".to_owned(), 2))));
    }
}
