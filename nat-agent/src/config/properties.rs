//! Any text is answered, and what a file says is what the snapshot holds.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::parse;
use super::tests::EXAMPLE;
use crate::snapshot::{
    Client, Device, Limits, Path, Pool, Role, Snapshot, Timers, XdpMode, bounds,
};

/// A change of a text at some places of it.
#[derive(Clone, Debug)]
enum Change {
    Remove(Index, usize),
    Insert(Index, String),
    Repeat(Index, Index),
    Cut(Index),
}

/// What is likely to upset a reader of YAML or of addresses.
const BITS: &[&str] = &[
    "&a ",
    "*a",
    "<<: ",
    "!!int ",
    "!x ",
    "? ",
    "- ",
    "---\n",
    "...\n",
    "{",
    "[",
    "]",
    "}",
    ": ",
    "#",
    "|\n",
    ">-\n",
    "\"",
    "'",
    "\t",
    "\u{feff}",
    "\0",
    "%YAML 9\n",
    "null",
    "~",
    ".nan",
    "1e999",
    "-0",
    "0x",
    "/0",
    "/32",
    "-255.255.255.255",
    "0.0.0.0/0",
    "::/0",
    "18446744073709551616",
    "é",
    "\u{1f600}",
    "\r\n",
    "\u{85}",
];

fn bits() -> impl Strategy<Value = String> {
    prop_oneof![
        select(BITS).prop_map(str::to_owned),
        any::<char>().prop_map(String::from)
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<Index>(), 1..20usize).prop_map(|(at, count)| Change::Remove(at, count)),
        (any::<Index>(), bits()).prop_map(|(at, text)| Change::Insert(at, text)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::Repeat(from, to)),
        any::<Index>().prop_map(Change::Cut),
    ]
}

impl Change {
    fn apply(&self, text: String) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        let place = |index: &Index| index.index(chars.len() + 1);
        match self {
            Change::Remove(at, count) => {
                let start = place(at);
                let end = (start + count).min(chars.len());
                chars.drain(start..end);
            }
            Change::Insert(at, new) => {
                let at = place(at);
                chars.splice(at..at, new.chars());
            }
            Change::Repeat(from, to) => return repeat_line(&text, from, to),
            Change::Cut(at) => chars.truncate(place(at)),
        }
        chars.into_iter().collect()
    }
}

fn repeat_line(text: &str, from: &Index, to: &Index) -> String {
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    if !lines.is_empty() {
        let line = lines[from.index(lines.len())];
        lines.insert(to.index(lines.len() + 1), line);
    }
    lines.concat()
}

/// No panic, and a refusal says something about a place in the file.
fn is_answered(text: &str) -> Result<(), TestCaseError> {
    let Err(problems) = parse("f", text) else {
        return Ok(());
    };
    prop_assert!(!problems.is_empty());
    for problem in &problems {
        let place = problem
            .mark
            .as_ref()
            .map(|mark| mark.place)
            .expect("a place");
        prop_assert!(
            place.line >= 1 && place.line <= text.split(['\n', '\r']).count() as u64 + 1,
            "{problem}"
        );
        prop_assert!(
            place.column >= 1 && place.column <= text.chars().count() as u64 + 1,
            "{problem}"
        );
        prop_assert!(!problem.to_string().contains('\n'), "{problem}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in any::<String>()) {
        is_answered(&text)?;
    }

    #[test]
    fn yaml_like_text_is_answered(parts in prop::collection::vec(bits(), 0..40)) {
        is_answered(&parts.concat())?;
    }

    #[test]
    fn a_damaged_example_is_answered(changes in prop::collection::vec(change(), 1..6)) {
        let text = changes.iter().fold(EXAMPLE.to_owned(), |text, change| change.apply(text));
        is_answered(&text)?;
    }

    #[test]
    fn nesting_is_answered(depth in 0..5000usize, open in select(&["[", "{a: ", "- ", "? "])) {
        is_answered(&open.repeat(depth))?;
        is_answered(&format!("devices: {}", open.repeat(depth)))?;
    }

    #[test]
    fn a_snapshot_written_down_is_read_back(snapshot in snapshot()) {
        let text = write(&snapshot);
        let read = parse("f", &text);
        prop_assert_eq!(read, Ok(snapshot), "\n{}", text);
    }
}

fn seconds(least: u64) -> impl Strategy<Value = Duration> {
    (least..=bounds::TIMER.as_secs()).prop_map(Duration::from_secs)
}

fn timers() -> impl Strategy<Value = Timers> {
    (seconds(1), seconds(1), seconds(1), seconds(1)).prop_map(
        |(tcp_established, tcp_transitory, udp, icmp)| Timers {
            tcp_established,
            tcp_transitory,
            udp,
            icmp,
        },
    )
}

/// Names that YAML would rather take for something else.
const ODD_NAMES: &[&str] = &[
    "yes", "null", "~", "1.10", "0x1f", "1e3", "-", "a:b", "#", "'", "\"", "{x}", "é", "*a", "&a",
];

fn name() -> impl Strategy<Value = String> {
    prop_oneof![4 => "[a-zA-Z0-9/._-]{1,50}", 1 => select(ODD_NAMES).prop_map(str::to_owned)]
}

fn device_name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9.-]{0,12}"
}

