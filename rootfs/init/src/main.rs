//! The first program of a capsule, twice.
//!
//! In the initramfs (`/init`) it loads the drivers of the disk and the network card and hands over to
//! the disk; there (`/sbin/wrenn-init`) it is process 1 for as long as the machine lives. One binary
//! is both because both need the same few system calls and nothing else. Which of the two it is follows
//! from where it finds itself: only the initramfs has a list of modules.

mod disk;
mod failure;
mod initramfs;
mod network;
mod supervisor;
mod system;

use std::{path::Path, process::ExitCode};

use crate::failure::report;

fn main() -> ExitCode {
    // Anybody may look at the program's name and version; only the kernel may start it for real.
    if std::process::id() != 1 {
        println!("wrenn-init {} (does its work only as process 1)", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if Path::new(initramfs::MODULE_LIST).exists() {
        // On success the process has become the one on the disk. When it returns, the kernel panics
        // because process 1 ended, and with `panic=-1` the machine ends where its host can see it.
        let Err(failure) = initramfs::hand_over();
        report(&failure);
        return ExitCode::FAILURE;
    }
    for failure in system::set_up() {
        report(&failure);
    }
    for failure in network::set_up() {
        report(&failure);
    }
    if let Err(failure) = disk::grow_root() {
        report(&failure);
    }
    supervisor::Supervisor::new().run()
}
