//! The guest daemon: what the host asks of a capsule from inside it.
//!
//! One process, one thread, and a few more while there is work on files. [`daemon`] lets calls in; [`guest`],
//! [`processes`], [`files`] and [`ports`] are the services of `wrenn.envd.v1`; [`content`] is what files contain. A process is prepared by [`launch`], made by [`spawn`], and from then on is a
//! [`process::Process`] in the [`table`]: its output goes [`pump`] → [`output`] (a [`ring`] for each stream)
//! → [`follower`], its input caller → [`input`]. What is done to files is done by a thread that has become the
//! user ([`files::actor`]).
//!
//! Nothing that a guest program or a caller can send may end this process: with it all output that was
//! not read yet would be gone. So no indexing, no `unwrap`, no unbounded buffer on any such way.

pub mod access;
pub mod accounts;
pub mod channel;
pub mod connections;
pub mod content;
pub mod daemon;
pub mod disk;
pub mod exit;
pub mod files;
pub mod follower;
pub mod guest;
pub mod identity;
pub mod input;
pub mod launch;
pub mod metrics;
pub mod output;
pub mod ports;
pub mod process;
pub mod processes;
pub mod pump;
pub mod ring;
pub mod sock_diag;
pub mod spawn;
pub mod status;
pub mod system;
pub mod system_files;
pub mod table;
