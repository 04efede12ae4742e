//! The real server, over real sockets, with real processes. Only what a restore would change in the
//! machine (clock, host name, `/etc`) is a fake: these tests run as root on somebody's computer.

mod access;
mod connections;
mod content;
mod files;
mod guest;
mod input;
mod lifecycle;
mod memory;
mod output;
mod ports;
mod restore;
mod stand;
mod terminal;
mod watch;
