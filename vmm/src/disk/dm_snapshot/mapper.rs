//! The kernel's device-mapper, driven by its own requests.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd as _,
    path::Path,
};

use nix::{errno::Errno, request_code_readwrite};

use super::{
    message::{HEADER_BYTES, Message, Target},
    name::DeviceName,
    table::{SnapshotTable, TARGET},
};
use crate::{
    disk::{loopback::Access, number::DeviceNumber},
    failure::{Doing as _, Failure},
};

const CONTROL: &str = "/dev/mapper/control";
/// No list is longer: a device takes about a hundred bytes, and a host has at most 32767 slots.
const LARGEST_ANSWER: usize = 16 << 20;

const READ_ONLY: u32 = 1 << 0;
const SUSPENDED: u32 = 1 << 1;
const STATUS_TABLE: u32 = 1 << 4;
const BUFFER_FULL: u32 = 1 << 8;

/// Flags for udev's rules, in the upper half of the event number (libdevmapper.h): this is an activation, and the rules
/// shall leave the device alone. What is on it is a guest's, and nothing of the host shall read it.
const UDEV_HANDS_OFF: u32 = 0x004f << 16;

/// Of `enum` in linux/dm-ioctl.h.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Command {
    ListDevices = 2,
    Create = 3,
    Remove = 4,
    /// Or, without the flag of that name, resume.
    Suspend = 6,
    Info = 7,
    LoadTable = 9,
    TableStatus = 12,
    TargetVersion = 17,
}

/// Why nothing can be mapped on this host.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    #[error("the kernel has no device-mapper, or it is not loaded")]
    NoDeviceMapper(#[source] Failure),
    #[error("device-mapper has no target `{TARGET}`")]
    NoTarget(#[source] Failure),
    #[error("there are no loop devices")]
    NoLoopDevices,
}

impl Unavailable {
    /// A command that may help.
    pub fn fix(&self) -> &'static str {
        match self {
            Self::NoDeviceMapper(_) | Self::NoTarget(_) => "modprobe dm-snapshot",
            Self::NoLoopDevices => "modprobe loop",
        }
    }
}

/// A device that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    pub number: DeviceNumber,
    /// Also one that never had a table.
    pub suspended: bool,
}

#[derive(Debug)]
pub struct Mapper(File);

impl Mapper {
    /// Lets the kernel load the target's module if it is not there yet.
    pub fn open() -> Result<Self, Unavailable> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL);
        let control = control.doing(|| format!("opening {CONTROL}")).map_err(Unavailable::NoDeviceMapper)?;
        let mapper = Self(control);
        let asked = mapper.ask(Command::TargetVersion, Message::of(TARGET), "asking for the target");
        asked.map_err(Unavailable::NoTarget)?;
        if !Path::new("/dev/loop-control").exists() {
            return Err(Unavailable::NoLoopDevices);
        }
        Ok(mapper)
    }

    /// Without a table: nothing can be read of it yet.
    pub fn create(&self, name: &DeviceName) -> Result<(), Failure> {
        self.ask(Command::Create, Message::of(name.as_str()), "making the device").map(drop)
    }

    /// Comes into force with the next [`resume`](Self::resume).
    pub fn load(&self, name: &DeviceName, table: &SnapshotTable, access: Access) -> Result<(), Failure> {
        let flags = if access == Access::ReadOnly { READ_ONLY } else { 0 };
        let message = Message::of(name.as_str()).with_flags(flags);
        let message = message.with_target(table.sectors, TARGET, &table.parameters());
        self.ask(Command::LoadTable, message, "loading the table of").map(drop)
    }

    pub fn resume(&self, name: &DeviceName) -> Result<(), Failure> {
        let message = Message::of(name.as_str()).with_event(UDEV_HANDS_OFF);
        self.ask(Command::Suspend, message, "activating").map(drop)
    }

    /// Fails with `EBUSY` while somebody has it open.
    pub fn remove(&self, name: &DeviceName) -> Result<(), Failure> {
        let message = Message::of(name.as_str()).with_event(UDEV_HANDS_OFF);
        self.ask(Command::Remove, message, "removing the device").map(drop)
    }

    /// None if there is no such device.
    pub fn info(&self, name: &DeviceName) -> Result<Option<Info>, Failure> {
        let asked = self.ask(Command::Info, Message::of(name.as_str()), "looking for");
        Ok(if_there(asked)?.map(|answer| Info {
            number: DeviceNumber::from_device(answer.device()),
            suspended: answer.flags() & SUSPENDED != 0,
        }))
    }

    /// The table in force; None if there is no such device, or if it has not one target.
    pub fn table(&self, name: &DeviceName) -> Result<Option<Target>, Failure> {
        self.target(name, STATUS_TABLE)
    }

    /// As [`table`](Self::table), with the status in the place of the parameters.
    pub fn status(&self, name: &DeviceName) -> Result<Option<Target>, Failure> {
        self.target(name, 0)
    }

    fn target(&self, name: &DeviceName, flags: u32) -> Result<Option<Target>, Failure> {
        let message = Message::of(name.as_str()).with_flags(flags);
        let asked = self.ask(Command::TableStatus, message, "asking for the table of");
        Ok(if_there(asked)?.and_then(|answer| answer.target()))
    }

    /// The names of all devices of the host.
    pub fn list(&self) -> Result<Vec<String>, Failure> {
        Ok(self.ask(Command::ListDevices, Message::of(""), "listing mapped devices")?.names())
    }

    /// Again with more room while there is too little for the answer.
    fn ask(&self, command: Command, mut message: Message, doing: &str) -> Result<Message, Failure> {
        let name = message.name();
        let failed = || format!("{doing} {name}").trim_end().to_owned();
        loop {
            let mut answer = message.clone();
            let code = request_code_readwrite!(0xfd, command as u8, HEADER_BYTES);
            // SAFETY: the kernel reads and writes no more bytes than the message says it has, and all of these
            // live through the call.
            let asked = unsafe { libc::ioctl(self.0.as_raw_fd(), code, answer.as_mut_ptr()) };
            Errno::result(asked).doing(failed)?;
            if answer.flags() & BUFFER_FULL == 0 {
                return Ok(answer);
            }
            if message.size() >= LARGEST_ANSWER {
                return Err(Failure::new(failed(), io::Error::from(io::ErrorKind::OutOfMemory)));
            }
            message = message.larger();
        }
    }
}

/// That there is none is an answer.
fn if_there(asked: Result<Message, Failure>) -> Result<Option<Message>, Failure> {
    match asked {
        Ok(answer) => Ok(Some(answer)),
        Err(failure) if failure.source.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_kernels_numbers() {
        // As strace shows DM_VERSION and DM_TABLE_STATUS.
        assert_eq!(request_code_readwrite!(0xfd, 0, HEADER_BYTES), 0xc138_fd00);
        assert_eq!(request_code_readwrite!(0xfd, Command::TableStatus as u8, HEADER_BYTES), 0xc138_fd0c);
    }
}
