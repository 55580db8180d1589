//! From snapshots to operations: the pure part of the agent, for many random
//! configurations one after the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use nat_agent::{
    bpf::layout,
    desired::{Desired, desired},
    diff::{Operation, State, diff},
    facts::{Facts, Kind, Link},
    snapshot::{Client, Device, Limits, Path, Pool, Role, Snapshot, Timers, XdpMode, defaults},
};
use nat_common::abi::{Delivery, PROTOCOLS};
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    sessions: 1024,
    clients: 16,
    addresses: 8,
};

fn facts() -> Facts {
    let kinds = [
        ("eth0", Kind::Nic),
        ("eth1", Kind::Nic),
        ("br0", Kind::Virtual),
        ("veth0", Kind::Veth),
        ("veth1", Kind::Veth),
    ];
    let links = kinds.iter().zip(2..).map(|((name, kind), ifindex)| {
        let link = Link {
            ifindex,
            mac: [2, 0, 0, 0, 0, ifindex as u8],
            kind: *kind,
        };
        ((*name).to_owned(), link)
    });
    Facts {
        links: links.collect(),
        forwarding: true,
        ..Facts::default()
    }
}

fn pool(name: &str, first: u8, count: u8, ports: u32, block_size: u8, path: Path) -> Pool {
    Pool {
        name: name.to_owned(),
        addresses: (first..first + count)
            .map(|n| IpAddr::from([203, 0, 113, n]))
            .collect(),
        exclude: vec!["10.0.0.0/8".parse().unwrap()],
        ports_per_client: ports,
        block_size,
        mappings_per_second: None,
        rest: defaults::REST,
        path,
        timers: Timers::default(),
    }
}

fn client(number: u8, device: &str, pool: &str) -> Client {
    Client {
        name: format!("default/pod-{number}"),
        addresses: vec![format!("10.244.1.{number}/32").parse().unwrap()],
        device: Some(device.to_owned()),
        pool: pool.to_owned(),
        address: None,
        draining: false,
        cut_over: false,
    }
}

fn snapshot(devices: Vec<Device>, pools: Vec<Pool>, clients: Vec<Client>) -> Snapshot {
    Snapshot {
        devices,
        pools,
        clients,
        lost: vec![],
        ended: vec![],
        cluster_ranges: vec!["10.96.0.0/12".parse().unwrap()],
        limits: LIMITS,
        mark_bit: defaults::MARK_BIT,
        decided_bit: defaults::DECIDED_BIT,
        sweep_interval: Duration::from_secs(5),
        guard: None,
    }
}

fn outside() -> Device {
    Device {
        name: "eth0".to_owned(),
        role: Role::Outside,
        xdp: None,
    }
}

prop_compose! {
    fn any_pool(name: &'static str, first: u8)(
        count in 1_u8..4,
        blocks in 1_u32..100,
        block_size in prop::sample::select(vec![16_u8, 32, 64]),
        direct in any::<bool>(),
    ) -> Pool {
        let path = if direct { Path::Direct } else { Path::Stack };
        pool(name, first, count, blocks * u32::from(block_size), block_size, path)
    }
}

prop_compose! {
    fn any_snapshot()(
        a in any_pool("a", 10),
        b in any_pool("b", 20),
        with_b in any::<bool>(),
        inside in prop::option::of(prop::sample::select(vec![XdpMode::Native, XdpMode::Off])),
        clients in prop::collection::btree_map(1_u8..20, (0_usize..6, any::<bool>()), 0..12),
    ) -> Snapshot {
        let devices = ["veth0", "veth1", "eth1", "eth0", "br0", "gone"];
        let clients = clients.into_iter().map(|(number, (device, second))| {
            client(number, devices[device], if second && with_b { "b" } else { "a" })
        });
        let clients = clients.collect();
        let pools = if with_b { vec![a, b] } else { vec![a] };
        let inside = Device { name: "eth1".to_owned(), role: Role::Inside, xdp: inside };
        snapshot(vec![outside(), inside], pools, clients)
    }
}

fn carry_out(state: &mut State, operations: &[Operation]) {
    operations
        .iter()
        .for_each(|operation| state.apply(operation));
}

/// Runs of numbers (first, length) that must not overlap nor end behind `end`.
fn disjoint(mut runs: Vec<(u32, u32)>, end: u32) {
    runs.sort_unstable();
    for pair in runs.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?} overlap");
    }
    if let Some((first, length)) = runs.last() {
        assert!(first + length <= end, "{first}+{length} is behind {end}");
    }
}

