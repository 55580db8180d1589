//! A packet as bytes.

use nat_common::{
    packet::checksum::{update, update_udp},
    raw::{Header, read},
    world::{Frame, Patch},
};

/// A frame in memory, and what stands beside it in a kernel's buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFrame {
    /// The bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// A VLAN tag was taken off.
    pub tagged: bool,
    /// Payload of each segment still to be cut; 0: none.
    pub gso_size: u32,
    /// Writes succeed. The kernel may refuse them for want of memory.
    pub writable: bool,
}

impl HostFrame {
    /// A plain frame of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            tagged: false,
            gso_size: 0,
            writable: true,
        }
    }
}

impl Frame for HostFrame {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }

    fn holds(&self, bytes: u32) -> bool {
        bytes <= self.length()
    }

    fn tagged(&self) -> bool {
        self.tagged
    }

    fn load<T: Header>(&self, at: usize) -> Option<T> {
        read(self.bytes.get(at..)?)
    }

    fn store<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> Option<()> {
        if !self.writable {
            return None;
        }
        self.bytes.get_mut(at..at + N)?.copy_from_slice(bytes);
        Some(())
    }

    fn patch(&mut self, at: usize, patch: &Patch) -> Option<()> {
        let update = if patch.zero_is_none {
            update_udp
        } else {
            update
        };
        let checksum = update(patch.checksum, patch.delta());
        self.store(at, &checksum)
    }

    fn wire_length(&self, ip_length: u32, headers: u32) -> u32 {
        match self.gso_size {
            0 => ip_length,
            size => size + headers,
        }
    }
}
