//! natctl's command line.

use std::{
    env,
    io::{self, BufWriter, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Result, anyhow};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;
use nat_common::packet::transport::{ICMP, TCP, UDP};
use serde::Serialize;

use super::{
    directory::Directory,
    flows::{self, filter, filter::Filter},
    model::HealthState,
    pinned, read, text,
    text::Style,
};
use crate::bpf::pins::{self, Pins};

/// All is well, or `--check` was not asked for.
const DONE: u8 = 0;
/// `--check`: something is wrong, or the agent does not run.
const NOT_WELL: u8 = 1;
/// There is no answer: nothing is pinned, or it cannot be read. (clap uses it for bad usage, too.)
const NO_ANSWER: u8 = 2;

/// Shows what natctl's egress NAT does on this node, from the pinned maps: with the agent or without.
#[derive(Debug, Parser)]
#[command(
    name = "natctl",
    version,
    after_help = "Exit codes: 0 done; 1 with --check, not well; 2 no answer: bad usage, nothing pinned, no permission."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Health, devices, egress addresses, clients, dropped packets, and how full the tables are
    Status {
        #[command(flatten)]
        common: Common,
        /// Exit with 1 if the agent does not run or anything is wrong
        #[arg(long)]
        check: bool,
    },
    /// The sessions, with their state, age and time left
    Flows {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        wanted: Wanted,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Where the agent pinned its maps: what it was given as --bpffs
    #[arg(long, value_name = "DIR", default_value = pins::DEFAULT)]
    bpffs: PathBuf,
    /// For a person, or for a program
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Output {
    /// For a person.
    #[default]
    Text,
    /// For a program.
    Json,
}

impl Output {
    /// As an argument of natctl.
    pub fn word(self) -> String {
        format!("--output={}", value(self))
    }
}

/// How clap writes a value.
fn value(value: impl ValueEnum) -> String {
    let possible = value.to_possible_value();
    possible.map_or_else(String::new, |possible| possible.get_name().to_owned())
}

/// Which sessions are asked for.
#[derive(Debug, Args)]
pub struct Wanted {
    /// Only sessions whose inside, egress or remote address is this one, or in this network
    #[arg(long, value_name = "ADDRESS", value_parser = filter::network)]
    address: Option<Ipv4Net>,
    /// Only sessions whose inside, egress or remote port (or echo identifier) is this one
    #[arg(long)]
    port: Option<u16>,
    /// Only this client's sessions
    #[arg(long, value_name = "NAME")]
    client: Option<String>,
    /// Only sessions of this protocol
    #[arg(long, value_enum)]
    protocol: Option<Protocol>,
    /// Show at most so many
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

impl Wanted {
    /// As arguments of natctl.
    pub fn words(&self) -> Vec<String> {
        let words = [
            self.address.map(|address| format!("--address={address}")),
            self.port.map(|port| format!("--port={port}")),
            self.client.as_ref().map(|name| format!("--client={name}")),
            self.protocol
                .map(|protocol| format!("--protocol={}", value(protocol))),
            self.limit.map(|limit| format!("--limit={limit}")),
        ];
        words.into_iter().flatten().collect()
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
    Icmp,
}

impl Protocol {
    const fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
            Self::Icmp => ICMP,
        }
    }
}

/// Runs natctl on this process's arguments.
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Status { common, check } => status(&common, check),
        Command::Flows { common, wanted } => list(&common, &wanted),
    };
    let code = result.unwrap_or_else(|error| {
        // A reader that has seen enough (`| head`) is no error.
        let pipe = error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
        if pipe {
            return DONE;
        }
        eprintln!("natctl: {error:#}");
        NO_ANSWER
    });
    ExitCode::from(code)
}

fn status(common: &Common, check: bool) -> Result<u8> {
    let pins = Pins::new(&common.bpffs);
    let status = read::status(&pins, &pinned::open(&pins)?)?;
    match common.output {
        Output::Text => print(|out| text::write(out, &status, style()))?,
        Output::Json => print_json(&status)?,
    }
    let well = status.health.state == HealthState::Ok;
    Ok(if check && !well { NOT_WELL } else { DONE })
}

fn list(common: &Common, wanted: &Wanted) -> Result<u8> {
    let pins = Pins::new(&common.bpffs);
    let tables = pinned::open(&pins)?;
    let directory = Directory::read(&tables)?;
    let filter = Filter {
        network: wanted.address,
        port: wanted.port,
        client: wanted
            .client
            .as_deref()
            .map(|name| client(&directory, name))
            .transpose()?,
        protocol: wanted.protocol.map(Protocol::number),
    };
    let limit = wanted.limit.map(|limit| limit as usize);
    let flows = flows::read::flows(&pins, &tables, &directory, &filter, limit)?;
    match common.output {
        Output::Text => print(|out| flows::text::write(out, &flows, style()))?,
        Output::Json => print_json(&flows)?,
    }
    Ok(DONE)
}

/// The number of the client of this name.
fn client(directory: &Directory, name: &str) -> Result<u16> {
    let number = directory
        .number(name)
        .and_then(|number| u16::try_from(number).ok());
    number.ok_or_else(|| {
        let meant = directory
            .nearest(name)
            .map_or(String::new(), |near| format!(" (is `{near}` meant?)"));
        anyhow!("no client is called `{name}`{meant}; `natctl status` lists the clients")
    })
}

fn print(
    write: impl FnOnce(&mut BufWriter<io::StdoutLock<'_>>) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    write(&mut out)?;
    out.flush()
}

fn print_json(value: &impl Serialize) -> io::Result<()> {
    print(|out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        writeln!(out)
    })
}

/// Colour for a terminal, unless its person does not want it (no-color.org).
fn style() -> Style {
    let wanted = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    Style {
        colour: wanted && io::stdout().is_terminal(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_input_is_refused_with_words() {
        for (arguments, words) in [
            (["natctl", "flows", "--address", "10.0.0.1:80"], "--port"),
            (
                ["natctl", "flows", "--port", "70000"],
                "70000 is not in 0..=65535",
            ),
            (
                ["natctl", "flows", "--protocol", "sctp"],
                "possible values: tcp, udp, icmp",
            ),
            (["natctl", "flows", "--limit", "0"], "0 is not in 1.."),
            (
                ["natctl", "status", "-o", "yaml"],
                "possible values: text, json",
            ),
        ] {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(NO_ANSWER));
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_client_that_is_none() {
        let mut directory = Directory::default();
        directory.add_client(4, "default/web-0".into(), 0);
        assert_eq!(client(&directory, "default/web-0").unwrap(), 4);
        let error = client(&directory, "default/web-9").unwrap_err().to_string();
        assert!(error.contains("is `default/web-0` meant?"), "{error}");
    }
}
