//! Rounds: every candidate in turn, again and again, and ratios within each round. Absolute figures
//! drift by a tenth from one minute to the next; ratios of neighbours do not.

use std::io::{IsTerminal, Write, stderr};

use anyhow::Result;
use serde::Serialize;

/// The middle, the lowest and the highest of a ratio's rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

impl Spread {
    /// Of these values; of none, zeros.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
        let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
        Self {
            median: (at(low) + at(high)) / 2.0,
            min: at(0),
            max: at(sorted.len().saturating_sub(1)),
        }
    }
}

/// One candidate's figures, a round each.
#[derive(Clone, Debug)]
pub struct Series {
    /// The candidate's name.
    pub name: &'static str,
    /// Its figures in the order of the rounds.
    pub figures: Vec<f64>,
}

impl Series {
    /// Its middle figure.
    pub fn median(&self) -> f64 {
        Spread::of(self.figures.iter().copied()).median
    }

    /// How it compares to `peer` in each round.
    pub fn ratio_to(&self, peer: &Self) -> Spread {
        let pairs = self.figures.iter().zip(&peer.figures);
        Spread::of(pairs.map(|(ours, theirs)| ours / theirs))
    }
}

/// Measures the candidates in turn, A B C A B C, for `rounds` rounds.
pub fn alternate(
    rounds: u32,
    names: &[&'static str],
    mut measure: impl FnMut(usize) -> Result<f64>,
) -> Result<Vec<Series>> {
    let series = |&name| Series {
        name,
        figures: Vec::new(),
    };
    let mut all: Vec<Series> = names.iter().map(series).collect();
    for round in 1..=rounds {
        for (index, series) in all.iter_mut().enumerate() {
            progress(&format!("round {round} of {rounds}: {}", series.name));
            series.figures.push(measure(index)?);
        }
    }
    progress("");
    Ok(all)
}

/// Shows what is going on, in one line that is written over; nothing where nobody watches.
pub fn progress(text: &str) {
    if stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
        // Nothing is lost when it cannot be shown.
        let _ = stderr().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_odd_and_even_numbers() {
        let spread = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of([]).median, 0.0);
    }

    #[test]
    fn rounds_alternate_and_ratios_are_of_one_round() {
        let mut order = Vec::new();
        let series = alternate(2, &["a", "b"], |index| {
            order.push(index);
            Ok(order.len() as f64)
        });
        let [a, b] = <[Series; 2]>::try_from(series.unwrap()).unwrap();
        assert_eq!(order, [0, 1, 0, 1]);
        let ratio = b.ratio_to(&a);
        assert_eq!((ratio.min, ratio.max), (4.0 / 3.0, 2.0));
    }
}
