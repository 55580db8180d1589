//! Gratuitous ARP (RFC 5227 section 3): neighbours learn at once who answers
//! for an egress address.

use std::{io, net::Ipv4Addr};

use anyhow::{Context, Result};
use nat_common::abi::Mac;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// `ETH_P_ARP`.
const ARP: u16 = 0x0806;

/// Announces addresses on a device.
///
/// # Errors
/// The kernel's.
pub fn announce(ifindex: u32, mac: Mac, addresses: &[Ipv4Addr]) -> Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let socket = Socket::new(
        Domain::PACKET,
        Type::RAW,
        Some(Protocol::from(i32::from(ARP.to_be()))),
    )
    .context("open a socket for ARP")?;
    let to = link_address(ifindex);
    for address in addresses {
        socket
            .send_to(&frame(mac, *address), &to)
            .context("send gratuitous ARP")?;
    }
    Ok(())
}

/// An ARP request from the address for itself, to everybody.
fn frame(mac: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut frame = Vec::with_capacity(42);
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend(ARP.to_be_bytes());
    // Ethernet, IPv4, their lengths, a request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

fn link_address(ifindex: u32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll fits the storage, and all of its bytes are valid.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ARP.to_be();
    address.sll_ifindex = ifindex as i32;
    address.sll_halen = 6;
    // SAFETY: the storage was filled as a sockaddr_ll.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}

/// Whether an error means that the device is down or gone: nobody to tell.
pub fn nobody_there(error: &anyhow::Error) -> bool {
    let code = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error);
    matches!(code, Some(libc::ENETDOWN | libc::ENXIO | libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_a_request_for_its_own_sender() {
        let frame = frame([2, 0, 0, 0, 0, 1], Ipv4Addr::new(203, 0, 113, 10));
        assert_eq!(frame.len(), 42);
        assert_eq!(frame[28..32], frame[38..42]);
        assert_eq!(frame[20..22], [0, 1]);
    }
}
