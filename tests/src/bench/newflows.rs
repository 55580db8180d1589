//! New flows: every frame is the first of its flow and needs a port of its own.

use anyhow::{Context, Result};

use super::bed::Bed;
use super::candidate::{Nft, Router};
use super::conntrack::Room;
use super::cpu::settle;
use super::mix::{Mix, Order};
use super::report::{Pair, Report};
use super::rounds::alternate;
use super::suite::Options;

/// Compares new flows per second with nft's. Each measurement has tables of its own, empty ones.
pub fn run(name: &str, options: &Options) -> Result<Report> {
    let _room = Room::make()?;
    let mix = if options.quick {
        Mix::FEW_FRESH
    } else {
        Mix::FRESH
    };
    let candidates = options.chosen(vec![Box::new(Nft), Box::new(Router)])?;
    let names: Vec<_> = candidates
        .iter()
        .map(|candidate| candidate.name())
        .collect();
    let rates = alternate(options.rounds, &names, |index| {
        let mut bed = Bed::set_up(&*candidates[index], mix)?;
        bed.traffic.order(Order::Fill)?;
        settle()?;
        let each = bed
            .traffic
            .send(mix.flows())
            .with_context(|| names[index])?;
        Ok(1e9 / each)
    })?;
    let pairs = [Pair {
        label: "nft",
        ours: "natctl",
        peer: "nft",
        bar: None,
    }];
    let note = format!(
        "{} flows from as many sources, into empty tables",
        mix.flows()
    );
    Ok(Report::new(name, "flows/s", rates, &pairs).note(note))
}
