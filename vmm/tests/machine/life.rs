//! The process a machine is.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::timeout;
use wrenn_vmm::{
    driver::{DriverError, MachineRecord, MemorySharing, VmmChoice},
    firecracker::RestoreChoice,
    process::{ProcessError, ProcessExit},
};

use crate::{
    Stage,
    host::{PATIENCE, Running},
};

pub async fn the_end_of_a_vmm_is_noticed(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let mut running = host.restore("killed", golden, MemorySharing::Shared).await;
    let process = running.machine.process().clone();
    assert_eq!(process.has_exited(), None);
    kill(Pid::from_raw(process.identity().pid), Signal::SIGKILL).unwrap();
    let exit = timeout(PATIENCE, process.exited()).await.expect("noticed in time");
    assert_eq!(exit, ProcessExit::Signal(9));

    let error = running.machine.stop_vcpus().await.unwrap_err();
    assert!(matches!(error, DriverError::Ended { exit: ProcessExit::Signal(9), .. }), "{error:?}");
    let record = running.machine.record();
    host.end(running).await;
    let gone = host.driver.adopt(&record).await.err();
    assert!(matches!(gone, Some(DriverError::Process(ProcessError::Gone(_)))), "{gone:?}");
}

pub async fn a_start_that_is_given_up_leaves_no_process(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let parts = host.parts("given-up", golden).await;
    let uid = parts.slot.number().uid();
    let restore = host.try_restore(golden, MemorySharing::Shared, &parts);
    // Given up as soon as there is a process.
    let started = async {
        while processes_of(uid) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        () = started => {}
        machine = restore => panic!("it was not given up: {}", machine.is_ok()),
    }
    let begun = Instant::now();
    while processes_of(uid) != 0 {
        assert!(begun.elapsed() < PATIENCE, "the process lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    host.discard(parts).await;
}

fn processes_of(uid: u32) -> usize {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let processes = entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    processes.filter(|entry| entry.metadata().is_ok_and(|metadata| metadata.uid() == uid)).count()
}

pub async fn another_life_of_the_agent_takes_a_machine_up(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let Running { mut machine, slot, disk, home } =
        host.restore("adopted", golden, MemorySharing::Shared).await;
    let pid = machine.process().identity().pid;
    // As an agent that dies in the middle of a pause leaves it.
    machine.stop_vcpus().await.unwrap();
    let written = serde_json::to_string(&machine.record()).unwrap();
    drop(machine);

    let record: MachineRecord = serde_json::from_str(&written).unwrap();
    let mut machine = host.driver.adopt(&record).await.unwrap();
    assert_eq!(machine.process().identity().pid, pid);
    assert_eq!(machine.record(), record);
    machine.resume_vcpus().await.unwrap();
    let mut running = Running { machine, slot, disk, home };
    running.wait_for_guest();
    running.machine.stop_vcpus().await.unwrap();
    let saved = host.save(&mut running, &host.paths.snapshot(&"adopted".parse().unwrap())).await;
    assert_eq!(saved.manifest().machine, record.config);
    assert_eq!(saved.manifest().parent.as_deref(), Some(golden.id()));

    let stranger = MachineRecord {
        process: wrenn_vmm::process::ProcessIdentity {
            start_time: record.process.start_time + 1,
            ..record.process.clone()
        },
        ..record
    };
    let refused = host.driver.adopt(&stranger).await.err();
    assert!(matches!(refused, Some(DriverError::Process(ProcessError::NotTheSame { .. }))), "{refused:?}");
    assert_eq!(running.machine.process().has_exited(), None);
    host.end(running).await;

    let again = host.restore("adopted", &saved, MemorySharing::Own).await;
    again.wait_for_guest();
    host.end(again).await;
}

pub async fn a_vmm_has_no_privileges(stage: Arc<Stage>) {
    let Stage { host, golden } = &*stage;
    let running = host.restore("confined", golden, MemorySharing::Shared).await;
    let pid = running.machine.process().identity().pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:")));
        line.unwrap_or_else(|| panic!("no {name}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let uid = running.slot.number().uid();
    assert_eq!(value("Uid"), format!("{uid} {uid} {uid} {uid}"));
    assert_eq!(value("Gid"), format!("{uid} {uid} {uid} {uid}"));
    // QEMU opens /dev/kvm by itself.
    let by_kvm = host.vmm.choice == VmmChoice::Qemu && host.driver.summary().starts_with("qemu/kvm");
    let groups = if by_kvm { fs::metadata("/dev/kvm").unwrap().gid().to_string() } else { String::new() };
    assert_eq!(value("Groups"), groups);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(value(set), "0000000000000000", "{set}");
    }
    assert_eq!(value("NoNewPrivs"), "1");
    assert_eq!(value("Seccomp"), "2");

    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for limit in ["Max core file size 0 0", "Max open files 1024 1024", "Max processes 512 512"] {
        let squeezed = limits.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        assert!(squeezed.into_iter().any(|line| line.starts_with(limit)), "no {limit}");
    }
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "500");
    // The fields of proc(5)'s stat from the state on, the third.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let nice = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19 - 3).unwrap();
    assert_eq!(nice, "2");
    if let Ok(autogroup) = fs::read_to_string(format!("/proc/{pid}/autogroup")) {
        assert!(autogroup.trim().ends_with("nice 2"), "{autogroup}");
    }

    let link = |path: String| fs::read_link(path).unwrap();
    assert_ne!(link(format!("/proc/{pid}/ns/net")), link("/proc/self/ns/net".to_owned()));
    assert_eq!(nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap(), Pid::from_raw(pid));
    // Nothing of this process but what it was given: no directory, no terminal, no file but the machine's.
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
        let target = target.to_string_lossy();
        let known = [
            "/dev/null",
            "/dev/net/tun",
            "/dev/kvm",
            "/memfd:",
            "socket:",
            "anon_inode:",
            "pipe:",
            // Of a jail.
            "/capsule/rootfs",
            "/capsule/memory",
        ];
        let own = target.starts_with(&*running.home.directory.to_string_lossy())
            || target.starts_with(&*golden.directory().to_string_lossy());
        assert!(own || known.iter().any(|prefix| target.starts_with(prefix)), "it has {target} open");
    }
    // The memory that others start from too cannot be changed by anyone.
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let served = host.vmm.restore == RestoreChoice::Uffd;
    let own = running.home.memory();
    let names = ["wrenn-memory", "/capsule/memory", own.to_str().unwrap()];
    assert!(served || names.iter().any(|name| maps.contains(name)), "{maps}");
    if host.vmm.choice == VmmChoice::Firecracker {
        jailed(pid, uid);
    }
    timeout(PATIENCE, async { running.wait_for_guest() }).await.unwrap();
    host.end(running).await;
}

/// It sees nothing of the host but what it was given.
fn jailed(pid: i32, uid: u32) {
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let names = |directory: &str| {
        let entries = fs::read_dir(root.join(directory)).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["capsule", "dev", "firecracker", "run"]);
    for name in names("dev").iter().filter(|name| *name != "net") {
        assert!(["kvm", "urandom", "userfaultfd"].contains(&name.as_str()), "/dev/{name}");
    }
    assert_eq!(fs::metadata(root.join("dev/kvm")).unwrap().uid(), uid);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    for mount in mounts.lines() {
        let place = mount.split(' ').nth(1).unwrap();
        let given = ["/capsule/", "/run", "/firecracker"].iter().any(|given| place.starts_with(given));
        assert!(place == "/" || given, "{mount}");
        if !["/capsule/rootfs", "/capsule/saved", "/run"].contains(&place) {
            let options = mount.split(' ').nth(3).unwrap();
            assert!(options.split(',').any(|option| option == "ro"), "{mount}");
        }
    }
}
