//! Real machines, by the real VMM. Needs root, QEMU, and `WRENN_DIR` with a guest kernel and an image; uses
//! slots 31200 to 31299.
//!
//! What a guest is told over TCP ends up in its memory: by that these tests tell one machine's memory from
//! another's, whatever daemon runs in it.

mod generations;
mod host;
mod life;
mod mapped;
mod memory;
mod refusal;

use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::Runtime;
use wrenn_vmm::{disk::DiskStoreChoice, snapshot::Snapshot};

use host::Host;

/// What all tests share.
pub struct Stage {
    pub host: Host,
    pub golden: Snapshot,
}

fn main() {
    let arguments = Arguments::from_args();
    if arguments.list {
        // Listing needs neither root nor a machine.
        let named = |(name, _): (&'static str, Body)| Trial::test(name, || Ok(()));
        libtest_mimic::run(&arguments, all().into_iter().map(named).collect()).exit();
    }
    let runtime = Arc::new(Runtime::new().unwrap());
    let stage = Arc::new(runtime.block_on(async {
        let host = Host::start("31200-31269", DiskStoreChoice::Auto).await;
        println!("{} on {}", host.driver.summary(), host.store.kind());
        let golden = host.golden().await;
        Stage { host, golden }
    }));
    let trials = all()
        .into_iter()
        .map(|(name, body)| {
            let (runtime, stage) = (runtime.clone(), stage.clone());
            Trial::test(name, move || run(&runtime, stage, body))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    let stage = Arc::into_inner(stage).expect("all tests have ended");
    if conclusion.has_failed() {
        // What a failed test leaves is what it was looking at; the next start sweeps it.
        conclusion.exit();
    }
    runtime.block_on(stage.host.stop());
}

type Body = fn(Arc<Stage>) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn run(runtime: &Runtime, stage: Arc<Stage>, body: Body) -> Result<(), Failed> {
    runtime.block_on(async { runtime.spawn(body(stage)).await }).map_err(|error| {
        let panic = error.into_panic();
        let message = panic.downcast_ref::<String>().cloned();
        message
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default()
            .into()
    })
}

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$((stringify!($name), (|stage| Box::pin($module::$name(stage))) as Body)),*]
    };
}

fn all() -> Vec<(&'static str, Body)> {
    tests![
        memory::machines_of_one_snapshot_do_not_share_what_they_write,
        memory::a_snapshot_holds_exactly_what_was_in_memory,
        memory::a_machine_goes_on_after_its_snapshot_was_taken,
        memory::a_prepared_save_is_as_exact_also_in_another_home,
        memory::a_machine_outlives_the_snapshot_it_came_from,
        generations::pauses_without_cloning_write_what_changed_and_nothing_else,
        mapped::machines_run_from_mapped_devices,
        life::the_end_of_a_vmm_is_noticed,
        life::a_start_that_is_given_up_leaves_no_process,
        life::another_life_of_the_agent_takes_a_machine_up,
        life::a_vmm_has_no_privileges,
        refusal::a_snapshot_of_another_vmm_is_refused_before_anything_starts,
        refusal::a_disk_or_a_slot_in_use_is_refused,
        refusal::a_state_that_cannot_be_loaded_is_an_error_with_a_reason,
    ]
}
