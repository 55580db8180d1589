//! `cargo xtask`: the one door to everything that a person runs in this repository.

mod beside;
mod build;
mod launch;
mod limit;
mod lint;
mod run;
mod setup;
mod suites;
mod test;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sets the machine up, builds, tests and shows natctl.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Setup(setup::Args),
    Build(build::Args),
    Demo(launch::DemoArgs),
    Test(test::Args),
    Lint(lint::Args),
    Bench(launch::BenchArgs),
    Cluster(launch::ClusterArgs),
    Image(launch::ImageArgs),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup(args) => setup::main(&args),
        Task::Build(args) => build::main(&args),
        Task::Demo(args) => launch::demo(&args),
        Task::Test(args) => test::main(&args),
        Task::Lint(args) => lint::main(&args),
        Task::Bench(args) => launch::bench(&args),
        Task::Cluster(args) => launch::cluster(&args),
        Task::Image(args) => launch::image(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            // 2: the machine lacks something, which running again will not change.
            let code = if error.is::<setup::Lacking>() { 2 } else { 1 };
            ExitCode::from(code)
        }
    }
}
