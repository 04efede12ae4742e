//! The real program as process 1 of namespaces of its own, on a root of its own in memory: what it does with its
//! child, with orphans and with signals. Needs root. Booting a machine with it is tested with whole capsules.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// Leaves an orphan behind, then says which signals it gets.
const ENVD: &str = r#"#!/bin/sh
exec >&2
trap 'echo passed on' USR1
trap 'echo asked to end; exit 0' TERM
(sh -c 'echo orphan' &)
echo "envd started by $PPID"
while :; do sleep 1000 & wait $!; done
"#;

struct Machine {
    unshare: Child,
    console: Receiver<String>,
    init: Pid,
}

impl Machine {
    fn start(dir: &Path) -> Self {
        // A file system of its own, so that nothing of the host's is below the root.
        let script = r#"mkdir "$1/root" && mount -t tmpfs none "$1/root" && cp -a "$1/files/." "$1/root" &&
                        exec chroot "$1/root" /sbin/wrenn-init"#;
        let mut unshare = Command::new("unshare")
            .args(["--pid", "--mount", "--net", "--uts", "--ipc", "--fork", "--kill-child"])
            .args(["sh", "-c", script, "sh"])
            .arg(dir)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let console = read_lines(unshare.stderr.take().unwrap());
        let mut machine = Self { init: Pid::from_raw(0), unshare, console };
        machine.wait_for("envd started by 1");
        machine.init = machine.children(Pid::from_raw(machine.unshare.id().cast_signed()))[0];
        machine
    }

    /// The next line of the console that contains the text.
    fn wait_for(&self, text: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        let mut seen = Vec::new();
        loop {
            match self.console.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => seen.push(line),
                Err(e) => panic!("no {text:?} on the console ({e}), only {seen:#?}"),
            }
        }
    }

    fn children(&self, of: Pid) -> Vec<Pid> {
        let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap();
        children.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }

    /// Waits until init has exactly one child, which is envd: whatever else it got has been reaped.
    fn only_child(&self) -> Pid {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match self.children(self.init)[..] {
                [only] => return only,
                ref several => assert!(Instant::now() < deadline, "not reaped: {several:?}"),
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Takes the namespace's process 1 with it, and that all others. It may have ended already.
        _ = self.unshare.kill();
        _ = self.unshare.wait();
    }
}

fn read_lines(from: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A root with init, a shell and the script in envd's place.
fn make_root(root: &Path) {
    for dir in ["bin", "etc", "sbin", "usr/local/bin"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for (program, to) in [
        (env!("CARGO_BIN_EXE_wrenn-init"), "sbin/wrenn-init"),
        ("/bin/sh", "bin/sh"),
        ("/bin/sleep", "bin/sleep"),
    ] {
        fs::copy(program, root.join(to)).unwrap();
        let libraries = Command::new("ldd").arg(program).output().unwrap().stdout;
        let libraries = String::from_utf8(libraries).unwrap();
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            let to = root.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(library, to).unwrap();
        }
    }
    let envd = root.join("usr/local/bin/envd");
    fs::write(&envd, ENVD).unwrap();
    fs::set_permissions(envd, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn process_one_keeps_envd_alive_reaps_orphans_and_ends_the_machine_in_order() {
    assert!(nix::unistd::geteuid().is_root(), "this test must run as root: it makes namespaces");
    let dir = tempfile::tempdir().unwrap();
    make_root(&dir.path().join("files"));
    let mut machine = Machine::start(dir.path());

    // The namespace has no eth0, and envd was started all the same. The orphan is gone.
    let envd = machine.only_child();
    kill(machine.init, Signal::SIGUSR1).unwrap();
    machine.wait_for("passed on");

    kill(envd, Signal::SIGKILL).unwrap();
    machine.wait_for("envd was killed by SIGKILL, starting it again in 200 ms");
    machine.wait_for("envd started by 1");
    // The first envd's own child has become init's, and still lives: it is not confused with envd.
    assert_ne!(machine.children(machine.init), [envd]);

    kill(machine.init, Signal::SIGTERM).unwrap();
    machine.wait_for("asked to end");
    // This is how the kernel tells the parent that a namespace was powered off; see reboot(2).
    assert_eq!(machine.unshare.wait().unwrap().signal(), Some(Signal::SIGINT as i32));
}
