//! ICMP (RFC 792): echo and its identifier, which stands for a port (RFC 5508).

use network_types::icmp::Icmpv4Hdr;

use super::transport::Transport;
use crate::{reason::Reason, world::Frame};

/// Where the checksum stands in the header.
pub const CHECKSUM: usize = 2;
/// Where the identifier stands in the header.
pub const IDENTIFIER: usize = 4;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// Reads the header: a request's identifier is its source port, a reply's its destination port.
///
/// # Errors
/// `Truncated`, `UnsupportedIcmp`.
#[inline(always)]
pub fn parse<F: Frame>(
    frame: &F,
    at: usize,
    payload: u32,
    transport: &mut Transport,
) -> Result<(), Reason> {
    if payload < Icmpv4Hdr::LEN as u32 {
        return Err(Reason::Truncated);
    }
    let header = frame.load::<Icmpv4Hdr>(at).ok_or(Reason::Truncated)?;
    let identifier = [header.data[0], header.data[1]];
    let (source_port, destination_port, opens) = match (header.type_, header.code) {
        (ECHO_REQUEST, 0) => (identifier, [0, 0], true),
        (ECHO_REPLY, 0) => ([0, 0], identifier, false),
        _ => return Err(Reason::UnsupportedIcmp),
    };
    *transport = Transport {
        source_port,
        destination_port,
        checksum: header.check,
        header: Icmpv4Hdr::LEN as u8,
        tcp_flags: 0,
        opens,
    };
    Ok(())
}
