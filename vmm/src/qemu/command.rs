//! The command line: which machine a guest sees, and how QEMU is confined.

use std::{ffi::OsString, fmt, os::fd::RawFd};

use super::version::QemuVersion;
use crate::{driver::MachineConfig, network::GUEST_MAC};

/// Grows with every change of a device below: a snapshot of another layout cannot be restored.
pub const DEVICE_LAYOUT: u32 = 1;
/// MiB of translated code each machine may keep. QEMU's default lets one grow past a gigabyte.
const TRANSLATION_CACHE_MIB: u32 = 64;
/// 15 to 35 % faster under emulation than `max`, and the same whatever QEMU's version adds.
const EMULATED_CPU: &str = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+rdrand";
/// Bytes of the guest's console that are kept, in QEMU's own memory.
pub const CONSOLE_SIZE: usize = 65536;
pub const CONSOLE: &str = "console";

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl Accelerator {
    pub fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => EMULATED_CPU,
        }
    }
}

/// Numbers, in QEMU, of what it is given open.
pub struct Given {
    pub memory: RawFd,
    pub disk: GivenDisk,
    pub tap: RawFd,
    /// A listening socket.
    pub monitor: RawFd,
    pub start: Start,
}

/// The disk, and what it is on the host.
pub struct GivenDisk {
    pub descriptor: RawFd,
    pub kind: DiskKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    File,
    /// A block device, whose content is in the host's page cache already, as that of the files behind it.
    Device,
}

impl DiskKind {
    /// QEMU's driver for it.
    fn driver(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Device => "host_device",
        }
    }

    /// Whether QEMU goes past the page cache of what it opens, that nothing is in it twice.
    fn direct(self) -> &'static str {
        match self {
            Self::File => "off",
            Self::Device => "on",
        }
    }
}

/// Where the machine's life begins.
pub enum Start {
    Boot { kernel: RawFd, initrd: RawFd, tsc_khz: u64 },
    Restore { state: RawFd },
}

/// All arguments but the program's name.
pub fn arguments(
    version: QemuVersion,
    accelerator: Accelerator,
    config: MachineConfig,
    given: &Given,
) -> Vec<OsString> {
    let MachineConfig { vcpus, memory_mib } = config;
    let Given { memory, disk, tap, monitor, start } = given;
    let accelerator_options = match accelerator {
        Accelerator::Kvm => "kvm".to_owned(),
        Accelerator::Tcg => format!("tcg,tb-size={TRANSLATION_CACHE_MIB},thread=multi"),
    };
    let memory_mode = match start {
        Start::Boot { .. } => "share=on",
        Start::Restore { .. } if version.maps_read_only_files() => "share=off,readonly=on,rom=off",
        Start::Restore { .. } => "share=off",
    };
    let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let mut arguments = Arguments::default();
    arguments
        .add("-M", "microvm,x-option-roms=off,pit=off,pic=off,rtc=on,isa-serial=on,memory-backend=mem")
        .add("-bios", "qboot.rom")
        .add("-accel", accelerator_options)
        .add("-cpu", accelerator.cpu())
        .add("-smp", vcpus.to_string())
        .add("-m", memory_mib.to_string())
        .add(
            "-object",
            format!(
                "memory-backend-file,id=mem,size={memory_mib}M,mem-path={},{memory_mode}",
                path_of(*memory)
            ),
        )
        .flag("-nodefaults")
        .flag("-no-user-config")
        .add("-display", "none")
        // A guest that restarts has ended: its next life would be another machine.
        .flag("-no-reboot")
        .add("-chardev", format!("ringbuf,id={CONSOLE},size={CONSOLE_SIZE}"))
        .add("-serial", format!("chardev:{CONSOLE}"))
        .add("-add-fd", format!("fd={},set=1", disk.descriptor))
        // Flushes end in the host's page cache: a disk outlives its machine only in a snapshot, and
        // that is synced as a whole.
        .add(
            "-blockdev",
            format!(
                "driver=raw,node-name=disk,discard=unmap,cache.no-flush=on,cache.direct={direct},file.driver={driver},\
                 file.filename=/dev/fdset/1,file.locking=off,file.discard=unmap,file.cache.no-flush=on,\
                 file.cache.direct={direct}",
                driver = disk.kind.driver(),
                direct = disk.kind.direct(),
            ),
        )
        // What finds no room on the host stops the vCPUs, and is tried again: see `stall`.
        .add("-device", "virtio-blk-device,drive=disk,werror=enospc")
        .add("-netdev", format!("tap,id=net,fd={tap}"))
        // Without status=off the guest's driver waits a second for a carrier.
        .add("-device", format!("virtio-net-device,netdev=net,mac={mac},status=off"))
        .add("-object", "rng-builtin,id=rng")
        .add("-device", "virtio-rng-device,rng=rng")
        .add("-chardev", format!("socket,id=monitor,fd={monitor},server=on,wait=off"))
        .add("-mon", "chardev=monitor,mode=control")
        .add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    match start {
        Start::Boot { kernel, initrd, tsc_khz } => arguments
            .add("-kernel", path_of(*kernel))
            .add("-initrd", path_of(*initrd))
            .add("-append", kernel_command_line(*tsc_khz)),
        Start::Restore { state } => arguments
            // The state was written without the sections that these would make QEMU expect.
            .add("-global", "migration.send-configuration=off")
            .add("-machine", "suppress-vmdesc=on")
            .add("-incoming", format!("fd:{state}")),
    };
    arguments.0
}

/// Opens the file once more, by its inode's permissions alone.
pub fn path_of(descriptor: RawFd) -> String {
    format!("/proc/self/fd/{descriptor}")
}

/// Without the counter's rate the boot sometimes hangs measuring it; address randomisation defeats the
/// translation cache; the rest are devices a microvm does not have and tests nobody reads.
fn kernel_command_line(tsc_khz: u64) -> String {
    format!(
        "console=ttyS0 quiet reboot=t panic=-1 tsc_early_khz={tsc_khz} tsc=reliable no_timer_check nokaslr \
         norandmaps mitigations=off random.trust_cpu=on cryptomgr.notests raid=noautodetect 8250.nr_uarts=1 \
         pci=off init_on_alloc=0 audit=0 lsm= nowatchdog"
    )
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn add(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.extend([name.into(), value.into()]);
        self
    }

    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }
}
