//! natctl: shows what the egress NAT does on this node.

use std::process::ExitCode;

fn main() -> ExitCode {
    nat_agent::status::command::run()
}
