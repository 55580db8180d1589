//! What the maps of the `bench` object hold: compiled into the programs
//! (`nat-ebpf/src/bin/bench.rs`) and into the benchmark, so it is written once.

/// Where a frame starts and how long it is: Ethernet, IPv4, UDP and 18 bytes of payload.
pub const FRAME_LEN: usize = 60;

/// Name of the map with the one [`Generator`].
pub const GENERATOR_MAP: &str = "GENERATOR";
/// Name of the map with the one [`Redirect`].
pub const REDIRECT_MAP: &str = "REDIRECT";
/// Name of the map with the one [`Expected`].
pub const EXPECTED_MAP: &str = "EXPECTED";
/// Name of the per-CPU map with the two counters below.
pub const ARRIVED_MAP: &str = "ARRIVED";

/// Counter of the frames that arrived with the source they should have.
pub const ARRIVED: u32 = 0;
/// Counter of everything else that arrived.
pub const OTHER: u32 = 1;

/// The two link-layer addresses as a frame starts with them, destination first, in words.
pub type Macs = [u16; 6];

/// What the generator writes into the next frame, and the order of the flows.
///
/// Flow `f` (`0 ..= flow_mask`) is client `f & client_mask`; of what is left, the low
/// `destination_bits` are the destination and the rest the client's port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Generator {
    /// State of a linear congruential generator over the flows: with a multiplier of
    /// `4n + 1` and an odd increment it visits each flow once per round. A multiplier and an
    /// increment of 1 count.
    pub state: u32,
    /// The generator's multiplier.
    pub multiplier: u32,
    /// The generator's increment.
    pub increment: u32,
    /// The state is folded onto itself by so many bits: without it the low bits of the
    /// sequence, and so the clients, would come in turn.
    pub fold: u32,
    /// Number of flows, a power of two, less one.
    pub flow_mask: u32,
    /// Number of clients, a power of two, less one.
    pub client_mask: u32,
    /// The clients' number as a power of two.
    pub client_bits: u32,
    /// Number of destinations, a power of two, less one.
    pub destination_mask: u32,
    /// The destinations' number as a power of two.
    pub destination_bits: u32,
    /// Clients that share an egress address, a power of two, less one. They use different
    /// source ports, so that a NAT that keeps ports can keep them.
    pub slot_mask: u32,
    /// Ports of each client, as a power of two.
    pub port_bits: u32,
    /// The first client's address.
    pub first_client: u32,
    /// The first destination.
    pub first_destination: u32,
    /// Lowest source port.
    pub first_port: u32,
    /// Destination port.
    pub destination_port: u32,
    /// Checksum of the IPv4 header without its addresses, not folded.
    pub ip_sum: u32,
    /// Checksum of UDP and its pseudo-header without addresses and source port, not folded.
    pub udp_sum: u32,
    /// Device that the frames are sent to; 0: they are dropped, which leaves what the
    /// generator itself costs.
    pub ifindex: u32,
    /// The frame's link-layer addresses.
    pub macs: Macs,
}

/// Where the plain redirect sends its frames.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Redirect {
    /// Device that the frames leave by.
    pub ifindex: u32,
    /// The addresses written into them.
    pub macs: Macs,
}

/// The sources that frames should arrive with at the sink.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    /// First address.
    pub first: u32,
    /// How many addresses follow each other from there.
    pub count: u32,
}
