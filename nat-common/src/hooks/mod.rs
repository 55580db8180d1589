//! The steps in order, for every place a program is attached to.
//!
//! | Hook | File | What it does |
//! |---|---|---|
//! | tcx ingress of a client's device, stack path | [`mark`] | checks the source, marks |
//! | tcx ingress of a client's device, direct path; XDP of an inside device | [`outbound`] | translates, sends on |
//! | tcx egress of an outside device | [`guard`] | translates what is marked, stops what is not |
//! | the three above, for a flow's first packet | [`open`] | opens a session |
//! | tcx ingress and XDP of an outside device | [`inbound`] | translates back, delivers; answers ARP |

pub mod guard;
pub mod inbound;
pub mod mark;
pub mod open;
pub mod outbound;
