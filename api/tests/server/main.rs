//! The whole server on SQLite in a directory of its own: as a library and as the process people start.

mod extension;
mod harness;
mod http;
mod process;
mod socket;
