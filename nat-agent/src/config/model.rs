//! Which fields the file has, what a value of each looks like, and what stands for those left out.
//!
//! Names are camelCase, and are interface. `docs/configuration.md` and `docs/example.yaml` follow
//! this file; a test compares them.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::address::{self, Range};
use super::fields::{self, Fields, Read};
use super::problem::{At, Mark, Problems};
use super::tree::Node;
use crate::snapshot::{Limits, Path, Role, Timers, XdpMode, bounds, defaults};

pub(super) const FILE: &[&str] = &[
    "devices",
    "pools",
    "clients",
    "clusterRanges",
    "limits",
    "markBit",
    "decidedBit",
    "sweepInterval",
];
/// What a node's file has besides, where Kubernetes names pools and clients.
pub(super) const NODE: &[&str] = &["guard", "podRanges"];
pub(super) const DEVICE: &[&str] = &["name", "role", "xdp"];
pub(super) const POOL: &[&str] = &[
    "name",
    "addresses",
    "exclude",
    "portsPerClient",
    "blockSize",
    "mappingsPerSecond",
    "rest",
    "path",
    "timers",
];
pub(super) const TIMERS: &[&str] = &["tcpEstablished", "tcpTransitory", "udp", "icmp"];
pub(super) const CLIENT: &[&str] = &["name", "addresses", "device", "egress"];
pub(super) const LIMITS: &[&str] = &["sessions", "clients", "addresses"];

/// The whole file. What was malformed is left out or replaced by its default: it is a problem
/// already, so that nothing of this file will be used.
pub(super) struct File {
    pub devices: Vec<Device>,
    pub devices_mark: Mark,
    pub pools: Vec<Pool>,
    pub clients: Vec<Client>,
    pub cluster_ranges: Vec<At<IpNet>>,
    pub limits: Limits,
    pub mark_bit: u8,
    pub decided_bit: u8,
    pub sweep_interval: Duration,
    pub guard: bool,
    pub pod_ranges: Vec<At<IpNet>>,
}

impl File {
    /// Reads the root of a file that says everything.
    pub fn read(root: &Node, problems: &mut Problems) -> Option<Self> {
        let fields = Fields::open(root, String::new(), FILE, problems)?;
        fields.require("devices", problems);
        fields.require("pools", problems);
        Some(Self::of(&fields, problems))
    }

    /// Reads the root of a node's file where Kubernetes names pools and clients.
    pub fn read_node(root: &Node, problems: &mut Problems) -> Option<Self> {
        let known = [FILE, NODE].concat();
        let fields = Fields::open(root, String::new(), &known, problems)?;
        fields.refuse("pools", "comes from EgressPool objects here", problems);
        fields.refuse("clients", "come from pods here", problems);
        Some(Self::of(&fields, problems))
    }

    fn of(fields: &Fields<'_>, problems: &mut Problems) -> Self {
        let devices = each(
            fields.items("devices", problems),
            DEVICE,
            problems,
            Device::read,
        );
        let pools = each(fields.items("pools", problems), POOL, problems, Pool::read);
        let clients = each(
            fields.items("clients", problems),
            CLIENT,
            problems,
            Client::read,
        );
        let (mark_bit, decided_bit) = bits(fields, problems);
        let guard = fields::word(&[("on", true), ("off", false)]);
        let sweep_interval = fields.optional("sweepInterval", problems, sweep_interval);
        Self {
            devices,
            devices_mark: fields.mark_of("devices"),
            pools,
            clients,
            cluster_ranges: fields.scalars("clusterRanges", problems, excluded),
            limits: limits(fields, problems),
            mark_bit,
            decided_bit,
            sweep_interval: or(sweep_interval, defaults::SWEEP_INTERVAL),
            guard: or(fields.optional("guard", problems, guard), true),
            pod_ranges: fields.scalars("podRanges", problems, excluded),
        }
    }
}

