//! Ranges that meet: in one pass over all of them, sorted.

use super::address::Range;
use super::problem::Mark;

/// Whose a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Egress,
    Client,
}

/// A range and who says it is theirs.
#[derive(Clone, Debug)]
pub(super) struct Claim<'f> {
    pub kind: Kind,
    pub range: Range,
    pub mark: &'f Mark,
}

/// For each claim, at most one earlier one of each kind that it meets.
///
/// One, not all: a person removes an overlap, and looks again. For each kind only the claim that
/// reaches furthest is kept; if a claim meets any that started before it, it meets that one.
pub(super) fn overlaps<'c, 'f>(claims: &'c mut [Claim<'f>]) -> Vec<(&'c Claim<'f>, &'c Claim<'f>)> {
    claims.sort_by_key(|claim| (claim.range.first, claim.mark.place));
    let mut furthest: [Option<&Claim<'f>>; 2] = [None, None];
    let mut found = Vec::new();
    for claim in claims.iter() {
        for held in furthest.iter().flatten() {
            if held.range.meets(&claim.range) {
                found.push((*held, claim));
            }
        }
        let held = &mut furthest[claim.kind as usize];
        if held.is_none_or(|held| held.range.last < claim.range.last) {
            *held = Some(claim);
        }
    }
    found
}
