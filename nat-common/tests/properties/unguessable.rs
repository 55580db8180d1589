//! Ports tell nobody which comes next (RFC 6056): chi-square over what one
//! client is given, and over the steps from one port to the next.

use nat_common::{packet::transport::UDP, ports::take};

use crate::setup::Shape;

const BINS: usize = 64;
/// Degrees of freedom are 63: their mean is 63, their deviation 11.2. This is five of them.
const LIMIT: f64 = 63.0 + 5.0 * 11.2;

/// How far from even the numbers below `range` are spread.
fn chi_square(numbers: impl Iterator<Item = u32>, range: u32) -> f64 {
    let mut bins = [0u32; BINS];
    for number in numbers {
        bins[number as usize * BINS / range as usize] += 1;
    }
    let expected = f64::from(bins.iter().sum::<u32>()) / BINS as f64;
    bins.iter()
        .map(|count| (f64::from(*count) - expected).powi(2) / expected)
        .sum()
}

fn ports(key: u64, count: usize) -> Vec<u32> {
    let shape = Shape {
        base: 1024,
        size: 64_512,
        key,
        ..Shape::ALONE
    };
    let world = shape.world();
    let client = &world.tables.clients[0];
    let next = || take(&world, 0, client, UDP).expect("ports enough").port;
    (0..count).map(|_| u32::from(next()) - shape.base).collect()
}

#[test]
fn ports_are_spread_evenly() {
    for key in [1, 2, 0x5eed, u64::MAX] {
        let chi = chi_square(ports(key, 4096).into_iter(), 64_512);
        assert!(chi < LIMIT, "{chi} with key {key}");
    }
}

#[test]
fn steps_between_ports_are_spread_evenly() {
    for key in [1, 2, 0x5eed, u64::MAX] {
        let ports = ports(key, 4096);
        let steps = ports
            .windows(2)
            .map(|pair| (pair[1] + 64_512 - pair[0]) % 64_512);
        let chi = chi_square(steps, 64_512);
        assert!(chi < LIMIT, "{chi} with key {key}");
    }
}

#[test]
fn other_keys_give_other_ports() {
    let (one, other) = (ports(1, 64), ports(2, 64));
    let common = one.iter().filter(|port| other.contains(port)).count();
    assert!(common < 8, "{common} of 64");
}
