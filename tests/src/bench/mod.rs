//! The benchmarks: what a packet, a new flow and a pod's connection cost through natctl, against
//! plain XDP redirect, `nft` and the kernel's own forwarding, always side by side in one run.
//!
//! [`kubernetes`] is apart: it measures the agent in a large cluster.
//!
//! `docs/performance.md` says how they measure and what came out.

pub mod abi;
pub mod agent;
pub mod bed;
pub mod budget;
pub mod candidate;
pub mod connections;
pub mod conntrack;
pub mod cpu;
pub mod footprint;
pub mod forward;
pub mod kubernetes;
pub mod machine;
pub mod mix;
pub mod newflows;
pub mod pods;
pub mod report;
pub mod rounds;
pub mod roundtrip;
pub mod suite;
pub mod topology;
pub mod traffic;
