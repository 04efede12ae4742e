//! What device-mapper is told and answers with: linux/dm-ioctl.h.
//!
//! ```text
//! 0     struct dm_ioctl: the header
//! 312   to the kernel, one target: struct dm_target_spec, its parameters, a zero byte
//!       from the kernel, where the header says: the same, or one struct dm_name_list behind the other
//! ```
//! Integers are the machine's own.

/// Length of the header, which is also part of the request's number.
pub const HEADER_BYTES: usize = 312;
/// The oldest interface that has all of what is asked here; the kernel serves any older than its own.
const INTERFACE: [u32; 3] = [4, 0, 0];
/// Enough for one table; lists may want more.
const USUAL_BYTES: usize = 4096;

/// Where the fields of the header are.
mod header {
    pub const VERSION: usize = 0;
    pub const DATA_SIZE: usize = 12;
    pub const DATA_START: usize = 16;
    pub const TARGET_COUNT: usize = 20;
    pub const FLAGS: usize = 28;
    pub const EVENT: usize = 32;
    pub const DEVICE: usize = 40;
    pub const NAME: usize = 48;
    pub const NAME_BYTES: usize = 128;
}

/// And those of `struct dm_target_spec`.
mod spec {
    pub const SECTORS: usize = 8;
    pub const TARGET: usize = 24;
    pub const TARGET_BYTES: usize = 16;
    pub const BYTES: usize = 40;
}

/// And those of `struct dm_name_list`.
mod entry {
    pub const DEVICE: usize = 0;
    pub const NEXT: usize = 8;
    pub const NAME: usize = 12;
}

/// The only target of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub sectors: u64,
    pub kind: String,
    /// Its table's parameters, or its status, whichever was asked for.
    pub text: String,
}

/// A request, and then its answer.
#[derive(Clone, Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// About the device, or whatever else the request is about, of this name.
    pub fn of(name: &str) -> Self {
        let mut message = Self(vec![0; USUAL_BYTES]);
        for (index, number) in INTERFACE.into_iter().enumerate() {
            message.put(header::VERSION + 4 * index, &number.to_ne_bytes());
        }
        message.put(header::DATA_START, &(HEADER_BYTES as u32).to_ne_bytes());
        message.put_size();
        // The last byte stays zero.
        let name = &name.as_bytes()[..name.len().min(header::NAME_BYTES - 1)];
        message.put(header::NAME, name);
        message
    }

    /// The same with twice the room for an answer.
    pub fn larger(&self) -> Self {
        let mut larger = self.clone();
        larger.0.resize(self.0.len() * 2, 0);
        larger.put_size();
        larger
    }

    pub fn with_flags(mut self, flags: u32) -> Self {
        self.put(header::FLAGS, &flags.to_ne_bytes());
        self
    }

    pub fn with_event(mut self, event: u32) -> Self {
        self.put(header::EVENT, &event.to_ne_bytes());
        self
    }

    /// A table of one target. Its parameters are a few words.
    pub fn with_target(mut self, sectors: u64, kind: &str, parameters: &str) -> Self {
        self.put(header::TARGET_COUNT, &1_u32.to_ne_bytes());
        self.put(HEADER_BYTES + spec::SECTORS, &sectors.to_ne_bytes());
        self.put(HEADER_BYTES + spec::TARGET, kind.as_bytes());
        self.put(HEADER_BYTES + spec::BYTES, parameters.as_bytes());
        self
    }

    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    /// How many bytes the kernel may read and write.
    pub fn size(&self) -> usize {
        self.0.len()
    }

    pub fn name(&self) -> String {
        text(self.0.get(header::NAME..header::NAME + header::NAME_BYTES))
    }

    pub fn flags(&self) -> u32 {
        self.u32(header::FLAGS).unwrap_or_default()
    }

    pub fn device(&self) -> u64 {
        self.u64(header::DEVICE).unwrap_or_default()
    }

    /// Of an answer about a table; None if it has not one target.
    pub fn target(&self) -> Option<Target> {
        if self.u32(header::TARGET_COUNT)? != 1 {
            return None;
        }
        let start = self.data_start()?;
        let kind = start + spec::TARGET;
        Some(Target {
            sectors: self.u64(start + spec::SECTORS)?,
            kind: text(self.0.get(kind..kind + spec::TARGET_BYTES)),
            text: text(self.0.get(start + spec::BYTES..)),
        })
    }

    /// Of an answer that lists devices.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut at = self.data_start();
        while let Some(start) = at {
            match self.u64(start + entry::DEVICE) {
                // There are none.
                None | Some(0) => break,
                Some(_) => names.push(text(self.0.get(start + entry::NAME..))),
            }
            let next = self.u32(start + entry::NEXT).filter(|next| *next > 0);
            at = next.map(|next| start + next as usize);
        }
        names
    }

    fn data_start(&self) -> Option<usize> {
        self.u32(header::DATA_START).map(|start| start as usize)
    }

    fn put_size(&mut self) {
        let size = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.put(header::DATA_SIZE, &size.to_ne_bytes());
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.0.get(at..)?.first_chunk()?))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(*self.0.get(at..)?.first_chunk()?))
    }
}

