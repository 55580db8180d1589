//! Properties of the packet core, for any input.

#[allow(
    dead_code,
    unused_imports,
    reason = "the fixtures of nat-tests use the rest"
)]
mod host;

mod checksums;
mod flags;
mod permutation;
mod ports;
mod rate;
mod round_trip;
mod setup;
mod table;
mod unguessable;
mod wire;
