//! A root file system that grows while it is used, as after its host has made the disk larger. Needs root with all its
//! capabilities, as it has in a guest and in the test host (`make test-host`), loop devices and e2fsprogs.
//!
//! Where root may not grow file systems nothing of this runs, and it says so; in the test host, where `WRENN_TEST_HOST` is
//! set, that is a failure.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use wrenn_envd::disk::{GrowError, grow};
use wrenn_envd::metrics::Disk;

const MIB: u64 = 1 << 20;
/// `CAP_SYS_RESOURCE` of linux/capability.h, which the kernel asks for.
const SYS_RESOURCE: u32 = 24;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if !may_grow() {
        eprintln!("DID NOT RUN: this root has no CAP_SYS_RESOURCE; run `make test-host`");
        let wanted = std::env::var_os("WRENN_TEST_HOST").is_some();
        return if wanted { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let tests: [(&str, fn()); 2] = [
        (
            "a_file_system_takes_what_its_disk_was_given_while_it_is_written",
            a_file_system_takes_what_its_disk_was_given,
        ),
        (
            "one_that_the_kernel_will_not_grow_is_as_large_as_it_was",
            one_that_the_kernel_will_not_grow_is_as_large_as_it_was,
        ),
    ];
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}

fn may_grow() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("this process's status");
    let mine = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("its capabilities");
    u64::from_str_radix(mine.trim(), 16).expect("a number") & (1 << SYS_RESOURCE) != 0
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("a program of the base system");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A file system of 24 MiB, mounted from a device that can be made larger.
struct Mounted {
    directory: tempfile::TempDir,
    device: String,
}

impl Mounted {
    fn make() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "mounting needs root");
        let directory = tempfile::Builder::new().prefix("wrenn-grow-").tempdir_in("/var/tmp").expect("made");
        let image = directory.path().join("disk");
        File::create(&image).and_then(|file| file.set_len(24 * MIB)).expect("an image");
        let image = image.to_str().expect("text");
        run("mke2fs", &["-q", "-t", "ext4", "-O", "^has_journal", image]);
        let device = run("losetup", &["--find", "--show", image]);
        let mounted = Self { directory, device };
        fs::create_dir(mounted.root()).expect("made");
        mount(Some(&*mounted.device), &mounted.root(), Some("ext4"), MsFlags::MS_NOATIME, None::<&str>)
            .expect("mounted");
        mounted
    }

    fn root(&self) -> std::path::PathBuf {
        self.directory.path().join("root")
    }

    /// As its host does to a machine's disk.
    fn enlarge(&self, mib: u64) {
        let image = OpenOptions::new().write(true).open(self.directory.path().join("disk"));
        image.and_then(|file| file.set_len(mib * MIB)).expect("longer");
        run("losetup", &["--set-capacity", &self.device]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // One that was not mounted need not be unmounted.
        let _not_mounted = umount2(&self.root(), MntFlags::empty());
        run("losetup", &["--detach", &self.device]);
    }
}

fn total(root: &Path) -> u64 {
    Disk::of(root).expect("a size").total
}

fn a_file_system_takes_what_its_disk_was_given() {
    let mounted = Mounted::make();
    let root = mounted.root();
    let mut log = File::create(root.join("log")).expect("a file");
    log.write_all(&[7; 1 << 20]).expect("written");
    let small = total(&root);
    assert!(small < 24 * MIB);

    grow(&root).expect("nothing to do is no error");
    assert_eq!(total(&root), small);

    mounted.enlarge(160);
    assert_eq!(total(&root), small, "a larger disk alone is not a larger file system");
    grow(&root).expect("grown");
    let large = total(&root);
    assert!((140 * MIB..160 * MIB).contains(&large), "{large} bytes");
    grow(&root).expect("again");
    assert_eq!(total(&root), large);

    // What is beyond the old end can be used, and what was there is there.
    log.write_all(&vec![8; 100 << 20]).expect("written");
    log.sync_all().expect("synced");
    let content = fs::read(root.join("log")).expect("read");
    assert_eq!(content.len(), 101 << 20);
    assert!(
        content[..1 << 20].iter().all(|byte| *byte == 7) && content[1 << 20..].iter().all(|byte| *byte == 8)
    );
}

fn one_that_the_kernel_will_not_grow_is_as_large_as_it_was() {
    let mounted = Mounted::make();
    let root = mounted.root();
    mounted.enlarge(64);
    let small = total(&root);
    let none = None::<&str>;
    mount(none, &root, none, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).expect("remounted");
    let refused = grow(&root);
    let Err(GrowError::Kernel { source, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!(source.raw_os_error(), Some(libc::EROFS), "{source}");
    assert_eq!(total(&root), small);
}
