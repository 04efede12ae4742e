//! The file system of a jailed VMM: a small tree of its own, of which it sees nothing but what is put there.
//!
//! A new mount namespace is a copy of the one it is made from, which takes the longer the more is mounted: with some
//! hundred mounts a start becomes ten times slower. So there is one namespace that holds nothing but an empty
//! directory; every jail is made from that one:
//! ```text
//!  host's mounts ──(once)──▶ empty namespace ──(each jail)──▶ tmpfs at / ── /capsule/…   files, by mounts of their own
//!                                                                        ── /dev/…       nodes of the VMM's user
//! ```
//! What is put into it is taken from the host's mounts before the namespace is entered. All of it is gone with the
//! last process in it: there is nothing to remove.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{FileTypeExt as _, MetadataExt as _},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::stat::{Mode, SFlag, mknod, umask},
    unistd::{Gid, Uid, chdir, chown, pivot_root},
};

use crate::failure::{Doing as _, Failure};

/// Nothing but directories, nodes and what mounts hide is ever in it.
const TREE: &str = "size=1m,nr_inodes=256,mode=755";
/// In the empty namespace; where a jail's tree is put together.
const PLACE: &str = "/jail";

// Of linux/mount.h and linux/fcntl.h.
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_NOEXEC: u64 = 8;

#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// A mount namespace with nothing in it. It lives as long as this value.
#[derive(Debug)]
pub struct EmptyNamespace(OwnedFd);

impl EmptyNamespace {
    pub fn make() -> Result<Self, Failure> {
        // A namespace belongs to a thread.
        let made = thread::scope(|scope| scope.spawn(Self::make_here).join());
        made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn make_here() -> Result<Self, Failure> {
        let doing = || "making an empty mount namespace";
        unshare(CloneFlags::CLONE_NEWNS).doing(doing)?;
        let namespace = File::open("/proc/thread-self/ns/mnt").doing(doing)?;
        // Nothing that happens here is to be seen elsewhere.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .doing(doing)?;
        // Any directory serves to mount the new root on, and this one is everywhere.
        mount(Some("wrenn"), "/proc", Some("tmpfs"), MsFlags::empty(), Some(TREE)).doing(doing)?;
        fs::create_dir(Path::new("/proc").join(PLACE.trim_start_matches('/'))).doing(doing)?;
        become_root_of(Path::new("/proc")).doing(doing)?;
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).doing(doing)?;
        Ok(Self(namespace.into()))
    }
}

/// Makes a mount the root of the thread's namespace, and drops what was mounted before.
fn become_root_of(mount: &Path) -> nix::Result<()> {
    chdir(mount)?;
    // With the same directory for both, the old root comes to lie over the new one: pivot_root(2).
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// What a jailed process may do with what is put into its jail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    /// As its permissions allow.
    Write,
    /// Read, and run.
    Execute,
}

#[derive(Debug)]
enum Content {
    /// A mount that is nowhere yet.
    Mount { mount: OwnedFd, directory: bool },
    /// A device node.
    Node { kind: SFlag, number: libc::dev_t },
}

/// A jail that is being filled.
#[derive(Debug)]
pub struct Jail {
    from: Arc<EmptyNamespace>,
    /// Whom the nodes belong to.
    user: u32,
    /// By path, below the root.
    contents: Vec<(PathBuf, Content)>,
}

impl Jail {
    pub fn new(from: Arc<EmptyNamespace>, user: u32) -> Self {
        Self { from, user, contents: Vec::new() }
    }

    /// Puts a file or directory of the host at `to`.
    pub fn put(&mut self, path: &Path, to: &str, access: Access) -> Result<&mut Self, Failure> {
        let doing = || format!("taking {} into a jail", path.display());
        let directory = fs::metadata(path).doing(doing)?.is_dir();
        let mount = take(path, access).doing(doing)?;
        self.contents.push((below_root(to), Content::Mount { mount, directory }));
        Ok(self)
    }

    /// Puts a node at `to` for the device that `path` is one for; it is the user's alone.
    pub fn put_device(&mut self, path: &Path, to: &str) -> Result<&mut Self, Failure> {
        let doing = || format!("taking the device {} into a jail", path.display());
        let found = fs::metadata(path).doing(doing)?;
        let kind = match found.file_type() {
            kind if kind.is_char_device() => SFlag::S_IFCHR,
            kind if kind.is_block_device() => SFlag::S_IFBLK,
            _ => return Err(Failure::new(doing(), io::Error::other("it is no device"))),
        };
        self.contents.push((below_root(to), Content::Node { kind, number: found.rdev() }));
        Ok(self)
    }

