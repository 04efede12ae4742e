//! Machines whose memory is served, and what becomes of them when it no longer is.
//!
//! This program is also the page server of its tests, which fails as its first argument says.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::chown, net::UnixListener},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{PosixFadviseAdvice, posix_fadvise},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::timeout;
use wrenn_vmm::{
    driver::{DriverError, MemorySharing},
    firecracker::PageServerCommand,
    process::ProcessExit,
    uffd::{self, PageServerConfig, PageServerHandle, PageServerRecord, Stats},
};

use crate::{
    Stage,
    host::{PATIENCE, Running},
    memory::live,
};

pub const SERVER: &str = "page-server";
/// Has a directory for each machine whose page servers are to fail, with a file for each time, which is called by how.
const FAILURES: &str = "/run/wrenn-test-page-servers";
/// What a page server that is alive needs to answer, on a busy machine.
const SOON: Duration = Duration::from_secs(5);

pub fn server() -> PageServerCommand {
    let program = std::env::current_exe().unwrap();
    PageServerCommand { program, arguments: vec![SERVER.into()] }
}

/// The page server's process.
pub fn serve(arguments: &[String]) -> ExitCode {
    let [config] = arguments else { panic!("{arguments:?}") };
    let parsed: PageServerConfig = serde_json::from_str(config).unwrap();
    if let Some(way) = next_failure(&parsed) {
        fail(&parsed, &way);
    }
    match uffd::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Takes one of those that are wanted of this machine's.
fn next_failure(config: &PageServerConfig) -> Option<String> {
    let machine = config.control.parent().unwrap().file_name().unwrap();
    let entry = fs::read_dir(Path::new(FAILURES).join(machine)).ok()?.next()?.unwrap();
    fs::remove_file(entry.path()).unwrap();
    Some(entry.file_name().into_string().unwrap())
}

/// Is there for the VMM and answers nothing it asks; or ends when the VMM has come.
fn fail(config: &PageServerConfig, way: &str) -> ! {
    let vmm = UnixListener::bind(&config.socket).unwrap();
    let _control = UnixListener::bind(&config.control).unwrap();
    chown(&config.socket, config.user, config.user).unwrap();
    println!("listening");
    let connection = vmm.accept().unwrap();
    if way.starts_with("hang") {
        loop {
            std::thread::park();
        }
    }
    drop(connection);
    std::process::exit(1)
}

/// What is wanted of a machine's page servers until this is dropped.
struct Failures(PathBuf);

impl Failures {
    fn order(machine: &str, ways: &[&str]) -> Self {
        let directory = Path::new(FAILURES).join(machine);
        fs::create_dir_all(&directory).unwrap();
        for (number, way) in ways.iter().enumerate() {
            fs::write(directory.join(format!("{way}-{number}")), "").unwrap();
        }
        Self(directory)
    }

    fn left(&self) -> usize {
        fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
        // The last one takes what is above it.
        let _ = fs::remove_dir(FAILURES);
    }
}

fn page_server(running: &Running) -> PageServerHandle {
    let record = serde_json::to_value(running.machine.record()).unwrap();
    let record: PageServerRecord = serde_json::from_value(record["driver"]["page_server"].clone()).unwrap();
    PageServerHandle::adopt(&record).unwrap()
}

pub async fn a_machine_whose_page_server_dies_ends(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let running = host.restore("unserved", golden, MemorySharing::Shared).await;
    running.wait_for_guest();
    page_server(&running).process().kill().await.unwrap();
    let exit = timeout(PATIENCE, running.machine.process().exited()).await.expect("noticed in time");
    assert_eq!(exit, ProcessExit::Signal(9));
    let said = running.machine.last_words();
    assert!(said.contains("the page server ended"), "{said}");
    host.end(running).await;
}

pub async fn a_machine_whose_page_server_hangs_starves(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let running = host.restore("starving", golden, MemorySharing::Shared).await;
    let fed = timeout(SOON * 2, running.machine.starves(SOON)).await;
    assert!(fed.is_err(), "{fed:?}");
    let server = page_server(&running).process().identity().pid;
    kill(Pid::from_raw(server), Signal::SIGSTOP).unwrap();
    let why = timeout(PATIENCE, running.machine.starves(SOON)).await.expect("noticed in time");
    assert!(why.contains("the page server hangs"), "{why}");
    host.end(running).await;
}

pub async fn a_restore_whose_page_server_fails_is_tried_again(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    for way in ["hang", "end"] {
        let name = format!("retried-{way}");
        let failures = Failures::order(&name, &[way]);
        let running = host.restore(&name, golden, MemorySharing::Shared).await;
        assert_eq!(failures.left(), 0);
        running.wait_for_guest();
        let expected = fs::read(golden.memory()).unwrap();
        assert_eq!(live(&running).len(), expected.len());
        host.end(running).await;
    }
}

pub async fn a_restore_whose_page_server_always_fails_is_given_up(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let failures = Failures::order("unservable", &["end"; 10]);
    let parts = host.parts("unservable", golden).await;
    let failed = host.try_restore(golden, MemorySharing::Shared, &parts).await.err();
    assert!(matches!(failed, Some(DriverError::PagesLost(_))), "{failed:?}");
    assert!((1..10).contains(&failures.left()), "it was tried again, but not for ever");
    for path in parts.home.of_machine() {
        assert!(!path.exists(), "{} is left", path.display());
    }
    host.discard(parts).await;
}

/// One life after the other, some of which are too short to record a set of their own.
pub async fn every_resume_prefetches_what_earlier_lives_needed(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let at = host.paths.snapshot(&"resumed".parse().unwrap());
    let pause = async |mut running: Running| {
        running.machine.stop_vcpus().await.unwrap();
        let saved = host.save(&mut running, &at).await;
        host.end(running).await;
        saved
    };
    let running = host.restore("resumed", golden, MemorySharing::Shared).await;
    until(&running, |stats| stats.recorded.is_some()).await;
    let mut saved = pause(running).await;
    for long in [false, false, true, true, false] {
        let before = fs::read(saved.working_set()).expect("each pause passes one on");
        let running = host.restore("resumed", &saved, MemorySharing::Own).await;
        until(&running, |stats| stats.prefetched > 0).await;
        if long {
            until(&running, |stats| stats.recorded.is_some()).await;
        }
        saved = pause(running).await;
        // It counts the restores that recorded.
        assert!(!long || fs::read(saved.working_set()).unwrap() != before);
    }
    saved.remove().await.unwrap();
}

async fn until(running: &Running, what: impl Fn(&Stats) -> bool) -> Stats {
    let begun = Instant::now();
    loop {
        // On a busy machine it hangs up on a caller that is late with its question.
        match page_server(running).stats(PATIENCE).await {
            Ok(stats) if what(&stats) => return stats,
            other => assert!(begun.elapsed() < PATIENCE, "still {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Restores with and without a working set, each.
const ROUNDS: usize = 5;
/// What an HTTP/2 client says first: its preface, and settings of which there are none (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Times print as medians: in an emulated host they say how one way compares with the other, and nothing else.
pub async fn what_a_restore_needed_is_kept_for_the_next(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let first = host.restore("first", golden, MemorySharing::Shared).await;
    first.wait_for_guest();
    let begun = Instant::now();
    while !golden.working_set().exists() {
        assert!(begun.elapsed() < PATIENCE, "no working set is kept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    host.end(first).await;
    let (known, aside) = (golden.working_set(), golden.working_set().with_extension("aside"));
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        with.push(first_answer(&stage, "prefetched").await);
        fs::rename(&known, &aside).unwrap();
        without.push(first_answer(&stage, "unprefetched").await);
        fs::rename(&aside, &known).unwrap();
    }
    let [with, without] = [with, without].map(|mut all| {
        all.sort();
        let mut faults: Vec<u64> = all.iter().map(|(_, faults)| *faults).collect();
        faults.sort_unstable();
        (all[ROUNDS / 2].0, faults[ROUNDS / 2])
    });
    println!(
        "until the guest's daemon answers, and faults until then: {with:?} with its working set, {without:?} without"
    );
    assert!(with.1 < without.1, "it waits for fewer pages: {with:?} {without:?}");
}

/// How long it takes from a restore of memory that is in no cache to an answer of the guest's daemon, and how many faults.
async fn first_answer(stage: &Stage, name: &str) -> (Duration, u64) {
    let Stage { host, golden } = stage;
    let memory = fs::File::open(golden.memory()).unwrap();
    posix_fadvise(&memory, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let begun = Instant::now();
    let running = host.restore(name, golden, MemorySharing::Shared).await;
    let mut daemon = running.wait_for_guest();
    daemon.set_read_timeout(Some(PATIENCE)).unwrap();
    daemon.write_all(PREFACE).unwrap();
    daemon.read_exact(&mut [0; 9]).unwrap();
    let took = begun.elapsed();
    let stats = until(&running, |stats| stats.connected).await;
    host.end(running).await;
    (took, stats.faults)
}