/// `markBit` and `decidedBit`, which must be two.
fn bits(fields: &Fields<'_>, problems: &mut Problems) -> (u8, u8) {
    let bit = fields::number(0, bounds::MARK_BIT);
    let mark = fields.optional("markBit", problems, &bit);
    let decided = fields.optional("decidedBit", problems, &bit);
    let given = decided
        .as_ref()
        .or(mark.as_ref())
        .map(|bit| bit.mark.clone());
    let bits = (
        or(mark, defaults::MARK_BIT),
        or(decided, defaults::DECIDED_BIT),
    );
    if let Some(given) = given
        && bits.0 == bits.1
    {
        let message = format!("{} is both markBit and decidedBit; choose two", bits.0);
        problems.add(given, message);
    }
    bits
}

/// An entry of `devices`.
pub(super) struct Device {
    pub name: Option<At<String>>,
    pub role: Role,
    pub xdp: Option<XdpMode>,
}

impl Device {
    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Self {
        let role = fields::word(&[("outside", Role::Outside), ("inside", Role::Inside)]);
        let xdp = fields::word(&[
            ("native", XdpMode::Native),
            ("generic", XdpMode::Generic),
            ("off", XdpMode::Off),
        ]);
        Self {
            name: fields.required("name", problems, device_name),
            role: or(fields.optional("role", problems, role), Role::default()),
            xdp: fields.optional("xdp", problems, xdp).map(|xdp| xdp.value),
        }
    }
}

/// An entry of `pools`.
pub(super) struct Pool {
    pub name: Option<At<String>>,
    pub addresses: Vec<At<Range>>,
    /// Whether all of its addresses could be read.
    pub complete: bool,
    pub addresses_mark: Mark,
    pub exclude: Vec<At<IpNet>>,
    pub ports_per_client: Option<At<u32>>,
    pub block_size: Option<At<u8>>,
    pub mappings_per_second: Option<At<u32>>,
    pub mark: Mark,
    pub rest: Duration,
    pub path: Path,
    pub timers: Timers,
}

impl Pool {
    pub fn read(fields: &Fields<'_>, problems: &mut Problems) -> Self {
        let path = fields::word(&[("stack", Path::Stack), ("direct", Path::Direct)]);
        let rest = fields::seconds(Duration::ZERO, bounds::TIMER);
        let ports = fields::number(1, bounds::PORTS_PER_CLIENT);
        let before = problems.len();
        fields.require("addresses", problems);
        let addresses = fields.scalars("addresses", problems, egress_range);
        Self {
            complete: problems.len() == before,
            name: fields.required("name", problems, pool_name),
            addresses,
            addresses_mark: fields.mark_of("addresses"),
            exclude: fields.scalars("exclude", problems, excluded),
            ports_per_client: fields.optional("portsPerClient", problems, ports),
            block_size: fields.optional(
                "blockSize",
                problems,
                fields::number(1, bounds::BLOCK_SIZE),
            ),
            mappings_per_second: fields.optional(
                "mappingsPerSecond",
                problems,
                fields::number(1, bounds::MAPPINGS_PER_SECOND),
            ),
            mark: fields.mark().clone(),
            rest: or(fields.optional("rest", problems, rest), defaults::REST),
            path: or(fields.optional("path", problems, path), Path::default()),
            timers: timers(fields, problems),
        }
    }
}

fn timers(pool: &Fields<'_>, problems: &mut Problems) -> Timers {
    let default = Timers::default();
    let Some(fields) = pool.section("timers", TIMERS, problems) else {
        return default;
    };
    let mut timer = |name, default| {
        let read = fields::seconds(Duration::from_secs(1), bounds::TIMER);
        or(fields.optional(name, problems, read), default)
    };
    Timers {
        tcp_established: timer("tcpEstablished", default.tcp_established),
        tcp_transitory: timer("tcpTransitory", default.tcp_transitory),
        udp: timer("udp", default.udp),
        icmp: timer("icmp", default.icmp),
    }
}

/// An entry of `clients`.
pub(super) struct Client {
    pub name: Option<At<String>>,
    pub addresses: Vec<At<IpNet>>,
    pub device: Option<At<String>>,
    pub egress: Option<At<Egress>>,
    pub mark: Mark,
}

/// What a client asks for.
pub(super) enum Egress {
    Pool(String),
    Address(IpAddr),
}

