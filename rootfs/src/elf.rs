//! The little of ELF that is needed here: whether a program is static, and what a kernel module says of
//! itself. 64-bit little-endian only, which is every machine Wrenn runs on. Layout: elf(5).

const PT_INTERP: u32 = 3;

/// An ELF file in memory.
pub struct Elf<'a>(&'a [u8]);

impl<'a> Elf<'a> {
    /// None if it is no 64-bit little-endian ELF file.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        bytes.starts_with(b"\x7fELF\x02\x01").then_some(Self(bytes))
    }

    /// Whether it wants a dynamic loader. None if the file is damaged.
    pub fn needs_loader(&self) -> Option<bool> {
        let (start, size, count) = (self.u64(32)?, self.u16(54)?, self.u16(56)?);
        for i in 0..count {
            if self.u32(entry(start, size, i)?)? == PT_INTERP {
                return Some(true);
            }
        }
        Some(false)
    }

    /// A section's content. None if there is no such section or the file is damaged.
    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        let (start, size, count) = (self.u64(40)?, self.u16(58)?, self.u16(60)?);
        let names = self.content(entry(start, size, self.u16(62)?)?)?;
        for i in 0..count {
            let header = entry(start, size, i)?;
            let own_name = names.get(self.u32(header)? as usize..)?;
            if own_name.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0)) {
                return self.content(header);
            }
        }
        None
    }

    /// What a section header points to.
    fn content(&self, header: usize) -> Option<&'a [u8]> {
        let start = usize::try_from(self.u64(header + 24)?).ok()?;
        let size = usize::try_from(self.u64(header + 32)?).ok()?;
        self.0.get(start..start.checked_add(size)?)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(self.array(at)?))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(self.array(at)?))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.array(at)?))
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}

/// Offset of the `i`th entry of a table; `None` where no file can be that long.
fn entry(start: u64, size: u16, i: u16) -> Option<usize> {
    // Bounded far below `usize`, so that adding a field's offset cannot overflow.
    usize::try_from(start)
        .ok()
        .filter(|start| *start < 1 << 40)
        .map(|start| start + usize::from(size) * usize::from(i))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_itself_is_a_dynamic_program_with_sections() {
        let bytes = std::fs::read("/proc/self/exe").unwrap();
        let elf = Elf::parse(&bytes).unwrap();
        assert_eq!(elf.needs_loader(), Some(true));
        assert!(elf.section(".interp").unwrap().starts_with(b"/lib"));
        assert!(elf.section(".inter").is_none());
    }

    #[test]
    fn damaged_files_are_refused_without_a_panic() {
        assert!(Elf::parse(b"#!/bin/sh\n").is_none());
        let whole = std::fs::read("/proc/self/exe").unwrap();
        for length in [6, 40, 63, 64, 1000] {
            let elf = Elf::parse(&whole[..length]).unwrap();
            assert_eq!(elf.section(".interp"), None);
        }
        let mut wild = whole[..64].to_vec();
        wild[32..48].fill(0xff);
        assert_eq!(Elf::parse(&wild).unwrap().needs_loader(), None);
    }
}
