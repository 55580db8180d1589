//! The status for a person.

use std::io::{self, Write};

use super::{
    model::{Agent, Arp, Client, ClientPorts, Device, HealthState, Status},
    table::{self, left, right},
    units,
};
use crate::report::{Hook, HookReport, Mode, Role};

/// How words stand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// By colour, too: only where a person's terminal shows it.
    pub colour: bool,
}

impl Style {
    fn paint(self, code: u8, text: &str) -> String {
        if self.colour {
            format!("\x1b[1;{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Something good.
    pub fn good(self, text: &str) -> String {
        self.paint(32, text)
    }

    /// Something that needs a person.
    pub fn bad(self, text: &str) -> String {
        self.paint(31, text)
    }
}

/// Writes the status.
///
/// # Errors
/// The writer's.
pub fn write(out: &mut impl Write, status: &Status, style: Style) -> io::Result<()> {
    head(out, status, style)?;
    cluster(out, status, style)?;
    devices(out, &status.devices)?;
    addresses(out, status)?;
    clients(out, &status.clients)?;
    pods_waiting(out, status)?;
    drops(out, status)?;
    tables(out, status)
}

fn head(out: &mut impl Write, status: &Status, style: Style) -> io::Result<()> {
    writeln!(
        out,
        "natctl     {}, maps under {}, read {}",
        status.version,
        status.bpffs,
        units::time(status.time)
    )?;
    agent(out, &status.agent, status.time, style)?;
    let health = &status.health;
    let word = match health.state {
        HealthState::Ok => style.good("ok"),
        HealthState::Degraded => style.bad("DEGRADED"),
        HealthState::AgentDown => style.bad("AGENT DOWN"),
    };
    writeln!(out, "Health     {word}{}", since(health.since, status.time))?;
    for problem in &health.problems {
        // The configuration's mistakes come as one problem of several lines.
        writeln!(
            out,
            "           - {}",
            problem.trim_end().replace('\n', "\n             ")
        )?;
    }
    Ok(())
}

/// Whose destinations are left alone, and how the agent stands with Kubernetes.
fn cluster(out: &mut impl Write, status: &Status, style: Style) -> io::Result<()> {
    if let Some(kubernetes) = &status.kubernetes {
        let word = match kubernetes.silent_since {
            None => style.good("heard"),
            Some(_) => style.bad("SILENT"),
        };
        let since = since(kubernetes.silent_since, status.time);
        let alone = match kubernetes.left_alone {
            Some(count) => format!(", {count} pods left alone"),
            None => String::new(),
        };
        writeln!(
            out,
            "API server {word}{since}, node {}{alone}",
            kubernetes.node
        )?;
    }
    if status.cluster_ranges.is_empty() {
        return Ok(());
    }
    let ranges = status.cluster_ranges.join(", ");
    writeln!(out, "Cluster    never translated to: {ranges}")
}

fn agent(out: &mut impl Write, agent: &Agent, time: u64, style: Style) -> io::Result<()> {
    let since = since(agent.since, time);
    if agent.running {
        writeln!(out, "Agent      running{since}{}", details(agent))?;
        if let Some(heartbeat) = agent.heartbeat {
            let ago = units::duration(time.saturating_sub(heartbeat));
            writeln!(out, "           last heard of {ago} ago")?;
        }
        return Ok(());
    }
    writeln!(
        out,
        "Agent      {}{since}{}",
        style.bad("NOT RUNNING"),
        details(agent)
    )?;
    writeln!(out, "           {DOWN}")
}

/// What it means that the agent does not run.
pub const DOWN: &str =
    "The data plane goes on; nothing expires or changes until the agent is back.";

fn details(agent: &Agent) -> String {
    let Some(version) = &agent.version else {
        return String::new();
    };
    let pid = agent
        .pid
        .filter(|_| agent.running)
        .map_or(String::new(), |pid| format!(", pid {pid}"));
    let config = agent
        .config
        .as_ref()
        .map_or(String::new(), |config| format!(", config {config}"));
    format!(", version {version}{pid}{config}")
}

/// ` since WHEN (AGO)`, or nothing.
pub fn since(since: Option<u64>, time: u64) -> String {
    since.map_or(String::new(), |since| {
        format!(
            " since {} ({})",
            units::time(since),
            units::duration(time.saturating_sub(since))
        )
    })
}

fn devices(out: &mut impl Write, devices: &[Device]) -> io::Result<()> {
    if devices.is_empty() {
        return writeln!(out, "\nNo programs are attached to any device.");
    }
    let named = devices.iter().filter(|device| device.role != Role::Client);
    let rows = named.flat_map(|device| {
        hooks(device).into_iter().map(|hook| {
            [
                device_name(device.name.as_deref(), device.ifindex),
                role(device.role).into(),
                hook[0].clone(),
                hook[1].clone(),
                hook[2].clone(),
            ]
        })
    });
    // A node has hundreds of pods: their devices stand with the clients, and are only counted here.
    let rows = rows.chain(pods(devices));
    writeln!(out)?;
    table::write(
        out,
        &[
            left("DEVICE"),
            left("ROLE"),
            left("HOOK"),
            left("MODE"),
            left("PROGRAM"),
        ],
        rows,
    )?;
    for device in devices {
        if let (Some(name), Some(note)) = (&device.name, &device.note) {
            writeln!(out, "{name}: {note}")?;
        }
    }
    Ok(())
}

/// Hook, mode and program of all that is attached to a device.
fn hooks(device: &Device) -> Vec<[String; 3]> {
    if device.hooks.is_empty() {
        return vec![["not reported".into(), "-".into(), "-".into()]];
    }
    let cells = |hook: &HookReport| {
        [
            hook_name(hook.hook).into(),
            mode(hook.mode).into(),
            hook.program.clone(),
        ]
    };
    device.hooks.iter().map(cells).collect()
}

/// A link's name, or what is known instead.
fn device_name(name: Option<&str>, ifindex: u32) -> String {
    match (name, ifindex) {
        (Some(name), _) => name.to_owned(),
        (None, 0) => "none".to_owned(),
        (None, _) => format!("ifindex {ifindex}"),
    }
}

/// One row for each program on clients' devices.
fn pods(devices: &[Device]) -> std::vec::IntoIter<[String; 5]> {
    let mut rows: Vec<([String; 4], usize)> = Vec::new();
    for [hook, mode, program] in devices
        .iter()
        .filter(|device| device.role == Role::Client)
        .flat_map(hooks)
    {
        let cells = [role(Role::Client).into(), hook, mode, program];
        match rows.iter_mut().find(|(row, _)| *row == cells) {
            Some((_, count)) => *count += 1,
            None => rows.push((cells, 1)),
        }
    }
    let named = rows
        .into_iter()
        .map(|([role, hook, mode, program], count)| {
            [
                plural(count as u64, "client's device", "clients' devices"),
                role,
                hook,
                mode,
                program,
            ]
        });
    named.collect::<Vec<_>>().into_iter()
}

const fn role(role: Role) -> &'static str {
    match role {
        Role::Outside => "outside",
        Role::Inside => "inside",
        Role::Client => "client",
    }
}

const fn hook_name(hook: Hook) -> &'static str {
    match hook {
        Hook::Xdp => "xdp",
        Hook::TcxIngress => "tcx ingress",
        Hook::TcxEgress => "tcx egress",
        Hook::Other => "other",
    }
}

const fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Native => "native",
        Mode::Generic => "generic",
        Mode::Tcx => "tcx",
        Mode::Unknown => "unknown",
    }
}

