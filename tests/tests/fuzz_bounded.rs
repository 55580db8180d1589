//! The fuzz targets, for a bounded time and from a fixed seed. The coverage-guided
//! ones in `tests/fuzz` call the same functions.

use std::{
    env,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use anyhow::Result;
use nat_tests::fixtures::{
    fuzz::{fuzz_core, fuzz_differential},
    in_kernel::Kernel,
};

/// Cases on the host at most, in both time limits.
const CORE: (u32, Duration) = (200_000, Duration::from_secs(15));
const DIFFERENTIAL: (u32, Duration) = (20_000, Duration::from_secs(20));
/// Bytes of a case: what its choices use up, and some.
const BYTES: usize = 160;

#[test]
fn the_core_survives_anything() {
    let runs = bounded(CORE, fuzz_core);
    println!("{runs} cases");
}

#[test]
fn host_and_kernel_agree_on_anything() -> Result<()> {
    let name = format!("natfuzz{}", std::process::id());
    let runs = Kernel::with(&name, |kernel| {
        Ok(bounded(DIFFERENTIAL, |data| {
            fuzz_differential(kernel, data)
        }))
    })?;
    println!("{runs} cases");
    Ok(())
}

/// Runs cases until either limit; how many. `FUZZ_SEED` begins elsewhere,
/// `FUZZ_CASES` runs longer.
fn bounded((cases, time): (u32, Duration), mut run: impl FnMut(&[u8])) -> u32 {
    let number = |name: &str| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let first = number("FUZZ_SEED").unwrap_or(1);
    let asked = number("FUZZ_CASES");
    let begun = Instant::now();
    for case in 0..asked.unwrap_or(u64::from(cases)) {
        if asked.is_none() && begun.elapsed() > time {
            return case as u32;
        }
        let seed = first + case;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&bytes(seed)))) {
            eprintln!("seed {seed} fails: run it alone with FUZZ_SEED={seed} FUZZ_CASES=1");
            resume_unwind(panic);
        }
    }
    asked.unwrap_or(u64::from(cases)) as u32
}

/// The bytes of a seed (xorshift64*, Vigna 2016).
fn bytes(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
    };
    std::iter::repeat_with(next).take(BYTES).collect()
}
