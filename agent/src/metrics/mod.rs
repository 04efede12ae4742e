//! What each capsule costs this host: CPU, memory and disk of its VMM, sampled by one task for all of them, and kept
//! for a day, the coarser the longer.
//!
//! The samples of a capsule are in memory while the agent knows it, and in a file of its directory from each pause on,
//! so that a paused capsule's survive the agent. What is kept of this agent's own work is elsewhere: `/metrics`.

mod file;
mod history;
mod meters;
mod reading;

pub use history::{History, LONGEST_RANGE, Point};
pub use meters::{Meters, Points, sample};
