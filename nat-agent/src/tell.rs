//! Senders are told why their flow was refused: ICMP destination unreachable,
//! communication administratively prohibited (type 3, code 13; RFC 1812
//! section 5.2.7.1), as RFC 5508 REQ-8 asks. The packet path limits the rate.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use nat_common::abi::Event;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;

const UNREACHABLE: u8 = 3;
const PROHIBITED: u8 = 13;
/// Where the quoted packet begins in an event, and where its source is.
const QUOTE: std::ops::Range<usize> = 8..36;
const SOURCE: std::ops::Range<usize> = 12..16;

/// Reads events and sends the messages.
pub struct Teller {
    events: AsyncFd<RingBuf<MapData>>,
    socket: Socket,
}

impl Teller {
    /// Takes the events from the object. Call within a tokio runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self> {
        let map = ebpf
            .take_map("EVENTS")
            .context("the object has no EVENTS")?;
        let events = RingBuf::try_from(map)?;
        // SAFETY: the ring buffer owns its descriptor and never gives it away.
        let events = unsafe { AsyncFd::register(events) }?;
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))
            .context("open a socket for ICMP")?;
        Ok(Self { events, socket })
    }

    /// Waits for events and answers them.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn next(&mut self) -> Result<()> {
        let mut ready = self.events.readable_mut().await?;
        while let Some(event) = ready.get_inner_mut().next() {
            if event.len() != size_of::<Event>() {
                continue;
            }
            let quote = &event[QUOTE];
            let Ok(octets) = <[u8; 4]>::try_from(&quote[SOURCE]) else {
                continue;
            };
            let to = SocketAddrV4::new(Ipv4Addr::from(octets), 0);
            // The sender may be gone; that is no trouble of ours.
            let _ = self.socket.send_to(&message(quote), &to.into());
        }
        ready.clear_ready();
        Ok(())
    }
}

fn message(quote: &[u8]) -> Vec<u8> {
    let mut message = vec![UNREACHABLE, PROHIBITED, 0, 0, 0, 0, 0, 0];
    message.extend(quote);
    let sum: u32 = message
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    message[2..4].copy_from_slice(&(!folded as u16).to_be_bytes());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_covers_the_message() {
        let message = message(&[0x45; 28]);
        let words = message
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        assert_eq!(message[..2], [3, 13]);
    }
}