    /// Makes it, and the calling thread's root of it. That thread must end afterwards, or become the jailed process.
    pub(super) fn enter(self) -> Result<(), Failure> {
        let doing = || "making a jail";
        // Directory and mask are the process's otherwise.
        unshare(CloneFlags::CLONE_FS).doing(doing)?;
        setns(self.from.0.as_fd(), CloneFlags::CLONE_NEWNS).doing(doing)?;
        unshare(CloneFlags::CLONE_NEWNS).doing(doing)?;
        umask(Mode::empty());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        mount(Some("wrenn"), PLACE, Some("tmpfs"), flags, Some(TREE)).doing(doing)?;
        for (path, content) in self.contents {
            let to = Path::new(PLACE).join(&path);
            place(content, &to, self.user).doing(|| format!("making /{} in a jail", path.display()))?;
        }
        become_root_of(Path::new(PLACE)).doing(doing)?;
        mount(None::<&str>, "/", None::<&str>, flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>)
            .doing(doing)
    }
}

fn below_root(path: &str) -> PathBuf {
    PathBuf::from(path.trim_start_matches('/'))
}

/// A further mount of a file or a directory, alone and nowhere.
fn take(path: &Path, access: Access) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.cast_unsigned();
    // SAFETY: the path ends with a zero and lives through the call; a result that is not negative is a new descriptor.
    let mount = unsafe {
        let result = libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags);
        OwnedFd::from_raw_fd(Errno::result(result)? as i32)
    };
    let set = MOUNT_ATTR_NOSUID
        | MOUNT_ATTR_NODEV
        | match access {
            Access::Read => MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC,
            Access::Write => MOUNT_ATTR_NOEXEC,
            Access::Execute => MOUNT_ATTR_RDONLY,
        };
    let attributes = MountAttributes { set, ..MountAttributes::default() };
    // SAFETY: the path is empty, the attributes have the size that is said; both live through the call.
    Errno::result(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    })?;
    Ok(mount)
}

