//! The benchmarks' command line. Run by `cargo xtask bench`.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use nat_tests::bench::kubernetes::{self, Scale};
use nat_tests::bench::report::{Report, Row};
use nat_tests::bench::suite::{self, Benchmark, Options};
use nat_tests::bench::{machine, topology};
use nat_tests::{process, sys};

/// Measures natctl against plain XDP redirect, nft and kernel forwarding, side by side.
#[derive(Parser)]
struct Arguments {
    /// Benchmarks to run, or groups of them (forward, pods); all of them by default.
    names: Vec<String>,
    /// How to print the results.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Rounds of each benchmark: five or more for figures that count [default: 5, 1 if quick].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// List the benchmarks and end.
    #[arg(long)]
    list: bool,
    /// Short measurements: to see that everything works, not for figures.
    #[arg(long)]
    quick: bool,
    /// Measure the agent in a large Kubernetes cluster instead of packets.
    #[arg(long, conflicts_with_all = ["names", "rounds", "only"])]
    kubernetes: bool,
    /// Measure only these candidates, as the results name them: for a profiler's sake.
    #[arg(long, value_name = "CANDIDATE", value_delimiter = ',')]
    only: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let benchmarks = suite::select(&arguments.names)?;
    if arguments.list {
        for benchmark in benchmarks {
            println!("{:<18} {}", benchmark.name, benchmark.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        sys::is_root(),
        "the benchmarks make network namespaces: run them as root"
    );
    let _turn = machine::take()?;
    process::heed_interrupts()?;
    topology::remove_leftovers();
    let complete = match arguments.kubernetes {
        true => measure_kubernetes(&arguments)?,
        false => measure(&arguments, &benchmarks)?,
    };
    Ok(if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs the benchmarks and prints what they found; false if one could not be run.
fn measure(arguments: &Arguments, benchmarks: &[Benchmark]) -> Result<bool> {
    let options = Options {
        rounds: arguments
            .rounds
            .unwrap_or(if arguments.quick { 1 } else { 5 }),
        quick: arguments.quick,
        only: arguments.only.clone(),
    };
    let text = arguments.output == Output::Text;
    if text {
        println!("{}\n", machine::describe());
    }
    let (mut rows, mut complete) = (Vec::<Row>::new(), true);
    for benchmark in benchmarks {
        process::check_interrupt()?;
        match benchmark.run(&options) {
            Ok(report) => rows.extend(show(report, text)),
            Err(error) => {
                complete = false;
                eprintln!("{}: {error:#}\n", benchmark.name);
            }
        }
    }
    if !text {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    Ok(complete)
}

/// Runs the benchmark of the agent in a large cluster and prints what it found.
fn measure_kubernetes(arguments: &Arguments) -> Result<bool> {
    let scale = match arguments.quick {
        true => Scale::QUICK,
        false => Scale::FULL,
    };
    let report = kubernetes::run(&scale)?;
    match arguments.output {
        Output::Text => println!("{}\n\n{report}", machine::describe()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report.figures)?),
    }
    Ok(true)
}

fn show(report: Report, text: bool) -> Vec<Row> {
    if text {
        println!("{report}");
    }
    report.rows
}
