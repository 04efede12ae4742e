//! How a page server begins, ends, and fails.

use std::{
    os::unix::{fs::MetadataExt as _, net::UnixListener},
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::time::timeout;
use wrenn_vmm::{
    process::ProcessExit,
    uffd::{PageServerFailure, PageServerHandle, Trouble},
};

use super::host::{DEADLINE, Host, PAGES, Server, signal};

/// A page at the end of the memory that is no hole.
const LAST: u64 = PAGES - 16;

pub async fn the_death_of_a_server_is_noticed_while_its_guest_sleeps() {
    let host = Host::new();
    let server = host.server().await.unwrap();
    let mut guest = host.guest("anonymous");
    guest.does("touch 0 3");
    server.handle().process().kill().await.unwrap();
    guest.tell(&format!("touch {LAST}"));
    let trouble = timeout(DEADLINE, server.handle().trouble(DEADLINE)).await.unwrap();
    assert!(matches!(trouble, Trouble::Exited(ProcessExit::Signal(9))), "{trouble:?}");
    guest.until_asleep();
    assert!(!guest.has_answered(), "a page came from nowhere");
    guest.end();

    // What it leaves is removed, and the next one starts in its place.
    assert!(host.config.control.exists());
    server.end().await;
    assert!(!host.config.control.exists());
    let server = host.server().await.unwrap();
    let mut guest = host.guest("anonymous");
    guest.does(&format!("touch {LAST}"));
    server.end().await;
}

pub async fn a_server_that_hangs_is_noticed() {
    let host = Host::new();
    let server = host.server().await.unwrap();
    let mut guest = host.guest("anonymous");
    guest.does("touch 0");
    signal(server.handle().process().identity().pid, Signal::SIGSTOP);
    server.until_stopped();
    guest.tell("touch 2000");
    let trouble = timeout(DEADLINE, server.handle().trouble(Duration::from_millis(300))).await.unwrap();
    assert!(matches!(trouble, Trouble::Hangs(_)), "{trouble:?}");
    guest.until_asleep();
    // It goes on if it can.
    signal(server.handle().process().identity().pid, Signal::SIGCONT);
    assert_eq!(guest.answer(), "right");
    server.stats().await;
}

pub async fn a_fault_that_is_not_answered_is_noticed() {
    const LONG: Duration = Duration::from_secs(2);
    let host = Host { how: "never", ..Host::new() };
    let server = host.server().await.unwrap();
    let mut guest = host.guest("anonymous");
    guest.does("touch 0 1 2");
    guest.tell(&format!("touch {LAST}"));
    server.until(|stats| u128::from(stats.busy_ms) > LONG.as_millis()).await;
    let trouble = timeout(DEADLINE, server.handle().trouble(LONG)).await.unwrap();
    assert!(matches!(&trouble, Trouble::Hangs(why) if why.contains("at one thing")), "{trouble:?}");
    assert!(!guest.has_answered());
    // It still ends when the guest does.
    guest.end();
    let exit = timeout(DEADLINE, server.handle().exited()).await.unwrap();
    assert_eq!(exit, ProcessExit::Code(0));
}

pub async fn memory_that_cannot_be_read_ends_the_server() {
    let host = Host { how: "badly", ..Host::new() };
    let server = host.server().await.unwrap();
    let mut guest = host.guest("anonymous");
    guest.does("touch 0 1 2");
    guest.tell(&format!("touch {LAST}"));
    let trouble = timeout(DEADLINE, server.handle().trouble(DEADLINE)).await.unwrap();
    assert!(matches!(trouble, Trouble::Exited(ProcessExit::Code(1))), "{trouble:?}");
    assert!(host.log().contains("the disk is broken"), "{}", host.log());
    guest.until_asleep();
    assert!(!guest.has_answered(), "a page came from nowhere");
}

pub async fn a_server_ends_with_its_vmm() {
    let host = Host::new();
    let server = host.server().await.unwrap();
    let mut guest = host.guest("anonymous");
    guest.does("touch 0");
    assert!(!host.config.socket.exists(), "nobody else may connect");
    guest.end();
    let exit = timeout(DEADLINE, server.handle().exited()).await.unwrap();
    assert_eq!(exit, ProcessExit::Code(0), "{}", host.log());
    assert!(!host.config.control.exists());
    server.end().await;
}

pub async fn a_server_that_no_vmm_comes_to_ends() {
    // It waits only once somebody watches it.
    let mut host = Host { how: "later", ..Host::new() };
    host.config.accept_within = Duration::from_millis(50);
    let server = host.server().await.unwrap();
    server.until_stopped();
    signal(server.handle().process().identity().pid, Signal::SIGCONT);
    let exit = timeout(DEADLINE, server.handle().exited()).await.unwrap();
    assert_eq!(exit, ProcessExit::Code(1));
    assert!(host.log().contains("Nobody"), "{}", host.log());
    assert!(!host.config.socket.exists() && !host.config.control.exists());
}

pub async fn a_layout_that_is_not_the_memorys_is_refused() {
    let host = Host::new();
    let server = host.server().await.unwrap();
    let _guest = host.guest_of("anonymous", PAGES + 2);
    let exit = timeout(DEADLINE, server.handle().exited()).await.unwrap();
    assert_eq!(exit, ProcessExit::Code(1));
    assert!(host.log().contains("not in the snapshot's memory"), "{}", host.log());
}

pub async fn a_server_that_cannot_start_says_why() {
    let mut host = Host::new();
    let refused = async |host: &Host, expected: &str| {
        let error = host.server().await.err().unwrap();
        assert!(matches!(error, PageServerFailure::Start(_)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    let in_use = UnixListener::bind(&host.config.socket).unwrap();
    refused(&host, "vmm.sock: Address already in use").await;
    drop(in_use);
    std::fs::remove_file(&host.config.socket).unwrap();
    host.config.workers = 0;
    refused(&host, "0 threads to answer faults: give 1 to 32").await;
    host.config.workers = 4;
    std::fs::remove_file(host.at("memory")).unwrap();
    refused(&host, "/memory: No such file").await;
    assert!(!host.config.socket.exists() && !host.config.control.exists());
}

pub async fn another_life_of_the_agent_takes_a_server_up() {
    let host = Host::new();
    let server = host.server().await.unwrap();
    let mut guest = host.guest("anonymous");
    guest.does("touch 0");
    let record = serde_json::to_string(&server.handle().record()).unwrap();
    let adopted = Server::adopt(&serde_json::from_str(&record).unwrap());
    assert_eq!(adopted.stats().await.faults, 1);
    adopted.ready().await.unwrap();
    adopted.end().await;
    timeout(DEADLINE, server.handle().exited()).await.unwrap();
    let gone = PageServerHandle::adopt(&server.handle().record());
    assert!(gone.is_err());
}

pub async fn a_server_is_only_the_vmms_user() {
    const USER: u32 = 31_999;
    let mut host = Host::new();
    host.config.user = Some(USER);
    let own = host.at("own");
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(USER), Some(USER)).unwrap();
    // As the capsule's directory would be.
    std::fs::set_permissions(host.directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))
        .unwrap();
    host.config.record = Some(own.join("working-set"));
    let server = host.server().await.unwrap();
    assert_eq!(std::fs::metadata(&host.config.socket).unwrap().uid(), USER);
    assert_eq!(std::fs::metadata(&host.config.control).unwrap().uid(), 0);
    let mut guest = host.guest("anonymous");
    guest.does("all 2 1");
    let pid = server.handle().process().identity().pid;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for line in [
        format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}"),
        format!("Gid:\t{USER}\t{USER}\t{USER}\t{USER}"),
        "Groups:\t ".to_owned(),
        "CapPrm:\t0000000000000000".to_owned(),
        "CapEff:\t0000000000000000".to_owned(),
        "NoNewPrivs:\t1".to_owned(),
    ] {
        assert!(status.lines().any(|found| found == line), "{line} is not in {status}");
    }
    assert!(server.ready().await.unwrap() > 0);
    assert_eq!(std::fs::metadata(own.join("working-set")).unwrap().uid(), USER);
    guest.end();
    let exit = timeout(DEADLINE, server.handle().exited()).await.unwrap();
    assert_eq!(exit, ProcessExit::Code(0));
    server.end().await;
    assert!(!host.config.control.exists());

    // The next restore may be another user's.
    host.config.user = Some(USER - 1);
    host.config.prefetch = host.config.record.take();
    let server = host.server().await.unwrap();
    let guest = host.guest("anonymous");
    server.until(|stats| stats.prefetched == PAGES).await;
    drop(guest);
}