fn consistent(state: &State) {
    let slices = state.slices.values();
    let blocks = slices
        .map(|slice| (slice.first_block, slice.blocks() * PROTOCOLS))
        .collect();
    disjoint(blocks, layout::blocks(&LIMITS));
    let clients = state.clients.values();
    let pages = clients.map(|client| (client.first_page, client.entry.pages() * PROTOCOLS));
    disjoint(pages.collect(), layout::pages(&LIMITS));
    let numbers: BTreeSet<u16> = state.clients.values().map(|client| client.index).collect();
    assert_eq!(
        numbers.len(),
        state.clients.len(),
        "two clients share a number"
    );
    let numbers: BTreeSet<u32> = state.slices.values().map(|slice| slice.index).collect();
    assert_eq!(
        numbers.len(),
        state.slices.len(),
        "two slices share a number"
    );
}

proptest! {
    #[test]
    fn a_diff_applied_twice_is_empty(
        snapshots in prop::collection::vec(any_snapshot(), 1..6),
        busy in prop::collection::btree_set(10_u8..24, 0..4),
    ) {
        let busy: BTreeSet<Ipv4Addr> =
            busy.into_iter().map(|n| Ipv4Addr::new(203, 0, 113, n)).collect();
        let mut state = State::default();
        for snapshot in snapshots {
            let wanted = desired(&snapshot, &facts(), &state.egress());
            let plan = diff(&state, &wanted, &busy, &LIMITS);
            let held: BTreeSet<_> = state.slices.keys().copied().collect();
            carry_out(&mut state, &plan.operations);
            consistent(&state);
            for address in busy.intersection(&held) {
                prop_assert!(state.slices.contains_key(address), "{address} was in use");
            }
            let wanted = desired(&snapshot, &facts(), &state.egress());
            let again = diff(&state, &wanted, &busy, &LIMITS);
            prop_assert_eq!(&again.operations, &vec![], "not the same after one round");
            prop_assert_eq!(again.problems, plan.problems);
        }
    }

    #[test]
    fn clients_get_what_they_ask_for(snapshot in any_snapshot()) {
        let mut state = State::default();
        let wanted = desired(&snapshot, &facts(), &BTreeMap::new());
        let plan = diff(&state, &wanted, &BTreeSet::new(), &LIMITS);
        carry_out(&mut state, &plan.operations);
        for client in &snapshot.clients {
            let pool = snapshot.pool(&client.pool).unwrap();
            let entry = &wanted.clients[&client.name];
            prop_assert!(pool.addresses.contains(&IpAddr::V4(entry.egress)));
            if plan.problems.is_empty() {
                prop_assert_eq!(&state.clients[&client.name].entry, entry);
            }
        }
    }
}

fn plan_for(state: &State, snapshot: &Snapshot) -> (Desired, Vec<Operation>) {
    let wanted = desired(snapshot, &facts(), &state.egress());
    let plan = diff(state, &wanted, &BTreeSet::new(), &LIMITS);
    assert_eq!(plan.problems, Vec::<String>::new());
    (wanted, plan.operations)
}

#[test]
fn a_client_keeps_its_address_when_the_pool_grows_and_moves_when_it_goes() {
    let clients = (1..10)
        .map(|number| client(number, "veth0", "a"))
        .collect::<Vec<_>>();
    let of = |first, count| {
        let pools = vec![pool("a", first, count, 128, 64, Path::Stack)];
        snapshot(vec![outside()], pools, clients.clone())
    };
    let mut state = State::default();
    let (_, operations) = plan_for(&state, &of(10, 2));
    carry_out(&mut state, &operations);
    let before = state.egress();
    let (_, operations) = plan_for(&state, &of(10, 4));
    carry_out(&mut state, &operations);
    assert_eq!(state.egress(), before, "a larger pool moved somebody");
    let (_, operations) = plan_for(&state, &of(11, 1));
    carry_out(&mut state, &operations);
    let only = Ipv4Addr::new(203, 0, 113, 11);
    assert!(state.egress().values().all(|address| *address == only));
}

#[test]
fn hooks_follow_devices_and_paths() {
    let delivery = |device: &str, path, inside: Option<XdpMode>| {
        let devices = vec![
            outside(),
            Device {
                name: "eth1".to_owned(),
                role: Role::Inside,
                xdp: inside,
            },
        ];
        let pools = vec![pool("a", 10, 1, 128, 64, path)];
        let snapshot = snapshot(devices, pools, vec![client(1, device, "a")]);
        let wanted = desired(&snapshot, &facts(), &BTreeMap::new());
        let programs: Vec<&str> = wanted
            .attachments
            .iter()
            .filter(|a| a.device == device)
            .map(|a| a.program)
            .collect();
        (wanted.clients["default/pod-1"].delivery, programs)
    };
    let stack = (Delivery::Stack as u32, vec!["client_stack"]);
    assert_eq!(delivery("veth0", Path::Stack, None), stack);
    let direct = (Delivery::Peer as u32, vec!["client_direct"]);
    assert_eq!(delivery("veth0", Path::Direct, None), direct);
    let routed = (Delivery::Xdp as u32, vec!["xdp_inside", "client_stack"]);
    assert_eq!(delivery("eth1", Path::Stack, None), routed);
    let without = (Delivery::Neighbour as u32, vec!["client_direct"]);
    assert_eq!(delivery("eth1", Path::Direct, Some(XdpMode::Off)), without);
    let one_armed = delivery("eth0", Path::Stack, None);
    assert_eq!(one_armed.0, Delivery::Stack as u32);
    assert_eq!(
        one_armed.1,
        [
            "outside_egress",
            "outside_ingress",
            "xdp_outside",
            "client_stack"
        ]
    );
}