fn device() -> impl Strategy<Value = Device> {
    let role = select(&[Role::Outside, Role::Inside]);
    let xdp = prop::option::of(select(&[XdpMode::Native, XdpMode::Generic, XdpMode::Off]));
    (device_name(), role, xdp).prop_map(|(name, role, xdp)| Device { name, role, xdp })
}

fn net() -> impl Strategy<Value = IpNet> {
    (any::<u32>(), 1..=32u8)
        .prop_map(|(bits, length)| IpNet::V4(Ipv4Net::new_assert(bits.into(), length).trunc()))
}

fn ports() -> impl Strategy<Value = (u32, u8)> {
    (1..=bounds::BLOCK_SIZE).prop_flat_map(|size| {
        let most = (bounds::PORTS_PER_CLIENT / u32::from(size)).min(bounds::BLOCKS_PER_CLIENT);
        let whole = (1..=most).prop_map(move |blocks| (blocks * u32::from(size), size));
        prop_oneof![
            whole,
            (1..=u32::from(size)).prop_map(move |ports| (ports, size))
        ]
    })
}

/// A pool of one to eight addresses of its own /24.
fn pool(number: u8) -> impl Strategy<Value = Pool> {
    let addresses = prop::collection::btree_set(any::<u8>(), 1..8);
    let path = select(&[Path::Stack, Path::Direct]);
    (
        name(),
        addresses,
        prop::collection::vec(net(), 0..4),
        (ports(), prop::option::of(1..=bounds::MAPPINGS_PER_SECOND)),
        seconds(0),
        path,
        timers(),
    )
        .prop_map(
            move |(
                name,
                addresses,
                exclude,
                ((ports_per_client, block_size), mappings_per_second),
                rest,
                path,
                timers,
            )| Pool {
                name: format!("{name}{number}x"),
                addresses: addresses
                    .into_iter()
                    .map(|last| IpAddr::from([203, 0, number, last]))
                    .collect(),
                exclude,
                ports_per_client,
                block_size,
                mappings_per_second,
                rest,
                path,
                timers,
            },
        )
}

/// A client with a network and an address of its own /16, and a pool or one of its addresses.
fn client(number: u8, pools: Vec<Pool>) -> impl Strategy<Value = Client> {
    let nets = (any::<u8>(), 17..=32u8, any::<bool>());
    (
        name(),
        nets,
        device_name(),
        any::<Index>(),
        prop::option::of(any::<Index>()),
    )
        .prop_map(
            move |(name, (third, length, more), device, pool, address)| {
                let net = Ipv4Net::new_assert([10, number, third & 127, 5].into(), length).trunc();
                let other = more.then(|| IpNet::from(IpAddr::from([10, number, 200, third])));
                let pool = pool.get(&pools);
                Client {
                    name: format!("{name}{number}x"),
                    addresses: [IpNet::V4(net)].into_iter().chain(other).collect(),
                    device: Some(device),
                    pool: pool.name.clone(),
                    address: address.map(|address| *address.get(&pool.addresses)),
                    draining: false,
                    cut_over: false,
                }
            },
        )
}

fn pools_and_clients() -> impl Strategy<Value = (Vec<Pool>, Vec<Client>)> {
    (1..4u8, 0..6u8).prop_flat_map(|(pools, clients)| {
        let pools: Vec<_> = (0..pools).map(pool).collect();
        pools.prop_flat_map(move |pools| {
            let clients: Vec<_> = (0..clients)
                .map(|number| client(number, pools.clone()))
                .collect();
            (Just(pools), clients)
        })
    })
}

