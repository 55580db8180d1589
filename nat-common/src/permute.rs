//! A keyed permutation of a slice's ports: seeing some of a client's ports must
//! not tell an outsider the next (RFC 6056).
//!
//! Swap-or-not (Hoang, Morris, Rogaway, CRYPTO 2012): a bijection of any size,
//! with no table, no division and no walk, and each round is its own inverse.

/// Rounds; each either swaps a number with its partner or does not.
const ROUNDS: u64 = 16;

/// The place of `index` (below `size`) among `size` ports.
#[inline(always)]
pub fn permute(key: u64, size: u32, index: u32) -> u32 {
    let mut value = index;
    for round in 0..ROUNDS {
        value = swap_or_not(key, size, round, value);
    }
    value
}

/// The index whose place is `value`: the inverse of [`permute`].
#[inline(always)]
pub fn invert(key: u64, size: u32, value: u32) -> u32 {
    let mut index = value;
    for round in (0..ROUNDS).rev() {
        index = swap_or_not(key, size, round, index);
    }
    index
}

#[inline(always)]
fn swap_or_not(key: u64, size: u32, round: u64, value: u32) -> u32 {
    let round_key = mix(key ^ (round << 32));
    // A uniform number below `size` by multiplication (Lemire 2019).
    let centre = ((u64::from(round_key as u32) * u64::from(size)) >> 32) as u32;
    let partner = if centre >= value {
        centre - value
    } else {
        centre + size - value
    };
    let larger = if partner > value { partner } else { value };
    if mix(round_key ^ u64::from(larger)) & 1 == 1 {
        partner
    } else {
        value
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
#[inline(always)]
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
