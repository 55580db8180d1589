//! Keys and names as the maps want them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use nat_common::abi::Name;

use crate::bpf::tables::{ExcludedKey, PrefixKey};

/// A prefix: its length, native, and its address.
pub fn prefix_key(net: Ipv4Net) -> PrefixKey {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&u32::from(net.prefix_len()).to_ne_bytes());
    key[4..].copy_from_slice(&net.network().octets());
    key
}

/// The prefix of a key.
pub fn prefix_of(key: &PrefixKey) -> Option<Ipv4Net> {
    let [l0, l1, l2, l3, a, b, c, d] = *key;
    let length = u32::from_ne_bytes([l0, l1, l2, l3]);
    Ipv4Net::new(Ipv4Addr::new(a, b, c, d), u8::try_from(length).ok()?).ok()
}

/// An excluded destination: the length over both, the pool's number, the address.
pub fn excluded_key(pool: u32, net: Ipv4Net) -> ExcludedKey {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&(32 + u32::from(net.prefix_len())).to_ne_bytes());
    key[4..8].copy_from_slice(&pool.to_be_bytes());
    key[8..].copy_from_slice(&net.network().octets());
    key
}

/// The pool and prefix of a key.
pub fn excluded_of(key: &ExcludedKey) -> Option<(u32, Ipv4Net)> {
    let [l0, l1, l2, l3, p0, p1, p2, p3, a, b, c, d] = *key;
    let length = u32::from_ne_bytes([l0, l1, l2, l3]).checked_sub(32)?;
    let net = Ipv4Net::new(Ipv4Addr::new(a, b, c, d), u8::try_from(length).ok()?).ok()?;
    Some((u32::from_be_bytes([p0, p1, p2, p3]), net))
}

/// A name; bytes that do not fit are cut off at a character's end.
pub fn name(text: &str) -> Name {
    let mut name = Name {
        length: 0,
        bytes: [0; 320],
    };
    let end = (0..=text.len().min(name.bytes.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    let text = &text.as_bytes()[..end.unwrap_or(0)];
    name.bytes[..text.len()].copy_from_slice(text);
    name.length = text.len() as u32;
    name
}

/// The text of a name.
pub fn name_of(name: &Name) -> String {
    let length = (name.length as usize).min(name.bytes.len());
    String::from_utf8_lossy(&name.bytes[..length]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_can_be_read_back() {
        let net: Ipv4Net = "10.1.0.0/16".parse().unwrap();
        assert_eq!(prefix_of(&prefix_key(net)), Some(net));
        assert_eq!(excluded_of(&excluded_key(7, net)), Some((7, net)));
    }

    #[test]
    fn names_are_cut_between_characters() {
        let long = "é".repeat(200);
        assert_eq!(name_of(&name(&long)), "é".repeat(160));
        assert_eq!(name_of(&name("default/web-0")), "default/web-0");
    }
}
