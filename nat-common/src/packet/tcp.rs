//! TCP (RFC 9293): ports, flags, checksum.

use network_types::tcp::TcpHdr;

use super::transport::Transport;
use crate::{reason::Reason, world::Frame};

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset.
pub const RST: u8 = 0x04;
/// The acknowledgement field counts.
pub const ACK: u8 = 0x10;
/// Where the checksum stands in the header.
pub const CHECKSUM: usize = 16;

/// Reads the header.
///
/// # Errors
/// `Truncated`, `BadHeader`, `BadTcpFlags`.
#[inline(always)]
pub fn parse<F: Frame>(
    frame: &F,
    at: usize,
    payload: u32,
    transport: &mut Transport,
) -> Result<(), Reason> {
    if payload < TcpHdr::LEN as u32 {
        return Err(Reason::Truncated);
    }
    let header = frame.load::<TcpHdr>(at).ok_or(Reason::Truncated)?;
    let length = u32::from(header.doff()) * 4;
    if length < TcpHdr::LEN as u32 || length > payload {
        return Err(Reason::BadHeader);
    }
    let state = state(&header);
    if !valid(state) {
        return Err(Reason::BadTcpFlags);
    }
    *transport = Transport {
        source_port: header.source,
        destination_port: header.dest,
        checksum: header.check,
        header: length as u8,
        tcp_flags: state,
        opens: state & RST == 0 && state & (SYN | ACK) != SYN | ACK,
    };
    Ok(())
}

/// The flags that make a state.
#[inline(always)]
fn state(header: &TcpHdr) -> u8 {
    let flag = |set: u16, bit: u8| if set != 0 { bit } else { 0 };
    flag(header.fin(), FIN)
        | flag(header.syn(), SYN)
        | flag(header.rst(), RST)
        | flag(header.ack(), ACK)
}

/// Whether these flags can stand together: a SYN comes without FIN and RST, and
/// whatever is neither SYN nor RST has an ACK.
#[inline(always)]
pub const fn valid(state: u8) -> bool {
    if state & SYN != 0 {
        state & (FIN | RST) == 0
    } else {
        state & (RST | ACK) != 0
    }
}
