//! The data plane keeps to `tests/budget.yaml`: memory charged for its maps at default settings,
//! instructions of its programs.

use anyhow::{Result, ensure};
use nat_tests::bench::budget::Budget;
use nat_tests::bench::footprint::Footprint;

#[test]
fn the_data_plane_keeps_to_its_budget() -> Result<()> {
    let footprint = Footprint::measure()?;
    ensure!(
        !footprint.programs.is_empty(),
        "the agent has loaded no program"
    );
    let broken = Budget::committed()?.broken_by(&footprint);
    ensure!(broken.is_empty(), "{}", broken.join("\n"));
    Ok(())
}
