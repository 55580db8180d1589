//! Whether all is well: what the agent says of itself, and what the tables show
//! even while it is down.

use super::{
    model::{Address, Agent, Client, Health, HealthState, Table},
    units,
};
use crate::report::{self, Report};

/// Sweeps that may pass without a report before the agent is taken to be stuck.
const SWEEPS: u64 = 3;
/// Seconds without a report that are always forgiven: a busy machine, a slow sweep.
const PATIENCE: u64 = 30;
/// From how many percent a table is called nearly full.
const NEARLY_FULL: u64 = 90;
/// Names that a problem lists before it only counts.
const NAMES: usize = 5;

/// The agent, from its lock and its last report.
pub fn agent(running: bool, report: Option<&Report>) -> Agent {
    let Some(report) = report else {
        return Agent {
            running,
            ..Agent::default()
        };
    };
    Agent {
        running,
        since: Some(if running {
            report.started
        } else {
            report.heartbeat
        }),
        heartbeat: Some(report.heartbeat),
        version: Some(report.version.clone()),
        pid: Some(report.pid),
        config: Some(report.config.clone()).filter(|config| !config.is_empty()),
        sweep_interval: Some(report.sweep_interval),
    }
}

/// What the judgement rests on.
#[derive(Debug)]
pub struct Evidence<'a> {
    /// Now, Unix seconds.
    pub time: u64,
    /// The agent.
    pub agent: &'a Agent,
    /// Its last report; what could not be read of it is an error in words.
    pub report: Result<Option<&'a Report>, &'a str>,
    /// Egress addresses.
    pub addresses: &'a [Address],
    /// Clients.
    pub clients: &'a [Client],
    /// Tables.
    pub tables: &'a [Table],
}

/// Judges.
pub fn judge(evidence: &Evidence<'_>) -> Health {
    let mut problems = Vec::new();
    agent_problems(evidence, &mut problems);
    blocked(evidence.clients, &mut problems);
    evidence
        .addresses
        .iter()
        .for_each(|address| exhausted(address, &mut problems));
    filling(evidence.tables, &mut problems);
    if !evidence.agent.running {
        return Health {
            state: HealthState::AgentDown,
            since: evidence.agent.since,
            problems,
        };
    }
    let state = if problems.is_empty() {
        HealthState::Ok
    } else {
        HealthState::Degraded
    };
    Health {
        state,
        since: since(evidence, state),
        problems,
    }
}

/// Since when: the agent knows it if it says the same.
fn since(evidence: &Evidence<'_>, state: HealthState) -> Option<u64> {
    let health = &evidence.report.ok()??.health;
    let same = (health.state == report::HealthState::Ok) == (state == HealthState::Ok);
    same.then_some(health.since)
}

fn agent_problems(evidence: &Evidence<'_>, problems: &mut Vec<String>) {
    let report = match evidence.report {
        Ok(Some(report)) => report,
        Ok(None) if evidence.agent.running => {
            return problems.push(
                "the agent has not reported yet: it is starting, or stuck in it; see its log"
                    .into(),
            );
        }
        Ok(None) => {
            return problems.push("the agent ended before its first report; see its log".into());
        }
        Err(error) => return problems.push(format!("the agent's report cannot be read: {error}")),
    };
    problems.extend(report.health.problems.iter().cloned());
    if report.health.state == report::HealthState::Degraded && report.health.problems.is_empty() {
        problems.push("the agent calls itself degraded without saying why; see its log".into());
    }
    if report.schema > report::SCHEMA {
        problems.push("the agent is newer than this natctl, which may misread its report: use the natctl that came with it".into());
    }
    let silent = evidence.time.saturating_sub(report.heartbeat);
    if evidence.agent.running && silent > PATIENCE.max(SWEEPS.saturating_mul(report.sweep_interval))
    {
        problems.push(format!(
            "the agent runs but has not reported for {}: it is stuck or starved; see its log",
            units::duration(silent)
        ));
    }
}

fn blocked(clients: &[Client], problems: &mut Vec<String>) {
    let names: Vec<&str> = clients
        .iter()
        .filter(|client| client.blocked)
        .map(|client| client.name.as_str())
        .collect();
    if names.is_empty() {
        return;
    }
    let more = names.len().saturating_sub(NAMES);
    let listed = names
        .iter()
        .take(NAMES)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    problems.push(format!(
        "without an egress address, so all they send outside is dropped: {listed}{more}"
    ));
}

