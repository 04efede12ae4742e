//! The guest daemon: what the host asks of a capsule from inside it.
//!
//! One process, one thread. [`daemon`] lets calls in, [`guest`] and [`processes`] are the two services of
//! `wrenn.envd.v1`. A process is prepared by [`launch`], made by [`spawn`], and from then on is a
//! [`process::Process`] in the [`table`]: its output goes [`pump`] → [`output`] (a [`ring`] for each stream)
//! → [`follower`], its input caller → [`input`].
//!
//! Nothing that a guest program or a caller can send may end this process: with it all output that was
//! not read yet would be gone. So no indexing, no `unwrap`, no unbounded buffer on any such way.

pub mod access;
pub mod accounts;
pub mod channel;
pub mod connections;
pub mod daemon;
pub mod exit;
pub mod files;
pub mod follower;
pub mod guest;
pub mod identity;
pub mod input;
pub mod launch;
pub mod output;
pub mod process;
pub mod processes;
pub mod pump;
pub mod ring;
pub mod spawn;
pub mod status;
pub mod system;
pub mod table;
