//! The permutation of a slice's ports is one, and is undone by its inverse.

use nat_common::permute::{invert, permute};
use proptest::prelude::*;

fn is_a_bijection(key: u64, size: u32) {
    let mut seen = vec![false; size as usize];
    for index in 0..size {
        let place = permute(key, size, index);
        assert!(place < size, "{index} of {size} leads to {place}");
        assert!(!seen[place as usize], "{place} of {size} twice");
        seen[place as usize] = true;
        assert_eq!(invert(key, size, place), index);
    }
}

proptest! {
    #[test]
    fn small_sizes(key in any::<u64>(), size in 1..600u32) {
        is_a_bijection(key, size);
    }
}

#[test]
fn every_size_up_to_a_block_or_two() {
    for size in 1..=130 {
        is_a_bijection(u64::from(size) << 40, size);
    }
}

#[test]
fn whole_addresses() {
    for (key, size) in [
        (0, 64_512),
        (u64::MAX, 64_512),
        (0x5eed, 65_536),
        (7, 65_535),
        (1, 4096),
    ] {
        is_a_bijection(key, size);
    }
}

/// Computed by another program from the same description. The ports of a running
/// node depend on them: whoever changes them changes the meaning of pinned maps.
#[test]
fn pinned_values() {
    let places = |key, size| [0, 1, 2, 3].map(|index| permute(key, size, index));
    assert_eq!(places(0x5eed, 64_512), [61_095, 2718, 54_590, 51_553]);
    assert_eq!(places(1, 1000), [479, 260, 755, 4]);
}
