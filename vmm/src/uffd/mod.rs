//! The page server: it gives a restored guest its memory page by page, as the guest touches it.
//!
//! A VMM that restores with `mem_backend.backend_type = "Uffd"` starts with no memory at all. It hands a
//! *userfaultfd* to whoever listens on a socket; from then on each touch of a missing page is a message there,
//! and the thread that touched it sleeps until it is answered. The server is a process of its own for each
//! capsule, so that a restart of the agent does not leave guests sleeping.
//!
//! ```text
//!              the VMM connects and            told so, or after
//!              sends its memory's layout       `record_for`
//!  ┌─────────┐                ┌───────────┐                ┌─────────┐
//!  │ Waiting │───────────────▶│ Restoring │───────────────▶│ Serving │
//!  └────┬────┘                └─────┬─────┘                └────┬────┘
//!       │ nobody connects           │ the VMM ends, or           │
//!       │ in `accept_within`        │ memory cannot be had       │
//!       ▼                           ▼                            ▼
//!  ┌──────────────────────────────────────────────────────────────────┐
//!  │ Ended: without an error only if the VMM has ended                │
//!  └──────────────────────────────────────────────────────────────────┘
//! ```
//! - *Waiting* → *Restoring*: the layout is checked against the snapshot's memory, the VMM's process is watched
//!   from here on, the working set of the last restore begins to be prefetched.
//! - *Restoring* → *Serving*: what was placed until now is written down as the working set of the next restore.
//!   Nothing else changes.
//! - → *Ended*: with the VMM. When the server fails on its own, the VMM would sleep for ever: whoever drives it
//!   notices by [`PageServerHandle::trouble`], ends it and restores again. There is no page that is better than
//!   none: whatever is not certainly right is an end with an error.

mod config;
mod control;
mod guest;
mod handle;
mod handshake;
mod layout;
mod pages;
mod serve;
mod source;
mod userfault;
mod workers;
mod working_set;

pub use self::{
    config::{DEFAULT_WORKERS, MOST_WORKERS, MemorySource, PageServerConfig},
    control::Stats,
    handle::{PageServerFailure, PageServerHandle, PageServerRecord, Trouble},
    handshake::HandshakeError,
    layout::LayoutError,
    serve::{PageServer, PageServerError, run},
    source::{PAGE, PageSource},
};
