//! The example, the defaults, and every refusal with its exact words and place.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::{model, parse, parse_node};
use crate::snapshot::{Client, Device, Limits, Path, Pool, Role, Snapshot, Timers, XdpMode};

pub(super) const EXAMPLE: &str = include_str!("../../../docs/example.yaml");
const MANUAL: &str = include_str!("../../../docs/configuration.md");

/// The shortest file that does something.
const SMALL: &str = "\
devices:
  - name: eth0
pools:
  - name: office
    addresses: [203.0.113.10]
clients:
  - name: default/web-0
    addresses: [10.244.1.7]
    device: veth12ab
    egress: office
";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    let net = |text: &&str| text.parse().unwrap_or_else(|_| IpNet::from(address(text)));
    texts.iter().map(net).collect()
}

fn refused(text: &str) -> Vec<String> {
    match parse("f", text) {
        Ok(snapshot) => panic!("was accepted: {snapshot:#?}\n{text}"),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

/// A file whose only problem is this one.
#[track_caller]
fn refuses(text: &str, problem: &str) {
    assert_eq!(refused(text), [problem], "\n{text}");
}

/// The small file with something replaced, whose only problem is this one.
#[track_caller]
fn small_refuses(from: &str, to: &str, problem: &str) {
    assert_eq!(
        SMALL.matches(from).count(),
        1,
        "{from} must stand in the small file once"
    );
    refuses(&SMALL.replace(from, to), problem);
}

/// The small file with something after it, whose only problem is this one.
#[track_caller]
fn small_and_refuses(more: &str, problem: &str) {
    refuses(&format!("{SMALL}{more}"), problem);
}

mod accepted {
    use super::*;

    fn example_pools() -> Vec<Pool> {
        let office = (10..=10)
            .chain(16..=23)
            .chain(32..=40)
            .map(|last| IpAddr::from([203, 0, 113, last]));
        let office = Pool {
            name: "office".into(),
            addresses: office.collect(),
            exclude: nets(&["10.0.0.0/8", "192.168.1.5"]),
            ports_per_client: 4096,
            block_size: 64,
            mappings_per_second: None,
            rest: Duration::from_secs(120),
            path: Path::Stack,
            timers: Timers {
                tcp_established: Duration::from_secs(7440),
                tcp_transitory: Duration::from_secs(240),
                udp: Duration::from_secs(300),
                icmp: Duration::from_secs(60),
            },
        };
        let fast = Pool {
            name: "fast".into(),
            addresses: vec![address("198.51.100.7")],
            exclude: vec![],
            path: Path::Direct,
            mappings_per_second: Some(1000),
            ..office.clone()
        };
        vec![office, fast]
    }

    fn example_clients() -> Vec<Client> {
        vec![
            Client {
                name: "default/web-0".into(),
                addresses: nets(&["10.244.1.7"]),
                device: Some("veth12ab".into()),
                pool: "office".into(),
                address: None,
                draining: false,
                cut_over: false,
            },
            Client {
                name: "lab".into(),
                addresses: nets(&["192.168.10.0/24", "192.168.12.9"]),
                device: Some("eth1".into()),
                pool: "office".into(),
                address: Some(address("203.0.113.10")),
                draining: false,
                cut_over: false,
            },
        ]
    }

    #[test]
    fn the_example_means_what_it_says() {
        let expected = Snapshot {
            devices: vec![
                Device {
                    name: "eth0".into(),
                    role: Role::Outside,
                    xdp: Some(XdpMode::Native),
                },
                Device {
                    name: "eth1".into(),
                    role: Role::Inside,
                    xdp: None,
                },
            ],
            pools: example_pools(),
            clients: example_clients(),
            lost: vec![],
            ended: vec![],
            cluster_ranges: nets(&["10.96.0.0/12"]),
            limits: Limits {
                sessions: 262_144,
                clients: 4096,
                addresses: 64,
            },
            mark_bit: 13,
            decided_bit: 12,
            sweep_interval: Duration::from_secs(5),
            guard: None,
        };
        assert_eq!(parse("example.yaml", EXAMPLE), Ok(expected));
    }

    #[test]
    fn what_is_left_out_has_the_examples_values() {
        let small = parse("f", SMALL).unwrap();
        let example = parse("example.yaml", EXAMPLE).unwrap();
        assert_eq!(small.limits, example.limits);
        assert_eq!(small.mark_bit, example.mark_bit);
        assert_eq!(small.sweep_interval, example.sweep_interval);
        assert_eq!(
            small.devices[0],
            Device {
                xdp: None,
                ..example.devices[0].clone()
            }
        );
        let office = example.pools[0].clone();
        assert_eq!(
            small.pools[0],
            Pool {
                addresses: vec![address("203.0.113.10")],
                exclude: vec![],
                ..office
            }
        );
    }

    #[test]
    fn a_snapshot_finds_pools_and_clients_by_name() {
        let snapshot = parse("example.yaml", EXAMPLE).unwrap();
        assert_eq!(snapshot.pool("fast"), Some(&snapshot.pools[1]));
        assert_eq!(snapshot.client("lab"), Some(&snapshot.clients[1]));
        assert_eq!(snapshot.pool("lab"), None);
    }

    #[test]
    fn there_may_be_no_clients() {
        let (without, _) = SMALL.split_once("clients:").unwrap();
        for text in [without.to_owned(), format!("{without}clients: []\n")] {
            assert_eq!(parse("f", &text).unwrap().clients, []);
        }
    }

    #[test]
    fn a_client_may_be_behind_an_outside_device() {
        let text = SMALL.replace("veth12ab", "eth0");
        assert_eq!(
            parse("f", &text).unwrap().clients[0].device.as_deref(),
            Some("eth0")
        );
    }

    /// YAML's guesses at types must not reach names and words.
    #[test]
    fn scalars_are_what_was_written() {
        let text = SMALL
            .replace("default/web-0", "1.10")
            .replace("name: eth0", "name: 0x10\n    xdp: off");
        let snapshot = parse("f", &text.replace("office", "yes")).unwrap();
        assert_eq!(snapshot.clients[0].name, "1.10");
        assert_eq!(
            snapshot.devices[0],
            Device {
                name: "0x10".into(),
                role: Role::Outside,
                xdp: Some(XdpMode::Off)
            }
        );
        assert_eq!(snapshot.clients[0].pool, "yes");
    }

    #[test]
    fn anchors_and_aliases_work() {
        let text = SMALL
            .replace("name: office", "name: &pool 1e3")
            .replace("egress: office", "egress: *pool");
        assert_eq!(parse("f", &text).unwrap().clients[0].pool, "1e3");
    }

    #[test]
    fn times_have_units() {
        for (text, time) in [
            ("500ms", 500),
            ("7s", 7_000),
            ("2m", 120_000),
            ("1m 30s", 90_000),
            ("1h", 3_600_000),
        ] {
            let file = format!("{SMALL}sweepInterval: {text}\n");
            assert_eq!(
                parse("f", &file).unwrap().sweep_interval,
                Duration::from_millis(time),
                "{text}"
            );
        }
    }

    #[test]
    fn rest_may_be_zero() {
        let text = SMALL.replace("name: office", "name: office\n    rest: 0s");
        assert_eq!(parse("f", &text).unwrap().pools[0].rest, Duration::ZERO);
    }
}

mod shape {
    use super::*;

    #[test]
    fn not_yaml() {
        let words = "mend it, nothing else was checked";
        refuses(
            "devices: [\n",
            &format!("f:1:10: is not YAML: unclosed bracket '['; {words}"),
        );
        refuses(
            "markBit: \"3",
            &format!("f:1:10: is not YAML: unclosed quote; {words}"),
        );
        refuses(
            "pools: *office\n",
            &format!("f:1:8: is not YAML: reference to unknown value; {words}"),
        );
        refuses(
            "? [pools]\n: 1\n",
            &format!("f:1:3: is not YAML: expected string scalar; {words}"),
        );
    }

    #[test]
    fn too_deep() {
        refuses(
            &"- ".repeat(17),
            "f:1:33: is too deep or too long for a configuration; make it simpler",
        );
    }

    #[test]
    fn empty() {
        for text in ["", "# nothing\n", "null\n"] {
            let problems = refused(text);
            assert!(problems[0].contains(
                ": is empty, not fields; write devices, pools, clients, clusterRanges, limits, markBit, decidedBit and sweepInterval, each on its own line"
            ));
        }
        refuses(
            "eth0\n",
            "f:1:1: is a single value, not fields; write devices, pools, clients, clusterRanges, limits, markBit, decidedBit and sweepInterval, each on its own line",
        );
    }

    #[test]
    fn a_key_twice() {
        small_and_refuses(
            "markBit: 3\nmarkBit: 4\n",
            "f:12:1: `markBit` is given twice here; keep one",
        );
    }

    #[test]
    fn a_second_document() {
        small_and_refuses(
            &format!("---\n{SMALL}"),
            "f:12:1: a second document starts here; put everything into one",
        );
    }

    #[test]
    fn missing_sections() {
        assert_eq!(
            refused("markBit: 3\n"),
            [
                "f:1:1: devices: is missing; add it",
                "f:1:1: pools: is missing; add it"
            ]
        );
    }

    #[test]
    fn missing_fields() {
        assert_eq!(
            refused("devices: [{}]\npools: [{}]\nclients: [{}]\n"),
            [
                "f:1:11: devices[0].name: is missing; add it",
                "f:2:9: pools[0].addresses: is missing; add it",
                "f:2:9: pools[0].name: is missing; add it",
                "f:3:11: clients[0].addresses: is missing; add it",
                "f:3:11: clients[0].name: is missing; add it",
                "f:3:11: clients[0].device: is missing; add it",
                "f:3:11: clients[0].egress: is missing; add it",
            ]
        );
    }

    #[test]
    fn empty_lists() {
        small_refuses(
            "[10.244.1.7]",
            "[]",
            "f:8:16: clients[0].addresses: is an empty list; it needs at least one item",
        );
        small_refuses(
            "[203.0.113.10]",
            "[]",
            "f:5:16: pools[0].addresses: is an empty list; it needs at least one item",
        );
        assert_eq!(
            refused("devices: []\npools: []\n"),
            [
                "f:1:10: devices: is an empty list; it needs at least one item",
                "f:2:8: pools: is an empty list; it needs at least one item"
            ]
        );
    }

    #[test]
    fn unknown_fields() {
        small_and_refuses(
            "markbit: 3\n",
            "f:11:1: markbit: is not a field; did you mean `markBit`?",
        );
        small_refuses(
            "name: eth0",
            "name: eth0\n    mtu: 9000",
            "f:3:5: devices[0].mtu: is not a field; remove it, the fields here are name, role and xdp",
        );
        small_and_refuses(
            "limits: {sessions: 1, session: 1}\n",
            "f:11:23: limits.session: is not a field; did you mean `sessions`?",
        );
        let text = SMALL.replace(
            "name: office",
            "name: office\n    timers: {tcp_established: 2h}",
        );
        refuses(
            &text,
            "f:5:14: pools[0].timers.tcp_established: is not a field; did you mean `tcpEstablished`?",
        );
        let text = SMALL.replace(
            "    egress: office",
            "    adresses: [10.0.0.1]\n    egress: office",
        );
        refuses(
            &text,
            "f:10:5: clients[0].adresses: is not a field; did you mean `addresses`?",
        );
    }

    #[test]
    fn other_kinds() {
        small_refuses(
            "[203.0.113.10]",
            "203.0.113.10",
            "f:5:16: pools[0].addresses: is a single value, not a list; write it as [a, b] or with `- ` before each item",
        );
        small_refuses(
            "egress: office",
            "egress: [office]",
            "f:10:13: clients[0].egress: is a list; write a single value",
        );
        small_and_refuses(
            "markBit:\n",
            "f:11:1: markBit: has no value; write one, or remove the line",
        );
        small_and_refuses(
            "limits: 5\n",
            "f:11:9: limits: is a single value, not fields; write sessions, clients and addresses, each on its own line",
        );
        small_refuses(
            "- name: eth0",
            "- eth0",
            "f:2:5: devices[0]: is a single value, not fields; write name, role and xdp, each on its own line",
        );
        let (without, _) = SMALL.split_once("clients:").unwrap();
        refuses(
            &format!("{without}clients:\n"),
            "f:6:1: clients: is empty, not a list; write it as [a, b] or with `- ` before each item",
        );
    }

    #[test]
    fn columns_count_characters() {
        small_refuses(
            "  - name: default/web-0",
            "  - {name: \"dé\", addresses: [1.2.3.4], device: v, egress: x}\n  - name: default/web-0",
            "f:7:59: clients[0].egress: there is no pool `x`; write a pool's name (office), or one address of a pool",
        );
    }

    #[test]
    fn a_file_that_cannot_be_read() {
        let missing = super::super::load("/nonexistent/natctl.yaml".as_ref()).unwrap_err();
        let words = "/nonexistent/natctl.yaml: cannot be read: No such file or directory (os error 2); check the path and its permissions";
        assert_eq!(missing[0].to_string(), words);
        assert_eq!(missing[0].mark, None);
    }
}

mod values {
    use super::*;

    #[test]
    fn words() {
        small_refuses(
            "name: eth0",
            "name: eth0\n    role: out",
            "f:3:11: devices[0].role: `out` is none of its values; write outside or inside",
        );
        small_refuses(
            "name: eth0",
            "name: eth0\n    xdp: on",
            "f:3:10: devices[0].xdp: `on` is none of its values; write native, generic or off",
        );
        small_refuses(
            "name: office",
            "name: office\n    path: fast",
            "f:5:11: pools[0].path: `fast` is none of its values; write stack or direct",
        );
    }

    #[test]
    fn the_guard_is_a_nodes() {
        let settings = parse_node("f", "{}\n").unwrap();
        assert!(settings.guard && settings.pod_ranges.is_empty());
        let settings = parse_node("f", "guard: off\npodRanges: [10.50.0.0/16]\n").unwrap();
        assert!(!settings.guard);
        assert_eq!(settings.pod_ranges, nets(&["10.50.0.0/16"]));
        let problems = parse_node("f", "guard: no\n").unwrap_err();
        assert_eq!(
            problems[0].to_string(),
            "f:1:8: guard: `no` is none of its values; write on or off"
        );
        let problem = refused(&format!("{SMALL}guard: off\n")).remove(0);
        assert!(
            problem.starts_with("f:11:1: guard: is not a field"),
            "{problem}"
        );
    }

    #[test]
    fn one_bit_for_two_purposes() {
        for (more, place, bit) in [
            ("markBit: 12", "f:11:10: markBit", 12),
            ("decidedBit: 13", "f:11:13: decidedBit", 13),
            ("decidedBit: 5\nmarkBit: 5", "f:11:13: decidedBit", 5),
        ] {
            small_and_refuses(
                &format!("{more}\n"),
                &format!("{place}: {bit} is both markBit and decidedBit; choose two"),
            );
        }
    }

    #[test]
    fn numbers() {
        for value in ["32", "-1", "x", "1.5", "99999999999999999999", "0x3"] {
            small_and_refuses(
                &format!("markBit: {value}\n"),
                &format!(
                    "f:11:10: markBit: `{value}` is not a whole number from 0 to 31; write one"
                ),
            );
        }
        small_and_refuses(
            "limits: {clients: 0}\n",
            "f:11:19: limits.clients: `0` is not a whole number from 1 to 65536; write one",
        );
        small_and_refuses(
            "limits: {sessions: 0}\n",
            "f:11:20: limits.sessions: `0` is not a whole number from 1 to 16777216; write one",
        );
        small_and_refuses(
            "limits: {addresses: 5000}\n",
            "f:11:21: limits.addresses: `5000` is not a whole number from 1 to 1024; write one",
        );
    }

    #[test]
    fn block_size_and_ports() {
        let pool =
            |fields: &str| SMALL.replace("name: office", &format!("name: office\n    {fields}"));
        refuses(
            &pool("blockSize: 65"),
            "f:5:16: pools[0].blockSize: `65` is not a whole number from 1 to 64; write one",
        );
        refuses(
            &pool("blockSize: 0"),
            "f:5:16: pools[0].blockSize: `0` is not a whole number from 1 to 64; write one",
        );
        refuses(
            &pool("portsPerClient: 0"),
            "f:5:21: pools[0].portsPerClient: `0` is not a whole number from 1 to 64512; write one",
        );
        refuses(
            &pool("mappingsPerSecond: 0"),
            "f:5:24: pools[0].mappingsPerSecond: `0` is not a whole number from 1 to 64512; write one",
        );
        refuses(
            &pool("portsPerClient: 64513"),
            "f:5:21: pools[0].portsPerClient: `64513` is not a whole number from 1 to 64512; write one",
        );
        refuses(
            &pool("portsPerClient: 100"),
            "f:5:21: pools[0].portsPerClient: 100 ports are not whole blocks of 64 (blockSize); write 64 or 128",
        );
        refuses(
            &pool("blockSize: 48"),
            "f:5:16: pools[0].portsPerClient: 4096 ports are not whole blocks of 48 (blockSize); write 4080 or 4128",
        );
        refuses(
            &pool("blockSize: 1"),
            "f:5:16: pools[0].portsPerClient: 4096 ports in blocks of 1 are more than 1024 blocks; write at most 1024, or larger blocks",
        );
        for good in [
            "mappingsPerSecond: 1",
            "mappingsPerSecond: 64512",
            "portsPerClient: 10",
            "portsPerClient: 64512",
            "portsPerClient: 63",
            "portsPerClient: 1",
        ] {
            assert!(parse("f", &pool(good)).is_ok(), "{good}");
        }
    }

    #[test]
    fn times() {
        let units = "write a number with its unit, as in 500ms, 120s, 5m or 2h";
        for value in [
            "120",
            "soon",
            "5 lightyears",
            "-5s",
            "1.5.1s",
            "99999999999999999999h",
            "''",
        ] {
            let shown = value.trim_matches('\'');
            small_and_refuses(
                &format!("sweepInterval: {value}\n"),
                &format!("f:11:16: sweepInterval: `{shown}` is not a time; {units}"),
            );
        }
        let words = "is not from 10ms to 1h; write a time between them";
        small_and_refuses(
            "sweepInterval: 0s\n",
            &format!("f:11:16: sweepInterval: `0s` {words}"),
        );
        small_and_refuses(
            "sweepInterval: 2h\n",
            &format!("f:11:16: sweepInterval: `2h` {words}"),
        );
    }

    #[test]
    fn timers() {
        for name in model::TIMERS {
            let column = 17 + name.len();
            let timer = |value: &str| {
                SMALL.replace(
                    "name: office",
                    &format!("name: office\n    timers: {{ {name}: {value} }}"),
                )
            };
            let (field, at) = (format!("pools[0].timers.{name}"), format!("f:5:{column}"));
            let words = "is not from 1s to 30days; write a time between them";
            refuses(&timer("0s"), &format!("{at}: {field}: `0s` {words}"));
            refuses(&timer("31d"), &format!("{at}: {field}: `31d` {words}"));
            refuses(
                &timer("1500ms"),
                &format!("{at}: {field}: `1500ms` is not whole seconds; round it to seconds"),
            );
        }
        small_refuses(
            "name: office",
            "name: office\n    rest: 31d",
            "f:5:11: pools[0].rest: `31d` is not from 0s to 30days; write a time between them",
        );
    }

    #[test]
    fn device_names() {
        for name in [
            "eth0:1",
            "a/b",
            "'a b'",
            "'..'",
            "a-link-name-of-20-ch",
            "''",
        ] {
            let shown = name.trim_matches('\'');
            small_refuses(
                "veth12ab",
                name,
                &format!(
                    "f:9:13: clients[0].device: `{shown}` is not a link's name, which has 1 to 15 characters, none of them a space, `/` or `:`; write it as `ip link` prints it"
                ),
            );
        }
    }

    #[test]
    fn names() {
        small_refuses(
            "default/web-0",
            "''",
            "f:7:11: clients[0].name: is empty; write a name",
        );
        small_refuses(
            "default/web-0",
            "\"a\\tb\"",
            "f:7:11: clients[0].name: `a\\tb` has white space in it; use letters, digits, `-`, `.` and `/`",
        );
        small_refuses(
            "default/web-0",
            &"x".repeat(318),
            "f:7:11: clients[0].name: is 318 bytes long; shorten it to 317",
        );
        assert!(parse("f", &SMALL.replace("default/web-0", &"x".repeat(317))).is_ok());
        let long = "x".repeat(64);
        refuses(
            &SMALL.replace("office", &long),
            "f:4:11: pools[0].name: is 64 bytes long; shorten it to 63",
        );
        refuses(
            &SMALL.replace("name: office", "name: 203.0.113.10"),
            "f:4:11: pools[0].name: `203.0.113.10` is an address; give the pool another name",
        );
    }

    #[test]
    fn names_twice() {
        small_refuses(
            "pools:",
            "  - name: eth0\n    role: inside\npools:",
            "f:3:11: devices[1].name: `eth0` is already the name of devices[0].name (line 2); list a device once",
        );
        small_refuses(
            "clients:",
            "  - name: office\n    addresses: [203.0.113.11]\nclients:",
            "f:6:11: pools[1].name: `office` is already the name of pools[0].name (line 4); give each pool its own name",
        );
        small_and_refuses(
            "  - {name: default/web-0, addresses: [10.0.0.1], device: v, egress: office}\n",
            "f:11:12: clients[1].name: `default/web-0` is already the name of clients[0].name (line 7); give each client its own name",
        );
    }

    #[test]
    fn no_outside_device() {
        small_refuses(
            "name: eth0",
            "name: eth0\n    role: inside",
            "f:2:3: devices: has no outside device, so nothing could be translated; give one of them `role: outside`",
        );
    }
}

mod addresses {
    use super::*;

    #[track_caller]
    fn pool_refuses(address: &str, message: &str) {
        small_refuses(
            "[203.0.113.10]",
            &format!("['{address}']"),
            &format!("f:5:17: pools[0].addresses[0]: {message}"),
        );
    }

    #[track_caller]
    fn client_refuses(address: &str, message: &str) {
        small_refuses(
            "[10.244.1.7]",
            &format!("['{address}']"),
            &format!("f:8:17: clients[0].addresses[0]: {message}"),
        );
    }

    #[test]
    fn malformed() {
        for bad in [
            "203.0.113",
            "203.0.113.256",
            "203.0.113.010",
            "example.org",
            "",
            "203.0.113.10:80",
        ] {
            pool_refuses(
                bad,
                &format!("`{bad}` is not an address; write one as 203.0.113.10"),
            );
            client_refuses(
                bad,
                &format!("`{bad}` is not an address; write one as 203.0.113.10"),
            );
        }
        for bad in [
            "203.0.113.0/33",
            "203.0.113.0/",
            "203.0.113.0/255.255.255.0",
        ] {
            pool_refuses(
                bad,
                &format!("`{bad}` is not a network; write one as 203.0.113.16/29"),
            );
        }
        pool_refuses(
            "203.0.113.9-x",
            "`x` is not an address; write one as 203.0.113.10",
        );
        pool_refuses(
            "203.0.113.9-203.0.113.8",
            "`203.0.113.9-203.0.113.8` ends before it starts; write 203.0.113.8-203.0.113.9",
        );
        client_refuses(
            "10.0.0.1-10.0.0.9",
            "`10.0.0.1-10.0.0.9` is a range; write it as networks, as in 10.0.0.0/24",
        );
    }

    #[test]
    fn an_address_within_a_network() {
        let words = "is an address within a network; write 10.1.0.0/16 for the whole network, or 10.1.2.3 for the one address";
        pool_refuses("10.1.2.3/16", &format!("`10.1.2.3/16` {words}"));
        client_refuses("10.1.2.3/16", &format!("`10.1.2.3/16` {words}"));
    }

    #[test]
    fn ipv6() {
        for bad in ["2001:db8::1", "2001:db8::/64"] {
            pool_refuses(
                bad,
                &format!("`{bad}` is IPv6, which is not translated yet; write an IPv4 address"),
            );
            client_refuses(
                bad,
                &format!("`{bad}` is IPv6, which is not translated yet; write an IPv4 address"),
            );
        }
        small_refuses(
            "name: office",
            "name: office\n    exclude: ['2001:db8::/32']",
            "f:5:15: pools[0].exclude[0]: `2001:db8::/32` is IPv6, which is not translated yet; write an IPv4 address",
        );
    }

    #[test]
    fn nobodys() {
        let cases = [
            (
                "0.1.2.3",
                "0.1.2.3 reaches into 0.0.0.0/8, \"this network\" (RFC 1122); use other addresses",
            ),
            (
                "127.0.0.1",
                "127.0.0.1 reaches into 127.0.0.0/8, loopback (RFC 1122); use other addresses",
            ),
            (
                "169.254.1.1",
                "169.254.1.1 reaches into 169.254.0.0/16, link-local and never routed (RFC 3927); use other addresses",
            ),
            (
                "239.1.1.1",
                "239.1.1.1 reaches into 224.0.0.0/4, multicast (RFC 5771); use other addresses",
            ),
            (
                "255.255.255.255",
                "255.255.255.255 reaches 255.255.255.255, the broadcast address (RFC 919); use another address",
            ),
            (
                "126.0.0.0/7",
                "126.0.0.0/7 reaches into 127.0.0.0/8, loopback (RFC 1122); use other addresses",
            ),
        ];
        for (bad, message) in cases {
            pool_refuses(bad, message);
            client_refuses(bad, message);
        }
        pool_refuses(
            "223.255.255.255-224.0.0.0",
            "223.255.255.255-224.0.0.0 reaches into 224.0.0.0/4, multicast (RFC 5771); use other addresses",
        );
    }

    #[test]
    fn excluding_everything() {
        small_refuses(
            "name: office",
            "name: office\n    exclude: [10.0.0.0/8, 0.0.0.0/0]",
            "f:5:27: pools[0].exclude[1]: 0.0.0.0/0 is every destination, so nothing would be translated; remove it",
        );
    }

    #[test]
    fn pools_that_overlap() {
        let words = "an egress address belongs to one pool, list it once";
        small_refuses(
            "clients:",
            "  - name: b\n    addresses: [203.0.113.8/29]\nclients:",
            &format!(
                "f:7:17: pools[1].addresses[0]: 203.0.113.8/29 overlaps 203.0.113.10 of pools[0].addresses[0] (line 5); {words}"
            ),
        );
        // The other way round: the later in the file is blamed, whichever is larger.
        let text = SMALL.replace(
            "clients:",
            "  - name: b\n    addresses: [203.0.113.10]\nclients:",
        );
        refuses(
            &text.replacen("[203.0.113.10]", "[203.0.113.8/29]", 1),
            &format!(
                "f:7:17: pools[1].addresses[0]: 203.0.113.10 overlaps 203.0.113.8/29 of pools[0].addresses[0] (line 5); {words}"
            ),
        );
        small_refuses(
            "[203.0.113.10]",
            "[203.0.113.10, 203.0.113.9-203.0.113.10]",
            &format!(
                "f:5:31: pools[0].addresses[1]: 203.0.113.9-203.0.113.10 overlaps 203.0.113.10 of pools[0].addresses[0] (line 5); {words}"
            ),
        );
    }

    #[test]
    fn clients_that_overlap() {
        let words = "an address belongs to one client, list it once";
        let second = |address: &str| {
            format!("  - {{name: b, addresses: [{address}], device: v, egress: office}}\n")
        };
        small_and_refuses(
            &second("10.244.0.0/16"),
            &format!(
                "f:11:27: clients[1].addresses[0]: 10.244.0.0/16 overlaps 10.244.1.7 of clients[0].addresses[0] (line 8); {words}"
            ),
        );
        let text =
            format!("{SMALL}{}", second("10.244.1.9")).replace("[10.244.1.7]", "[10.244.1.0/24]");
        refuses(
            &text,
            &format!(
                "f:11:27: clients[1].addresses[0]: 10.244.1.9 overlaps 10.244.1.0/24 of clients[0].addresses[0] (line 8); {words}"
            ),
        );
        small_and_refuses(
            &second("10.1.1.1, 10.1.1.1"),
            &format!(
                "f:11:37: clients[1].addresses[1]: 10.1.1.1 overlaps 10.1.1.1 of clients[1].addresses[0] (line 11); {words}"
            ),
        );
    }

    #[test]
    fn an_egress_address_within_a_clients_range() {
        let words = "inside and outside must differ (RFC 4787 REQ-7), change one of them";
        small_refuses(
            "[10.244.1.7]",
            "[10.244.1.7, 203.0.113.0/24]",
            &format!(
                "f:8:29: clients[0].addresses[1]: 203.0.113.0/24 overlaps the egress address 203.0.113.10 of pools[0].addresses[0] (line 5); {words}"
            ),
        );
        // And a client within a pool's network.
        let text = SMALL.replace("[203.0.113.10]", "[10.244.1.0/28]");
        refuses(
            &text,
            &format!(
                "f:8:17: clients[0].addresses[0]: 10.244.1.7 overlaps the egress address 10.244.1.0/28 of pools[0].addresses[0] (line 5); {words}"
            ),
        );
    }

    #[test]
    fn egress_that_belongs_to_nobody() {
        small_refuses(
            "egress: office",
            "egress: ofice",
            "f:10:13: clients[0].egress: there is no pool `ofice`; write a pool's name (office), or one address of a pool",
        );
        small_refuses(
            "egress: office",
            "egress: 203.0.113.11",
            "f:10:13: clients[0].egress: 203.0.113.11 belongs to no pool; add it to the addresses of one",
        );
        small_refuses(
            "egress: office",
            "egress: ''",
            "f:10:13: clients[0].egress: is empty; write a pool's name, or one address of a pool",
        );
    }

    #[test]
    fn more_addresses_than_the_tables_hold() {
        small_refuses(
            "[203.0.113.10]",
            "[203.0.113.10, 198.51.100.0/24]",
            "f:5:16: pools[0].addresses: 257 addresses are more than limits.addresses (64); raise it to 257 or more, or list fewer",
        );
        small_refuses(
            "clients:",
            "  - name: b\n    addresses: [198.51.100.0/26]\nclients:",
            "f:7:16: pools[1].addresses: 64 addresses after the 1 before them are more than limits.addresses (64); raise it to 65 or more, or list fewer",
        );
        small_refuses(
            "[203.0.113.10]",
            "[32.0.0.0/3]",
            "f:5:16: pools[0].addresses: 536870912 addresses are more than limits.addresses (64); list fewer (it can be raised to 1024)",
        );
    }

    #[test]
    fn more_clients_than_the_tables_hold() {
        small_and_refuses(
            "  - {name: b, addresses: [10.0.0.1], device: v, egress: office}\nlimits: {clients: 1}\n",
            "f:11:5: clients[1]: 2 clients are more than limits.clients (1); raise it to 2 or more, or remove clients",
        );
    }
}

/// One mistake of each stage, and more than one in an entry: all are told, in the file's order.
#[test]
fn all_problems_at_once() {
    let text = "\
devices:
  - name: eth0
    rol: outside
pools:
  - name: office
    addresses: [203.0.113.10, 203.0.113.300]
    path: fast
  - name: office
    addresses: [203.0.113.10]
clients:
  - name: web
    addresses: [203.0.113.0/24]
    egress: lab
markBit: 40
";
    assert_eq!(
        refused(text),
        [
            "f:3:5: devices[0].rol: is not a field; did you mean `role`?",
            "f:6:31: pools[0].addresses[1]: `203.0.113.300` is not an address; write one as 203.0.113.10",
            "f:7:11: pools[0].path: `fast` is none of its values; write stack or direct",
            "f:8:11: pools[1].name: `office` is already the name of pools[0].name (line 5); give each pool its own name",
            "f:9:17: pools[1].addresses[0]: 203.0.113.10 overlaps 203.0.113.10 of pools[0].addresses[0] (line 6); an egress address belongs to one pool, list it once",
            "f:11:5: clients[0].device: is missing; add it",
            "f:12:17: clients[0].addresses[0]: 203.0.113.0/24 overlaps the egress address 203.0.113.10 of pools[0].addresses[0] (line 6); inside and outside must differ (RFC 4787 REQ-7), change one of them",
            "f:12:17: clients[0].addresses[0]: 203.0.113.0/24 overlaps the egress address 203.0.113.10 of pools[1].addresses[0] (line 9); inside and outside must differ (RFC 4787 REQ-7), change one of them",
            "f:13:13: clients[0].egress: there is no pool `lab`; write a pool's name (office), or one address of a pool",
            "f:14:10: markBit: `40` is not a whole number from 0 to 31; write one",
        ]
    );
}

/// What could not be read must not be said to be missing elsewhere.
#[test]
fn no_problem_follows_from_another() {
    small_refuses(
        "name: office",
        "name: ''",
        "f:4:11: pools[0].name: is empty; write a name",
    );
    let text = SMALL
        .replace("[203.0.113.10]", "[203.0.113.1O]")
        .replace("egress: office", "egress: 203.0.113.10");
    refuses(
        &text,
        "f:5:17: pools[0].addresses[0]: `203.0.113.1O` is not an address; write one as 203.0.113.10",
    );
}

mod documents {
    use super::*;

    /// Every field's name, and the section that holds it.
    fn fields() -> impl Iterator<Item = &'static str> {
        [
            model::FILE,
            model::DEVICE,
            model::POOL,
            model::TIMERS,
            model::CLIENT,
            model::LIMITS,
        ]
        .into_iter()
        .flatten()
        .copied()
    }

    #[test]
    fn the_example_has_every_field() {
        for field in fields() {
            assert!(
                EXAMPLE.contains(&format!("{field}:")),
                "docs/example.yaml lacks {field}"
            );
        }
    }

    #[test]
    fn the_manual_has_every_field() {
        for field in fields().chain(model::NODE.iter().copied()) {
            assert!(
                MANUAL.contains(&format!("| `{field}`")),
                "docs/configuration.md lacks {field}"
            );
        }
    }

    /// The text of the fenced block after a heading's words.
    fn block(after: &str) -> &'static str {
        let (_, rest) = MANUAL.split_once(after).expect(after);
        let (_, rest) = rest.split_once("```").expect("a fenced block");
        let (_, rest) = rest.split_once('\n').expect("a line after the fence");
        rest.split_once("```").expect("the block's end").0
    }

    #[test]
    fn the_manuals_refusal_is_real() {
        let problems = parse("natctl.yaml", block("This file")).unwrap_err();
        let told: String = problems
            .iter()
            .map(|problem| format!("{problem}\n"))
            .collect();
        assert_eq!(
            told,
            block("is refused with"),
            "docs/configuration.md shows another output"
        );
    }
}
