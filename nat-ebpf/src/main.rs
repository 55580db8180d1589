//! The BPF programs: entry points, and the packet core's world over maps and helpers.
//!
//! | File | What it is |
//! |---|---|
//! | [`xdp`], [`tcx`] | entry points: a context in, an action out |
//! | [`frame`] | packet bytes over both contexts |
//! | [`tables`] | the maps, and the core's world over them |
//! | [`route`] | the kernel's routes |
//! | `log` | drops told one by one, in objects for developers |
//! | [`settings`] | what the agent sets at load |
//! | [`steps`] | the steps of opening a session, one function each |
//!
//! Everything about packets is in `nat-common`.
#![no_std]
#![no_main]

mod frame;
#[cfg(feature = "log")]
mod log;
mod route;
mod settings;
mod steps;
mod tables;
mod tcx;
mod xdp;

/// The core never panics; the compiler must be given something all the same.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel's helpers that the programs call are for GPL-compatible objects.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
