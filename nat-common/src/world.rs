//! What the core needs of its surroundings: a packet's bytes, and the world.
//!
//! `nat-ebpf` implements both over BPF contexts, maps and helpers, the tests
//! over byte slices and plain collections. The core is generic over them and
//! inlined whole: no call goes through a pointer.

use network_types::eth::EthHdr;

use crate::{
    abi::{
        Address, Block, Client, Device, FlowKey, Half, Ipv4, Mac, Mapping, MappingKey, Page, Slice,
    },
    packet::checksum::Delta,
    raw::Header,
    reason::Reason,
    session::Opening,
};

/// A packet's bytes, from its Ethernet header on.
pub trait Frame {
    /// Bytes in the frame.
    fn length(&self) -> u32;

    /// Whether the frame has this many bytes; cheaper than asking for all of them.
    fn holds(&self, bytes: u32) -> bool;

    /// Whether a VLAN tag was taken off the frame and stands beside it.
    fn tagged(&self) -> bool;

    /// The protocol of the payload, big-endian as in the header.
    fn ether_type(&self) -> Option<u16> {
        self.load::<EthHdr>(0).map(|header| header.ether_type)
    }

    /// A header at an offset, `None` past the end.
    fn load<T: Header>(&self, at: usize) -> Option<T>;

    /// Bytes written at an offset, `None` past the end.
    fn store<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> Option<()>;

    /// A transport checksum brought up to date, wherever it is kept: in the
    /// packet, or left to the device with only the pseudo-header's sum in it.
    fn patch(&mut self, at: usize, patch: &Patch) -> Option<()>;

    /// The largest IP packet that this frame makes on the wire, given its IP
    /// length and the length of its IP and transport headers: less than the
    /// former for a segment still to be cut (GSO).
    fn wire_length(&self, ip_length: u32, headers: u32) -> u32;
}

/// How a transport checksum changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The checksum as it stood when the header was read.
    pub checksum: [u8; 2],
    /// The addresses' part; it counts through the pseudo-header only.
    pub addresses: Option<Delta>,
    /// The port before.
    pub from_port: [u8; 2],
    /// The port after.
    pub to_port: [u8; 2],
    /// Zero means none, as in UDP.
    pub zero_is_none: bool,
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key has a value already.
    Exists,
    /// The key has a half already that leads to the same address and port.
    Same,
    /// The table has no room.
    Full,
    /// Another CPU is changing the same place for too long.
    Busy,
}

/// A next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Interface out.
    pub ifindex: u32,
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// Its IPv4 address.
    pub gateway: Ipv4,
    /// Its Ethernet address.
    pub destination_mac: Mac,
    /// Ours on that link.
    pub source_mac: Mac,
}

impl Hop {
    /// No interface.
    pub const EMPTY: Self = Self {
        ifindex: 0,
        mtu: 0,
        gateway: [0; 4],
        destination_mac: [0; 6],
        source_mac: [0; 6],
    };
}

/// What is asked of the routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteQuery {
    /// Interface the packet came in through.
    pub ingress: u32,
    /// Its source, before translation out, after translation in.
    pub source: Ipv4,
    /// Its destination, likewise.
    pub destination: Ipv4,
    /// Protocol number.
    pub protocol: u8,
    /// Type of service.
    pub tos: u8,
}

/// Tables, clock, randomness and routes.
///
/// Halves come out mutable from a shared world because that is what they are:
/// memory that packets on other CPUs see at the same time. One packet holds at
/// most one half at a time.
#[expect(clippy::mut_from_ref, reason = "entries of shared tables, see above")]
pub trait World {
    /// The half of this flow in the forward table.
    fn forward(&self, key: &FlowKey) -> Option<&mut Half>;
    /// The half of this flow in the reverse table.
    fn reverse(&self, key: &FlowKey) -> Option<&mut Half>;
    /// Adds to the forward table.
    ///
    /// # Errors
    /// The key exists, the table is full, or another CPU is in the way.
    fn insert_forward(&self, key: &FlowKey, half: &Half) -> Result<(), InsertError>;
    /// Adds to the reverse table.
    ///
    /// # Errors
    /// The key exists, the table is full, or another CPU is in the way.
    fn insert_reverse(&self, key: &FlowKey, half: &Half) -> Result<(), InsertError>;
    /// Takes a half out of the reverse table again.
    fn remove_reverse(&self, key: &FlowKey);

