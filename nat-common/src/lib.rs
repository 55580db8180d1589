//! The packet core and the layout of the tables, for both sides of the data plane.
//!
//! This crate is `no_std` and free of any BPF library: it compiles for the BPF
//! target, where `nat-ebpf` gives it packets and maps, and for the host, where
//! the tests give it byte slices and plain collections. A packet's way through
//! it is one step a file:
//!
//! 1. [`packet`]: what it is;
//! 2. [`classify`]: whose it is, and which way it goes;
//! 3. [`session`]: its two halves, found or created ([`table`] has them, [`ports`] gives the port);
//! 4. [`translate`]: what changes in it;
//! 5. [`verdict`]: where it goes now, or why it is dropped.
//!
//! [`hooks`] puts the steps in order for every place a program is attached to.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod classify;
pub mod hooks;
pub mod packet;
pub mod permute;
pub mod ports;
pub mod rate;
pub mod raw;
pub mod reason;
pub mod session;
pub mod table;
pub mod translate;
pub mod verdict;
pub mod world;
