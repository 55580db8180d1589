//! The benchmark of the agent in a large cluster, with a small one: it works, and its figures are there.

use anyhow::{Context, Result, ensure};
use nat_tests::bench::kubernetes::{self, Scale};

#[test]
fn every_figure_is_measured() -> Result<()> {
    let report = kubernetes::run(&Scale::QUICK)?;
    let value = |name: &str| {
        let name = format!("kubernetes/{name}");
        let mut figures = report.figures.iter();
        let figure = figures.find(|figure| figure.name == name);
        figure.map(|figure| figure.value).context(name)
    };
    for name in [
        "annotation/event-p50",
        "annotation/packet-p99",
        "cold-start",
        "relist",
        "memory/beyond-maps",
        "memory/maps",
    ] {
        ensure!(value(name)? > 0.0, "{name} is nothing:\n{report}");
    }
    // Five lists and watches, and the claim at least.
    ensure!(value("requests/start")? > 10.0, "{report}");
    ensure!(
        value("annotation/packet-p50")? > value("annotation/beyond-p50")?,
        "{report}"
    );
    Ok(())
}
