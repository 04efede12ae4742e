//! Fault tests: processes are killed without warning, each test on a stack of its own.

mod agent;
mod api;
mod churn;
mod full;
mod hosts;
mod hundred;
mod pauses;
mod proxy;
mod replicas;
mod restores;
mod sdk;
mod silence;
mod streams;
mod vmm;
mod walk;

use std::path::Path;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use wrenn_tests::postgres::Cluster;
use wrenn_tests::redis::RedisServer;
use wrenn_tests::runner;
use wrenn_tests::stack::{Database, LIMIT, OnStop, Stack, StackOptions};

type Test = for<'a> fn(&'a Stack) -> Pin<Box<dyn Future<Output = Result<()>> + 'a>>;

/// What stack a test wants.
#[derive(Clone, Copy)]
struct Wanted {
    postgres: bool,
    hosts: usize,
    on_stop: OnStop,
    failpoints: bool,
    /// Of the agents, one that is not as it is by itself.
    setting: Option<(&'static str, &'static str)>,
    /// A second control plane, on Postgres and joined by Redis.
    replica: bool,
    /// The longest that the test may take.
    limit: Duration,
}

/// For tests that are made of many rounds.
const LONG: Duration = Duration::from_secs(3 * 60 * 60);

const ONE: Wanted = Wanted {
    postgres: false,
    hosts: 1,
    on_stop: OnStop::Keep,
    failpoints: false,
    setting: None,
    replica: false,
    limit: LIMIT,
};
const ONE_FOR_LONG: Wanted = Wanted { limit: LONG, ..ONE };
const TWO_REPLICAS: Wanted = Wanted { postgres: true, replica: true, ..ONE };
const TWO_REPLICAS_FOR_LONG: Wanted = Wanted { limit: LONG, ..TWO_REPLICAS };
const TWO_HOSTS: Wanted = Wanted { hosts: 2, ..ONE };
const FAILING: Wanted = Wanted { failpoints: true, ..ONE };
const FAILING_FOR_LONG: Wanted = Wanted { limit: LONG, ..FAILING };
const FAILING_ON_COPIES: Wanted = Wanted { setting: Some(("WRENN_DISK_STORE", "copy")), ..FAILING_FOR_LONG };
const FAILING_ON_MAPPED_DISKS: Wanted =
    Wanted { setting: Some(("WRENN_DISK_STORE", "dm-snapshot")), ..FAILING_FOR_LONG };
const FAILING_WITH_A_POOL: Wanted = Wanted { setting: Some(("WRENN_WARM_POOL", "1")), ..FAILING_FOR_LONG };
const FAILING_ON_POSTGRES: Wanted = Wanted { postgres: true, ..FAILING };
const PAUSING: Wanted = Wanted { on_stop: OnStop::Pause, ..ONE };

/// There where the kernel has it.
const DEVICE_MAPPER: &str = "/dev/mapper/control";

macro_rules! tests {
    ($($wanted:ident $module:ident::$name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), $wanted, |stack| Box::pin($module::$name(stack)))),*]
    };
}

