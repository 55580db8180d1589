//! nat-cni: run by the container runtime after the plugin that makes a pod's interface.

use std::{
    io::{Read, stdin},
    path::Path,
    process::ExitCode,
};

use nat_cni::plugin;

fn main() -> ExitCode {
    let mut input = String::new();
    if let Err(error) = stdin().read_to_string(&mut input) {
        eprintln!("read the network configuration: {error}");
        return ExitCode::FAILURE;
    }
    let environment = |name: &str| std::env::var(name).ok();
    match plugin::run(environment, &input, Path::new("/sys/class/net")) {
        Ok(done) => {
            if let Some(note) = done.note {
                eprintln!("nat-cni: {note}");
            }
            print!("{}", done.output);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            print!("{failure}");
            ExitCode::FAILURE
        }
    }
}
