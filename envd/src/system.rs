//! What a restore changes in the kernel and on disk, behind a trait so that a test never touches its host.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::disk::{self, GrowError};
use crate::ports::GUEST_ADDRESS;
use crate::sock_diag;

/// The machine that envd looks after.
pub trait System: Debug + Send + Sync + 'static {
    /// Mixes bytes into the kernel's random pool, counted as full entropy.
    ///
    /// # Errors
    /// The kernel refused.
    fn add_entropy(&self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the kernel's generator start from the pool anew, so that nothing it gave before tells what
    /// it will give.
    ///
    /// # Errors
    /// The kernel refused.
    fn reseed(&self) -> io::Result<()>;

    /// Nanoseconds since the Unix epoch.
    ///
    /// # Errors
    /// The kernel refused.
    fn wall_clock_ns(&self) -> io::Result<i64>;

    /// # Errors
    /// The kernel refused.
    fn set_wall_clock_ns(&self, ns: i64) -> io::Result<()>;

    /// # Errors
    /// The kernel refused.
    fn set_hostname(&self, name: &str) -> io::Result<()>;

    /// Ends the connections between this machine and others, but not those to envd.
    ///
    /// # Errors
    /// The kernel refused.
    fn end_connections(&self) -> io::Result<()>;

    /// Writes everything dirty to the disks. May take long.
    fn sync(&self);

    /// Lets the root file system take the whole of its disk. May take long.
    ///
    /// # Errors
    /// It is not ext4, or the kernel refused.
    fn grow_root(&self) -> Result<(), GrowError>;

    /// Runs once what every capsule runs first, a shell line, so that a snapshot holds the code for it.
    fn warm_up(&self) {}

    /// The directory of `hostname`, `hosts`, `machine-id`, `resolv.conf`.
    fn etc(&self) -> &Path;
}

/// The machine this process runs on.
#[derive(Debug)]
pub struct ThisMachine;

/// `RNDADDENTROPY`: `_IOW('R', 3, int[2])`, linux/random.h.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `RNDRESEEDCRNG`: `_IO('R', 7)`, linux/random.h.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
/// The most entropy taken at once, in bytes.
pub const MOST_ENTROPY: usize = 4096;

/// `struct rand_pool_info` of linux/random.h, with room for what may come.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; MOST_ENTROPY],
}

impl System for ThisMachine {
    fn add_entropy(&self, bytes: &[u8]) -> io::Result<()> {
        let mut info = PoolInfo { entropy_bits: 0, bytes: 0, buffer: [0; MOST_ENTROPY] };
        let slot = info.buffer.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        slot.copy_from_slice(bytes);
        info.bytes = libc::c_int::try_from(bytes.len()).map_err(io::Error::other)?;
        info.entropy_bits = info.bytes * 8;
        random_ioctl(RNDADDENTROPY, (&raw const info).cast())
    }

    fn reseed(&self) -> io::Result<()> {
        random_ioctl(RNDRESEEDCRNG, std::ptr::null())
    }

    fn wall_clock_ns(&self) -> io::Result<i64> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_REALTIME)?);
        i64::try_from(now.as_nanos()).map_err(io::Error::other)
    }

    fn set_wall_clock_ns(&self, ns: i64) -> io::Result<()> {
        let ns = u64::try_from(ns).map_err(io::Error::other)?;
        Ok(clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from(Duration::from_nanos(ns)))?)
    }

    fn set_hostname(&self, name: &str) -> io::Result<()> {
        Ok(nix::unistd::sethostname(name)?)
    }

    fn end_connections(&self) -> io::Result<()> {
        sock_diag::end_connections(GUEST_ADDRESS, wrenn_proto::ENVD_PORT)
    }

    fn sync(&self) {
        nix::unistd::sync();
    }

    fn grow_root(&self) -> Result<(), GrowError> {
        disk::grow(Path::new("/"))
    }

    fn warm_up(&self) {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "true"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // An image without a shell has nothing to be warmed up.
        let _ = shell.status();
    }

    fn etc(&self) -> &Path {
        Path::new("/etc")
    }
}

/// `argument` is a `PoolInfo` for RNDADDENTROPY and unused otherwise.
fn random_ioctl(request: libc::Ioctl, argument: *const libc::c_void) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let device = std::fs::OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads the header and as many bytes after it as the header says, all of them
    // within the `PoolInfo`; the other request takes no argument.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
