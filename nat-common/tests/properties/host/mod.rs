//! The packet core's surroundings on the host: byte slices for packets, plain
//! collections for tables, a clock that stands still, seeded randomness.
//!
//! The core is `no_std` and has no place for these. `nat-tests` includes this
//! directory by its path, so that properties, fixtures and fuzzing share it.

pub mod frame;
pub mod halves;
pub mod lent;
pub mod tables;
pub mod world;

pub use frame::HostFrame;
pub use halves::Halves;
pub use tables::Tables;
pub use world::{HostRoute, HostWorld, Level};
