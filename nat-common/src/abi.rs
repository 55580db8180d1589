//! What the BPF maps hold, once for both sides.
//!
//! Every key and value is `repr(C)` with its padding spelled out, so that two
//! equal values have equal bytes. Addresses and ports are big-endian bytes, as
//! they stand in the packet; counters, ticks and indexes are native integers.
//! A change of any layout here needs a new [`LAYOUT_VERSION`]: the agent
//! refuses pinned maps of another one.

use core::cell::Cell;

use crate::raw::{Lent, Word, Word32};

/// Version of everything in this file; part of the pins' directory name.
pub const LAYOUT_VERSION: u32 = 2;

/// An IPv4 address as it stands in the packet.
pub type Ipv4 = [u8; 4];
/// A port, or an ICMP echo identifier, as it stands in the packet.
pub type Port = [u8; 2];
/// An Ethernet address.
pub type Mac = [u8; 6];

/// Protocols whose ports are handed out, each with all ports of an address.
pub const PROTOCOLS: u32 = 3;
/// Blocks one page of a client holds: the bits of one word.
pub const PAGE_BLOCKS: usize = 64;
/// Pages a client may have for each protocol: 16 x 64 blocks x 64 ports cover an address.
pub const MAX_PAGES: u32 = 16;
/// Ports one block holds at most: the bits of one word.
pub const BLOCK_PORTS: u32 = 64;
/// Owner of a block whose client is gone; it goes back when its ports have rested.
pub const ORPHAN: u32 = u32::MAX - 1;
/// No index: a client without an address, a block without an owner.
pub const NONE: u32 = u32::MAX;

/// A flow as its packets arrive: the key of both session tables.
///
/// The forward table is keyed by what a client sends, the reverse table by what
/// the outside answers. An ICMP echo has its identifier on the client's (or
/// egress address's) side and 0 on the other.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowKey {
    /// Source address.
    pub source: Ipv4,
    /// Destination address.
    pub destination: Ipv4,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub destination_port: Port,
    /// IANA protocol number: 6, 17 or 1.
    pub protocol: u8,
    /// Always zero.
    pub padding: [u8; 3],
}

impl FlowKey {
    /// All zero.
    pub const EMPTY: Self = Self {
        source: [0; 4],
        destination: [0; 4],
        source_port: [0; 2],
        destination_port: [0; 2],
        protocol: 0,
        padding: [0; 3],
    };
}

/// One half of a session: what its own direction needs, and all that it saw.
///
/// Only packets of its own direction write it, so the two directions, usually
/// on different CPUs, never share a cache line: with its key it fills exactly
/// one (see [`Slot`]).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Half {
    /// What the source (forward) or destination (reverse) address becomes.
    pub address: Ipv4,
    /// What the source (forward) or destination (reverse) port becomes.
    pub port: Port,
    /// The client's index.
    pub client: u16,
    /// TCP flags seen so far in this direction, see [`crate::packet::tcp`].
    pub seen: u8,
    /// How the packet goes on, see [`Delivery`]. Forward: how the cached next hop is meant.
    pub delivery: u8,
    /// Largest IP packet the next hop takes, bytes; 0 while unknown.
    pub mtu: u16,
    /// Interface the packet leaves through.
    pub ifindex: u32,
    /// Next hop's Ethernet address; with [`Delivery::Neighbour`] its IPv4 address
    /// and two zeros.
    pub destination_mac: Mac,
    /// Our Ethernet address on that link.
    pub source_mac: Mac,
    /// Packets in this direction; it stops at `u32::MAX`.
    pub packets: u32,
    /// Tick of creation.
    pub created: u32,
    /// Tick of the last packet that refreshed the session.
    pub last_seen: u32,
    /// Bytes in this direction, IP headers included, in the low [`BYTES_BITS`] bits;
    /// above them the generation the next hop was looked up in, 0: never.
    pub bytes_and_generation: u64,
}

/// Bits of a half's bytes: 256 TiB.
const BYTES_BITS: u32 = 48;

