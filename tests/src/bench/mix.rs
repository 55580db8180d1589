//! Which flows the generator sends: the same mix for every candidate.
//!
//! A NAT with endpoint-independent mapping gives each internal (address, port) a port of its own,
//! and an address has 64k of them, so a million flows are many clients behind several egress
//! addresses. Clients behind one address use different source ports: a NAT that keeps ports where
//! it can (nft) finds every one of them free, which is its best case.

use std::net::Ipv4Addr;

use super::abi::{Generator, Macs};

/// The first client's address; the others follow.
pub const FIRST_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The first egress address; the others follow.
pub const FIRST_EGRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The first destination; the others follow.
pub const FIRST_DESTINATION: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// At most so many destinations.
pub const MAX_DESTINATIONS: u32 = 4;

const FIRST_PORT: u32 = 1024;
const DESTINATION_PORT: u32 = 9000;

/// A mix of flows: every client talks from every of its ports to every destination. All numbers
/// are powers of two.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Clients, each with an address of its own.
    pub clients: u32,
    /// Clients that share an egress address.
    pub clients_per_address: u32,
    /// Destinations that each port talks to.
    pub destinations: u32,
    /// Source ports of each client.
    pub ports: u32,
}

/// The order in which flows are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One after the other, as the tables are filled.
    Fill,
    /// Scattered, each flow once per round: visiting a table in the order in which it was filled
    /// flatters a large one by half.
    Visit,
}

impl Mix {
    /// One flow.
    pub const ONE: Self = Self::of(1, 1, 1, 1);
    /// 1,024 flows from 256 sources.
    pub const THOUSAND: Self = Self::of(64, 8, 4, 4);
    /// 131,072 flows from 32,768 sources.
    pub const HUNDRED_THOUSAND: Self = Self::of(64, 8, 4, 512);
    /// 1,048,576 flows from 262,144 sources: 4,096 ports for each client, the default limit.
    pub const MILLION: Self = Self::of(64, 8, 4, 4096);
    /// 1,048,576 flows, each from a source of its own, so each needs a port of its own.
    pub const FRESH: Self = Self::of(64, 2, 1, 16384);
    /// A quarter of [`Mix::FRESH`].
    pub const FEW_FRESH: Self = Self::of(64, 8, 1, 4096);
    /// One pod with every port that its kernel picks from.
    pub const POD: Self = Self::of(1, 1, 1, 32768);

    const fn of(clients: u32, clients_per_address: u32, destinations: u32, ports: u32) -> Self {
        Self {
            clients,
            clients_per_address,
            destinations,
            ports,
        }
    }

    /// The number of flows.
    pub const fn flows(&self) -> u32 {
        self.clients * self.destinations * self.ports
    }

    /// The number of egress addresses.
    pub const fn addresses(&self) -> u32 {
        self.clients.div_ceil(self.clients_per_address)
    }

    /// Each client's address with its egress address.
    pub fn pairs(&self) -> impl Iterator<Item = (Ipv4Addr, Ipv4Addr)> + use<> {
        let shared_by = self.clients_per_address;
        (0..self.clients).map(move |client| {
            (
                nth(FIRST_CLIENT, client),
                nth(FIRST_EGRESS, client / shared_by),
            )
        })
    }

    /// The generator for this mix, at the start of `order`.
    pub fn generator(&self, order: Order, macs: Macs, ifindex: u32) -> Generator {
        let flow_bits = self.flows().ilog2();
        let (multiplier, increment, fold) = match order {
            Order::Fill => (1, 1, 31),
            Order::Visit => (1_664_525, 1_013_904_223, (flow_bits / 2).max(1)),
        };
        Generator {
            state: 0,
            multiplier,
            increment,
            fold,
            flow_mask: self.flows() - 1,
            client_mask: self.clients - 1,
            client_bits: self.clients.ilog2(),
            destination_mask: self.destinations - 1,
            destination_bits: self.destinations.ilog2(),
            slot_mask: self.clients_per_address - 1,
            port_bits: self.ports.ilog2(),
            first_client: FIRST_CLIENT.to_bits(),
            first_destination: FIRST_DESTINATION.to_bits(),
            first_port: FIRST_PORT,
            destination_port: DESTINATION_PORT,
            // Version, length, no fragments, TTL 64 and UDP; then protocol, the length twice and
            // the destination port. The payload is zero.
            ip_sum: 0x4500 + 46 + 0x4000 + 0x4011,
            udp_sum: 17 + 26 + 26 + DESTINATION_PORT,
            ifindex,
            macs,
        }
    }
}

/// The address `n` after `first`.
pub fn nth(first: Ipv4Addr, n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + n)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The sequence of flows, as the program computes it.
    fn visited(mix: Mix, order: Order) -> Vec<u32> {
        let mut generator = mix.generator(order, [0; 6], 0);
        let step = |_| {
            let state = generator.state;
            generator.state = state
                .wrapping_mul(generator.multiplier)
                .wrapping_add(generator.increment)
                & generator.flow_mask;
            state ^ (state >> generator.fold)
        };
        (0..mix.flows()).map(step).collect()
    }

    #[test]
    fn every_order_visits_every_flow_once() {
        for mix in [Mix::ONE, Mix::THOUSAND, Mix::HUNDRED_THOUSAND, Mix::MILLION] {
            for order in [Order::Fill, Order::Visit] {
                let flows: HashSet<u32> = visited(mix, order).into_iter().collect();
                assert_eq!(flows.len() as u32, mix.flows(), "{mix:?} {order:?}");
                assert!(flows.iter().all(|&flow| flow < mix.flows()));
            }
        }
    }

    #[test]
    fn visiting_is_not_filling() {
        let mix = Mix::HUNDRED_THOUSAND;
        let pairs = visited(mix, Order::Fill)
            .into_iter()
            .zip(visited(mix, Order::Visit));
        assert!(pairs.filter(|(fill, visit)| fill == visit).count() < 100);
    }

    #[test]
    fn sources_fit_their_egress_address() {
        for mix in [Mix::MILLION, Mix::FRESH, Mix::FEW_FRESH, Mix::POD] {
            assert!(mix.clients_per_address * mix.ports <= 64_512, "{mix:?}");
        }
    }
}
