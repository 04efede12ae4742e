//! The harness of the end-to-end tests, the fault tests and the benchmark: real `wrenn-api` and
//! `wrenn-agent` processes on free ports, real databases, real microVMs, and the clients to drive them.
//!
//! Nothing here is linked with the product but the contracts (`wrenn-proto`): what is tested are the
//! binaries, through their public surface.

pub mod agent;
pub mod assets;
pub mod binaries;
pub mod counter;
pub mod daemon;
pub mod graphql;
pub mod guest;
pub mod inventory;
mod leftovers;
pub mod node;
pub mod outside;
pub mod postgres;
pub mod procfs;
pub mod redis;
pub mod runner;
pub mod stack;
pub mod stats;
pub mod wait;
