//! What the data plane may take: `tests/budget.yaml`, and how far what was measured keeps to it.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;

use super::footprint::Footprint;
use super::report::{Bar, Pair, Report};
use super::rounds::Series;

/// The committed limits.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Budget {
    /// For all maps at default settings, in MiB.
    #[serde(rename = "memoryMiB")]
    pub memory_mib: u32,
    /// For each program, by its name as the kernel shows it.
    pub instructions: BTreeMap<String, u32>,
}

impl Budget {
    /// The file in the repository.
    pub fn committed() -> Result<Self> {
        Ok(serde_saphyr::from_str(include_str!("../../budget.yaml"))?)
    }

    /// A sentence for everything that is above its limit, or has none.
    pub fn broken_by(&self, footprint: &Footprint) -> Vec<String> {
        let mut broken = Vec::new();
        let limit = u64::from(self.memory_mib) << 20;
        if footprint.bytes() > limit {
            broken.push(format!(
                "the maps take {} bytes of {limit}",
                footprint.bytes()
            ));
        }
        for (name, size) in &footprint.programs {
            match self.instructions.get(name) {
                None => broken.push(format!(
                    "{name} ({} instructions) has no budget",
                    size.instructions
                )),
                Some(limit) if size.instructions > *limit => {
                    broken.push(format!(
                        "{name} has {} instructions of {limit}",
                        size.instructions
                    ));
                }
                Some(_) => {}
            }
        }
        broken
    }
}

const PAIR: [Pair; 1] = [Pair {
    label: "budget",
    ours: "natctl",
    peer: "budget",
    bar: Some(Bar::AtMost(1.0)),
}];

/// The maps' memory against the budget.
pub fn memory(name: &str) -> Result<Report> {
    let footprint = Footprint::measure()?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let series = against(
        mib(footprint.bytes()),
        f64::from(Budget::committed()?.memory_mib),
    );
    let mut largest: Vec<_> = footprint.maps.iter().collect();
    largest.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    let notes = largest
        .iter()
        .take(8)
        .map(|(map, bytes)| format!("{map}: {:.2} MiB", mib(**bytes)));
    Ok(notes.fold(Report::new(name, "MiB", series, &PAIR), Report::note))
}

/// The instructions of all programs against the sum of their budgets; each is in the notes.
pub fn instructions(name: &str) -> Result<Report> {
    let (footprint, budget) = (Footprint::measure()?, Budget::committed()?);
    let of = |program: &String| {
        budget
            .instructions
            .get(program)
            .copied()
            .unwrap_or_default()
    };
    let all: u32 = footprint
        .programs
        .values()
        .map(|size| size.instructions)
        .sum();
    let limit: u32 = footprint.programs.keys().map(of).sum();
    let series = against(f64::from(all), f64::from(limit));
    let notes = footprint.programs.iter().map(|(program, size)| {
        format!(
            "{program}: {} instructions of {}, {} bytes of machine code, {} verified",
            size.instructions,
            of(program),
            size.machine_code,
            size.verified
        )
    });
    Ok(notes.fold(
        Report::new(name, "instructions", series, &PAIR),
        Report::note,
    ))
}

fn against(ours: f64, limit: f64) -> Vec<Series> {
    let series = |name, figure| Series {
        name,
        figures: vec![figure],
    };
    vec![series("natctl", ours), series("budget", limit)]
}

#[cfg(test)]
mod tests {
    use super::super::footprint::Size;
    use super::*;

    fn footprint(program: &str, instructions: u32, bytes: u64) -> Footprint {
        let size = Size {
            instructions,
            machine_code: 0,
            verified: 0,
        };
        Footprint {
            maps: [("SESSIONS".to_string(), bytes)].into(),
            programs: [(program.to_string(), size)].into(),
        }
    }

    #[test]
    fn every_excess_is_named() {
        let instructions = [("xdp_outside".to_string(), 100)].into();
        let budget = Budget {
            memory_mib: 1,
            instructions,
        };
        assert!(
            budget
                .broken_by(&footprint("xdp_outside", 100, 1 << 20))
                .is_empty()
        );
        assert_eq!(
            budget
                .broken_by(&footprint("xdp_outside", 101, 1 << 20))
                .len(),
            1
        );
        assert_eq!(
            budget
                .broken_by(&footprint("xdp_inside", 1, (1 << 20) + 1))
                .len(),
            2
        );
    }

    #[test]
    fn the_committed_file_can_be_read() {
        assert!(Budget::committed().unwrap().memory_mib <= 128);
    }
}
