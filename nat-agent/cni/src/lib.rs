//! The CNI plugin: a pod's network is ready when the agent has programmed it, and not before.
//!
//! ```text
//! call        what the runtime asks for: environment and standard input
//! plugin      what is done about it
//! error       the specification's errors
//! protocol    what plugin and agent tell each other
//! socket      the plugin's side of it
//! conflist    the plugin's place in a network configuration: pure
//! install     files: configuration and program, put in place and removed
//! ```
//!
//! After the CNI specification 1.1.0 (containernetworking/cni, SPEC.md).

pub mod call;
pub mod conflist;
pub mod error;
pub mod install;
pub mod plugin;
pub mod protocol;
pub mod socket;

/// The plugin's type in a network configuration, and its program's name.
pub const NAME: &str = "nat-cni";
