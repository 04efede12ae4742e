//! Capsules: what runs on this host, and how each gets from one state to the next.
//!
//! ```text
//!                 create
//!                    │
//!               ┌────▼─────┐  a step fails, or destroyed meanwhile: all steps undone
//!               │ starting ├───────────────────────────────────────────────┐
//!               └────┬─────┘                                               │
//!      guest reseeded│                                                     │
//!               ┌────▼─────┐   VMM died                                    │
//!      ┌───────►│ running  ├───────────────────────────────────────────┐   │
//!      │        └────┬───▲─┘                                           │   │
//!      │  pause, idle│   │ the pause failed: vCPUs go on               │   │
//!      │        ┌────▼───┴─┐   and cannot be made to go on    ┌───────┐│   │
//!      │        │ pausing  ├─────────────────────────────────►│ error ││   │
//!      │        └────┬─────┘                                  └───┬───┘│   │
//!      │    complete │                                            │    │   │
//!      │        ┌────▼─────┐ the resume failed: as it was paused  │    │   │
//!      │        │ paused   │◄──────────┐                          │    │   │
//!      │        └────┬─────┘           │                          │    │   │
//!      │      resume │                 │      destroy, from any   │    │   │
//!      │        ┌────▼─────┐           │        ┌──────────┐      │    │   │
//!      └────────┤ resuming ├───────────┘        │ stopping │◄─────┘    │   │
//!  guest reseeded──────────┘                    └────┬─────┘           │   │
//!                                                    │                 │   │
//!                                               ┌────▼─────┐           │   │
//!                                               │ stopped  │◄──────────┴───┘
//!                                               └──────────┘ remembered for ten minutes
//! ```
//!
//! - **create** (→ starting → running): room is made sure of, the template's golden snapshot is there or is
//!   made, a slot and a clone of its disk are taken, the machine restored, and envd told who this copy is. A guest that
//!   did not confirm fresh random numbers is never served. Whatever fails, every step is undone.
//! - **pause** (running → pausing → paused): envd syncs, the life ends (streams with it), vCPUs stop, memory,
//!   devices and disk are saved as one snapshot. Only when it is complete is the machine taken apart. A failure after
//!   vCPUs stopped lets them go on; only if that fails too is the capsule in error, its disk kept.
//! - **idle**: the driver itself pauses a capsule that nobody used for its timeout. Nobody else does.
//! - **resume** (paused → resuming → running): the steps of create, from the capsule's own snapshot, in a
//!   new slot. If the guest does not answer in time another machine is tried, once; then everything is as it was paused.
//! - **capture** (running → running, paused → paused): the capsule as it is now, written aside as a template or
//!   for copies of it; it stands still for milliseconds, and its life goes on: drawn in [`checkpoint`].
//! - **flatten**: as capture, but of the disk alone, which becomes an image: drawn in [`flatten`].
//! - **fork**: capsules in `starting` that become `running` together or not at all: drawn in [`fork`].
//! - A create may take a machine that was made ahead instead of restoring one: drawn in [`pool`].
//! - **adoption** (running → running, pausing → running or paused): another agent takes over what lives. A guest that is
//!   slow to answer it runs on and is waited for; calls into it are refused meanwhile. Only after a silence of many times
//!   the grace is it in error, its disk kept.
//! - **VMM died** (running → stopped): noticed through its pidfd; streams end with the cause, everything it
//!   used is given back, and the cause is remembered.
//! - **destroy** (any → stopping → stopped): goes on past errors and reports them all. What could not be
//!   removed stays in error, to be destroyed again.
//!
//! One task per capsule, its *driver*, owns the state; everyone else sends it requests over a queue and
//! reads what it publishes. Calls into a running guest do not queue: they take the published
//! [`RunningHandle`] and end with the life it belongs to.

mod activity;
mod admission;
mod adopt;
mod aside;
mod beginning;
mod checkpoint;
mod driver;
mod engine;
mod error;
mod flatten;
mod fork;
mod golden;
mod golden_budget;
mod golden_status;
mod handover;
mod launch;
mod life;
mod parts;
mod pause;
mod pool;
mod reconnect;
mod record;
mod registry;
mod spec;
mod steps;
mod strays;
mod template;
mod transitions;
mod usage;
mod view;

pub use activity::Attached;
pub use admission::Admission;
pub use adopt::{AdoptError, Leftovers};
pub use checkpoint::Checkpoint;
pub use engine::Engine;
pub use error::{CapsuleError, TeardownError};
pub use flatten::Image;
pub use fork::Forked;
pub use golden::Goldens;
pub use golden_status::{GoldenState, GoldenStatus};
pub use life::{Life, LifeEnd, RunningHandle};
pub use pool::WarmPool;
pub use registry::{CapsuleRegistry, Running};
pub use spec::{
    CapsuleSpec, EnvVar, Limits, name as capsule_name, parse_capsule_id, parse_team_id, parse_template_id,
};
pub use template::{TemplateTurns, delete as delete_template};
pub use view::{CapsuleView, Cause, State};
