//! End-to-end tests: everything through the public surface, on real microVMs, on SQLite and on Postgres.
//!
//! One stack per database is shared by all tests of it, and with it the golden snapshot: the first capsule
//! boots, every other one is restored. It is torn down at the end, and what it leaves fails the run.

mod api;
mod connections;
mod copies;
mod doctor;
mod egress;
mod errors;
mod files;
mod identity;
mod lifecycle;
mod metrics;
mod neighbours;
mod ports;
mod process;
mod proxy;
mod python;
mod sdk;
mod streams;
mod subscriptions;
mod terminals;

use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use tokio::sync::OnceCell;
use wrenn_tests::postgres::Cluster;
use wrenn_tests::stack::{Database, LIMIT, Stack, StackOptions};
use wrenn_tests::{assets, runner};

type Test = fn(Arc<Stack>) -> Pin<Box<dyn Future<Output = Result<()>>>>;

/// The tests by their paths, as functions that can be kept in a list.
macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), |stack| Box::pin($module::$name(stack)))),*]
    };
}

/// On both databases.
const BOTH: &[(&str, Test)] = tests![
    lifecycle::runs_and_ends,
    lifecycle::goes_on_over_pause_and_resume,
    lifecycle::is_paused_when_idle,
    lifecycle::stays_awake_while_used,
    lifecycle::changes_of_state_are_repeatable,
    errors::bad_input_changes_nothing,
    errors::templates_without_an_image_say_what_to_do,
    errors::ids_of_other_kinds_are_refused,
    errors::paused_capsules_run_nothing,
    errors::unknown_processes_and_programs,
    errors::other_teams_see_nothing,
    errors::keys_are_wanted,
    api::pages_forwards_and_backwards,
    api::nodes_of_every_kind,
    api::filters_capsules,
    api::creates_once_per_idempotency_key,
    api::concurrent_changes_lose_nothing,
    api::says_where_the_time_went,
    copies::a_snapshot_is_a_template,
    copies::snapshots_are_refused_with_reasons,
    copies::forks_begin_where_their_parent_was,
    copies::forks_are_refused_with_reasons,
    subscriptions::a_capsule_first_then_its_changes,
    subscriptions::capsules_come_and_go,
    subscriptions::a_socket_wants_a_key,
];

/// What no database has a part in runs once.
const ONCE: &[(&str, Test)] = tests![
    doctor::says_what_the_agent_uses,
    identity::copies_differ,
    identity::the_clock_is_right_after_a_pause,
    process::runs_programs_and_shell_lines,
    process::environment_directory_and_user,
    process::environment_of_the_capsule,
    process::standard_input,
    process::a_timeout_kills_the_whole_group,
    process::background_processes_are_listed_and_signalled,
    process::input_is_taken_exactly_once,
    process::output_that_is_not_text,
    process::long_output_is_cut_and_said_so,
    process::tags,
    files::directories_are_made_listed_moved_and_removed,
    files::mistakes_are_named,
    files::a_watch_ends_with_its_directory,
    files::content_goes_up_and_down,
    files::a_gibibyte_goes_up_and_down_in_flat_memory,
    files::an_aborted_download_ends_the_reading_in_the_guest,
    files::signed_urls_open_one_file,
    ports::ports_are_seen_while_they_are_open,
    proxy::services_are_reached_by_name_and_by_path,
    proxy::a_service_that_is_about_to_listen_is_waited_for,
    proxy::sockets_and_events_flow,
    proxy::only_those_who_may_reach_a_service,
    proxy::a_request_wakes_a_capsule_that_was_made_so,
    python::its_own_server_is_reached_by_name_and_by_path,
    python::jupyter_runs_cells,
    metrics::load_shows,
    egress::the_outside_is_reached_as_the_policy_says,
    egress::a_policy_that_makes_no_sense_is_refused,
    egress::host_and_neighbours_are_out_of_reach,
    connections::end_with_the_life_they_began_in,
    neighbours::floods_stop_nobody_else,
    sdk::passes_its_own_tests,
    streams::a_gibibyte_arrives_whole_in_flat_memory,
    streams::a_reader_that_stops_holds_its_process_back,
    streams::output_is_taken_up_again,
    streams::what_is_lost_is_said,
    streams::every_reader_gets_everything,
    streams::streams_end_with_their_capsule,
    streams::output_goes_on_over_a_pause,
    terminals::a_terminal_is_one,
    terminals::bytes_of_every_kind_come_back,
    terminals::what_is_typed_at_once_keeps_its_order,
    terminals::eight_sessions_at_once,
    terminals::a_long_listing_is_complete,
    subscriptions::ports_that_open_and_close_are_changes,
    subscriptions::the_client_from_npm_is_served,
    streams::one_flood_starves_nobody_on_its_socket,
    streams::who_comes_and_goes_ends_no_stream_of_others,
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
    let stacks = Arc::new(Stacks::default());
    let mut trials = Vec::new();
    for (suite, kind) in [(ONCE, Kind::Sqlite), (BOTH, Kind::Sqlite), (BOTH, Kind::Postgres)] {
        for &(name, test) in suite {
            let stacks = Arc::clone(&stacks);
            trials.push(runner::trial(format!("{}::{name}", kind.name()), &runtime, async move || {
                let stack = stacks.get(kind).await?;
                stack.explain(LIMIT, test(Arc::clone(&stack))).await
            }));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let clean = runtime.block_on(stacks.teardown());
    if let Err(error) = &clean {
        eprintln!("\nTEARDOWN FAILED: {error:#}\n");
    }
    if conclusion.has_failed() || clean.is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[derive(Clone, Copy)]
enum Kind {
    Sqlite,
    Postgres,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
        }
    }
}

/// The shared stacks, each started by the first test that wants it. A start that failed is not tried again.
#[derive(Default)]
struct Stacks {
    sqlite: OnceCell<Result<Arc<Stack>, String>>,
    postgres: OnceCell<Result<(Arc<Stack>, Cluster), String>>,
}

impl Stacks {
    async fn get(&self, kind: Kind) -> Result<Arc<Stack>> {
        let started = match kind {
            Kind::Sqlite => self
                .sqlite
                .get_or_init(async || start_sqlite().await.map_err(|e| format!("{e:#}")))
                .await
                .clone(),
            Kind::Postgres => {
                let init = async || start_postgres().await.map_err(|error| format!("{error:#}"));
                let cell = self.postgres.get_or_init(init).await;
                cell.as_ref().map(|(stack, _)| Arc::clone(stack)).map_err(String::clone)
            }
        };
        started.map_err(|error| anyhow!("no stack: {error}"))
    }

    /// Ends what was started; every failure counts, the first is told.
    async fn teardown(&self) -> Result<()> {
        let sqlite = self.sqlite.get().and_then(|started| started.as_ref().ok());
        let postgres = self.postgres.get().and_then(|started| started.as_ref().ok()).map(|(stack, _)| stack);
        let mut outcome = Ok(());
        for stack in sqlite.into_iter().chain(postgres) {
            outcome = outcome.and(stack.teardown().await);
        }
        outcome
    }
}

async fn start_sqlite() -> Result<Arc<Stack>> {
    let images = vec![assets::MINIMAL, assets::CODE_INTERPRETER];
    Ok(Arc::new(Stack::start(StackOptions { images, ..StackOptions::default() }).await?))
}

async fn start_postgres() -> Result<(Arc<Stack>, Cluster)> {
    let cluster = Cluster::start().await?;
    let options = StackOptions { database: Database::Postgres(&cluster), ..StackOptions::default() };
    Ok((Arc::new(Stack::start(options).await?), cluster))
}
