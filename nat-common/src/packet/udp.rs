//! UDP (RFC 768): ports, length, checksum.

use network_types::udp::UdpHdr;

use super::transport::Transport;
use crate::{reason::Reason, world::Frame};

/// Where the checksum stands in the header.
pub const CHECKSUM: usize = 6;

/// Reads the header.
///
/// # Errors
/// `Truncated`, `BadHeader`.
#[inline(always)]
pub fn parse<F: Frame>(
    frame: &F,
    at: usize,
    payload: u32,
    transport: &mut Transport,
) -> Result<(), Reason> {
    let header = frame.load::<UdpHdr>(at).ok_or(Reason::Truncated)?;
    let length = u32::from(u16::from_be_bytes(header.len));
    if payload < UdpHdr::LEN as u32 {
        return Err(Reason::Truncated);
    }
    if length < UdpHdr::LEN as u32 || length > payload {
        return Err(Reason::BadHeader);
    }
    *transport = Transport {
        source_port: header.src,
        destination_port: header.dst,
        checksum: header.check,
        header: UdpHdr::LEN as u8,
        tcp_flags: 0,
        opens: true,
    };
    Ok(())
}
