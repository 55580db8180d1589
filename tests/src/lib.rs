//! Fixtures, program runs and network-namespace labs.

pub mod agent;
pub mod api_server;
pub mod background;
pub mod bench;
pub mod cluster;
pub mod config;
pub mod crafted;
pub mod deploy;
pub mod fixtures;
pub mod image;
pub mod lab;
pub mod netns;
pub mod pod;
pub mod process;
pub mod programs;
pub mod raw;
pub mod sniffer;
pub mod status;
pub mod stun;
pub mod sys;
pub mod topology;
pub mod wire;
