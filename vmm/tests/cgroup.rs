//! Groups of machines in a real cgroup v2 hierarchy, with as many controllers as this host has in it. Root is needed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use wrenn_vmm::{
    driver::MachineConfig,
    network::SlotNumber,
    process::cgroup::{Cgroups, Survey, limits},
};

const CONFIG: MachineConfig = MachineConfig { vcpus: 2, memory_mib: 512 };

/// The hierarchy of this host. One without controllers will do: processes are in its groups all the same.
fn survey() -> Survey {
    assert!(nix::unistd::geteuid().is_root(), "this test makes control groups: it must run as root");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    let mount = mount.and_then(|line| line.split(' ').nth(4)).expect("cgroup2 is mounted nowhere");
    let offered = Survey::of_mount(Path::new(mount)).map(|survey| survey.offered).unwrap_or_default();
    println!("{mount} offers {offered:?}");
    Survey { mount: PathBuf::from(mount), offered }
}

/// Ends with the test.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    fn group(&self) -> String {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", self.0.id())).unwrap();
        groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap().to_owned()
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_limited_by_a_group_that_goes_with_it() {
    let survey = survey();
    let place = format!("wrenn-test-{}", std::process::id());
    let place = Path::new(&place).join("agent");
    let directory = survey.mount.join(&place);
    let groups = Cgroups::within(&survey, &place, 1.5).unwrap();
    let (lives, ended) = (SlotNumber::try_from(1).unwrap(), SlotNumber::try_from(2).unwrap());

    let mut machine = Sleeper::start();
    let group = groups.create(lives, &CONFIG).unwrap().unwrap();
    group.add(machine.0.id() as i32).unwrap();
    assert!(machine.group().ends_with("/agent/1"), "{}", machine.group());
    for controller in groups.enforced() {
        for (file, wanted) in limits(*controller, &CONFIG, 1.5) {
            let set = fs::read_to_string(directory.join("1").join(file));
            println!("{file}: {set:?}");
            // The weight of I/O is not in every kernel.
            assert!(file == "io.weight" || set.unwrap().trim() == wanted, "{file}");
        }
    }

    groups.create(ended, &CONFIG).unwrap().unwrap();
    groups.create(ended, &CONFIG).unwrap().expect("one that was left is taken over");
    groups.sweep().await.unwrap();
    assert!(directory.join("1").exists() && !directory.join("2").exists(), "only what nobody is in goes");

    groups.clone().close().await;
    assert!(directory.exists(), "a machine goes on in it");
    machine.end();
    let began = Instant::now();
    groups.remove(lives).unwrap();
    groups.remove(lives).expect("gone already");
    println!("removed {:?} after the end", began.elapsed());

    // One that nobody knows of ends with its group.
    let mut stray = Sleeper::start();
    groups.create(ended, &CONFIG).unwrap().unwrap().add(stray.0.id() as i32).unwrap();
    groups.remove(ended).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while stray.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it lives on");
        std::thread::sleep(Duration::from_millis(5));
    }

    groups.close().await;
    assert!(!directory.parent().unwrap().exists(), "nothing is left");
}

#[test]
fn without_limits_nothing_is_made() {
    let (none, slot) = (Cgroups::none(), SlotNumber::try_from(1).unwrap());
    assert!(none.create(slot, &CONFIG).unwrap().is_none());
    none.remove(slot).unwrap();
    assert!(none.enforced().is_empty());
}
