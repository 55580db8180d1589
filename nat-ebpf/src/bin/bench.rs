//! The benchmark's programs: a generator of frames, the plain redirect that is the limit of
//! what a NAT in XDP can reach, and the sink that counts what arrived.
#![no_std]
#![no_main]
#![allow(
    missing_docs,
    reason = "the macros generate functions that take no documentation"
)]

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    helpers::bpf_redirect,
    macros::{map, xdp},
    maps::{Array, PerCpuArray},
    programs::XdpContext,
};

#[allow(dead_code, reason = "the maps' names are for user space")]
#[path = "../../../tests/src/bench/abi.rs"]
mod abi;

use abi::{Expected, FRAME_LEN, Generator, Macs, Redirect};

/// EtherType of IPv4.
const IPV4: u16 = 0x0800;
/// Protocol number of UDP.
const UDP: u16 = 17;

#[map]
static GENERATOR: Array<Generator> = Array::with_max_entries(1, 0);
#[map]
static REDIRECT: Array<Redirect> = Array::with_max_entries(1, 0);
#[map]
static EXPECTED: Array<Expected> = Array::with_max_entries(1, 0);
#[map]
static ARRIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);

/// Ethernet, IPv4 and UDP without options, in words: fields are stored in network order.
#[repr(C)]
struct Headers {
    macs: Macs,
    inet: Inet,
}

/// What follows the link-layer addresses.
#[repr(C)]
struct Inet {
    ether_type: u16,
    version_tos: u16,
    length: u16,
    id: u16,
    fragment: u16,
    ttl_protocol: u16,
    ip_check: u16,
    source: [u16; 2],
    destination: [u16; 2],
    source_port: u16,
    destination_port: u16,
    udp_length: u16,
    udp_check: u16,
}

/// Writes the next flow's headers into the frame and sends it. Runs under
/// `BPF_PROG_TEST_RUN` with live frames, on one CPU at a time. The pages come back as the
/// gateway left them (addresses, TTL), so everything it may change is written anew.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    let Some(frame) = frame(&ctx) else {
        return XDP_ABORTED;
    };
    let Some(generator) = GENERATOR.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: the map has this one entry, and nobody else writes it during a run.
    let generator = unsafe { &mut *generator };
    let flow = next_flow(generator);
    let inet = inet(generator, flow);
    // SAFETY: `frame` checked that the headers lie inside the packet; the kernel
    // starts packets at even addresses.
    unsafe {
        set_macs(frame, &generator.macs);
        (*frame).inet = inet;
    }
    if generator.ifindex == 0 {
        return XDP_DROP;
    }
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(generator.ifindex, 0) as u32 }
}

/// Stores the link-layer addresses.
///
/// # Safety
///
/// `frame` must point to headers inside the packet.
#[inline(always)]
unsafe fn set_macs(frame: *mut Headers, macs: &Macs) {
    for (word, value) in macs.iter().enumerate() {
        // SAFETY: the caller's promise, and both have six words. Volatile, because LLVM makes
        // a call of memmove out of plain stores, and BPF has no such function.
        unsafe { (&raw mut (*frame).macs[word]).write_volatile(*value) };
    }
}

/// The flow that is next in the generator's order.
#[inline(always)]
fn next_flow(generator: &mut Generator) -> u32 {
    let state = generator.state;
    generator.state = state
        .wrapping_mul(generator.multiplier)
        .wrapping_add(generator.increment)
        & generator.flow_mask;
    state ^ (state >> (generator.fold & 31))
}

/// What follows the link-layer addresses in a frame of this flow.
#[inline(always)]
fn inet(generator: &Generator, flow: u32) -> Inet {
    let client = flow & generator.client_mask;
    let rest = flow >> (generator.client_bits & 31);
    let port = rest >> (generator.destination_bits & 31);
    let slot = client & generator.slot_mask;
    let source = generator.first_client + client;
    let destination = generator.first_destination + (rest & generator.destination_mask);
    let source_port = generator.first_port + (slot << (generator.port_bits & 31)) + port;
    let addresses = sum(source) + sum(destination);
    Inet {
        ether_type: IPV4.to_be(),
        version_tos: 0x4500_u16.to_be(),
        length: 46_u16.to_be(),
        id: 0,
        fragment: 0x4000_u16.to_be(),
        ttl_protocol: 0x4011_u16.to_be(),
        ip_check: (!fold(generator.ip_sum + addresses)).to_be(),
        source: words(source),
        destination: words(destination),
        source_port: (source_port as u16).to_be(),
        destination_port: (generator.destination_port as u16).to_be(),
        udp_length: 26_u16.to_be(),
        udp_check: (!fold(generator.udp_sum + addresses + source_port)).to_be(),
    }
}

/// The two words of an address, added up.
#[inline(always)]
fn sum(address: u32) -> u32 {
    (address >> 16) + (address & 0xffff)
}

/// A sum of words in 16 bits, the carries added in.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + sum) as u16
}

/// An address as it stands in a packet.
#[inline(always)]
fn words(address: u32) -> [u16; 2] {
    [((address >> 16) as u16).to_be(), (address as u16).to_be()]
}

/// The limit: nothing but the link-layer addresses and the way out.
#[xdp]
pub fn redirect(ctx: XdpContext) -> u32 {
    let (Some(frame), Some(to)) = (frame(&ctx), REDIRECT.get(0)) else {
        return XDP_PASS;
    };
    // SAFETY: `frame` checked that the headers lie inside the packet; the kernel
    // starts packets at even addresses.
    unsafe { set_macs(frame, &to.macs) };
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect(to.ifindex, 0) as u32 }
}

/// Counts and drops what arrives.
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    let index = if is_expected(&ctx) {
        abi::ARRIVED
    } else {
        abi::OTHER
    };
    if let Some(count) = ARRIVED.get_ptr_mut(index) {
        // SAFETY: the entry is this CPU's own.
        unsafe { *count += 1 };
    }
    XDP_DROP
}

/// Whether this is a frame of the generator's with one of the sources it should have here.
#[inline(always)]
fn is_expected(ctx: &XdpContext) -> bool {
    let (Some(frame), Some(expected)) = (frame(ctx), EXPECTED.get(0)) else {
        return false;
    };
    // SAFETY: `frame` checked that the headers lie inside the packet; the kernel
    // starts packets at even addresses.
    let inet = unsafe { &(*frame).inet };
    let [high, low] = inet.source.map(u16::from_be);
    let source = u32::from(high) << 16 | u32::from(low);
    inet.ether_type == IPV4.to_be()
        && u16::from_be(inet.ttl_protocol) & 0xff == UDP
        && source.wrapping_sub(expected.first) < expected.count
}

/// The frame's headers, if the packet is long enough to be one of ours.
#[inline(always)]
fn frame(ctx: &XdpContext) -> Option<*mut Headers> {
    let start = ctx.data();
    (start + FRAME_LEN <= ctx.data_end()).then_some(start as *mut Headers)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel's helpers ask for a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
