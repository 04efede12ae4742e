//! Real machines, by the real VMMs. Needs root, QEMU, and `WRENN_DIR` with a guest kernel and an image; uses
//! slots 31200 to 31299. Machines by Firecracker need its program, as `WRENN_FIRECRACKER_BIN`, and usable KVM: where they
//! are not there it is said that these did not run. `WRENN_TEST_VMM` names the VMMs to test.
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

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Conclusion, Failed, Trial};
use tokio::runtime::Runtime;
use wrenn_vmm::{disk::DiskStoreChoice, firecracker::RestoreChoice, snapshot::Snapshot};

use host::{Host, Vmm};

/// What all tests of one VMM share.
pub struct Stage {
    pub host: Host,
    pub golden: Snapshot,
}

/// The VMMs, by what [`ONLY`] calls them.
const ALL: [&str; 3] = ["qemu", "firecracker-file", "firecracker-uffd"];
/// Names those to test, by commas: each of them must be there.
const ONLY: &str = "WRENN_TEST_VMM";

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if given.first().map(String::as_str) == Some(pages::SERVER) {
        return pages::serve(&given[1..]);
    }
    let arguments = Arguments::from_args();
    if arguments.list {
        // Listing needs neither root nor a machine.
        let named = |(name, _): (&'static str, Body)| Trial::test(name, || Ok(()));
        return libtest_mimic::run(&arguments, all(true).into_iter().map(named).collect()).exit_code();
    }
    let only = std::env::var(ONLY).ok();
    let wanted: Vec<&str> = only.as_deref().map_or(ALL.to_vec(), |only| only.split(',').collect());
    let mut failed = false;
    for name in wanted {
        match vmm(name) {
            Ok(vmm) => failed |= test(&arguments, name, &vmm).has_failed(),
            Err(why) => {
                // Not even a run that shows nothing of tests that pass may hide this.
                eprintln!("\nDID NOT RUN: machines by {name}: {why}\n");
                failed |= only.is_some();
            }
        }
        if failed {
            break;
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn vmm(name: &str) -> Result<Vmm, String> {
    match name {
        "qemu" => Ok(Vmm::qemu()),
        "firecracker-file" => Vmm::firecracker(RestoreChoice::File, None),
        "firecracker-uffd" => Vmm::firecracker(RestoreChoice::Uffd, Some(pages::server())),
        _ => panic!("{ONLY}: {name} is none of {}", ALL.join(", ")),
    }
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
    let trials = all(vmm.restore == RestoreChoice::Uffd)
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

/// `served`: those too whose machines have a page server.
fn all(served: bool) -> Vec<(&'static str, Body)> {
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
    if served {
        all.extend(tests![
            pages::a_machine_whose_page_server_dies_ends,
            pages::a_restore_whose_page_server_fails_is_tried_again,
            pages::a_restore_whose_page_server_always_fails_is_given_up,
            pages::what_a_restore_needed_is_kept_for_the_next,
        ]);
    }
    all
}