    /// An internal endpoint's mapping.
    fn mapping(&self, key: &MappingKey) -> Option<Mapping>;
    /// Adds a mapping, or replaces one.
    ///
    /// # Errors
    /// It exists (unless it may be replaced), or the table is full.
    fn insert_mapping(
        &self,
        key: &MappingKey,
        mapping: &Mapping,
        replace: bool,
    ) -> Result<(), InsertError>;
    /// Takes a mapping out again.
    fn remove_mapping(&self, key: &MappingKey);

    /// Which client a source address belongs to.
    fn client_of(&self, source: &Ipv4) -> Option<u16>;
    /// A client.
    fn client(&self, index: u16) -> Option<&Client>;
    /// Whether a pool leaves this destination alone.
    fn excluded(&self, pool: u32, destination: &Ipv4) -> bool;
    /// An egress address.
    fn address(&self, address: &Ipv4) -> Option<Address>;
    /// A slice of an egress address.
    fn slice(&self, index: u32) -> Option<&Slice>;
    /// A block of a slice.
    fn block(&self, index: u32) -> Option<&Block>;
    /// A page of a client.
    fn page(&self, index: u32) -> Option<&Page>;
    /// The next free block of a queue (a slice's, for one protocol).
    fn pop_block(&self, queue: u32) -> Option<u32>;
    /// A device that a program is attached to.
    fn device(&self, ifindex: u32) -> Option<Device>;

    /// The coarse clock: ticks of about a second.
    fn now(&self) -> u32;
    /// A random number.
    fn random(&self) -> u32;
    /// The generation of cached next hops, from 1 to [`crate::abi::MAX_GENERATION`].
    fn generation(&self) -> u32;
    /// The way to a destination: true and the next hop if packets can be sent
    /// there, false where only the kernel can go on (to itself, to a neighbour it
    /// has yet to find, or with an ICMP error to the sender).
    fn route(&self, query: &RouteQuery, hop: &mut Hop) -> bool;
    /// This CPU's memory for a session about to be opened.
    fn opening(&self) -> Option<&mut Opening>;

    /// First step of opening a session. The BPF side makes the steps
    /// global functions, each with its own stack frame and verified once.
    #[inline(always)]
    fn admit(&self) -> bool
    where
        Self: Sized,
    {
        crate::hooks::open::admit(self)
    }

    /// Second step.
    #[inline(always)]
    fn map(&self) -> bool
    where
        Self: Sized,
    {
        crate::session::map(self)
    }

    /// Third step.
    #[inline(always)]
    fn create_reverse(&self) -> bool
    where
        Self: Sized,
    {
        crate::session::create_reverse(self)
    }

    /// Fourth step.
    #[inline(always)]
    fn create_forward(&self) -> bool
    where
        Self: Sized,
    {
        crate::session::create_forward(self)
    }

    /// What follows if the third or fourth fails.
    #[inline(always)]
    fn withdraw(&self)
    where
        Self: Sized,
    {
        crate::session::withdraw(self);
    }

    /// Tells the agent that this packet's sender is to hear why it was dropped.
    fn notify(&self, client: u16, reason: Reason, quote: &[u8; 28]);
}

impl Patch {
    /// Both parts in one, for a checksum that is whole in the packet.
    #[inline(always)]
    pub fn delta(&self) -> Delta {
        let ports = Delta::pair(self.from_port, self.to_port);
        self.addresses
            .map_or(ports, |addresses| addresses.and(ports))
    }
}