impl Client {
    fn read(fields: &Fields<'_>, problems: &mut Problems) -> Self {
        fields.require("addresses", problems);
        Self {
            name: fields.required("name", problems, client_name),
            addresses: fields.scalars("addresses", problems, client_network),
            device: fields.required("device", problems, device_name),
            egress: fields.required("egress", problems, egress),
            mark: fields.mark().clone(),
        }
    }
}

fn limits(file: &Fields<'_>, problems: &mut Problems) -> Limits {
    let default = Limits::default();
    let Some(fields) = file.section("limits", LIMITS, problems) else {
        return default;
    };
    let mut limit = |name, default, most| {
        or(
            fields.optional(name, problems, fields::number(1, most)),
            default,
        )
    };
    Limits {
        sessions: limit("sessions", default.sessions, bounds::SESSIONS),
        clients: limit("clients", default.clients, bounds::CLIENTS),
        addresses: limit("addresses", default.addresses, bounds::ADDRESSES),
    }
}

fn each<T>(
    items: Vec<(&Node, String)>,
    known: &[&'static str],
    problems: &mut Problems,
    read: impl Fn(&Fields<'_>, &mut Problems) -> T,
) -> Vec<T> {
    let open = |(node, field)| Some(read(&Fields::open(node, field, known, problems)?, problems));
    items.into_iter().filter_map(open).collect()
}

fn or<T>(given: Option<At<T>>, default: T) -> T {
    given.map_or(default, |given| given.value)
}

fn sweep_interval(text: &str) -> Read<Duration> {
    fields::within(
        text,
        fields::duration(text)?,
        bounds::SWEEP_INTERVAL_LEAST,
        bounds::SWEEP_INTERVAL,
    )
}

fn egress_range(text: &str) -> Read<Range> {
    let range = address::range(text)?;
    address::ordinary(&range)?;
    Ok(range)
}

fn client_network(text: &str) -> Read<IpNet> {
    let net = address::network(text)?;
    address::ordinary(&Range::from(net))?;
    Ok(net)
}

fn excluded(text: &str) -> Read<IpNet> {
    let net = address::network(text)?;
    if net.prefix_len() == 0 {
        return Err(format!(
            "{net} is every destination, so nothing would be translated; remove it"
        ));
    }
    Ok(net)
}

fn egress(text: &str) -> Read<Egress> {
    match text.parse::<IpAddr>() {
        Ok(address) => Ok(Egress::Address(address)),
        Err(_) if text.is_empty() => {
            Err("is empty; write a pool's name, or one address of a pool".to_owned())
        }
        Err(_) => Ok(Egress::Pool(text.to_owned())),
    }
}

/// An egress that is an address must not be read as a pool's name, or the other way.
fn pool_name(text: &str) -> Read<String> {
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!(
            "`{text}` is an address; give the pool another name"
        ));
    }
    name(text, bounds::POOL_NAME)
}

fn client_name(text: &str) -> Read<String> {
    name(text, bounds::CLIENT_NAME)
}

/// A name that can be printed in a table and given on a command line.
fn name(text: &str, most: usize) -> Read<String> {
    if text.is_empty() {
        return Err("is empty; write a name".to_owned());
    }
    if text.len() > most {
        return Err(format!(
            "is {} bytes long; shorten it to {most}",
            text.len()
        ));
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!(
            "`{}` has white space in it; use letters, digits, `-`, `.` and `/`",
            text.escape_debug()
        ));
    }
    Ok(text.to_owned())
}

/// What the kernel takes as a link's name (`dev_valid_name`).
fn device_name(text: &str) -> Read<String> {
    let fits = !text.is_empty() && text.len() <= bounds::DEVICE_NAME && text != "." && text != "..";
    if fits
        && !text
            .chars()
            .any(|c| c.is_whitespace() || c.is_control() || c == '/' || c == ':')
    {
        return Ok(text.to_owned());
    }
    let most = bounds::DEVICE_NAME;
    Err(format!(
        "`{}` is not a link's name, which has 1 to {most} characters, none of them a space, \
         `/` or `:`; write it as `ip link` prints it",
        text.escape_debug()
    ))
}