fn place(content: Content, to: &Path, user: u32) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    match content {
        Content::Mount { mount, directory } => {
            if directory {
                fs::create_dir(to)?;
            } else {
                // Not by opening it: a child that is forked meanwhile would hold it open for writing until it runs its
                // program, and what is being written to cannot become read-only.
                mknod(to, SFlag::S_IFREG, Mode::S_IRUSR, 0)?;
            }
            let to = std::ffi::CString::new(to.as_os_str().as_bytes())?;
            // SAFETY: both paths end with a zero and live through the call.
            Errno::result(unsafe {
                libc::syscall(
                    libc::SYS_move_mount,
                    mount.as_raw_fd(),
                    c"".as_ptr(),
                    libc::AT_FDCWD,
                    to.as_ptr(),
                    MOVE_MOUNT_F_EMPTY_PATH,
                )
            })?;
        }
        Content::Node { kind, number } => {
            mknod(to, kind, Mode::S_IRUSR | Mode::S_IWUSR, number)?;
            chown(to, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::process::{
        ProcessExit,
        launch::Launch,
        output::{LOG_SIZE, memory_file, written},
    };

    const USER: u32 = 231_000;

    /// What a shell script says that runs in a jail, and how it ends. The jail has the host's programs, read-only.
    async fn run(mut jail: Jail, script: &str) -> (String, ProcessExit) {
        for directory in ["/usr", "/lib", "/lib64"] {
            jail.put(Path::new(directory), directory, Access::Execute).unwrap();
        }
        let log = memory_file(c"test", Some(LOG_SIZE)).unwrap();
        // It waits until it is watched.
        let (start, hold) = nix::unistd::pipe().unwrap();
        let launch = Launch {
            program: "/usr/bin/sh".into(),
            arguments: vec!["-c".into(), format!("read line <&3; {script}").into()],
            descriptors: vec![start],
            output: None,
            log: log.try_clone().unwrap(),
            namespace: File::open("/proc/self/ns/net").unwrap().into(),
            jail: Some(jail),
            uid: USER,
            groups: Vec::new(),
            limits: Vec::new(),
            group: None,
        };
        let process = crate::failure::blocking(|| launch.start()).await.unwrap().keep();
        drop(hold);
        let exit = process.exited().await;
        (String::from_utf8(written(&log).unwrap()).unwrap(), exit)
    }

    fn jail() -> Jail {
        assert!(nix::unistd::geteuid().is_root(), "jails are made by root");
        Jail::new(Arc::new(EmptyNamespace::make().unwrap()), USER)
    }

    #[tokio::test]
    async fn a_jailed_process_sees_what_it_was_given_and_nothing_else() {
        let mut jail = jail();
        jail.put(Path::new("/etc/hostname"), "/capsule/name", Access::Read).unwrap();
        jail.put_device(Path::new("/dev/null"), "/dev/null").unwrap();
        let script = "ls / /capsule /dev; stat -c '%u %a %F' /dev/null; echo gone >/dev/null && cat /capsule/name; \
                      for place in / /capsule/name /usr/x /dev/x; do echo >$place || echo \"not $place\"; done 2>/dev/null";
        let (said, exit) = run(jail, script).await;
        let name = fs::read_to_string("/etc/hostname").unwrap();
        let expected = format!(
            "/:\ncapsule\ndev\nlib\nlib64\nusr\n\n/capsule:\nname\n\n/dev:\nnull\n{USER} 600 character special file\n{name}\
             not /\nnot /capsule/name\nnot /usr/x\nnot /dev/x\n"
        );
        assert_eq!((said, exit), (expected, ProcessExit::Code(0)));
    }

    #[tokio::test]
    async fn what_it_may_write_to_is_the_hosts() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("out")).unwrap();
        fs::write(at("disk"), "old").unwrap();
        for path in [at("out"), at("disk")] {
            std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
        }
        let mut jail = jail();
        jail.put(&at("out"), "/capsule/saved", Access::Write).unwrap();
        jail.put(&at("disk"), "/capsule/rootfs", Access::Write).unwrap();
        let script = "echo memory >/capsule/saved/memory && echo new >/capsule/rootfs && id -u";
        let (said, exit) = run(jail, script).await;
        assert_eq!((said, exit), (format!("{USER}\n"), ProcessExit::Code(0)));
        assert_eq!(fs::read_to_string(at("disk")).unwrap(), "new\n");
        assert_eq!(fs::read_to_string(at("out/memory")).unwrap(), "memory\n");
    }

    #[tokio::test]
    async fn a_jail_leaves_nothing_and_many_can_be_made_at_once() {
        // But those of network namespaces, which other tests make and remove meanwhile.
        let mounts = || -> Vec<String> {
            let all = fs::read_to_string("/proc/self/mounts").unwrap();
            all.lines().filter(|mount| !mount.contains(" /run/netns")).map(String::from).collect()
        };
        let before = mounts();
        // A child that is being started holds what its parent had open at that moment.
        let stop = Arc::new(AtomicBool::new(false));
        let starting = thread::spawn({
            let stop = stop.clone();
            move || {
                while !stop.load(Ordering::Relaxed) {
                    std::process::Command::new("/usr/bin/true").status().unwrap();
                }
            }
        });
        let from = Arc::new(EmptyNamespace::make().unwrap());
        let files = tempfile::tempdir().unwrap();
        let file = files.path().join("file");
        fs::write(&file, "content\n").unwrap();
        for _ in 0..8 {
            let jails = (0..8).map(|_| {
                let mut jail = Jail::new(from.clone(), USER);
                for at in 0..16 {
                    jail.put(&file, &format!("/files/{at}"), Access::Read).unwrap();
                }
                // There is no /proc to look at.
                run(jail, "cat /proc/self/mounts || cat /files/15")
            });
            for (said, exit) in futures_util::future::join_all(jails).await {
                assert!(said.ends_with("content\n") && exit == ProcessExit::Code(0), "{said}");
            }
        }
        stop.store(true, Ordering::Relaxed);
        starting.join().unwrap();
        assert_eq!(mounts(), before);
    }

    #[test]
    fn what_cannot_be_given_is_named() {
        let mut jail = jail();
        let missing = jail.put(Path::new("/nonexistent"), "/x", Access::Read).unwrap_err();
        assert_eq!(missing.action, "taking /nonexistent into a jail");
        let file = jail.put_device(Path::new("/etc/hostname"), "/dev/x").unwrap_err();
        assert_eq!(file.source.to_string(), "it is no device");
    }
}
