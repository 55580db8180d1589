//! The agent as a library: sources, desired state, maps, programs.
//!
//! ```text
//! source -> snapshot -> desired (with facts) -> diff -> apply -> maps
//!                                        \-> bpf::links -> programs on devices
//! ```

pub mod announce;
pub mod apply;
pub mod bpf;
pub mod clock;
pub mod cni;
pub mod config;
pub mod desired;
pub mod detach;
pub mod diff;
pub mod facts;
pub mod health;
pub mod kernel;
pub mod keys;
pub mod netlink;
pub mod nft;
pub mod probe;
pub mod purge;
pub mod report;
pub mod reserve;
pub mod run;
pub mod snapshot;
pub mod source;
pub mod state;
pub mod status;
pub mod sweep;
pub mod tell;
pub mod usage;
pub mod ways;