/// Largest generation of cached next hops.
pub const MAX_GENERATION: u32 = u16::MAX as u32;

impl Half {
    /// All zero.
    pub const EMPTY: Self = Self {
        address: [0; 4],
        port: [0; 2],
        client: 0,
        seen: 0,
        delivery: 0,
        mtu: 0,
        ifindex: 0,
        destination_mac: [0; 6],
        source_mac: [0; 6],
        packets: 0,
        created: 0,
        last_seen: 0,
        bytes_and_generation: 0,
    };

    /// Bytes in this direction, IP headers included.
    #[inline(always)]
    pub const fn bytes(&self) -> u64 {
        self.bytes_and_generation & ((1 << BYTES_BITS) - 1)
    }

    /// Generation the next hop was looked up in; 0: never.
    #[inline(always)]
    pub const fn generation(&self) -> u32 {
        (self.bytes_and_generation >> BYTES_BITS) as u32
    }

    /// Sets the generation.
    #[inline(always)]
    pub const fn set_generation(&mut self, generation: u32) {
        self.bytes_and_generation = self.bytes() | (generation as u64) << BYTES_BITS;
    }

    /// Counts one more packet of so many bytes.
    #[inline(always)]
    pub const fn count(&mut self, bytes: u32) {
        self.packets = self.packets.saturating_add(1);
        self.bytes_and_generation += bytes as u64;
    }

    /// The next hop's IPv4 address, with [`Delivery::Neighbour`].
    #[inline(always)]
    pub const fn gateway(&self) -> Ipv4 {
        let [a, b, c, d, ..] = self.destination_mac;
        [a, b, c, d]
    }
}

/// Slots of a bucket.
pub const SLOTS: usize = 16;

/// A place for a half and its key: one cache line. See [`crate::table`].
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Slot {
    /// The key's addresses, as they stand in [`FlowKey`].
    pub addresses: Cell<u64>,
    /// The key's ports, likewise.
    pub ports: Cell<u32>,
    /// The key's protocol, what the slot is used for, and where else its bucket
    /// holds flows that belong here.
    pub control: Word32,
    /// The half.
    pub half: Lent<Half>,
}

/// An element of a session table.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Bucket {
    /// Its slots.
    pub slots: [Slot; SLOTS],
}

/// How a translated packet goes on.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Up the kernel's stack, which forwards it.
    Stack = 0,
    /// By `XDP_REDIRECT`, with the Ethernet header rewritten.
    Xdp = 1,
    /// By `bpf_redirect_peer`, into the pod behind the client's device.
    Peer = 2,
    /// By `bpf_redirect_neigh`, out through a device.
    Neighbour = 3,
}

/// An internal endpoint: the key of the mappings (RFC 4787 section 4.1).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MappingKey {
    /// The client's address.
    pub address: Ipv4,
    /// The client's port.
    pub port: Port,
    /// IANA protocol number.
    pub protocol: u8,
    /// Always zero.
    pub padding: u8,
}

/// The external endpoint of an internal one, whatever it talks to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Egress address.
    pub address: Ipv4,
    /// Egress port.
    pub port: Port,
    /// Index of the client.
    pub client: u16,
    /// Tick of creation.
    pub created: u32,
    /// Always zero.
    pub padding: u32,
}

impl Mapping {
    /// All zero.
    pub const EMPTY: Self = Self {
        address: [0; 4],
        port: [0; 2],
        client: 0,
        created: 0,
        padding: 0,
    };
}

