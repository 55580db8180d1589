//! kubectl and Helm as the administrator, from the control plane's network.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::network;
use super::place::Place;
use super::record::Record;
use crate::process;

const PATIENCE: Duration = Duration::from_secs(200);

/// kubectl, to be told what to do.
pub fn command(place: &Place) -> Result<Command> {
    program(place, "kubectl")
}

/// Runs kubectl to its end and returns what it printed.
pub fn run(place: &Place, arguments: &[&str], input: &str) -> Result<String> {
    process::run_with_input(command(place)?.args(arguments), input, PATIENCE)?
        .success()
        .with_context(|| format!("kubectl {}", arguments.join(" ")))
}

/// Runs Helm to its end and returns what it printed.
pub fn helm(place: &Place, line: &str) -> Result<String> {
    process::run(
        program(place, "helm")?.args(line.split_whitespace()),
        PATIENCE,
    )?
    .success()
    .with_context(|| format!("helm {line}"))
}

fn program(place: &Place, name: &str) -> Result<Command> {
    let program = Record::read(place)?.programs.join(name);
    let mut command = network::control(place).command(program);
    command.env("KUBECONFIG", place.kubeconfig());
    Ok(command)
}
