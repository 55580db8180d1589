//! BPF maps and programs from user space.
//!
//! | File | What it is |
//! |---|---|
//! | [`sys`] | the bpf(2) calls that are needed, and all of the agent's `unsafe` around them |
//! | [`map`] | a pinned map with keys and values of known types |
//! | [`shared`] | arrays that agent and programs change at the same time, mapped into memory |
//! | [`flows`] | a session table in memory |
//! | [`layout`] | which maps there are, their shapes and sizes; refuses pins of another shape |
//! | [`tables`] | all of them, opened from their pins |
//! | [`object`] | loading the programs over pinned maps |
//! | [`links`] | attaching programs to devices, pinned |
//! | [`log`] | what the programs log, in objects built for it |

pub mod flows;
pub mod layout;
pub mod links;
pub mod log;
pub mod map;
pub mod object;
pub mod pins;
pub mod shared;
pub mod sys;
pub mod tables;
