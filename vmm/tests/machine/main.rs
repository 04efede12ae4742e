//! Real machines, by the real VMMs. Needs root, QEMU, and `WRENN_DIR` with a guest kernel and an image; uses
//! slots 31200 to 31299. Machines by Firecracker need its program, as `WRENN_FIRECRACKER_BIN`, and usable KVM: where they
//! are not there it is said that these did not run. With `WRENN_VMM=firecracker` they must be there, and QEMU need not;
//! `WRENN_RESTORE=uffd` or `=file` runs those of one way to restore.
//!
//! What a guest is told over TCP ends up in its memory: by that these tests tell one machine's memory from
//! another's, whatever daemon runs in it.

mod generations;
mod host;
mod life;
mod mapped;
mod memory;
mod pages;
mod refusal;
mod stall;

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use tokio::runtime::Runtime;
use wrenn_vmm::{disk::DiskStoreChoice, driver::VmmChoice, firecracker::RestoreChoice, snapshot::Snapshot};

use host::{Host, Vmm};

/// What all tests of one VMM share.
pub struct Stage {
    pub host: Host,
    pub golden: Snapshot,
}

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if given.first().map(String::as_str) == Some(pages::SERVER) {
        return pages::serve(&given[1..]);
    }
    let arguments = Arguments::from_args();
    if arguments.list {
        // Listing needs neither root nor a machine.
        let named = |(name, _): (&'static str, Body)| Trial::test(name, || Ok(()));
        return libtest_mimic::run(&arguments, all(None).into_iter().map(named).collect()).exit_code();
    }
    let setting = |name: &str| std::env::var(name).ok();
    let vmm = setting("WRENN_VMM").map_or(VmmChoice::Auto, |vmm| vmm.parse().expect("WRENN_VMM is a VMM"));
    let mut failed = false;
    if vmm != VmmChoice::Firecracker {
        failed |= test(&arguments, "qemu", &Vmm::qemu()).has_failed();
    }
    if vmm != VmmChoice::Qemu {
        for (name, restore) in [("file", RestoreChoice::File), ("uffd", RestoreChoice::Uffd)] {
            if failed || setting("WRENN_RESTORE").is_some_and(|only| only != name) {
                continue;
            }
            let name = format!("firecracker-{name}");
            match Vmm::firecracker(restore, Some(pages::server())) {
                Ok(vmm) => failed |= test(&arguments, &name, &vmm).has_failed(),
                Err(why) => {
                    eprintln!(
                        "\nDID NOT RUN: machines by {name}: {why}; `make test-host` has what it takes\n"
                    );
                    failed |= vmm == VmmChoice::Firecracker || setting("WRENN_TEST_HOST").is_some();
                }
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// One VMM after the other: all use the same slots.
fn test(arguments: &Arguments, name: &str, vmm: &Vmm) -> Conclusion {
    let runtime = Arc::new(Runtime::new().unwrap());
    let stage = Arc::new(runtime.block_on(async {
        let host = Host::start(vmm, "31200-31279", DiskStoreChoice::Auto).await;
        println!("{} on {}", host.driver.summary(), host.store.kind());
        let golden = host.golden().await;
        Stage { host, golden }
    }));
    let trials = all(Some(vmm))
        .into_iter()
        .map(|(test, body)| {
            let (runtime, stage) = (runtime.clone(), stage.clone());
            Trial::test(test, move || run(&runtime, stage, body)).with_kind(name)
        })
        .collect();
    let conclusion = libtest_mimic::run(arguments, trials);
    let stage = Arc::into_inner(stage).expect("all tests have ended");
    if !conclusion.has_failed() {
        // What a failed test leaves is what it was looking at; the next start sweeps it.
        runtime.block_on(stage.host.stop());
    }
    conclusion
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

/// Those that hold for machines by this VMM.
fn all(vmm: Option<&Vmm>) -> Vec<(&'static str, Body)> {
    let mut all = tests![
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
    ];
    if vmm.is_none_or(|vmm| vmm.choice == VmmChoice::Qemu) {
        all.extend(tests![
            stall::a_machine_goes_on_when_there_is_room_again,
            stall::a_machine_that_is_stopped_in_a_stall_stays_stopped_and_can_be_saved,
        ]);
    }
    if vmm.is_none_or(|vmm| vmm.restore == RestoreChoice::Uffd) {
        all.extend(tests![
            pages::a_machine_whose_page_server_dies_ends,
            pages::a_machine_whose_page_server_hangs_starves,
            pages::a_restore_whose_page_server_fails_is_tried_again,
            pages::a_restore_whose_page_server_always_fails_is_given_up,
            pages::what_a_restore_needed_is_kept_for_the_next,
            pages::every_resume_prefetches_what_earlier_lives_needed,
        ]);
    }
    all
}
