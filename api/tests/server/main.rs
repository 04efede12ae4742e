//! The whole server on SQLite in a directory of its own: as a library and as the process people start.

#[expect(dead_code, reason = "it is played in full for the tests of the schema; files need a part of it")]
#[path = "../../../schema/tests/control_plane/agent/mod.rs"]
mod agent;
mod connections;
mod extension;
mod files;
mod graphql_ws;
mod guest;
mod harness;
mod http;
mod output;
mod process;
mod proxy;
mod socket;
