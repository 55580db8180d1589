//! The steps of opening a session, and the search for one that is away from its
//! home, as global functions: numbers and contexts in, a number out. The verifier follows each of them once, whatever its
//! caller knows, and each has its own stack frame. What they have to tell each
//! other is in `OPENING`.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use core::ffi::c_void;
use nat_common::{hooks::open, raw::flow_key, session, table};

use crate::{
    route::Neighbours,
    tables::{ANSWERS, Node, SENT},
};

/// First step, for whichever context it is.
#[inline(always)]
pub fn admit(context: *mut c_void, neighbours: Neighbours) -> bool {
    let admitted = match neighbours {
        Neighbours::Known => admit_xdp(context.cast()),
        Neighbours::Found => admit_skb(context.cast()),
    };
    admitted != 0
}

/// First step at XDP: 1 if the packet may open a session.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_xdp(context: *mut xdp_md) -> u32 {
    u32::from(open::admit(&Node::step(context.cast(), Neighbours::Known)))
}

/// First step at tcx: 1 if the packet may open a session.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn admit_skb(context: *mut __sk_buff) -> u32 {
    u32::from(open::admit(&Node::step(context.cast(), Neighbours::Found)))
}

/// Second step: 1 if the internal endpoint has a mapping now.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn map() -> u32 {
    u32::from(session::map(&Node::without_context()))
}

/// Third step: 1 if the reverse half is there now.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn create_reverse() -> u32 {
    u32::from(session::create_reverse(&Node::without_context()))
}

/// Fourth step: 1 if the forward half is there now.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn create_forward() -> u32 {
    u32::from(session::create_forward(&Node::without_context()))
}

/// What follows if the third or fourth step fails.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn withdraw() -> u32 {
    session::withdraw(&Node::without_context());
    0
}

/// Searches the forward table: the slot's number, or `NONE`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn seek_forward(addresses: u64, ports: u64) -> u32 {
    table::seek(&SENT, &flow_key([addresses, ports]))
}

/// Searches the reverse table: the slot's number, or `NONE`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn seek_reverse(addresses: u64, ports: u64) -> u32 {
    table::seek(&ANSWERS, &flow_key([addresses, ports]))
}
