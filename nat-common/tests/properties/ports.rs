//! Ports: every one is handed out once before the first refusal, and none twice.

use std::collections::BTreeSet;

use nat_common::{
    abi::{MappingKey, protocol_index},
    hooks::guard::guard,
    packet::transport::{TCP, UDP},
    ports::{place_of, port_of, put_back, take},
    reason::Reason,
    verdict::Verdict,
};
use proptest::prelude::*;

use crate::{
    host::{HostFrame, HostWorld},
    setup::{EGRESS, Shape, inside},
    wire::Parts,
};

/// Takes ports for one client until it is refused: the ports, and the refusal.
fn exhaust(world: &HostWorld, client: u16, protocol: u8) -> (Vec<u16>, Reason) {
    let entry = &world.tables.clients[usize::from(client)];
    let mut ports = Vec::new();
    loop {
        match take(world, client, entry, protocol) {
            Ok(taken) => {
                assert_eq!(taken.address, EGRESS);
                ports.push(taken.port);
            }
            Err(reason) => return (ports, reason),
        }
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    (1..=64u32, 1..3000u32, 1..200u32, any::<u64>()).prop_map(|(block_size, size, cap, key)| {
        Shape {
            block_size,
            size: size.min(block_size * 1024),
            cap,
            key,
            ..Shape::ALONE
        }
    })
}

proptest! {
    #[test]
    fn every_port_once_before_the_first_refusal(shape in shapes()) {
        let world = shape.world();
        let (ports, refusal) = exhaust(&world, 0, UDP);
        let distinct: BTreeSet<_> = ports.iter().copied().collect();
        prop_assert_eq!(distinct.len(), ports.len(), "a port twice");
        let slice = shape.base..shape.base + shape.size;
        prop_assert!(distinct.iter().all(|port| slice.contains(&u32::from(*port))));
        let blocks = shape.size.div_ceil(shape.block_size);
        if shape.cap >= blocks {
            prop_assert_eq!(distinct.len(), shape.size as usize);
        }
        prop_assert_eq!(refusal, if shape.cap > blocks { Reason::PortsExhausted } else { Reason::ClientCap });
        if shape.cap < blocks {
            // The first blocks of the queue are whole ones.
            prop_assert_eq!(distinct.len() as u32, shape.cap * shape.block_size);
        }
    }

    #[test]
    fn clients_share_a_slice_without_sharing_a_port(shape in shapes(), turns in proptest::collection::vec(0..4u16, 1..800)) {
        let world = Shape { clients: 4, ..shape }.world();
        let mut seen = BTreeSet::new();
        for client in turns {
            if let Ok(taken) = take(&world, client, &world.tables.clients[usize::from(client)], TCP) {
                prop_assert!(seen.insert(taken.port), "{} twice", taken.port);
            }
        }
    }

    #[test]
    fn a_port_leads_back_to_its_place(shape in shapes(), at in any::<prop::sample::Index>(), place in 0..3u32) {
        let world = shape.world();
        let slice = &world.tables.slices[0];
        let index = at.index(shape.size as usize) as u32;
        let (block, bit) = (index / shape.block_size, index % shape.block_size);
        let port = port_of(slice, place, block, bit);
        prop_assert_eq!(place_of(slice, place, port), Some((block, bit)));
    }

    #[test]
    fn no_two_mappings_share_a_port(steps in proptest::collection::vec(step(), 1..300), key in any::<u64>()) {
        let shape = Shape { clients: 3, cap: 6, size: 40, block_size: 8, capacity: 30, key, ..Shape::ALONE };
        let world = shape.world();
        for step in steps {
            run(&world, &step);
            all_apart(&world);
        }
    }
}

/// What happens: a client sends, or an endpoint's sessions end.
#[derive(Clone, Debug)]
enum Step {
    Sends {
        client: u32,
        port: u16,
        remote: u8,
        protocol: u8,
    },
    Ends {
        client: u32,
        port: u16,
        protocol: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    (
        0..3u32,
        1..25u16,
        1..4u8,
        prop::sample::select(vec![TCP, UDP]),
        0..4u8,
    )
        .prop_map(|(client, port, remote, protocol, what)| match what {
            0 => Step::Ends {
                client,
                port,
                protocol,
            },
            _ => Step::Sends {
                client,
                port,
                remote,
                protocol,
            },
        })
}

fn run(world: &HostWorld, step: &Step) {
    match *step {
        Step::Sends {
            client,
            port,
            remote,
            protocol,
        } => {
            let parts = Parts {
                protocol,
                source: inside(client),
                destination: [192, 0, 2, remote],
                source_port: port,
                destination_port: 80,
                ttl: 64,
                options: 0,
                payload: Vec::new(),
            };
            let mut frame = HostFrame::new(parts.frame());
            let verdict = guard(&mut frame, world, true);
            assert!(
                matches!(verdict, Verdict::Stack | Verdict::Drop(_)),
                "{verdict:?}"
            );
        }
        Step::Ends {
            client,
            port,
            protocol,
        } => end(world, &inside(client), port.to_be_bytes(), protocol),
    }
}

/// What the agent does when an endpoint's last session has ended and its port has rested.
fn end(world: &HostWorld, address: &[u8; 4], port: [u8; 2], protocol: u8) {
    let tables = &world.tables;
    let key = MappingKey {
        address: *address,
        port,
        protocol,
        padding: 0,
    };
    let Some(mapping) = tables.mappings.borrow_mut().remove(&key) else {
        return;
    };
    for (key, half) in tables.forward.all() {
        if (key.source, key.source_port, key.protocol) == (*address, port, protocol) {
            tables.forward.remove(&key);
            tables.reverse.remove(&nat_common::session::reverse_key(
                &key,
                half.address,
                half.port,
            ));
        }
    }
    let (slice, place) = (&tables.slices[0], protocol_index(protocol));
    let (block, bit) =
        place_of(slice, place, u16::from_be_bytes(mapping.port)).expect("a port of the slice");
    let index = slice.first_block + place * slice.blocks + block;
    tables.blocks[index as usize].free.fetch_or(1 << bit);
    for page in &tables.pages {
        let held = page.blocks.iter().position(|held| held.get() == index);
        if let Some(slot) = held {
            page.open.fetch_or(1 << slot);
        }
    }
}

/// Each external port belongs to one mapping, and is not free.
fn all_apart(world: &HostWorld) {
    let tables = &world.tables;
    let mut seen = BTreeSet::new();
    for (key, mapping) in tables.mappings.borrow().iter() {
        assert!(
            seen.insert((key.protocol, mapping.address, mapping.port)),
            "{mapping:?} shares its port"
        );
        let (slice, place) = (&tables.slices[0], protocol_index(key.protocol));
        let (block, bit) =
            place_of(slice, place, u16::from_be_bytes(mapping.port)).expect("a port of the slice");
        let block = &tables.blocks[(slice.first_block + place * slice.blocks + block) as usize];
        assert_eq!(
            block.free.load() & 1 << bit,
            0,
            "{mapping:?} has a free port"
        );
    }
    let taken: u32 = tables
        .blocks
        .iter()
        .map(|b| (b.usable.get() & !b.free.load()).count_ones())
        .sum();
    assert_eq!(
        taken as usize,
        seen.len(),
        "every port taken is a mapping's"
    );
    assert_eq!(
        tables.forward.len(),
        tables.reverse.len(),
        "halves come in pairs"
    );
}

#[test]
fn a_port_put_back_is_handed_out_again() {
    let world = Shape {
        size: 1,
        block_size: 1,
        ..Shape::ALONE
    }
    .world();
    let client = &world.tables.clients[0];
    let taken = take(&world, 0, client, TCP).expect("the only port");
    assert_eq!(take(&world, 0, client, TCP), Err(Reason::PortsExhausted));
    put_back(&world, &taken);
    // The slot was closed when the port was gone; the agent opens it when it frees one.
    world.tables.pages[0].open.fetch_or(1);
    assert_eq!(take(&world, 0, client, TCP), Ok(taken));
}