fn exhausted(address: &Address, problems: &mut Vec<String>) {
    for (protocol, ports) in address.ports.named() {
        if ports.free == 0 && ports.used + ports.resting > 0 {
            problems.push(format!(
                "no free {} port is left on {}: new flows are dropped; give its pool more addresses",
                protocol.to_uppercase(),
                address.address
            ));
        }
    }
}

/// The tables that traffic fills; the others are as full as the configuration wants.
fn filling(tables: &[Table], problems: &mut Vec<String>) {
    let nearly_full = |name: &str| {
        tables
            .iter()
            .find(|table| table.name == name && table.used * 100 >= table.capacity * NEARLY_FULL)
    };
    // Every session has a reply's half: the same said twice helps nobody.
    let sessions = nearly_full("sessions").or_else(|| nearly_full("replies"));
    for table in [sessions, nearly_full("mappings")].into_iter().flatten() {
        problems.push(format!(
            "the table of {} is {} full, and what does not fit is dropped; raise limits.sessions",
            table.name,
            units::percent(table.used, table.capacity)
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use super::*;
    use crate::status::{example, model::Ports};

    const NOW: u64 = 1_000_000;

    fn report() -> Report {
        let mut report = Report::new(Path::new("n.yaml"), Path::new("/b"), Duration::from_secs(5));
        report.heartbeat = NOW - 2;
        report.started = NOW - 500;
        report.health.since = NOW - 400;
        report
    }

    fn judged(running: bool, report: Result<Option<&Report>, &str>) -> Health {
        let agent = agent(running, report.ok().flatten());
        judge(&Evidence {
            time: NOW,
            agent: &agent,
            report,
            addresses: &[],
            clients: &[],
            tables: &[],
        })
    }

    #[test]
    fn well() {
        let health = judged(true, Ok(Some(&report())));
        assert_eq!(
            health,
            Health {
                state: HealthState::Ok,
                since: Some(NOW - 400),
                problems: vec![]
            }
        );
    }

    #[test]
    fn down_since_the_last_heartbeat() {
        let health = judged(false, Ok(Some(&report())));
        assert_eq!(
            (health.state, health.since),
            (HealthState::AgentDown, Some(NOW - 2))
        );
    }

    #[test]
    fn degraded_by_its_own_words() {
        let mut report = report();
        report.health.state = report::HealthState::Degraded;
        report.health.problems = vec!["eth0 is gone.".into()];
        let health = judged(true, Ok(Some(&report)));
        assert_eq!(health.state, HealthState::Degraded);
        assert_eq!(health.since, Some(NOW - 400));
        assert_eq!(health.problems, ["eth0 is gone."]);
    }

    #[test]
    fn silence_is_judged_by_the_sweep_interval() {
        let mut report = report();
        report.heartbeat = NOW - 31;
        assert_eq!(judged(true, Ok(Some(&report))).state, HealthState::Degraded);
        assert_eq!(judged(true, Ok(Some(&report))).since, None);
        report.sweep_interval = 60;
        assert_eq!(judged(true, Ok(Some(&report))).state, HealthState::Ok);
    }

    #[test]
    fn no_report_and_a_broken_one() {
        assert_eq!(judged(true, Ok(None)).state, HealthState::Degraded);
        assert_eq!(judged(false, Ok(None)).state, HealthState::AgentDown);
        assert_eq!(
            judged(true, Err("it is torn")).problems,
            ["the agent's report cannot be read: it is torn"]
        );
    }

    #[test]
    fn what_the_tables_show() {
        let mut status = example::status();
        status.addresses.truncate(1);
        status.addresses[0].ports.udp = Ports {
            used: 64_000,
            free: 0,
            resting: 512,
        };
        status
            .clients
            .iter_mut()
            .for_each(|client| client.blocked = true);
        status.tables = vec![
            Table {
                name: "sessions",
                used: 90,
                capacity: 100,
            },
            Table {
                name: "replies",
                used: 90,
                capacity: 100,
            },
            Table {
                name: "blocks",
                used: 100,
                capacity: 100,
            },
        ];
        let report = report();
        let health = judge(&Evidence {
            time: NOW,
            agent: &agent(true, Some(&report)),
            report: Ok(Some(&report)),
            addresses: &status.addresses,
            clients: &status.clients,
            tables: &status.tables,
        });
        assert_eq!(health.problems.len(), 3, "{:#?}", health.problems);
        assert!(health.problems[1].contains("UDP port is left on 203.0.113.10"));
        assert!(health.problems[2].contains("90.0 % full"));
    }
}
