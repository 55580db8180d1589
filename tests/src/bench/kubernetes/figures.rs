//! What came out: figures, and the goals that they are held to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::scale::Scale;
use super::usage::{Memory, Usage};
use crate::api_server::Request;
use crate::bench::report::Bar;

/// What the agent may take of a node's memory beyond its maps, in MiB.
const MEMORY: Bar = Bar::AtMost(64.0);
/// What it may take of a processor when nothing happens, in percent.
const IDLE: Bar = Bar::AtMost(1.0);
/// From the API server's event to the first translated packet, in ms.
const ANNOTATION: Bar = Bar::AtMost(50.0);

/// What was measured.
#[derive(Debug, Default)]
pub struct Measured {
    /// From the first start until every pod is served.
    pub cold: Duration,
    /// The requests until then.
    pub started: BTreeMap<Request, usize>,
    /// Memory when all pods are served.
    pub memory: Memory,
    /// The processor's time while nothing happens to this node's pods.
    pub idle: Option<Usage>,
    /// Requests in that time.
    pub idle_requests: usize,
    /// From patches to their events.
    pub delivered: Vec<Duration>,
    /// From patches to first translated packets.
    pub served: Vec<Duration>,
    /// Memory after all patches.
    pub memory_after: Memory,
    /// From restarts until everything was listed and applied.
    pub relists: Vec<Duration>,
}

impl Measured {
    /// Figures for people and programs.
    pub fn report(&self, scale: &Scale) -> Report {
        let mut figures = Vec::new();
        let mut add = |name: &str, value, unit, bar| {
            figures.push(Figure {
                name: format!("kubernetes/{name}"),
                value,
                unit,
                bar,
            });
        };
        let beyond = self.served.iter().zip(&self.delivered);
        let beyond: Vec<_> = beyond
            .map(|(served, delivered)| served.saturating_sub(*delivered))
            .collect();
        for (name, times, bar) in [
            ("annotation/event", &self.delivered, None),
            ("annotation/packet", &self.served, None),
            ("annotation/beyond", &beyond, Some(ANNOTATION)),
        ] {
            add(&format!("{name}-p50"), percentile(times, 50), "ms", None);
            add(&format!("{name}-p99"), percentile(times, 99), "ms", bar);
        }
        add("cold-start", milliseconds(self.cold), "ms", None);
        add("relist", percentile(&self.relists, 50), "ms", None);
        let mib = |kilobytes: u64| kilobytes as f64 / 1024.0;
        let memory = mib(self.memory.beyond);
        add("memory/beyond-maps", memory, "MiB", Some(MEMORY));
        add("memory/anonymous", mib(self.memory.anonymous), "MiB", None);
        let after = mib(self.memory_after.beyond);
        add("memory/after-patches", after, "MiB", Some(MEMORY));
        add("memory/maps", mib(self.memory.maps), "MiB", None);
        if let Some(idle) = &self.idle {
            let minutes = idle.time.as_secs_f64() / 60.0;
            add("idle", idle.percent(), "% of a CPU", Some(IDLE));
            let rate = self.idle_requests as f64 / minutes;
            add("requests/idle", rate, "1/min", None);
        }
        let started: usize = self.started.values().sum();
        add("requests/start", started as f64, "requests", None);
        Report {
            figures,
            notes: vec![self.cluster(scale), self.requests()],
        }
    }

    fn cluster(&self, scale: &Scale) -> String {
        format!(
            "{} nodes, {} pods, {} of them on this node; {} patches, {} restarts",
            scale.nodes, scale.pods, scale.own, scale.patches, scale.restarts
        )
    }

    fn requests(&self) -> String {
        let each = self.started.iter();
        let each = each.map(|(request, count)| {
            let Request { verb, resource } = request;
            format!("{count} {verb} {resource}")
        });
        let each: Vec<String> = each.collect();
        format!("requests of the first start: {}", each.join(", "))
    }
}

/// One figure, as `-o json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it is of.
    pub name: String,
    /// The figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it is held to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar: Option<Bar>,
}

/// All figures.
#[derive(Clone, Debug)]
pub struct Report {
    /// The figures.
    pub figures: Vec<Figure>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for figure in &self.figures {
            let Figure {
                name, value, unit, ..
            } = figure;
            write!(f, "{name:<34} {value:>9.2} {unit}")?;
            if let Some(bar) = figure.bar {
                write!(f, ", {}", bar.verdict(*value))?;
            }
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

/// The value that so many percent of them do not exceed, in ms.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut times = times.to_vec();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times.get(rank - 1).copied().map_or(0.0, milliseconds)
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let times: Vec<_> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), 100.0);
        assert_eq!(percentile(&times, 99), 198.0);
        assert_eq!(percentile(&times[..1], 99), 200.0);
        assert_eq!(percentile(&[], 50), 0.0);
    }

    #[test]
    fn what_misses_its_bar_says_so() {
        let measured = Measured {
            delivered: vec![Duration::from_millis(10)],
            served: vec![Duration::from_millis(90)],
            ..Measured::default()
        };
        let text = measured.report(&Scale::QUICK).to_string();
        let line = |name| text.lines().find(|line| line.contains(name)).unwrap();
        assert!(line("beyond-p99").ends_with("80.00 ms, at most 50: MISSED"));
        assert!(line("memory/beyond").ends_with("at most 64: reached"));
    }
}
