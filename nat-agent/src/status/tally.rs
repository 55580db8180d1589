//! Sums per client, made in one pass over sessions, mappings and blocks.

use nat_common::abi::{Half, Mapping, PROTOCOLS, protocol_index};

use super::model::Traffic;

/// Sums of all clients, by their number.
#[derive(Debug, Default)]
pub struct Tally {
    clients: Vec<Sums>,
}

/// Sums of one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Sessions.
    pub flows: u64,
    /// Out of its live sessions.
    pub out: Traffic,
    /// Into its live sessions.
    pub r#in: Traffic,
    /// Internal endpoints that have a port, by protocol.
    pub used: [u32; PROTOCOLS as usize],
    /// Ports of the blocks it holds, by protocol.
    pub held: [u32; PROTOCOLS as usize],
}

impl Tally {
    /// Counts a forward half, which stands for its session.
    pub fn forward(&mut self, half: &Half) {
        let sums = self.client(half.client);
        sums.flows += 1;
        sums.out.add(half.packets.into(), half.bytes());
    }

    /// Counts a reverse half.
    pub fn reverse(&mut self, half: &Half) {
        let sums = self.client(half.client);
        sums.r#in.add(half.packets.into(), half.bytes());
    }

    /// Counts a mapping: one port.
    pub fn mapping(&mut self, protocol: u8, mapping: &Mapping) {
        self.client(mapping.client).used[protocol_index(protocol) as usize] += 1;
    }

    /// Counts a block's ports. Nobody's are not counted: [`nat_common::abi::NONE`] is no client.
    pub fn block(&mut self, owner: u32, place: usize, ports: u32) {
        if let Ok(owner) = u16::try_from(owner) {
            self.client(owner).held[place] += ports;
        }
    }

    /// A client's sums.
    pub fn of(&self, client: u32) -> Sums {
        self.clients
            .get(client as usize)
            .copied()
            .unwrap_or_default()
    }

    fn client(&mut self, number: u16) -> &mut Sums {
        let number = usize::from(number);
        if self.clients.len() <= number {
            self.clients.resize(number + 1, Sums::default());
        }
        &mut self.clients[number]
    }
}

#[cfg(test)]
mod tests {
    use nat_common::abi::NONE;

    use super::*;

    #[test]
    fn sums_go_to_their_client_and_protocol() {
        let mut tally = Tally::default();
        let half = |client, packets, bytes| Half {
            client,
            packets,
            bytes_and_generation: bytes,
            ..Half::default()
        };
        tally.forward(&half(3, 1, 100));
        tally.forward(&half(3, 2, 200));
        tally.reverse(&half(3, 5, 5000));
        tally.forward(&half(0, 9, 9));
        tally.mapping(
            17,
            &Mapping {
                client: 3,
                ..Mapping::default()
            },
        );
        tally.block(3, 1, 64);
        tally.block(NONE, 1, 64);
        let sums = tally.of(3);
        assert_eq!(
            (sums.flows, sums.used, sums.held),
            (2, [0, 1, 0], [0, 64, 0])
        );
        assert_eq!(
            sums.out,
            Traffic {
                packets: 3,
                bytes: 300
            }
        );
        assert_eq!(
            sums.r#in,
            Traffic {
                packets: 5,
                bytes: 5000
            }
        );
        assert_eq!(tally.of(0).flows, 1);
        assert_eq!(tally.of(77), Sums::default());
    }
}