prop_compose! {
    fn snapshot()(
        (pools, clients) in pools_and_clients(),
        mut devices in prop::collection::vec(device(), 1..4),
        sessions in 1..=bounds::SESSIONS,
        more_clients in 6..=bounds::CLIENTS,
        addresses in 32..=bounds::ADDRESSES,
        mark_bit in 0..=bounds::MARK_BIT,
        step in 1..=bounds::MARK_BIT,
        sweep in 10..=3_600_000u64,
    ) -> Snapshot {
        devices[0].role = Role::Outside;
        for (i, device) in devices.iter_mut().enumerate() {
            device.name = format!("{}{i}", device.name);
        }
        let limits = Limits { sessions, clients: more_clients, addresses };
        let cluster_ranges = vec![IpNet::from(IpAddr::from([10, mark_bit, 0, 0]))];
        Snapshot { devices, pools, clients, lost: vec![], ended: vec![], cluster_ranges, limits, mark_bit, decided_bit: (mark_bit + step) % (bounds::MARK_BIT + 1), sweep_interval: Duration::from_millis(sweep), guard: None }
    }
}

/// A quoted scalar: JSON's quoting is YAML's.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    format!("[{}]", items.join(", "))
}

fn write(snapshot: &Snapshot) -> String {
    let mut text = String::from("devices:\n");
    snapshot
        .devices
        .iter()
        .for_each(|device| text += &write_device(device));
    text += "pools:\n";
    snapshot
        .pools
        .iter()
        .for_each(|pool| text += &write_pool(pool));
    text += if snapshot.clients.is_empty() {
        "clients: []\n"
    } else {
        "clients:\n"
    };
    snapshot
        .clients
        .iter()
        .for_each(|client| text += &write_client(client));
    let Limits {
        sessions,
        clients,
        addresses,
    } = snapshot.limits;
    text +=
        &format!("limits: {{sessions: {sessions}, clients: {clients}, addresses: {addresses}}}\n");
    let sweep = snapshot.sweep_interval.as_millis();
    let ranges = list(&snapshot.cluster_ranges);
    text + &format!(
        "clusterRanges: {ranges}\nmarkBit: {}\ndecidedBit: {}\nsweepInterval: {sweep}ms\n",
        snapshot.mark_bit, snapshot.decided_bit
    )
}

fn write_device(device: &Device) -> String {
    let role = match device.role {
        Role::Outside => "outside",
        Role::Inside => "inside",
    };
    let xdp = match device.xdp {
        None => "",
        Some(XdpMode::Native) => ", xdp: native",
        Some(XdpMode::Generic) => ", xdp: generic",
        Some(XdpMode::Off) => ", xdp: off",
    };
    format!(
        "  - {{name: {}, role: {role}{xdp}}}\n",
        quoted(&device.name)
    )
}

fn write_pool(pool: &Pool) -> String {
    let path = match pool.path {
        Path::Stack => "stack",
        Path::Direct => "direct",
    };
    let Timers {
        tcp_established,
        tcp_transitory,
        udp,
        icmp,
    } = pool.timers;
    let [established, transitory, udp, icmp] =
        [tcp_established, tcp_transitory, udp, icmp].map(humantime::format_duration);
    let (rest, size, ports) = (
        humantime::format_duration(pool.rest),
        pool.block_size,
        pool.ports_per_client,
    );
    let mappings = pool
        .mappings_per_second
        .map_or_else(String::new, |mappings| {
            format!("mappingsPerSecond: {mappings}\n    ")
        });
    format!(
        "  - name: {}\n    addresses: {}\n    exclude: {}\n    portsPerClient: {ports}\n    blockSize: {size}\n    \
         {mappings}rest: {rest}\n    path: {path}\n    timers: {{tcpEstablished: {established}, tcpTransitory: {transitory}, \
         udp: {udp}, icmp: {icmp}}}\n",
        quoted(&pool.name),
        list(&pool.addresses),
        list(&pool.exclude),
    )
}

fn write_client(client: &Client) -> String {
    let egress = client
        .address
        .map_or_else(|| quoted(&client.pool), |address| address.to_string());
    let (name, device) = (
        quoted(&client.name),
        quoted(client.device.as_deref().unwrap()),
    );
    let addresses = list(&client.addresses);
    format!(
        "  - name: {name}\n    addresses: {addresses}\n    device: {device}\n    egress: {egress}\n"
    )
}
