//! tcx entry points. One place turns verdicts into tcx actions.

use aya_ebpf::{
    bindings::{
        __sk_buff, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    macros::classifier,
    programs::TcContext,
};
use nat_common::{
    abi::Ipv4,
    hooks::{
        guard::guard,
        inbound::{Layer, inbound},
        mark::mark,
        open::Way,
        outbound::outbound,
    },
    verdict::Verdict,
};

use crate::{
    frame::SkbFrame,
    route::Neighbours,
    settings,
    tables::{Node, count},
};

/// `AF_INET`.
const INET: u32 = 2;

/// Ingress of a client's device, stack path: checks and marks. It never writes
/// packet bytes, which would make the kernel copy every cloned header.
#[classifier]
pub fn client_stack(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let node = Node::new(&context, Neighbours::Found);
    let verdict = mark(&SkbFrame::behind_xdp(skb), &node, ifindex(skb));
    act(&context, verdict)
}

/// Ingress of a client's device, direct path: translates and sends on.
#[classifier]
pub fn client_direct(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let node = Node::new(&context, Neighbours::Found);
    let verdict = outbound(&mut SkbFrame::new(skb), &node, ifindex(skb), Way::Neighbour);
    act(&context, verdict)
}

/// Egress of an outside device: translates what is marked, stops what is not.
#[classifier]
pub fn outside_egress(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let node = Node::new(&context, Neighbours::Found);
    // SAFETY: the kernel's context is valid while the program runs.
    let marked = unsafe { (*skb).mark } & settings::mark() != 0;
    let verdict = guard(&mut SkbFrame::new(skb), &node, marked);
    act(&context, verdict)
}

/// Ingress of an outside device: translates answers back and delivers them.
#[classifier]
pub fn outside_ingress(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    let node = Node::new(&context, Neighbours::Found);
    let verdict = inbound(
        &mut SkbFrame::behind_xdp(skb),
        &node,
        ifindex(skb),
        Layer::Tcx,
    );
    act(&context, verdict)
}

#[inline(always)]
fn ifindex(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the kernel's context is valid while the program runs.
    unsafe { (*skb).ifindex }
}

/// Programs of others on the same hook run after ours: `TCX_NEXT`, not `TCX_PASS`.
#[inline(always)]
fn act(context: &TcContext, verdict: Verdict) -> i32 {
    let skb = context.skb.skb;
    match verdict {
        Verdict::Pass | Verdict::Stack => TCX_NEXT,
        Verdict::Alone => set(skb, settings::decided()),
        Verdict::Mark => set(skb, settings::decided() | settings::mark()),
        // SAFETY: a helper with plain arguments.
        Verdict::Reply => unsafe { bpf_redirect(ifindex(skb), 0) as i32 },
        Verdict::Neighbour { ifindex, gateway } => to_neighbour(ifindex, gateway),
        // SAFETY: a helper with plain arguments.
        Verdict::Peer { ifindex } => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        Verdict::Drop(reason) => {
            count(context, reason);
            TCX_DROP
        }
        // XDP's; the core does not give it to tcx.
        Verdict::Redirect { .. } => TCX_DROP,
    }
}

/// On through the kernel, with these bits of the mark.
#[inline(always)]
fn set(skb: *mut __sk_buff, bits: u32) -> i32 {
    // SAFETY: the kernel's context is valid while the program runs.
    unsafe { (*skb).mark |= bits };
    TCX_NEXT
}

#[inline(always)]
fn to_neighbour(ifindex: u32, gateway: Ipv4) -> i32 {
    let mut params = bpf_redir_neigh {
        nh_family: INET,
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: [0; 4] },
    };
    params.__bindgen_anon_1.ipv4_nh = u32::from_ne_bytes(gateway);
    let size = size_of::<bpf_redir_neigh>() as i32;
    // SAFETY: the structure is valid, the size is its own.
    unsafe { bpf_redirect_neigh(ifindex, &raw mut params, size, 0) as i32 }
}
