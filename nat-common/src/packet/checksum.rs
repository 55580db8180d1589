//! The Internet checksum, incrementally (RFC 1624, equation 3).
//!
//! Sums are ones' complement in 32 bits, in the byte order the words have in
//! memory: the checksum does not care (RFC 1071 section 2).

/// What changes in a checksum when words of the packet change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(pub u32);

impl Delta {
    /// Four bytes replaced by others.
    #[inline(always)]
    pub fn quad(from: [u8; 4], to: [u8; 4]) -> Self {
        Self(add(!u32::from_ne_bytes(from), u32::from_ne_bytes(to)))
    }

    /// Two bytes replaced by others.
    #[inline(always)]
    pub fn pair(from: [u8; 2], to: [u8; 2]) -> Self {
        Self(u32::from(!u16::from_ne_bytes(from)) + u32::from(u16::from_ne_bytes(to)))
    }

    /// Both changes.
    #[inline(always)]
    pub fn and(self, other: Self) -> Self {
        Self(add(self.0, other.0))
    }
}

/// The checksum after the change: HC' = ~(~HC + ~m + m').
#[inline(always)]
pub fn update(checksum: [u8; 2], delta: Delta) -> [u8; 2] {
    let sum = add(u32::from(!u16::from_ne_bytes(checksum)), delta.0);
    (!fold(sum)).to_ne_bytes()
}

/// The same for UDP, where zero means that there is no checksum (RFC 768).
#[inline(always)]
pub fn update_udp(checksum: [u8; 2], delta: Delta) -> [u8; 2] {
    if checksum == [0, 0] {
        return checksum;
    }
    match update(checksum, delta) {
        [0, 0] => [0xff, 0xff],
        updated => updated,
    }
}

#[inline(always)]
fn add(a: u32, b: u32) -> u32 {
    let sum = u64::from(a) + u64::from(b);
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
