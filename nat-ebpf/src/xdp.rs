//! XDP entry points. One place turns verdicts into XDP actions.

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX},
    helpers::generated::bpf_redirect,
    macros::xdp,
    programs::XdpContext,
};
use nat_common::{
    hooks::{
        inbound::{Layer, inbound},
        open::Way,
        outbound::outbound,
    },
    verdict::Verdict,
    world::Frame,
};

use crate::{
    frame::XdpFrame,
    route::Neighbours,
    settings,
    tables::{Node, count},
};

/// On an outside device: answers come back.
#[xdp(frags)]
pub fn xdp_outside(context: XdpContext) -> u32 {
    let node = Node::new(&context, Neighbours::Known);
    let verdict = inbound(
        &mut XdpFrame::new(context.ctx),
        &node,
        ifindex(&context),
        Layer::Xdp,
    );
    act(&context, verdict)
}

/// On an inside device: clients' packets go out.
#[xdp(frags)]
pub fn xdp_inside(context: XdpContext) -> u32 {
    let node = Node::new(&context, Neighbours::Known);
    let verdict = outbound(
        &mut XdpFrame::new(context.ctx),
        &node,
        ifindex(&context),
        Way::Redirect,
    );
    act(&context, verdict)
}

/// Attached nowhere: the agent runs it on a packet of its own to read the
/// kernel's jiffies, which the packet's first 8 bytes become.
#[xdp(frags)]
pub fn clock(context: XdpContext) -> u32 {
    let mut frame = XdpFrame::new(context.ctx);
    match frame.store(0, &settings::jiffies().to_ne_bytes()) {
        Some(()) => XDP_PASS,
        None => XDP_ABORTED,
    }
}

#[inline(always)]
fn ifindex(context: &XdpContext) -> u32 {
    // SAFETY: the kernel's context is valid while the program runs.
    unsafe { (*context.ctx).ingress_ifindex }
}

#[inline(always)]
fn act(context: &XdpContext, verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass | Verdict::Stack => XDP_PASS,
        Verdict::Reply => XDP_TX,
        // SAFETY: a helper with plain arguments.
        Verdict::Redirect { ifindex } => unsafe { bpf_redirect(ifindex, 0) as u32 },
        Verdict::Drop(reason) => {
            count(context, reason);
            XDP_DROP
        }
        // These are tcx's; the core does not give them to XDP.
        Verdict::Alone | Verdict::Mark | Verdict::Neighbour { .. } | Verdict::Peer { .. } => {
            XDP_ABORTED
        }
    }
}
