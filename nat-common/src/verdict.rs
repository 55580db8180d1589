//! Where a packet goes now, or why it is dropped.

use crate::{abi::Ipv4, reason::Reason};

/// What becomes of a packet. Each hook's entry turns it into an action, in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours: on, untouched.
    Pass,
    /// Checked where it came in, and not to be translated: on through the kernel, marked as decided.
    Alone,
    /// A client's, checked: on through the kernel, marked as decided and for the outside device.
    Mark,
    /// Translated: on through the kernel.
    Stack,
    /// Translated, Ethernet header rewritten: out through this device.
    Redirect {
        /// Interface out.
        ifindex: u32,
    },
    /// Translated: out through this device, the kernel finds the neighbour.
    Neighbour {
        /// Interface out.
        ifindex: u32,
        /// Next hop's address.
        gateway: Ipv4,
    },
    /// Translated: into the pod behind this device.
    Peer {
        /// The client's device.
        ifindex: u32,
    },
    /// An answer: back out where it came in.
    Reply,
    /// Dropped, and counted.
    Drop(Reason),
}