/// Up to the zero byte that ends it.
fn text(bytes: Option<&[u8]>) -> String {
    let bytes = bytes.unwrap_or_default();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// As it stands in the kernel's header file.
    #[repr(C)]
    struct DmIoctl {
        version: [u32; 3],
        data_size: u32,
        data_start: u32,
        target_count: u32,
        open_count: i32,
        flags: u32,
        event_nr: u32,
        padding: u32,
        dev: u64,
        name: [u8; 128],
        uuid: [u8; 129],
        data: [u8; 7],
    }

    #[repr(C)]
    struct DmTargetSpec {
        sector_start: u64,
        length: u64,
        status: i32,
        next: u32,
        target_type: [u8; 16],
    }

    #[repr(C)]
    struct DmNameList {
        dev: u64,
        next: u32,
        name: [u8; 0],
    }

    #[test]
    fn fields_lie_where_the_kernel_has_them() {
        assert_eq!(size_of::<DmIoctl>(), HEADER_BYTES);
        assert_eq!(offset_of!(DmIoctl, version), header::VERSION);
        assert_eq!(offset_of!(DmIoctl, data_size), header::DATA_SIZE);
        assert_eq!(offset_of!(DmIoctl, data_start), header::DATA_START);
        assert_eq!(offset_of!(DmIoctl, target_count), header::TARGET_COUNT);
        assert_eq!(offset_of!(DmIoctl, flags), header::FLAGS);
        assert_eq!(offset_of!(DmIoctl, event_nr), header::EVENT);
        assert_eq!(offset_of!(DmIoctl, dev), header::DEVICE);
        assert_eq!(offset_of!(DmIoctl, name), header::NAME);
        assert_eq!(size_of::<DmTargetSpec>(), spec::BYTES);
        assert_eq!(offset_of!(DmTargetSpec, length), spec::SECTORS);
        assert_eq!(offset_of!(DmTargetSpec, target_type), spec::TARGET);
        assert_eq!(offset_of!(DmNameList, next), entry::NEXT);
        assert_eq!(offset_of!(DmNameList, name), entry::NAME);
    }

    #[test]
    fn a_request_says_what_it_is_about() {
        let message = Message::of("wrenn-a-1").with_flags(16).with_event(5);
        assert_eq!((message.name(), message.flags()), ("wrenn-a-1".to_owned(), 16));
        assert_eq!(message.u32(header::VERSION), Some(4));
        assert_eq!(message.u32(header::DATA_SIZE), Some(USUAL_BYTES as u32));
        let larger = message.larger();
        assert_eq!((larger.size(), larger.name()), (2 * USUAL_BYTES, message.name()));
        assert_eq!(larger.u32(header::DATA_SIZE), Some(2 * USUAL_BYTES as u32));
        assert_eq!(Message::of(&"x".repeat(200)).name().len(), 127);
    }

    #[test]
    fn a_target_is_read_back_as_it_was_put() {
        let message = Message::of("a").with_target(2048, "snapshot", "7:3 7:4 P 8");
        let target = Target { sectors: 2048, kind: "snapshot".to_owned(), text: "7:3 7:4 P 8".to_owned() };
        assert_eq!(message.target(), Some(target));
        assert_eq!(Message::of("a").target(), None, "a device without a table");
    }

    fn listing(entries: &[(u64, &str)]) -> Message {
        let mut message = Message::of("");
        let mut at = HEADER_BYTES;
        for (index, (device, name)) in entries.iter().enumerate() {
            // The kernel puts an event number behind the name, each entry at a multiple of eight.
            let length = (entry::NAME + name.len() + 1 + 4).next_multiple_of(8);
            let next = if index + 1 < entries.len() { length as u32 } else { 0 };
            message.put(at + entry::DEVICE, &device.to_ne_bytes());
            message.put(at + entry::NEXT, &next.to_ne_bytes());
            message.put(at + entry::NAME, name.as_bytes());
            at += length;
        }
        message
    }

    #[test]
    fn a_list_is_followed_to_its_end() {
        let names = ["vg-root", "wrenn-a-1", "x"];
        let entries: Vec<_> = (1..).zip(names).collect();
        assert_eq!(listing(&entries).names(), names);
        assert_eq!(listing(&[]).names(), Vec::<String>::new());
    }

    #[test]
    fn an_answer_that_is_cut_off_is_no_reason_to_panic() {
        let mut message = listing(&[(1, "one")]);
        for start in [HEADER_BYTES as u32, USUAL_BYTES as u32 - 3, USUAL_BYTES as u32, u32::MAX] {
            message.put(header::DATA_START, &start.to_ne_bytes());
            message.put(header::TARGET_COUNT, &1_u32.to_ne_bytes());
            let _whatever = (message.names(), message.target());
        }
    }
}
