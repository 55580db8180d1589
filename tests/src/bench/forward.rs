//! Forwarding: packets of flows that the gateway knows.

use anyhow::{Context, Result};

use super::bed::Bed;
use super::candidate::{Candidate, Kernel, Nft, PlainRedirect, Router};
use super::conntrack::Room;
use super::cpu::settle;
use super::mix::Mix;
use super::report::{Bar, Pair, Report};
use super::rounds::{alternate, progress};
use super::suite::Options;

/// Frames that each candidate sends in a round: a million flows are then visited once.
const FRAMES: u32 = 1 << 20;

/// What our median ratio to the limit and to nft is held to.
#[derive(Clone, Copy)]
pub struct Bars {
    /// Of plain redirect.
    pub redirect: Option<f64>,
    /// Times nft.
    pub nft: Option<f64>,
}

/// Compares the candidates at the mix's number of flows.
pub fn run(name: &str, mix: Mix, bars: Bars, options: &Options) -> Result<Report> {
    let _room = Room::make()?;
    let candidates = options.chosen(candidates())?;
    let mut beds = Vec::new();
    for candidate in &candidates {
        progress(&format!("{name}: setting up {}", candidate.name()));
        let mut bed = Bed::set_up(&**candidate, mix)?;
        bed.traffic
            .fill()
            .with_context(|| format!("filling {}", candidate.name()))?;
        beds.push(bed);
    }
    let own = beds[0].traffic.own_cost()?;
    settle()?;
    let frames = if options.quick { FRAMES / 4 } else { FRAMES };
    let names: Vec<_> = candidates
        .iter()
        .map(|candidate| candidate.name())
        .collect();
    let rates = alternate(options.rounds, &names, |index| {
        let traffic = &mut beds[index].traffic;
        // Unmeasured: traffic does not pause for seconds as candidates do that wait their turn.
        traffic.send(mix.flows()).with_context(|| names[index])?;
        Ok(1e9 / traffic.send(frames).with_context(|| names[index])?)
    })?;
    let pair = |peer, bar: Option<f64>| Pair {
        label: peer,
        ours: "natctl",
        peer,
        bar: bar.map(Bar::AtLeast),
    };
    let pairs = [
        pair("redirect", bars.redirect),
        pair("nft", bars.nft),
        pair("kernel", None),
    ];
    let note = format!(
        "{} flows; the generator's own part of every frame: {own:.0} ns",
        mix.flows()
    );
    Ok(Report::new(name, "packets/s", rates, &pairs).note(note))
}

fn candidates() -> Vec<Box<dyn Candidate>> {
    vec![
        Box::new(PlainRedirect),
        Box::new(Nft),
        Box::new(Kernel),
        Box::new(Router),
    ]
}
