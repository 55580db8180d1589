//! Drops told one by one, for whoever works on the programs: only in objects
//! built with the feature `log`. A log record costs as much as the packet.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::info;
use nat_common::reason::Reason;

/// Tells of a drop. A function of its own, for its own stack frame.
#[inline(never)]
pub fn dropped(context: &impl EbpfContext, reason: Reason) {
    info!(context, "dropped, reason {}", reason as u32);
}