/// A client: a pod, or a network routed in. Indexed by the client's number.
///
/// The agent writes all of it but `noticed` and `mapped`, field by field, while packets read it.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Client {
    /// See the `CLIENT_` constants.
    pub flags: Cell<u32>,
    /// Interface its packets come in through.
    pub ifindex: Cell<u32>,
    /// Index of the slice its ports come from; [`NONE`] while it has no address.
    pub slice: Cell<u32>,
    /// Number of its pool: part of the key of the excluded destinations.
    pub pool: Cell<u32>,
    /// Its pages, see [`Pages`]: one word, so that a change is seen whole.
    pub pages: Cell<Pages>,
    /// How replies reach it, see [`Delivery`].
    pub delivery: Cell<u32>,
    /// Tick at which its sender was last told that ports ran out.
    pub noticed: Cell<u32>,
    /// How many mappings it has made in which tick, see [`crate::rate`].
    pub mapped: Word32,
    /// Packets out of sessions that have ended.
    pub packets_out: Cell<u64>,
    /// Bytes out of sessions that have ended.
    pub bytes_out: Cell<u64>,
    /// Packets in of sessions that have ended.
    pub packets_in: Cell<u64>,
    /// Bytes in of sessions that have ended.
    pub bytes_in: Cell<u64>,
}

/// A client's run of pages: the index of its first one (24 bits) and how many
/// it has for each protocol (8 bits, 1 to [`MAX_PAGES`]).
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages(pub u32);

impl Pages {
    /// The pages from `first` on, `count` for each protocol.
    pub const fn new(first: u32, count: u32) -> Self {
        Self(first << 8 | count & 0xff)
    }

    /// Index of the first page.
    #[inline(always)]
    pub const fn first(self) -> u32 {
        self.0 >> 8
    }

    /// Pages for each protocol.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        self.0 & 0xff
    }
}

/// The entry is a client's.
pub const CLIENT_ACTIVE: u32 = 1;
/// The client opens no sessions any more: what belongs to one is translated until it ends, the rest
/// leaves as the node sends it.
pub const CLIENT_DRAINING: u32 = 2;
/// For the agent: sessions with another address than the client's own have been ended.
pub const CLIENT_CUT_OVER: u32 = 4;

/// A run of ports of one egress address that this node owns.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Key of the permutation that spreads blocks over the slice.
    pub key: u64,
    /// The egress address.
    pub address: Ipv4,
    /// First port of the run.
    pub base: u32,
    /// Ports in the run.
    pub size: u32,
    /// Ports in a block, 1 to [`BLOCK_PORTS`].
    pub block_size: u32,
    /// Index of its first block; the blocks of the three protocols follow each other.
    pub first_block: u32,
    /// Blocks for each protocol.
    pub blocks: u32,
    /// Number of the pool that the address belongs to.
    pub pool: u32,
    /// Mappings that a client may make in a tick; 0: any number.
    pub mappings: u32,
}

/// A block of ports of a slice. Shared between packet path and agent by atomics.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Block {
    /// One bit for each free port.
    pub free: Word,
    /// One bit for each port that may ever be given out.
    pub usable: Cell<u64>,
    /// Index of the client that holds it, [`NONE`] while it waits in the queue.
    pub owner: Cell<u32>,
    /// Tick since which the owner holds it.
    pub since: Cell<u32>,
}

/// Up to 64 blocks that one client holds for one protocol.
#[repr(C)]
#[derive(Debug)]
pub struct Page {
    /// Slots whose block may have free ports.
    pub open: Word,
    /// Slots that hold a block, or are about to.
    pub held: Word,
    /// Slots that the client's cap allows.
    pub allowed: Cell<u64>,
    /// Block index by slot.
    pub blocks: [Cell<u32>; PAGE_BLOCKS],
}

impl Default for Page {
    fn default() -> Self {
        let blocks = core::array::from_fn(|_| Cell::new(NONE));
        Self {
            open: Word::new(0),
            held: Word::new(0),
            allowed: Cell::new(0),
            blocks,
        }
    }
}

/// An egress address, by its four bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// See the `ADDRESS_` constants.
    pub flags: u32,
}

/// The address is also the node's own: what matches no session is the kernel's.
pub const ADDRESS_OWN: u32 = 1;

/// A network device that a program is attached to, by its ifindex.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// See the `DEVICE_` constants.
    pub flags: u32,
    /// Its Ethernet address, for ARP answers.
    pub mac: Mac,
    /// Always zero.
    pub padding: [u8; 2],
}