/// `1 session`, `2 sessions`.
pub fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

fn addresses(out: &mut impl Write, status: &Status) -> io::Result<()> {
    if status.addresses.is_empty() {
        return writeln!(out, "\nNo egress addresses.");
    }
    let columns = [
        left("EGRESS ADDRESS"),
        left("POOL"),
        left("ARP ANSWERED BY"),
        right("CLIENTS"),
        left("PROTOCOL"),
        right("PORTS USED"),
        right("FREE"),
        right("RESTING"),
    ];
    let rows = status.addresses.iter().flat_map(|address| {
        address.ports.named().map(|(protocol, ports)| {
            [
                address.address.to_string(),
                address.pool.clone().unwrap_or_else(|| "-".into()),
                arp(address.arp).into(),
                address.clients.to_string(),
                protocol.into(),
                ports.used.to_string(),
                ports.free.to_string(),
                ports.resting.to_string(),
            ]
        })
    });
    writeln!(out)?;
    table::write(out, &columns, rows)
}

const fn arp(arp: Arp) -> &'static str {
    match arp {
        Arp::Kernel => "kernel (node's own)",
        Arp::Natctl => "natctl",
        Arp::Nobody => "nobody (leaving)",
    }
}

fn clients(out: &mut impl Write, clients: &[Client]) -> io::Result<()> {
    if clients.is_empty() {
        return writeln!(out, "\nNo clients: nothing is translated.");
    }
    let columns = [
        left("CLIENT"),
        left("ADDRESSES"),
        left("DEVICE"),
        left("EGRESS"),
        right("FLOWS"),
        right("TCP PORTS"),
        right("UDP PORTS"),
        right("ICMP IDS"),
        right("PACKETS OUT"),
        right("BYTES OUT"),
        right("PACKETS IN"),
        right("BYTES IN"),
    ];
    writeln!(out)?;
    table::write(out, &columns, clients.iter().map(client))?;
    writeln!(
        out,
        "Ports and ids: used / held in blocks / most that it may hold."
    )
}

