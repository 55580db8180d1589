//! The condition in a pool's status: what every agent finds, written by whichever comes first.
//!
//! Agents of different versions could disagree. So each writes what it finds once, and says the same
//! again only after [`AGAIN`]: the condition does not flap.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::{judge::Judged, object::Pool, pool::ACCEPTED};

/// How long another agent's different finding is left alone.
const AGAIN: Duration = Duration::from_secs(600);

/// What this agent has found last, and when it wrote so, by its monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Written(BTreeMap<String, (Finding, Duration)>);

type Finding = (&'static str, String, String, i64);

/// A condition to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The pool.
    pub pool: String,
    /// Its condition.
    pub condition: Condition,
}

impl Written {
    /// The conditions that differ from what was found.
    pub fn changes(
        &mut self,
        pools: &BTreeMap<String, Pool>,
        judged: &BTreeMap<String, Judged>,
        now: Duration,
        time: Timestamp,
    ) -> Vec<Change> {
        self.0.retain(|name, _| pools.contains_key(name));
        let mut changes = Vec::new();
        for (name, judged) in judged {
            let Some(pool) = pools.get(name) else {
                continue;
            };
            let finding = finding(pool, judged);
            let current = current(pool);
            let says = current.is_some_and(|condition| same(condition, &finding));
            let wrote = self.0.get(name);
            let lately = wrote.is_some_and(|(wrote, when)| {
                *wrote == finding && now.saturating_sub(*when) < AGAIN
            });
            if says || (lately && current.is_some()) {
                continue;
            }
            let condition = condition(&finding, current, time);
            self.0.insert(name.clone(), (finding, now));
            changes.push(Change {
                pool: name.clone(),
                condition,
            });
        }
        changes
    }
}

fn finding(pool: &Pool, judged: &Judged) -> Finding {
    match &judged.refusal {
        Some(refusal) => (
            "False",
            refusal.reason.to_owned(),
            refusal.message.clone(),
            pool.generation,
        ),
        None => {
            let nobody = judged
                .spec
                .as_ref()
                .is_some_and(|spec| spec.namespaces.is_none());
            let message = if nobody {
                "no namespace may use it yet: set allowedNamespaces ({} for all)"
            } else {
                "its addresses can be used"
            };
            (
                "True",
                ACCEPTED.to_owned(),
                message.to_owned(),
                pool.generation,
            )
        }
    }
}

fn current(pool: &Pool) -> Option<&Condition> {
    let mut conditions = pool.status.conditions.iter();
    conditions.find(|condition| condition.type_ == ACCEPTED)
}

fn same(condition: &Condition, finding: &Finding) -> bool {
    let (status, reason, message, generation) = finding;
    condition.status == *status
        && condition.reason == *reason
        && condition.message == *message
        && condition.observed_generation == Some(*generation)
}

/// The time moves only when the status does.
fn condition(finding: &Finding, current: Option<&Condition>, time: Timestamp) -> Condition {
    let (status, reason, message, generation) = finding.clone();
    let since = current
        .filter(|current| current.status == status)
        .map(|current| current.last_transition_time.clone());
    Condition {
        type_: ACCEPTED.to_owned(),
        status: status.to_owned(),
        reason,
        message,
        observed_generation: Some(generation),
        last_transition_time: since.unwrap_or(Time(time)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::kubernetes::{
        judge::{Accepted, judge},
        world::World,
    };

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn changes(written: &mut Written, world: &World, second: u64) -> Vec<Change> {
        let judged = judge(world, &[], &mut Accepted::default());
        let now = Duration::from_secs(second);
        written.changes(&world.pools, &judged, now, time(second.cast_signed()))
    }

    fn take(world: &mut World, changes: &[Change]) {
        for change in changes {
            let pool = world.pools.get_mut(&change.pool).unwrap();
            pool.status.conditions = vec![change.condition.clone()];
        }
    }

    fn world(addresses: &str) -> World {
        let mut world = World::default();
        let pool = Pool {
            spec: json!({"addresses": [addresses]}),
            generation: 1,
            ..Pool::default()
        };
        world.pools.insert("office".to_owned(), pool);
        world
    }

    #[test]
    fn all_agents_say_the_same_and_once() {
        let mut world = world("203.0.113.10");
        let (mut a, mut b) = (Written::default(), Written::default());
        let first = changes(&mut a, &world, 5);
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].condition.status, "True");
        assert!(first[0].condition.message.contains("allowedNamespaces"));
        take(&mut world, &first);
        assert_eq!(changes(&mut a, &world, 6), []);
        assert_eq!(changes(&mut b, &world, 7), []);
    }

    #[test]
    fn the_time_moves_with_the_status_only() {
        let (mut world, mut written) = (world("x"), Written::default());
        let first = changes(&mut written, &world, 5);
        assert_eq!(
            (
                first[0].condition.status.as_str(),
                first[0].condition.reason.as_str()
            ),
            ("False", "Invalid")
        );
        take(&mut world, &first);
        let pool = world.pools.get_mut("office").unwrap();
        (pool.spec, pool.generation) = (json!({"addresses": ["y"]}), 2);
        let second = changes(&mut written, &world, 9);
        assert_eq!(second[0].condition.last_transition_time.0, time(5));
        assert_eq!(second[0].condition.observed_generation, Some(2));
        take(&mut world, &second);
        world.pools.get_mut("office").unwrap().spec = json!({"addresses": ["203.0.113.10"]});
        let third = changes(&mut written, &world, 12);
        assert_eq!(third[0].condition.last_transition_time.0, time(12));
    }

    #[test]
    fn two_that_disagree_do_not_flap() {
        let mut world = world("203.0.113.10");
        let mut written = Written::default();
        let mine = changes(&mut written, &world, 0);
        let mut other = mine.clone();
        other[0].condition.message = "another version's words".to_owned();
        let mut writes = 0;
        for second in 1..600 {
            take(&mut world, &other);
            writes += changes(&mut written, &world, second).len();
        }
        assert_eq!(writes, 0);
        assert_eq!(changes(&mut written, &world, 601).len(), 1);
    }
}
