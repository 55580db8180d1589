//! Which sessions are wanted: all that is said must hold.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use nat_common::abi::{FlowKey, Half};

/// What is wanted; `None` wants any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The inside, egress or remote address is in here.
    pub network: Option<Ipv4Net>,
    /// The inside, egress or remote port (or echo identifier) is this.
    pub port: Option<u16>,
    /// The client's number.
    pub client: Option<u16>,
    /// IANA protocol number.
    pub protocol: Option<u8>,
}

impl Filter {
    /// Whether a session is wanted, by its forward half.
    pub fn wants(&self, key: &FlowKey, forward: &Half) -> bool {
        self.protocol
            .is_none_or(|protocol| protocol == key.protocol)
            && self.client.is_none_or(|client| client == forward.client)
            && self.port.is_none_or(|port| has_port(port, key, forward))
            && self
                .network
                .is_none_or(|network| has_address(&network, key, forward))
    }
}

fn has_port(port: u16, key: &FlowKey, forward: &Half) -> bool {
    let port = port.to_be_bytes();
    [key.source_port, key.destination_port, forward.port].contains(&port)
}

fn has_address(network: &Ipv4Net, key: &FlowKey, forward: &Half) -> bool {
    let addresses = [key.source, key.destination, forward.address];
    addresses
        .into_iter()
        .any(|address| network.contains(&Ipv4Addr::from(address)))
}

/// Reads an address or a network from the command line.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub fn network(text: &str) -> Result<Ipv4Net, String> {
    let network = match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
        (Ok(address), _) => IpNet::from(address),
        (_, Ok(network)) => network,
        _ if text.parse::<std::net::SocketAddr>().is_ok() => {
            return Err("an address without its port is wanted; give the port with --port".into());
        }
        _ => {
            return Err(
                "an IPv4 address (203.0.113.10) or network (10.244.0.0/16) is wanted".into(),
            );
        }
    };
    match network {
        IpNet::V4(network) => Ok(network),
        IpNet::V6(_) => Err("IPv6 is not translated: no session has such an address".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> (FlowKey, Half) {
        let key = FlowKey {
            source: [10, 244, 1, 7],
            destination: [198, 51, 100, 80],
            source_port: 40_000_u16.to_be_bytes(),
            destination_port: 443_u16.to_be_bytes(),
            protocol: 6,
            ..FlowKey::default()
        };
        let half = Half {
            address: [203, 0, 113, 10],
            port: 51_234_u16.to_be_bytes(),
            client: 3,
            ..Half::default()
        };
        (key, half)
    }

    fn wants(filter: Filter) -> bool {
        let (key, half) = session();
        filter.wants(&key, &half)
    }

    #[test]
    fn every_end_counts() {
        for (address, wanted) in [
            ("10.244.1.7", true),
            ("203.0.113.10", true),
            ("198.51.100.80", true),
            ("198.51.100.0/24", true),
            ("10.244.1.8", false),
        ] {
            let network = Some(network(address).unwrap());
            assert_eq!(
                wants(Filter {
                    network,
                    ..Filter::default()
                }),
                wanted,
                "{address}"
            );
        }
        for (port, wanted) in [(40_000, true), (443, true), (51_234, true), (80, false)] {
            assert_eq!(
                wants(Filter {
                    port: Some(port),
                    ..Filter::default()
                }),
                wanted,
                "{port}"
            );
        }
    }

    #[test]
    fn all_that_is_said_must_hold() {
        let filter = Filter {
            protocol: Some(6),
            client: Some(3),
            port: Some(443),
            ..Filter::default()
        };
        assert!(wants(filter));
        assert!(!wants(Filter {
            protocol: Some(17),
            ..filter
        }));
        assert!(!wants(Filter {
            client: Some(4),
            ..filter
        }));
        assert!(wants(Filter::default()));
    }

    #[test]
    fn bad_addresses_are_refused_with_words() {
        assert!(network("10.0.0.1:80").unwrap_err().contains("--port"));
        assert!(network("2001:db8::1").unwrap_err().contains("IPv6"));
        assert!(network("10.0.0").unwrap_err().contains("203.0.113.10"));
        assert!(network("10.0.0.0/33").is_err());
    }
}