fn egress(client: &Client) -> String {
    let address = client.egress.filter(|_| !client.blocked);
    let address = address.map_or_else(|| "none".to_owned(), |address| address.to_string());
    if client.blocked {
        return format!("{address}: BLOCKED");
    }
    if client.draining {
        return format!("{address}: draining");
    }
    address
}

fn client(client: &Client) -> [String; 12] {
    [
        client.name.clone(),
        networks(&client.addresses),
        device_name(client.device.as_deref(), client.ifindex),
        egress(client),
        client.flows.to_string(),
        ports(client.ports.tcp),
        ports(client.ports.udp),
        ports(client.ports.icmp),
        client.out.packets.to_string(),
        units::bytes(client.out.bytes),
        client.r#in.packets.to_string(),
        units::bytes(client.r#in.bytes),
    ]
}

fn networks(addresses: &[String]) -> String {
    match addresses {
        [] => "-".into(),
        [one] => one.clone(),
        [first, rest @ ..] => format!("{first} +{}", rest.len()),
    }
}

fn ports(ports: ClientPorts) -> String {
    format!("{}/{}/{}", ports.used, ports.held, ports.most)
}

/// Pods of Kubernetes that are not served as they ask.
fn pods_waiting(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let pods = status.kubernetes.iter().flat_map(|known| &known.pods);
    if pods.clone().next().is_none() {
        return Ok(());
    }
    let rows = pods.map(|pod| [pod.pod.clone(), pod.reason.clone(), pod.message.clone()]);
    writeln!(out)?;
    table::write(
        out,
        &[left("POD"), left("REASON"), left("WHAT STANDS IN THE WAY")],
        rows,
    )
}

fn drops(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let drops = status.drops.iter().filter(|drop| drop.count > 0);
    if drops.clone().next().is_none() {
        return writeln!(out, "\nNo packet was dropped.");
    }
    let rows = drops.map(|drop| {
        [
            drop.count.to_string(),
            drop.reason.into(),
            drop.sentence.into(),
        ]
    });
    writeln!(out)?;
    table::write(
        out,
        &[right("DROPPED"), left("REASON"), left("WHAT IT MEANS")],
        rows,
    )
}

fn tables(out: &mut impl Write, status: &Status) -> io::Result<()> {
    let rows = status.tables.iter().map(|table| {
        [
            table.name.into(),
            table.used.to_string(),
            table.capacity.to_string(),
            units::percent(table.used, table.capacity),
        ]
    });
    writeln!(out)?;
    table::write(
        out,
        &[
            left("TABLE"),
            right("USED"),
            right("CAPACITY"),
            right("FULL"),
        ],
        rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::example::{self, golden};

    fn text(status: &Status, colour: bool) -> String {
        let mut out = Vec::new();
        write(&mut out, status, Style { colour }).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_healthy_node() {
        golden("status.txt", &text(&example::status(), false));
    }

    #[test]
    fn a_client_drains() {
        let client = |address: Option<&str>| Client {
            egress: address.map(|address| address.parse().unwrap()),
            draining: true,
            ..super::super::example::status().clients[0].clone()
        };
        assert_eq!(
            egress(&client(Some("203.0.113.10"))),
            "203.0.113.10: draining"
        );
        assert_eq!(egress(&client(None)), "none: draining");
    }

    #[test]
    fn the_agent_is_down_and_a_client_is_blocked() {
        golden("status-down.txt", &text(&example::down(), false));
    }

    #[test]
    fn kubernetes() {
        golden(
            "status-kubernetes.txt",
            &text(&example::kubernetes(), false),
        );
    }

    #[test]
    fn nothing_at_all() {
        golden("status-empty.txt", &text(&example::empty(), false));
    }

    #[test]
    fn json() {
        let json = serde_json::to_string_pretty(&example::status()).unwrap();
        golden("status.json", &format!("{json}\n"));
    }

    #[test]
    fn colour_changes_nothing_but_colour() {
        let plain = text(&example::down(), false);
        let colour = text(&example::down(), true);
        assert!(!plain.contains('\x1b'));
        assert!(colour.contains("\x1b[1;31mNOT RUNNING\x1b[0m"));
        assert_eq!(
            colour.replace("\x1b[1;31m", "").replace("\x1b[0m", ""),
            plain
        );
    }
}