/// The longest first: nothing is left to run beside what runs last.
const TESTS: &[(&str, Wanted, Test)] = tests![
    FAILING_FOR_LONG walk::every_failpoint,
    ONE_FOR_LONG hundred::pauses_in_a_row_lose_nothing,
    FAILING_ON_COPIES walk::every_failpoint_of_a_merge,
    FAILING_ON_MAPPED_DISKS walk::every_failpoint_of_a_mapping,
    FAILING_WITH_A_POOL walk::every_failpoint_of_a_warm_start,
    ONE silence::of_a_guest_ends_at_last,
    FAILING pauses::with_an_absent_agent_lose_no_time,
    FAILING pauses::that_fail_late_lose_no_time,
    FAILING pauses::for_a_checkpoint_lose_no_time,
    ONE pauses::of_a_silent_guest_lose_nothing,
    FAILING pauses::that_fail_wait_for_a_slow_guest,
    FAILING pauses::that_failed_are_not_taken_for_complete,
    FAILING pauses::are_finished_by_an_agent_told_to_end,
    FAILING restores::without_fresh_random_numbers_are_not_served,
    FAILING restores::that_hang_are_tried_again,
    ONE silence::of_a_guest_is_waited_for,
    ONE full::stops_a_guest_until_there_is_room_again,
    ONE full::stops_a_guest_over_the_end_of_its_agent,
    ONE silence::of_a_vmm_is_waited_for,
    ONE silence::of_a_vmm_for_good_costs_no_disk,
    ONE pauses::of_a_guest_that_refuses_lose_nothing,
    ONE agent::killed_while_output_flows,
    ONE agent::killed_while_a_process_keeps_awake,
    ONE agent::killed_and_a_record_damaged,
    FAILING agent::killed_amid_changes,
    FAILING agent::killed_with_the_vmm_once_a_pause_was_saved,
    ONE agent::told_to_end_keeps_capsules,
    PAUSING agent::told_to_end_pauses_capsules,
    ONE vmm::killed_while_output_flows,
    FAILING proxy::a_failed_pause_lets_requests_in_again,
    ONE api::killed_while_capsules_run,
    FAILING api::killed_amid_changes,
    FAILING_ON_POSTGRES api::killed_amid_changes_on_postgres,
    ONE sdk::streams_go_on_over_restarts,
    TWO_HOSTS hosts::two_on_one_machine,
    TWO_REPLICAS replicas::either_will_do,
    TWO_REPLICAS replicas::redis_is_lost,
    TWO_REPLICAS_FOR_LONG streams::a_client_killed_a_hundred_times_misses_nothing,
    ONE_FOR_LONG streams::a_flow_goes_on_over_kills_of_api_and_agent,
    ONE_FOR_LONG churn::fifty_capsules_leave_nothing,
];

fn main() -> ExitCode {
    let arguments = runner::arguments();
    if !arguments.list
        && let Err(error) = runner::check_prerequisites()
    {
        return runner::refuse(&error);
    }
    let runtime = match runner::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return runner::refuse(&error),
    };
    let trial = |&(name, wanted, test): &(&str, Wanted, Test)| {
        runner::trial(name.to_owned(), &runtime, move || with_stack(wanted, test))
    };
    libtest_mimic::run(&arguments, TESTS.iter().map(trial).collect()).exit_code()
}

/// The test on a fresh stack; whatever the test did, nothing may be left when the stack is taken down.
async fn with_stack(wanted: Wanted, test: Test) -> Result<()> {
    if wanted.setting == FAILING_ON_MAPPED_DISKS.setting && !Path::new(DEVICE_MAPPER).exists() {
        let reason = "no device-mapper in this kernel; run `make test-host`";
        ensure!(std::env::var_os("WRENN_TEST_HOST").is_none(), reason);
        eprintln!("DID NOT RUN: {reason}");
        return Ok(());
    }
    let cluster = if wanted.postgres { Some(Cluster::start().await?) } else { None };
    let database = cluster.as_ref().map_or(Database::Sqlite, Database::Postgres);
    let redis = if wanted.replica { Some(Arc::new(RedisServer::start().await?)) } else { None };
    let Wanted { hosts, on_stop, failpoints, setting, replica, .. } = wanted;
    let replicas = usize::from(replica);
    let settings = setting.map(|(name, value)| (name, value.to_owned())).into_iter().collect();
    let options = StackOptions {
        database,
        redis,
        replicas,
        hosts,
        on_stop,
        failpoints,
        settings,
        ..StackOptions::default()
    };
    let stack = Stack::start(options).await?;
    let outcome = stack.explain(wanted.limit, test(&stack)).await;
    let clean = stack.teardown().await.context("teardown");
    outcome.and(clean)
}
