//! What a packet is: its headers, read once.

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmp;
pub mod ipv4;
pub mod tcp;
pub mod transport;
pub mod udp;