#[test]
fn a_missing_device_blocks_its_client_and_is_said() {
    let pools = vec![pool("a", 10, 1, 128, 64, Path::Stack)];
    let snapshot = snapshot(vec![outside()], pools, vec![client(1, "gone", "a")]);
    let wanted = desired(&snapshot, &facts(), &BTreeMap::new());
    assert_eq!(wanted.clients["default/pod-1"].ifindex, 0);
    assert!(
        wanted.problems[0].contains("no device gone"),
        "{:?}",
        wanted.problems
    );
}

#[test]
fn a_node_that_does_not_forward_is_told_so() {
    let pools = vec![pool("a", 10, 1, 128, 64, Path::Stack)];
    let snapshot = snapshot(vec![outside()], pools, vec![]);
    let facts = Facts {
        forwarding: false,
        ..facts()
    };
    let wanted = desired(&snapshot, &facts, &BTreeMap::new());
    assert!(
        wanted.problems[0].contains("net.ipv4.ip_forward=1"),
        "{:?}",
        wanted.problems
    );
}

#[test]
fn what_does_not_fit_is_said_and_the_rest_is_done() {
    let pools = vec![pool("a", 10, 9, 128, 64, Path::Stack)];
    let snapshot = snapshot(vec![outside()], pools, vec![]);
    let wanted = desired(&snapshot, &facts(), &BTreeMap::new());
    let plan = diff(&State::default(), &wanted, &BTreeSet::new(), &LIMITS);
    let added = plan
        .operations
        .iter()
        .filter(|o| matches!(o, Operation::AddSlice(..)))
        .count();
    assert_eq!(added, 8);
    assert!(
        plan.problems[0].contains("limits.addresses"),
        "{:?}",
        plan.problems
    );
}

#[test]
fn a_lost_address_is_given_up_although_it_is_busy() {
    let pools = |count| vec![pool("a", 10, count, 128, 64, Path::Stack)];
    let mut state = State::default();
    let (_, operations) = plan_for(&state, &snapshot(vec![outside()], pools(2), vec![]));
    carry_out(&mut state, &operations);
    let busy: BTreeSet<Ipv4Addr> = state.slices.keys().copied().collect();
    let address = Ipv4Addr::new(203, 0, 113, 11);
    let mut without = snapshot(vec![outside()], pools(1), vec![]);
    let wanted = desired(&without, &facts(), &BTreeMap::new());
    let plan = diff(&state, &wanted, &busy, &LIMITS);
    assert!(plan.operations.is_empty() && plan.problems.len() == 1);
    without.lost = vec![address];
    let wanted = desired(&without, &facts(), &BTreeMap::new());
    let plan = diff(&state, &wanted, &busy, &LIMITS);
    assert_eq!(plan.problems, Vec::<String>::new());
    assert!(
        matches!(plan.operations[..], [Operation::RemoveSlice(lost, _)] if lost == address),
        "{:?}",
        plan.operations
    );
}

#[test]
fn sources_are_taken_from_a_client_before_another_gets_them() {
    let pools = || vec![pool("a", 10, 1, 128, 64, Path::Stack)];
    let mut state = State::default();
    let first = snapshot(vec![outside()], pools(), vec![client(1, "veth0", "a")]);
    let (_, operations) = plan_for(&state, &first);
    carry_out(&mut state, &operations);
    let mut reused = client(1, "veth1", "a");
    reused.name = "default/other".to_owned();
    let second = snapshot(vec![outside()], pools(), vec![reused]);
    let (_, operations) = plan_for(&state, &second);
    let place = |wanted: fn(&Operation) -> bool| operations.iter().position(wanted).unwrap();
    let removed = place(|o| matches!(o, Operation::RemoveSources(..)));
    let forgotten = place(|o| matches!(o, Operation::RemoveClient(..)));
    let set = place(|o| matches!(o, Operation::SetClient(..)));
    assert!(removed < forgotten && forgotten < set, "{operations:?}");
}
