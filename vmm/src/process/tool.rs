//! Runs a program of the host on a file that a guest has written. Whatever is in that file must not become what the
//! program does here: it is nobody's, without any privilege, in an empty network of its own, with no descriptor but the
//! file and a place for its words, and its time and memory are bounded.

use std::{
    env,
    fs::File,
    io,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};

use super::{
    launch::{drop_privileges, last_capability},
    output::{LOG_SIZE, last_words, memory_file},
};
use crate::failure::{Doing as _, Failure};

/// How such a program names its file.
pub const FILE: &str = "/proc/self/fd/0";
/// For the tables it makes of a file system.
const MOST_MEMORY: u64 = 2 << 30;
/// Of a processor, in seconds.
const MOST_WORK: u64 = 900;
/// Also for what it waits for.
const PATIENCE: Duration = Duration::from_secs(1800);
const LOOKS: Duration = Duration::from_millis(2);

/// How it ended, and the last of what it said.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub words: String,
}

/// Runs it to its end on `file`, which belongs to the user `uid` and will not become larger. What `uid` is must be
/// nobody else's meanwhile.
pub fn run(program: &str, arguments: &[&str], file: &File, uid: u32) -> Result<Ended, Failure> {
    let doing = || format!("running {program}");
    let path =
        find(program).ok_or_else(|| Failure::new(doing(), io::Error::from(io::ErrorKind::NotFound)))?;
    let log = memory_file(c"tool", Some(LOG_SIZE))?;
    let size = file.metadata().doing(doing)?.len();
    let mut command = Command::new(path);
    command.args(arguments).env_clear().current_dir("/").process_group(0);
    command.stdin(file.try_clone().doing(doing)?);
    command.stdout(Stdio::from(log.try_clone().doing(doing)?)).stderr(log.try_clone().doing(doing)?);
    let limits = [
        (libc::RLIMIT_AS, MOST_MEMORY),
        (libc::RLIMIT_CPU, MOST_WORK),
        (libc::RLIMIT_FSIZE, size.max(LOG_SIZE)),
        (libc::RLIMIT_CORE, 0),
    ];
    // SAFETY: the closure makes system calls and touches no memory but its own.
    unsafe {
        command.pre_exec(move || {
            // It ends with this process, or rather with its thread, which waits for it.
            Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // Whatever this process itself was started with.
            let on_exec = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
            Errno::result(libc::close_range(3, libc::c_uint::MAX, on_exec))?;
            for (resource, most) in limits {
                Errno::result(libc::setrlimit(resource, &libc::rlimit { rlim_cur: most, rlim_max: most }))?;
            }
            Ok(())
        });
    }
    // Linux keeps namespaces, credentials and capabilities per thread: only this one, which ends, gives them up.
    let confined = thread::Builder::new().name("tool".into()).spawn(move || {
        let last_capability = last_capability()?;
        unshare(CloneFlags::CLONE_NEWNET).doing(|| "making an empty network")?;
        drop_privileges(uid, &[], last_capability)?;
        let mut child = command.spawn().doing(|| "executing it")?;
        let ended = wait(&mut child);
        if ended.is_err() {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
        ended
    });
    let ended = confined.doing(doing)?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    match ended {
        Ok(status) => Ok(Ended { status, words: last_words(&log) }),
        Err(failure) => Err(Failure::new(format!("{}: {}", doing(), failure.action), failure.source)),
    }
}

fn wait(child: &mut Child) -> Result<ExitStatus, Failure> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().doing(|| "waiting for it")? {
            return Ok(status);
        }
        if begun.elapsed() > PATIENCE {
            return Err(Failure::new("waiting for it", io::Error::from(io::ErrorKind::TimedOut)));
        }
        thread::sleep(LOOKS);
    }
}

/// A program of this name that this process would run.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use std::os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, fchown},
    };

    use super::*;
    use crate::network::NOBODYS_UID;

    fn file_of_nobody() -> File {
        assert!(nix::unistd::geteuid().is_root(), "only root can become somebody else");
        let file = tempfile::tempfile().unwrap();
        fchown(file.as_fd(), Some(NOBODYS_UID), Some(NOBODYS_UID)).unwrap();
        file.set_len(1 << 20).unwrap();
        file
    }

    fn said(program: &str, arguments: &[&str]) -> String {
        let ended = run(program, arguments, &file_of_nobody(), NOBODYS_UID).unwrap();
        assert!(ended.status.success(), "{ended:?}");
        ended.words
    }

    #[test]
    fn it_has_no_privilege_no_network_and_no_descriptor_but_its_own() {
        let status = said("cat", &["/proc/self/status"]);
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
            line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
        };
        let uid = [NOBODYS_UID.to_string().as_str(); 4].join(" ");
        assert_eq!((field("Uid"), field("Gid"), field("Groups")), (uid.clone(), uid, String::new()));
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(field("NoNewPrivs"), "1");
        // The fourth is the directory itself, being read.
        assert_eq!(said("ls", &["/proc/self/fd"]).lines().count(), 4);
        let networks = said("cat", &["/proc/self/net/dev"]);
        assert_eq!(networks.lines().count(), 3, "two of headings, one of the loopback: {networks}");
        assert_eq!(said("env", &[]), "");
    }

    #[test]
    fn it_writes_to_its_file_and_makes_it_no_larger() {
        let file = file_of_nobody();
        let sh = |line: String| run("sh", &["-c", &line], &file, NOBODYS_UID).unwrap();
        assert!(sh(format!("printf written 1<> {FILE}")).status.success());
        let mut written = [0; 8];
        file.read_at(&mut written, 0).unwrap();
        assert_eq!(&written, b"written\0");
        let ended = sh(format!("head -c 65536 /dev/zero >> {FILE}"));
        assert!(!ended.status.success(), "{ended:?}");
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }

    #[test]
    fn how_it_failed_is_told() {
        let ended = run("ls", &["/nowhere"], &file_of_nobody(), NOBODYS_UID).unwrap();
        assert_eq!(ended.status.code(), Some(2));
        assert!(ended.words.contains("No such file"), "{ended:?}");
        let missing = run("wrenn-no-such-tool", &[], &file_of_nobody(), NOBODYS_UID).unwrap_err();
        assert_eq!(missing.source.kind(), io::ErrorKind::NotFound);
    }
}
