//! What a session is, from its two halves.

use std::{borrow::Cow, net::Ipv4Addr};

use nat_common::{
    abi::{FlowKey, Half, Ipv4, Port},
    packet::transport::{ICMP, TCP, UDP},
};
use serde::Serialize;

use crate::{
    clock::{self, Clock},
    state::{self, State},
    status::{directory::Directory, model::Traffic},
};

/// A session.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow<'a> {
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// The client's name.
    pub client: Cow<'a, str>,
    /// The client's end, as the client knows it.
    pub inside: Endpoint,
    /// The client's end, as the outside sees it.
    pub egress: Endpoint,
    /// The other end.
    pub remote: Endpoint,
    /// What it is in.
    pub state: State,
    /// Seconds since it began.
    pub age_seconds: u64,
    /// Seconds since a packet refreshed it.
    pub idle_seconds: u64,
    /// Idle seconds after which it ends, in this state; null where its client's pool is gone.
    pub timeout_seconds: Option<u64>,
    /// Seconds until then; 0 while it waits for the sweep.
    pub left_seconds: Option<u64>,
    /// What went out.
    pub out: Traffic,
    /// What came in; null where the reverse half is gone.
    pub r#in: Option<Traffic>,
}

/// An address, and a port where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The address.
    pub address: Ipv4Addr,
    /// The port, or the echo identifier; a pinged host has none.
    pub port: Option<u16>,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.address),
            None => self.address.fmt(f),
        }
    }
}

/// What halves are read with.
#[derive(Debug)]
pub struct Reader<'a> {
    /// Turns ticks into time.
    pub clock: Clock,
    /// The tick it is now: one for all sessions.
    pub now: u32,
    /// Who the clients are.
    pub directory: &'a Directory,
}

impl<'a> Reader<'a> {
    /// The session of these halves.
    pub fn flow(&self, key: &FlowKey, forward: &Half, reverse: Option<&Half>) -> Flow<'a> {
        let state = state::state(key.protocol, forward, reverse);
        let client = u32::from(forward.client);
        let idle = self.idle(forward, reverse);
        let timeout = self
            .directory
            .pool_of(client)
            .map(|pool| state::timeout(key.protocol, state, pool).as_secs());
        let remote_port = (key.protocol != ICMP).then_some(key.destination_port);
        Flow {
            protocol: name(key.protocol),
            client: match self.directory.client(client) {
                Some(name) => name.into(),
                None => format!("client {client} (gone)").into(),
            },
            inside: endpoint(key.source, Some(key.source_port)),
            egress: endpoint(forward.address, Some(forward.port)),
            remote: endpoint(key.destination, remote_port),
            state,
            age_seconds: self.seconds(clock::age(self.now, forward.created)),
            idle_seconds: idle,
            timeout_seconds: timeout,
            left_seconds: timeout.map(|timeout| timeout.saturating_sub(idle)),
            out: traffic(forward),
            r#in: reverse.map(traffic),
        }
    }

    fn idle(&self, forward: &Half, reverse: Option<&Half>) -> u64 {
        let idle = clock::age(self.now, forward.last_seen);
        let idle = reverse.map_or(idle, |half| idle.min(clock::age(self.now, half.last_seen)));
        self.seconds(idle)
    }

    fn seconds(&self, ticks: u32) -> u64 {
        self.clock.duration(ticks).as_secs()
    }
}

fn endpoint(address: Ipv4, port: Option<Port>) -> Endpoint {
    Endpoint {
        address: address.into(),
        port: port.map(u16::from_be_bytes),
    }
}

const fn traffic(half: &Half) -> Traffic {
    Traffic {
        packets: half.packets as u64,
        bytes: half.bytes(),
    }
}

const fn name(protocol: u8) -> &'static str {
    match protocol {
        TCP => "tcp",
        UDP => "udp",
        ICMP => "icmp",
        _ => "other",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use nat_common::{
        abi::{Name, Pool, Settings},
        packet::tcp::{ACK, SYN},
    };

    use super::*;

    /// Two clients of one pool with the default timers.
    pub fn directory() -> Directory {
        let mut directory = Directory::default();
        let name = Name {
            length: 0,
            bytes: [0; 320],
        };
        directory.add_pool(
            5,
            Pool {
                name,
                tcp_established: 7440,
                tcp_transitory: 240,
                udp: 300,
                icmp: 60,
                rest: 120,
                direct: 0,
            },
        );
        directory.add_client(0, "default/web-0".into(), 5);
        directory.add_client(1, "default/web-1".into(), 5);
        directory
    }

    /// At tick 1000, of 1.024 s each.
    pub fn reader(directory: &Directory) -> Reader<'_> {
        let settings = Settings {
            generation: 1,
            hz: 250,
            jiffies: 0,
            monotonic: 0,
            seed: 0,
        };
        Reader {
            clock: Clock::new(settings),
            now: 1000,
            directory,
        }
    }

    /// A session of client 0 (or 7, which is none) that began at tick 900.
    pub fn session(protocol: u8, client: u16) -> (FlowKey, Half, Half) {
        let key = FlowKey {
            source: [10, 244, 1, 7],
            destination: [198, 51, 100, 80],
            source_port: 40_000_u16.to_be_bytes(),
            destination_port: if protocol == ICMP {
                [0; 2]
            } else {
                443_u16.to_be_bytes()
            },
            protocol,
            ..FlowKey::default()
        };
        let forward = Half {
            address: [203, 0, 113, 10],
            port: 51_234_u16.to_be_bytes(),
            client,
            seen: if protocol == TCP { SYN | ACK } else { 0 },
            created: 900,
            last_seen: 990,
            packets: 10,
            bytes_and_generation: 1200,
            ..Half::default()
        };
        let reverse = Half {
            packets: 12,
            bytes_and_generation: 150_000,
            last_seen: 995,
            ..forward
        };
        (key, forward, reverse)
    }

    #[test]
    fn both_halves() {
        let directory = directory();
        let (key, forward, reverse) = session(TCP, 0);
        let flow = reader(&directory).flow(&key, &forward, Some(&reverse));
        assert_eq!(
            (flow.state, flow.client.as_ref()),
            (State::Established, "default/web-0")
        );
        assert_eq!((flow.age_seconds, flow.idle_seconds), (102, 5));
        assert_eq!(
            (flow.timeout_seconds, flow.left_seconds),
            (Some(7440), Some(7435))
        );
        assert_eq!(flow.egress.to_string(), "203.0.113.10:51234");
        assert_eq!(
            flow.r#in,
            Some(Traffic {
                packets: 12,
                bytes: 150_000
            })
        );
    }

    #[test]
    fn a_half_alone_of_a_client_that_is_gone() {
        let directory = directory();
        let (key, forward, _) = session(TCP, 7);
        let flow = reader(&directory).flow(&key, &forward, None);
        assert_eq!(
            (flow.state, flow.client.as_ref()),
            (State::Opening, "client 7 (gone)")
        );
        assert_eq!(
            (flow.timeout_seconds, flow.left_seconds, flow.r#in),
            (None, None, None)
        );
    }

    #[test]
    fn what_is_overdue_has_nothing_left() {
        let directory = directory();
        let (key, forward, reverse) = session(ICMP, 0);
        let reader = Reader {
            now: 2000,
            ..reader(&directory)
        };
        let flow = reader.flow(&key, &forward, Some(&reverse));
        assert_eq!((flow.left_seconds, flow.remote.port), (Some(0), None));
        assert_eq!(flow.remote.to_string(), "198.51.100.80");
    }
}
