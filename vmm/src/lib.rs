//! How to run one microVM: VMM drivers, memory and device snapshots, disks, network slots.
//!
//! The library knows one machine at a time and the host it runs on. It knows no teams, no users, no
//! wire protocol but a VMM's own, and no database.

pub mod disk;
pub mod driver;
pub mod failpoint;
pub mod failure;
pub mod firecracker;
pub mod host;
pub mod kvm;
pub mod memory;
pub mod network;
pub mod paths;
pub mod process;
pub mod qemu;
pub mod snapshot;
mod tsc;
pub mod uffd;
