//! The public surface as a client sees it: requests, the WebSocket, and the few shapes the tests read.

mod capsule;
mod client;
mod copies;
mod files;
mod ports;
mod process;
mod pty;
mod socket;

pub use capsule::{Capsule, Cause, Named};
pub use client::{Client, Failure, GraphqlError};
pub use files::FileEntry;
pub use ports::{DOMAIN, Form};
pub use process::{Collected, Exec, ExecResult, OutputHash, ProcessEvent, ProcessStream};
pub use pty::{Screen, WRITE_PTY, pty_output_query, write_pty_variables};
pub use socket::{Frame, Socket, Subscription};
