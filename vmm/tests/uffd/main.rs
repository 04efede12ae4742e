//! The page server against memory that a real kernel asks it for. Needs root.
//!
//! This program is also the page server and the guest of its tests, by its first argument, so that either
//! can be killed as a process of its own.

mod guest;
mod host;
mod life;
mod memory;
mod region;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some(host::SERVER) => host::serve(&arguments[1..]),
        Some(host::GUEST) => {
            guest::main(&arguments[1..]);
            ExitCode::SUCCESS
        }
        _ => libtest_mimic::run(&Arguments::from_args(), all()).exit_code(),
    }
}

fn run(body: impl Future<Output = ()>) -> Result<(), Failed> {
    tokio::runtime::Runtime::new()?.block_on(body);
    Ok(())
}

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$(Trial::test(stringify!($name), || run($module::$name()))),*]
    };
}

fn all() -> Vec<Trial> {
    tests![
        memory::every_page_is_what_the_snapshot_has,
        memory::shared_memory_is_served_too,
        memory::memory_in_generations_is_served_too,
        memory::what_was_given_back_is_zeros,
        memory::what_was_given_back_is_zeros_in_shared_memory,
        memory::what_was_given_back_while_it_was_read_is_zeros,
        memory::what_the_last_restore_needed_is_there_before_it_is_asked_for,
        memory::what_nobody_asks_for_any_more_leaves_the_working_set,
        memory::a_damaged_working_set_does_no_harm,
        memory::a_restore_that_nobody_calls_ready_is_recorded_in_time,
        life::the_death_of_a_server_is_noticed_while_its_guest_sleeps,
        life::a_server_that_hangs_is_noticed,
        life::a_fault_that_is_not_answered_is_noticed,
        life::memory_that_cannot_be_read_ends_the_server,
        life::a_server_ends_with_its_vmm,
        life::a_server_that_no_vmm_comes_to_ends,
        life::a_layout_that_is_not_the_memorys_is_refused,
        life::a_server_that_cannot_start_says_why,
        life::another_life_of_the_agent_takes_a_server_up,
        life::a_server_is_only_the_vmms_user,
    ]
}
