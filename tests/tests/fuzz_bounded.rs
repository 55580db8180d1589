//! The fuzz targets, for a bounded time and from a fixed seed. The coverage-guided
//! ones in `tests/fuzz` call the same functions.

use std::{
    collections::BTreeMap,
    env,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use anyhow::Result;
use nat_tests::fixtures::{
    compare,
    fuzz::{case, fuzz_core, fuzz_differential},
    in_kernel::Kernel,
    on_host,
};

/// Random cases at most, in both senses.
const CORE: (u64, Duration) = (100_000, Duration::from_secs(8));
const DIFFERENTIAL: (u64, Duration) = (20_000, Duration::from_secs(12));
/// Bytes of a random case: what its choices use up, and some.
const BYTES: usize = 160;
/// What coverage-guided fuzzing has found worth keeping, a case a line.
const CORPUS: &str = include_str!("../fuzz/corpus.hex");

#[test]
fn the_core_survives_anything() {
    let runs = bounded(CORE, fuzz_core);
    println!("{runs} random cases");
}

#[test]
fn host_and_kernel_agree_on_anything() -> Result<()> {
    let name = format!("natfuzz{}", std::process::id());
    let runs = Kernel::with(&name, |kernel| {
        Ok(bounded(DIFFERENTIAL, |data| {
            fuzz_differential(kernel, data)
        }))
    })?;
    println!("{runs} random cases");
    Ok(())
}

/// Cases that all end the same way would prove nothing.
#[test]
fn the_cases_reach_every_verdict() {
    let mut counts = BTreeMap::new();
    let random = (1..5000).map(bytes);
    for data in corpus().chain(random) {
        let case = case(&data);
        let kind = compare::kind(&on_host::run(&case).verdict);
        *counts.entry(kind).or_insert(0) += 1;
    }
    println!("{counts:?}");
    let all = [
        "Alone",
        "Drop",
        "Mark",
        "Neighbour",
        "Pass",
        "Peer",
        "Redirect",
        "Reply",
        "Stack",
    ];
    assert_eq!(counts.keys().collect::<Vec<_>>(), all);
    assert!(counts.values().all(|count| *count >= 20), "{counts:?}");
}

/// Runs the corpus, then random cases until either limit; how many of those.
/// `FUZZ_SEED` begins with another seed, `FUZZ_CASES` sets the number.
fn bounded((cases, time): (u64, Duration), mut run: impl FnMut(&[u8])) -> u64 {
    let number = |name: &str| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let (first, asked) = (number("FUZZ_SEED").unwrap_or(1), number("FUZZ_CASES"));
    for (line, data) in corpus().enumerate() {
        attempt(&format!("line {} of the corpus", line + 1), || run(&data));
    }
    let begun = Instant::now();
    for case in 0..asked.unwrap_or(cases) {
        if asked.is_none() && begun.elapsed() > time {
            return case;
        }
        let seed = first + case;
        attempt(&format!("FUZZ_SEED={seed} FUZZ_CASES=1"), || {
            run(&bytes(seed))
        });
    }
    asked.unwrap_or(cases)
}

/// Says what to run again when a case fails.
fn attempt(which: &str, run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        eprintln!("this case fails: {which}");
        resume_unwind(panic);
    }
}

fn corpus() -> impl Iterator<Item = Vec<u8>> {
    let byte = |pair: &[u8]| {
        let text = std::str::from_utf8(pair).expect("hexadecimal digits");
        u8::from_str_radix(text, 16).expect("hexadecimal digits")
    };
    CORPUS
        .lines()
        .map(move |line| line.as_bytes().chunks(2).map(byte).collect())
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
