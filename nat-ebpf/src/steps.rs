//! The steps of opening a session, as global functions: numbers and contexts
//! in, a number out. The verifier follows each of them once, whatever its
//! caller knows, and each has its own stack frame. What they have to tell each
//! other is in `OPENING`.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use core::ffi::c_void;
use nat_common::{hooks::open, session};

use crate::{route::Neighbours, tables::Node};

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

/// Third step: 1 if both halves are there now.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn create() -> u32 {
    u32::from(session::create(&Node::without_context()))
}
