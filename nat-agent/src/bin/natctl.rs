//! natctl: shows what the egress NAT does on this node; called kubectl-nat, on a node of the cluster.

use std::{env, path::Path, process::ExitCode};

use nat_agent::status::{command, plugin};

fn main() -> ExitCode {
    let called = env::args_os().next();
    let name = called
        .as_deref()
        .and_then(|called| Path::new(called).file_name());
    if name.is_some_and(|name| name == plugin::NAME) {
        return plugin::run();
    }
    command::run()
}