/// Egress addresses are used on this device: what leaves here is translated.
pub const DEVICE_OUTSIDE: u32 = 1;
/// An XDP program translates here.
pub const DEVICE_XDP: u32 = 2;
/// XDP is generic here: it answers ARP, because behind it tcx sees packets without
/// their Ethernet header.
pub const DEVICE_GENERIC: u32 = 8;
/// The device is one pod's: any source that is not the pod's own is refused.
pub const DEVICE_EXCLUSIVE: u32 = 4;

/// Key of the excluded destinations: a pool's number and an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ExcludeKey {
    /// The pool's number, big-endian, always matched whole.
    pub pool: [u8; 4],
    /// The destination, of which the entry's prefix counts.
    pub destination: Ipv4,
}

/// What changes while programs run, and what commands need to read ticks: one
/// array element.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Bumped by the agent when routes, neighbours or links change: cached next hops end.
    /// From 1 to [`MAX_GENERATION`].
    pub generation: u32,
    /// Jiffies in a second (the kernel's HZ).
    pub hz: u32,
    /// The kernel's jiffies at one moment.
    pub jiffies: u64,
    /// Nanoseconds of the monotonic clock at the same moment.
    pub monotonic: u64,
    /// Random, for as long as the maps live: where flows stand in the session tables.
    pub seed: u64,
}

/// What the packet path tells the agent: the sender of this packet is to be told.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// A [`crate::reason::Reason`] as a number.
    pub reason: u32,
    /// Index of the client.
    pub client: u32,
    /// The packet's IP header (without options) and first 8 bytes after it, as
    /// an ICMP error quotes them (RFC 792).
    pub quote: [u8; 28],
    /// Always zero.
    pub padding: u32,
}

/// A client's name, by the client's number: UTF-8, `length` bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Name {
    /// Bytes of the name.
    pub length: u32,
    /// Room for a Kubernetes namespace, a slash and a pod's name.
    pub bytes: [u8; 320],
}

/// A pool as commands and the sweep need it, by its number.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Pool {
    /// Its name.
    pub name: Name,
    /// Idle seconds after which an established TCP session ends.
    pub tcp_established: u32,
    /// Idle seconds after which an opening, closing or reset TCP session ends.
    pub tcp_transitory: u32,
    /// Idle seconds after which a UDP session ends.
    pub udp: u32,
    /// Idle seconds after which an ICMP echo session ends.
    pub icmp: u32,
    /// Seconds a freed port rests.
    pub rest: u32,
    /// 1: direct path, 0: stack path.
    pub direct: u32,
}

/// Bytes of the agent's report, see [`Report`].
pub const REPORT_BYTES: usize = 64 * 1024;

/// The agent's own words on its health, JSON, for `natctl`: one array element.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Bytes used.
    pub length: u32,
    /// The JSON text.
    pub bytes: [u8; REPORT_BYTES],
}

const _: () = {
    assert!(size_of::<FlowKey>() == 16);
    assert!(size_of::<Half>() == 48);
    assert!(size_of::<Slot>() == 64);
    assert!(size_of::<Bucket>() == 1024);
    assert!(size_of::<MappingKey>() == 8);
    assert!(size_of::<Mapping>() == 16);
    assert!(size_of::<Client>() == 64);
    assert!(size_of::<Slice>() == 40);
    assert!(size_of::<Block>() == 24);
    assert!(size_of::<Page>() == 280);
    assert!(size_of::<Address>() == 4);
    assert!(size_of::<Device>() == 12);
    assert!(size_of::<ExcludeKey>() == 8);
    assert!(size_of::<Settings>() == 32);
    assert!(size_of::<Event>() == 40);
    assert!(size_of::<Name>() == 324);
    assert!(size_of::<Pool>() == 348);
    assert!(size_of::<Report>() == 4 + REPORT_BYTES);
};

/// The protocol's place among the three: 0 TCP, 1 UDP, 2 ICMP echo.
#[inline(always)]
pub const fn protocol_index(protocol: u8) -> u32 {
    match protocol {
        6 => 0,
        17 => 1,
        _ => 2,
    }
}
