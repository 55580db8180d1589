//! One example for all tests and for `docs/natctl.md`, and the golden files.

use std::{env, fs, path::Path};

use nat_common::reason::Reason;

use super::model::{
    Address, Agent, Arp, Client, ClientPorts, Device, Dropped, Health, HealthState, Ports,
    Protocols, SCHEMA, Status, Table, Traffic,
};
use crate::report::{Hook, HookReport, Kubernetes, Mode, PodReport, Role};

/// 2025-11-21 02:00:00 UTC.
pub const TIME: u64 = 1_763_690_400;

/// Compares with a golden file, and `docs/natctl.md` with it: text examples
/// there are whole golden files. `UPDATE_GOLDEN=1` writes the file anew.
pub fn golden(name: &str, text: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("src/status/golden").join(name);
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == golden,
        "{} differs (UPDATE_GOLDEN=1 writes it anew); now:\n{text}",
        path.display()
    );
    let docs = fs::read_to_string(root.join("../docs/natctl.md")).unwrap();
    if docs.contains(&format!("<!-- {name} -->")) {
        assert!(
            docs.contains(&format!("<!-- {name} -->\n```text\n{text}```")),
            "docs/natctl.md: {name} differs"
        );
    }
}

/// Every field of the JSON is explained.
#[test]
fn the_documentation_names_every_field() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_to_string(root.join("../docs/natctl.md")).unwrap();
    // As `health`, or as a part of `health.state`.
    let named = |key: &str| docs.contains(&format!("{key}`")) || docs.contains(&format!("`{key}."));
    for name in ["status.json", "flows.json"] {
        let json = fs::read_to_string(root.join("src/status/golden").join(name)).unwrap();
        let keys = json
            .lines()
            .filter_map(|line| line.trim().strip_prefix('"')?.split_once("\":"));
        for (key, _) in keys {
            assert!(named(key), "docs/natctl.md lacks `{key}` of {name}");
        }
    }
}

/// A node that is well.
pub fn status() -> Status {
    Status {
        schema: SCHEMA,
        version: "0.1.0".into(),
        bpffs: "/sys/fs/bpf/natctl".into(),
        time: TIME,
        health: Health {
            state: HealthState::Ok,
            since: Some(TIME - 7200),
            problems: vec![],
        },
        agent: Agent {
            running: true,
            since: Some(TIME - 93_784),
            heartbeat: Some(TIME - 3),
            version: Some("0.1.0".into()),
            pid: Some(4711),
            config: Some("/etc/natctl.yaml".into()),
            sweep_interval: Some(5),
        },
        devices: devices(),
        addresses: addresses(),
        clients: clients(),
        cluster_ranges: vec!["10.96.0.0/12".into()],
        kubernetes: None,
        drops: drops(),
        tables: tables(),
    }
}

/// The same node after its agent was killed, with a client that has no address.
pub fn down() -> Status {
    let mut status = status();
    status.agent = Agent {
        running: false,
        since: Some(TIME - 192),
        heartbeat: Some(TIME - 192),
        ..status.agent
    };
    status.clients[2] = Client {
        egress: None,
        blocked: true,
        ..status.clients[2].clone()
    };
    status.health = Health {
        state: HealthState::AgentDown,
        since: Some(TIME - 192),
        problems: vec![
            "without an egress address, so all they send outside is dropped: lab".into(),
        ],
    };
    status
}

/// A node of Kubernetes whose API server is gone, with pods that are not served as they ask.
pub fn kubernetes() -> Status {
    let pod = |pod: &str, reason: &str, message: &str| PodReport {
        pod: pod.into(),
        reason: reason.into(),
        message: message.into(),
    };
    Status {
        health: Health {
            state: HealthState::Degraded,
            since: Some(TIME - 65),
            problems: vec![
                "the API server has not answered since 2025-11-21T01:58:55Z, and what it may have \
                 changed is not known here (Pods, EgressPools): connection refused"
                    .into(),
            ],
        },
        cluster_ranges: vec!["10.96.0.0/12".into(), "10.244.0.0/16".into()],
        kubernetes: Some(Kubernetes {
            node: "n1".into(),
            left_alone: Some(14),
            silent_since: Some(TIME - 65),
            stale: vec!["Pods".into(), "EgressPools".into()],
            pods: vec![
                pod(
                    "default/web-1",
                    "AddressInUse",
                    "203.0.113.10 is in use on node n2, and one node uses an address at a time; \
                     wait until its pods there are gone, move this pod there, or use another \
                     address",
                ),
                pod(
                    "shop/new",
                    "WaitingForLink",
                    "its link is not known: it has not answered ARP on cni0 yet; its packets are \
                     dropped until then",
                ),
            ],
        }),
        ..status()
    }
}

