//! What a benchmark found: a table for people, rows for programs.

use std::fmt;

use serde::Serialize;

use super::rounds::{Series, Spread};

/// What a ratio or a figure is held to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bar {
    /// It must not be lower.
    AtLeast(f64),
    /// It must not be higher.
    AtMost(f64),
}

impl Bar {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bar) => value >= bar,
            Self::AtMost(bar) => value <= bar,
        }
    }

    /// The bar, and whether `value` reaches it.
    pub fn verdict(self, value: f64) -> String {
        let verdict = if self.holds(value) {
            "reached"
        } else {
            "MISSED"
        };
        match self {
            Self::AtLeast(bar) => format!("at least {bar}: {verdict}"),
            Self::AtMost(bar) => format!("at most {bar}: {verdict}"),
        }
    }
}

/// Two candidates to compare.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// Last part of the row's name.
    pub label: &'static str,
    /// Ours.
    pub ours: &'static str,
    /// What it is compared to.
    pub peer: &'static str,
    /// What the ratio is held to, if anything.
    pub bar: Option<Bar>,
}

/// One comparison, as `-o json` prints it. The figures are medians, `ratio` is ours by the peer's.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Benchmark and comparison.
    pub name: String,
    /// Our figure.
    pub ours: f64,
    /// The peer's.
    pub peer: f64,
    /// The figures' unit.
    pub unit: &'static str,
    /// Ours by the peer's, in each round.
    pub ratio: Spread,
    /// The number of rounds.
    pub rounds: usize,
    /// What the ratio is held to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bar: Option<Bar>,
}

/// A benchmark's outcome.
#[derive(Clone, Debug)]
pub struct Report {
    /// The benchmark.
    pub name: String,
    /// The figures' unit.
    pub unit: &'static str,
    /// Every candidate's figures.
    pub series: Vec<Series>,
    /// The comparisons.
    pub rows: Vec<Row>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

impl Report {
    /// A report of these figures. Pairs without figures are left out.
    pub fn new(name: &str, unit: &'static str, series: Vec<Series>, pairs: &[Pair]) -> Self {
        let find = |name: &str| series.iter().find(|series| series.name == name);
        let row = |pair: &Pair| {
            let (ours, peer) = (find(pair.ours)?, find(pair.peer)?);
            Some(Row {
                name: format!("{name}/{}", pair.label),
                ours: ours.median(),
                peer: peer.median(),
                unit,
                ratio: ours.ratio_to(peer),
                rounds: ours.figures.len(),
                bar: pair.bar,
            })
        };
        let rows = pairs.iter().filter_map(row).collect();
        Self {
            name: name.into(),
            unit,
            series,
            rows,
            notes: Vec::new(),
        }
    }

    /// The same with a note.
    pub fn note(mut self, text: String) -> Self {
        self.notes.push(text);
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}, {}: median (lowest to highest)",
            self.name, self.unit
        )?;
        for series in &self.series {
            let spread = Spread::of(series.figures.iter().copied());
            let [median, min, max] = [spread.median, spread.min, spread.max].map(figure);
            writeln!(f, "  {:<24} {median:>12} ({min} to {max})", series.name)?;
        }
        for row in &self.rows {
            writeln!(f, "  {row}")?;
        }
        self.notes
            .iter()
            .try_for_each(|note| writeln!(f, "  {note}"))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spread { median, min, max } = self.ratio;
        write!(
            f,
            "ratio {:<30} {median:>6.2} ({min:.2} to {max:.2})",
            self.name
        )?;
        match self.bar {
            Some(bar) => write!(f, ", {}", bar.verdict(median)),
            None => Ok(()),
        }
    }
}

/// A figure in as many digits as it deserves.
fn figure(value: f64) -> String {
    match value {
        value if value >= 1e9 => format!("{:.2} G", value / 1e9),
        value if value >= 1e6 => format!("{:.3} M", value / 1e6),
        value if value >= 1e4 => format!("{:.1} k", value / 1e3),
        value if value >= 100.0 => format!("{value:.0}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(name: &'static str, figures: &[f64]) -> Series {
        Series {
            name,
            figures: figures.to_vec(),
        }
    }

    #[test]
    fn rows_compare_what_was_measured() {
        let bar = Some(Bar::AtLeast(2.5));
        let pairs = ["nft", "absent"].map(|peer| Pair {
            label: peer,
            ours: "natctl",
            peer,
            bar,
        });
        let series = vec![
            series("natctl", &[4.0, 6.0, 9.0]),
            series("nft", &[2.0, 2.0, 3.0]),
        ];
        let report = Report::new("forward/1", "packets/s", series, &pairs);
        assert_eq!(report.rows.len(), 1);
        assert_eq!(
            report.rows[0].ratio,
            Spread {
                median: 3.0,
                min: 2.0,
                max: 3.0
            }
        );
        assert!(
            report.to_string().contains("at least 2.5: reached"),
            "{report}"
        );
        let json = serde_json::to_value(&report.rows[0]).unwrap();
        assert_eq!(json["name"], "forward/1/nft");
        assert_eq!(json["bar"]["at_least"], 2.5);
    }
}
