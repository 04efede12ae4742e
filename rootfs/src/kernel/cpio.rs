//! Writes cpio archives in the kernel's `newc` format (Documentation/driver-api/early-userspace/buffer-format.rst
//! of Linux). Owner root, time 0, inode numbers by position: the same entries are the same bytes.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const FILE: u32 = 0o100_000;
const TRAILER: &str = "TRAILER!!!";

pub struct Archive<W> {
    out: W,
    written: usize,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, written: 0, entries: 0 }
    }

    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    pub fn character_device(&mut self, name: &str, mode: u32, device: (u32, u32)) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE | mode, device, &[])
    }

    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, FILE | mode, (0, 0), content)
    }

    /// Writes the end mark; the archive is complete only then.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let inode = if name == TRAILER { 0 } else { self.entries };
        self.entries += 1;
        let size = u32::try_from(content.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let (uid, gid, links, time, file_device, check) = (0, 0, 1, 0, (0, 0), 0);
        let fields = [
            inode,
            mode,
            uid,
            gid,
            links,
            time,
            size,
            file_device.0,
            file_device.1,
            device.0,
            device.1,
            name.len() as u32 + 1,
            check,
        ];
        let header: String = fields.iter().map(|field| format!("{field:08x}")).collect();
        self.write(format!("070701{header}{name}\0").as_bytes())?;
        self.pad()?;
        self.write(content)?;
        self.pad()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    /// Headers and contents start at multiples of four.
    fn pad(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(4) - self.written;
        self.write(&[0; 3][..missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev").unwrap();
        archive.character_device("dev/console", 0o600, (5, 1)).unwrap();
        archive.file("init", 0o755, b"hello").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn entries_are_laid_out_as_the_kernel_reads_them() {
        let bytes = sample();
        let first = b"070701\
            00000000000041ed0000000000000000000000010000000000000000\
            0000000000000000000000000000000000000004\
            00000000dev\0\0\0";
        assert_eq!(&bytes[..116], first);
        let text = String::from_utf8_lossy(&bytes);
        let init = text.find("init\0").unwrap();
        assert_eq!(&bytes[init - 110..init - 104], b"070701");
        // After the name, padding to a multiple of four, the content.
        assert_eq!(&bytes[(init + 5).next_multiple_of(4)..][..8], b"hello\0\0\0");
        assert!(text.contains("00000005000000010000000c00000000dev/console\0"));
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_same_entries_are_the_same_bytes() {
        assert_eq!(sample(), sample());
    }
}
