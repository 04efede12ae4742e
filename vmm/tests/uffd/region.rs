//! Memory whose missing pages a page server is asked for, as a VMM makes it; and the file its pages come from.

use std::{
    fs::File,
    io::{self, IoSlice},
    num::NonZeroUsize,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::{fs::FileExt as _, net::UnixStream},
    },
    path::Path,
    ptr::NonNull,
};

use nix::{
    errno::Errno,
    sys::{
        memfd::{MFdFlags, memfd_create},
        mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap},
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
};
use wrenn_vmm::uffd::PAGE;

pub const WORDS: usize = PAGE as usize / 8;

/// A `struct uffdio_api` of linux/userfaultfd.h.
#[repr(C)]
pub struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// A `struct uffdio_register`.
#[repr(C)]
pub struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, Api);
nix::ioctl_readwrite!(uffdio_register, 0xAA, 0x00, Register);

const API: u64 = 0xAA;
const MODE_MISSING: u64 = 1;
const FEATURE_EVENT_REMOVE: u64 = 1 << 3;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As Firecracker has it.
    Anonymous,
    /// Of a file in memory, as other VMMs have it.
    Shared,
}

/// Pages that are missing until somebody provides them. The second half of the guest's memory lies before the
/// first, so that nobody gets by with adding an offset.
pub struct Region {
    memory: NonNull<u8>,
    pages: u64,
    kind: Kind,
    pub userfault: OwnedFd,
}

// SAFETY: the memory is only reached by volatile accesses to single words, as is the guest's by a VMM.
unsafe impl Sync for Region {}
// SAFETY: as above.
unsafe impl Send for Region {}

impl Region {
    pub fn new(pages: u64, kind: Kind) -> Self {
        let length = NonZeroUsize::new((pages * PAGE) as usize).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let memory = match kind {
            // SAFETY: a new mapping.
            Kind::Anonymous => unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) },
            Kind::Shared => {
                let file = memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap();
                nix::unistd::ftruncate(&file, length.get() as i64).unwrap();
                // SAFETY: a new mapping, of a file that nobody else knows.
                unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0) }
            }
        };
        let memory = memory.unwrap().cast();
        let userfault = userfaultfd().expect("userfaultfd: these tests need root");
        let mut features = FEATURE_EVENT_REMOVE;
        if kind == Kind::Shared {
            features |= FEATURE_MISSING_SHMEM;
        }
        let mut api = Api { api: API, features, ioctls: 0 };
        let start = memory.as_ptr() as u64;
        let mut register = Register { start, length: pages * PAGE, mode: MODE_MISSING, ioctls: 0 };
        // SAFETY: both requests live through their calls, and the range is the mapping made above.
        unsafe {
            uffdio_api(userfault.as_raw_fd(), &raw mut api).unwrap();
            uffdio_register(userfault.as_raw_fd(), &raw mut register).unwrap();
        }
        Self { memory, pages, kind, userfault }
    }

    /// Sends a page server what Firecracker would.
    pub fn connect(&self, socket: &Path) -> io::Result<UnixStream> {
        let half = self.pages / 2;
        let region = |first: u64, pages: u64| {
            serde_json::json!({
                "base_host_virt_addr": self.address(first), "size": pages * PAGE, "offset": first * PAGE,
                "page_size": PAGE, "page_size_kib": PAGE,
            })
        };
        let message = serde_json::json!([region(0, half), region(half, self.pages - half)]).to_string();
        let stream = UnixStream::connect(socket)?;
        let descriptors = [self.userfault.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let slices = [IoSlice::new(message.as_bytes())];
        sendmsg::<()>(stream.as_raw_fd(), &slices, &rights, MsgFlags::empty(), None)?;
        Ok(stream)
    }

    pub fn pages(&self) -> u64 {
        self.pages
    }

    pub fn address(&self, page: u64) -> u64 {
        assert!(page < self.pages);
        let half = self.pages / 2;
        let behind = self.pages - half;
        let at = if page < half { behind + page } else { page - half };
        self.memory.as_ptr() as u64 + at * PAGE
    }

    pub fn read(&self, page: u64, word: usize) -> u64 {
        // SAFETY: within the mapping.
        unsafe { (self.address(page) as *const u64).add(word).read_volatile() }
    }

    pub fn write(&self, page: u64, word: usize, value: u64) {
        // SAFETY: within the mapping.
        unsafe { (self.address(page) as *mut u64).add(word).write_volatile(value) }
    }

    /// Gives pages back, as a balloon does; all of one half.
    pub fn remove(&self, first: u64, count: u64) {
        let start = NonNull::new(self.address(first) as *mut _).unwrap();
        let advice = match self.kind {
            Kind::Anonymous => MmapAdvise::MADV_DONTNEED,
            Kind::Shared => MmapAdvise::MADV_REMOVE,
        };
        // SAFETY: within the mapping, whose content is reached in no way that relies on it.
        unsafe { madvise(start, (count * PAGE) as usize, advice) }.unwrap();
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: nobody reaches the mapping any more.
        let _ = unsafe { munmap(self.memory.cast(), (self.pages * PAGE) as usize) };
    }
}

fn userfaultfd() -> nix::Result<OwnedFd> {
    // SAFETY: the call takes an integer; a non-negative result is a new descriptor that is ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    let fd = Errno::result(fd)?;
    // SAFETY: as above; descriptors fit into an i32.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What the snapshot has in a word of a page: every third group of eight pages is a hole.
pub fn content(page: u64, word: usize) -> u64 {
    if is_hole(page) { 0 } else { scramble(page * WORDS as u64 + word as u64) | 1 }
}

pub fn is_hole(page: u64) -> bool {
    page / 8 % 3 == 1
}

/// The finaliser of splitmix64: looks random, and is another for every number.
pub fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The pages in an order that looks random, another for every seed.
pub fn shuffled(pages: u64, seed: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..pages).collect();
    order.sort_by_key(|page| scramble(page ^ scramble(seed)));
    order
}

/// The memory file of a snapshot, with holes in it.
pub fn memory_file(path: &Path, pages: u64, is_hole: fn(u64) -> bool) {
    let file = File::create(path).unwrap();
    file.set_len(pages * PAGE).unwrap();
    for page in (0..pages).filter(|&page| !is_hole(page)) {
        let bytes: Vec<u8> = (0..WORDS).flat_map(|word| content(page, word).to_ne_bytes()).collect();
        file.write_all_at(&bytes, page * PAGE).unwrap();
    }
}
