//! The kernel's routes and neighbours, by `bpf_fib_lookup` (140 ns: once per
//! flow and generation, not per packet).

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as Params},
    helpers::generated::bpf_fib_lookup,
};
use core::{ffi::c_void, mem::MaybeUninit};
use nat_common::world::{Hop, RouteQuery};

/// `AF_INET`.
const INET: u8 = 2;

/// What becomes of a next hop whose Ethernet address is not known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Neighbours {
    /// The packet takes the stack path, and the kernel asks for it.
    Known,
    /// `bpf_redirect_neigh` asks for it.
    Found,
}

/// Looks up the way: true and the next hop if packets can be sent there.
// A function of its own, for its own stack frame.
#[inline(never)]
pub fn look_up(
    context: *mut c_void,
    query: &RouteQuery,
    neighbours: Neighbours,
    hop: &mut Hop,
) -> bool {
    // SAFETY: all-zero bytes are a valid value of this C structure.
    let mut params: Params = unsafe { MaybeUninit::zeroed().assume_init() };
    params.family = INET;
    params.l4_protocol = query.protocol;
    params.ifindex = query.ingress;
    params.__bindgen_anon_2.tos = query.tos;
    params.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(query.source);
    params.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(query.destination);
    // SAFETY: context and structure are valid, the size is the structure's own.
    let result =
        unsafe { bpf_fib_lookup(context, &raw mut params, size_of::<Params>() as i32, 0) } as u32;
    let known = result == BPF_FIB_LKUP_RET_SUCCESS;
    if !known && (result != BPF_FIB_LKUP_RET_NO_NEIGH || neighbours == Neighbours::Known) {
        return false;
    }
    // SAFETY: after the helper these members of the unions are the ones it wrote.
    let (mtu, gateway) = unsafe {
        (
            params.__bindgen_anon_1.mtu_result,
            params.__bindgen_anon_4.ipv4_dst,
        )
    };
    *hop = Hop {
        ifindex: params.ifindex,
        // Without a neighbour the helper stops before the MTU; the kernel checks it.
        mtu: if known { mtu } else { u16::MAX },
        gateway: gateway.to_ne_bytes(),
        destination_mac: params.dmac,
        source_mac: params.smac,
    };
    true
}
