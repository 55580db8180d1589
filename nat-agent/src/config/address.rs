//! What an address, a network and a range of addresses look like.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::fields::Read;

/// Addresses from one to another of the same family, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: IpAddr,
    /// The last.
    pub last: IpAddr,
}

impl Range {
    /// How many addresses; saturates for all of IPv6.
    pub fn count(&self) -> u128 {
        let (first, last) = (number(self.first), number(self.last));
        last.saturating_sub(first).saturating_add(1)
    }

    /// Every address, in order.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> {
        let like = self.first;
        (number(self.first)..=number(self.last)).map(move |bits| address(bits, like))
    }

    /// Whether the two have an address in common. Families never do.
    pub fn meets(&self, other: &Range) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4()
            && self.first <= other.last
            && other.first <= self.last
    }

    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.meets(&Self::one(address))
    }

    /// The network of exactly these addresses.
    fn network(&self) -> Option<IpNet> {
        let bits: u8 = if self.first.is_ipv4() { 32 } else { 128 };
        let length = u32::from(bits).checked_sub(self.count().ilog2())?;
        let net = IpNet::new(self.first, u8::try_from(length).ok()?).ok()?;
        (Range::from(net) == *self).then_some(net)
    }

    fn one(address: IpAddr) -> Self {
        Self {
            first: address,
            last: address,
        }
    }
}

impl From<IpNet> for Range {
    fn from(net: IpNet) -> Self {
        Self {
            first: net.network(),
            last: net.broadcast(),
        }
    }
}

/// `10.0.0.1`, `10.0.0.0/24` where it is a network, or `10.0.0.1-10.0.0.9`.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.network() {
            _ if self.first == self.last => write!(f, "{}", self.first),
            Some(net) => write!(f, "{net}"),
            None => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// An address, a network, or a range: `a`, `a/n`, `a-b`.
pub(super) fn range(text: &str) -> Read<Range> {
    if let Some((first, last)) = text.split_once('-') {
        return ends(
            text,
            address_text(first.trim())?,
            address_text(last.trim())?,
        );
    }
    if text.contains('/') {
        network_text(text).map(Range::from)
    } else {
        address_text(text).map(Range::one)
    }
}

fn ends(text: &str, first: IpAddr, last: IpAddr) -> Read<Range> {
    if first > last {
        return Err(format!(
            "`{text}` ends before it starts; write {last}-{first}"
        ));
    }
    Ok(Range { first, last })
}

/// An address or a network: `a`, `a/n`.
pub(super) fn network(text: &str) -> Read<IpNet> {
    if text.contains('/') {
        return network_text(text);
    }
    if text.contains('-') && range(text).is_ok() {
        return Err(format!(
            "`{text}` is a range; write it as networks, as in 10.0.0.0/24"
        ));
    }
    address_text(text).map(IpNet::from)
}

fn address_text(text: &str) -> Read<IpAddr> {
    let address = text
        .parse::<IpAddr>()
        .map_err(|_| format!("`{text}` is not an address; write one as 203.0.113.10"))?;
    ipv4_only(text, address.is_ipv4())?;
    Ok(address)
}

fn network_text(text: &str) -> Read<IpNet> {
    let net = text
        .parse::<IpNet>()
        .map_err(|_| format!("`{text}` is not a network; write one as 203.0.113.16/29"))?;
    ipv4_only(text, net.addr().is_ipv4())?;
    if net.addr() != net.network() {
        let (all, one) = (net.trunc(), net.addr());
        return Err(format!(
            "`{text}` is an address within a network; write {all} for the whole network, \
             or {one} for the one address"
        ));
    }
    Ok(net)
}

/// The only place that knows of the packet path's limit: everything after it takes both families.
fn ipv4_only(text: &str, is_ipv4: bool) -> Read<()> {
    if is_ipv4 {
        Ok(())
    } else {
        Err(format!(
            "`{text}` is IPv6, which is not translated yet; write an IPv4 address"
        ))
    }
}

/// Addresses that are nobody's, so neither egress addresses nor clients.
const SPECIAL: [(Ipv4Net, &str); 5] = [
    (
        Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
        "\"this network\" (RFC 1122)",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
        "loopback (RFC 1122)",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
        "link-local and never routed (RFC 3927)",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
        "multicast (RFC 5771)",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32),
        "the broadcast address (RFC 919)",
    ),
];

/// Refuses a range that reaches into addresses that cannot be anybody's.
pub(super) fn ordinary(range: &Range) -> Read<()> {
    for (net, meaning) in SPECIAL {
        if !range.meets(&Range::from(IpNet::V4(net))) {
            continue;
        }
        return Err(match net.prefix_len() {
            32 => format!(
                "{range} reaches {}, {meaning}; use another address",
                net.addr()
            ),
            _ => format!("{range} reaches into {net}, {meaning}; use other addresses"),
        });
    }
    Ok(())
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address of this number, of the same family as another.
fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(number as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}
