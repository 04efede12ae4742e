//! From the initramfs to the disk: drivers, root file system, hand-over.

use std::{
    convert::Infallible,
    ffi::CStr,
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    unistd::{chdir, chroot},
};

use crate::{disk::ROOT_DEVICE, failure::Failure};

/// File names of the modules to load, one a line, in order, beside the modules themselves.
pub const MODULE_LIST: &str = "/modules/order";
const MODULES: &str = "/modules";
const NEW_ROOT: &str = "/root";
/// Where this program is on the disk.
const INIT: &str = "/sbin/wrenn-init";
/// How long the disk may take to appear once its driver is there. It is normally there at once.
const DISK_DEADLINE: Duration = Duration::from_secs(10);

/// Does the initramfs's whole work; returns only if it fails.
pub fn hand_over() -> Result<Infallible, Failure> {
    mount(Some("devtmpfs"), "/dev", Some("devtmpfs"), MsFlags::MS_NOSUID, None::<&str>)
        .or_else(|errno| if errno == Errno::EBUSY { Ok(()) } else { Err(errno) })
        .map_err(Failure::of("mounting /dev"))?;
    load_modules()?;
    wait_for_disk()?;
    fs::create_dir_all(NEW_ROOT).map_err(Failure::of(format!("making {NEW_ROOT}")))?;
    // The inode tables of a disk that has just been grown stay uninitialised until they are used:
    // the kernel's thread that would fill them keeps an idle guest busy and its disk growing.
    mount(Some(ROOT_DEVICE), NEW_ROOT, Some("ext4"), MsFlags::MS_NOATIME, Some("noinit_itable"))
        .map_err(Failure::of(format!("mounting {ROOT_DEVICE}")))?;
    switch_root()
}

fn load_modules() -> Result<(), Failure> {
    let list = fs::read_to_string(MODULE_LIST).map_err(Failure::of(format!("reading {MODULE_LIST}")))?;
    for name in list.lines().filter(|line| !line.is_empty()) {
        let path = Path::new(MODULES).join(name);
        let module = File::open(&path).map_err(Failure::of(format!("opening {}", path.display())))?;
        match finit_module(&module, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            // A driver of something this machine does not have is no reason not to start: if it was
            // the disk's, waiting for the disk says so.
            Err(errno) => crate::report(&Failure::of(format!("loading {name}"))(errno)),
        }
    }
    Ok(())
}

fn wait_for_disk() -> Result<(), Failure> {
    let deadline = Instant::now() + DISK_DEADLINE;
    while !Path::new(ROOT_DEVICE).exists() {
        if Instant::now() >= deadline {
            return Err(Failure::of(format!("waiting for {ROOT_DEVICE}"))(io::Error::from(
                io::ErrorKind::TimedOut,
            )));
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Gives the initramfs's memory back, makes the disk the root and becomes its init.
fn switch_root() -> Result<Infallible, Failure> {
    mount(Some("/dev"), "/root/dev", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(Failure::of("moving /dev to the disk"))?;
    fs::remove_dir_all(MODULES).map_err(Failure::of(format!("removing {MODULES}")))?;
    fs::remove_file("/init").map_err(Failure::of("removing /init"))?;
    chdir(NEW_ROOT).map_err(Failure::of(format!("entering {NEW_ROOT}")))?;
    const HERE: &CStr = c".";
    mount(Some(HERE), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(Failure::of("moving the disk to /"))?;
    chroot(HERE).map_err(Failure::of("changing the root"))?;
    chdir("/").map_err(Failure::of("entering the new root"))?;
    Err(Failure::of(format!("starting {INIT}"))(Command::new(INIT).exec()))
}