/// An agent that has only just pinned its maps.
pub fn empty() -> Status {
    Status {
        health: Health {
            state: HealthState::Degraded,
            since: None,
            problems: vec![
                "the agent has not reported yet: it is starting, or stuck in it; see its log"
                    .into(),
            ],
        },
        agent: Agent {
            running: true,
            ..Agent::default()
        },
        devices: vec![],
        addresses: vec![],
        clients: vec![],
        cluster_ranges: vec![],
        drops: drops()
            .into_iter()
            .map(|drop| Dropped { count: 0, ..drop })
            .collect(),
        tables: tables()
            .into_iter()
            .map(|table| Table { used: 0, ..table })
            .collect(),
        ..status()
    }
}

fn devices() -> Vec<Device> {
    let hook = |program: &str, hook, mode| HookReport {
        program: program.into(),
        hook,
        mode,
    };
    let device = |name: &str, ifindex, role, hooks| Device {
        name: Some(name.into()),
        ifindex,
        role,
        hooks,
        note: None,
    };
    let pod = || vec![hook("client_stack", Hook::TcxIngress, Mode::Tcx)];
    vec![
        device(
            "eth0",
            2,
            Role::Outside,
            vec![
                hook("xdp_outside", Hook::Xdp, Mode::Native),
                hook("outside_ingress", Hook::TcxIngress, Mode::Tcx),
                hook("outside_egress", Hook::TcxEgress, Mode::Tcx),
            ],
        ),
        Device {
            note: Some(
                "a veth: tcx is used, XDP cannot know whether a checksum was left to offload"
                    .into(),
            ),
            ..device("eth1", 3, Role::Inside, pod())
        },
        device("veth12ab", 7, Role::Client, pod()),
        device("veth12ac", 8, Role::Client, pod()),
    ]
}

fn addresses() -> Vec<Address> {
    let ports = |used, resting| Ports {
        used,
        free: 64_512 - used - resting,
        resting,
    };
    vec![
        Address {
            address: [203, 0, 113, 10].into(),
            pool: Some("office".into()),
            own: false,
            arp: Arp::Natctl,
            clients: 2,
            ports: Protocols::new([ports(1213, 64), ports(17, 0), ports(1, 0)]),
        },
        Address {
            address: [198, 51, 100, 7].into(),
            pool: Some("fast".into()),
            own: true,
            arp: Arp::Kernel,
            clients: 1,
            ports: Protocols::new([ports(2, 0), ports(0, 0), ports(0, 0)]),
        },
    ]
}

fn clients() -> Vec<Client> {
    let ports = |used, held| ClientPorts {
        used,
        held,
        most: 4096,
    };
    let web = Client {
        name: "default/web-0".into(),
        addresses: vec!["10.244.1.7".into()],
        device: Some("veth12ab".into()),
        ifindex: 7,
        pool: Some("office".into()),
        egress: Some([203, 0, 113, 10].into()),
        blocked: false,
        draining: false,
        flows: 1240,
        ports: Protocols::new([ports(1200, 1216), ports(17, 64), ports(1, 64)]),
        out: Traffic {
            packets: 81_234,
            bytes: 5_368_709,
        },
        r#in: Traffic {
            packets: 402_118,
            bytes: 603_979_776,
        },
    };
    let second = Client {
        name: "default/web-1".into(),
        addresses: vec!["10.244.1.8".into()],
        device: Some("veth12ac".into()),
        ifindex: 8,
        flows: 13,
        ports: Protocols::new([ports(13, 64), ports(0, 0), ports(0, 0)]),
        out: Traffic {
            packets: 120,
            bytes: 9_120,
        },
        r#in: Traffic {
            packets: 118,
            bytes: 1_048_576,
        },
        ..web.clone()
    };
    let lab = Client {
        name: "lab".into(),
        addresses: vec!["192.168.10.0/24".into(), "192.168.20.0/24".into()],
        device: Some("eth1".into()),
        ifindex: 3,
        pool: Some("fast".into()),
        egress: Some([198, 51, 100, 7].into()),
        flows: 2,
        ports: Protocols::new([ports(2, 64), ports(0, 0), ports(0, 0)]),
        out: Traffic {
            packets: 10,
            bytes: 840,
        },
        r#in: Traffic::default(),
        ..web.clone()
    };
    vec![web, second, lab]
}

fn drops() -> Vec<Dropped> {
    let count = |reason: Reason| match reason {
        Reason::Spoofed => 12,
        Reason::NoSession => 48_211,
        _ => 0,
    };
    let drop = |reason: &Reason| Dropped {
        reason: reason.name(),
        count: count(*reason),
        sentence: reason.sentence(),
    };
    Reason::ALL.iter().map(drop).collect()
}

fn tables() -> Vec<Table> {
    let table = |name, used, capacity| Table {
        name,
        used,
        capacity,
    };
    vec![
        table("sessions", 1255, 262_144),
        table("replies", 1255, 262_144),
        table("mappings", 1233, 262_144),
        table("blocks", 23, 6048),
        table("clients", 3, 4096),
        table("pages", 9, 15_312),
        table("addresses", 2, 64),
        table("sources", 4, 65_536),
        table("exclusions", 1, 65_536),
    ]
}
