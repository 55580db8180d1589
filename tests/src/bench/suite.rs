//! The list of benchmarks.

use anyhow::{Result, ensure};

use super::budget;
use super::candidate::Candidate;
use super::forward::{self, Bars};
use super::mix::Mix;
use super::newflows;
use super::pods::{self, Load};
use super::report::Report;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Rounds of each benchmark.
    pub rounds: u32,
    /// Shorter measurements, to see that everything works.
    pub quick: bool,
    /// Measure only these candidates; all for none.
    pub only: Vec<String>,
}

impl Options {
    /// Those of `candidates` that are to be measured.
    pub fn chosen(&self, candidates: Vec<Box<dyn Candidate>>) -> Result<Vec<Box<dyn Candidate>>> {
        let wanted = |name| self.only.is_empty() || self.only.iter().any(|only| only == name);
        let chosen: Vec<_> = candidates
            .into_iter()
            .filter(|candidate| wanted(candidate.name()))
            .collect();
        ensure!(
            !chosen.is_empty(),
            "has no candidate {}",
            self.only.join(", ")
        );
        Ok(chosen)
    }
}

/// One benchmark.
pub struct Benchmark {
    /// How it is called.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    kind: Kind,
}

enum Kind {
    Forward(Mix, Bars),
    NewFlows,
    Pods(Load),
    Memory,
    Instructions,
}

impl Benchmark {
    const fn new(name: &'static str, about: &'static str, kind: Kind) -> Self {
        Self { name, about, kind }
    }

    /// Runs it.
    pub fn run(&self, options: &Options) -> Result<Report> {
        match &self.kind {
            Kind::Forward(mix, bars) => forward::run(self.name, *mix, *bars, options),
            Kind::NewFlows => newflows::run(self.name, options),
            Kind::Pods(load) => pods::run(self.name, *load, options),
            Kind::Memory => budget::memory(self.name),
            Kind::Instructions => budget::instructions(self.name),
        }
    }
}

/// All benchmarks, in the order in which they run.
pub fn all() -> Vec<Benchmark> {
    let forward = |name, about, mix, redirect, nft| {
        Benchmark::new(name, about, Kind::Forward(mix, Bars { redirect, nft }))
    };
    let pods = |name, about, load| Benchmark::new(name, about, Kind::Pods(load));
    vec![
        forward(
            "forward/1",
            "packets of one flow",
            Mix::ONE,
            Some(0.85),
            Some(4.5),
        ),
        forward(
            "forward/1k",
            "packets of 1,024 flows",
            Mix::THOUSAND,
            None,
            None,
        ),
        forward(
            "forward/100k",
            "packets of 131,072 flows",
            Mix::HUNDRED_THOUSAND,
            Some(0.45),
            Some(3.2),
        ),
        forward(
            "forward/1M",
            "packets of 1,048,576 flows",
            Mix::MILLION,
            Some(0.38),
            Some(3.0),
        ),
        Benchmark::new("newflows", "first packets of flows", Kind::NewFlows),
        pods(
            "pods/bulk-1",
            "TCP from a local pod, one stream",
            Load::Bulk(1),
        ),
        pods(
            "pods/bulk-4",
            "TCP from a local pod, four streams",
            Load::Bulk(4),
        ),
        pods(
            "pods/connections",
            "short TCP connections of a local pod",
            Load::Connections,
        ),
        pods(
            "pods/round-trip",
            "a UDP datagram to and fro",
            Load::RoundTrip,
        ),
        Benchmark::new(
            "memory",
            "memory of all maps at default settings",
            Kind::Memory,
        ),
        Benchmark::new("instructions", "size of the programs", Kind::Instructions),
    ]
}

/// The benchmarks that are called so, or whose names start so (`forward`, `pods`); all for none.
pub fn select(names: &[String]) -> Result<Vec<Benchmark>> {
    let matches = |benchmark: &Benchmark, name: &String| {
        let rest = benchmark.name.strip_prefix(name.trim_end_matches('/'));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for name in names {
        ensure!(
            all().iter().any(|benchmark| matches(benchmark, name)),
            "no benchmark {name}: --list shows them"
        );
    }
    let wanted = |benchmark: &Benchmark| {
        names.is_empty() || names.iter().any(|name| matches(benchmark, name))
    };
    Ok(all().into_iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selected(names: &[&str]) -> Vec<&'static str> {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        select(&names)
            .unwrap()
            .iter()
            .map(|benchmark| benchmark.name)
            .collect()
    }

    #[test]
    fn names_and_groups_select() {
        assert_eq!(selected(&["forward/1"]), ["forward/1"]);
        assert_eq!(selected(&["forward/"]).len(), 4);
        assert_eq!(selected(&["memory", "newflows"]), ["newflows", "memory"]);
        assert_eq!(selected(&[]).len(), all().len());
        assert!(select(&["forwards".into()]).is_err());
    }
}
